//! The harness against a server that is not ours: what it believes must be true there as well.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tests::ledger::Window;
use tests::nbd::{Address, Client};
use tests::process::{Beside, command};
use tests::time::wait_for;
use tests::{Bench, Load, Shape, image};

/// `qemu-nbd` over the disk at `path`.
fn qemu_nbd(bench: &Bench, path: &std::path::Path) -> Result<(Beside, Address)> {
    let address = Address::Unix(bench.path("qemu.sock"));
    let mut server = command("qemu-nbd");
    server.args([
        "--format=raw",
        "--shared=8",
        "--persistent",
        "--export-name=disk",
    ]);
    server
        .arg("--discard=unmap")
        .arg("--socket")
        .arg(bench.path("qemu.sock"))
        .arg(path);
    let server = Beside::start(&mut server, &bench.path("qemu.log"))?;
    wait_for("qemu-nbd", Duration::from_secs(20), || {
        Ok(Client::connect(&address, "disk").ok().map(drop))
    })?;
    Ok((server, address))
}

#[test]
fn harness_finds_a_foreign_server_exact() -> Result<()> {
    let bench = Bench::new()?;
    let (path, ledger) = bench.stamped_disk("disk", 8 << 20)?;
    let (_server, address) = qemu_nbd(&bench, &path)?;
    let shape = Shape {
        pace: Duration::ZERO,
        ..Shape::mixed(0..2048)
    };
    let load = Load::start(&address, "disk", &ledger, &shape, bench.seed);
    load.wait_acked(5_000)?;
    load.stop()?;
    Client::connect(&address, "disk")?.flush()?;
    let now = ledger.tick();
    ledger.check(
        &*std::fs::read(&path)?,
        None,
        Window {
            asked: now,
            answered: now,
        },
    )
}

#[test]
fn harness_notices_a_lost_write() -> Result<()> {
    let bench = Bench::new()?;
    let (path, ledger) = bench.stamped_disk("disk", 1 << 20)?;
    let (_server, address) = qemu_nbd(&bench, &path)?;
    let before = std::fs::read(&path)?;
    let shape = Shape {
        zero_percent: 0,
        trim_percent: 0,
        ..Shape::mixed(0..256)
    };
    let load = Load::start(&address, "disk", &Arc::clone(&ledger), &shape, bench.seed);
    load.wait_acked(400)?;
    load.stop()?;
    Client::connect(&address, "disk")?.flush()?;
    let mut lossy = std::fs::read(&path)?;
    let lost = (0..256)
        .map(|sector| sector * 512)
        .find(|at| lossy[*at..at + 512] != before[*at..at + 512]);
    let lost = lost.expect("400 writes changed something");
    lossy[lost..lost + 512].copy_from_slice(&before[lost..lost + 512]);
    let now = ledger.tick();
    assert!(
        ledger
            .check(
                &*lossy,
                None,
                Window {
                    asked: now,
                    answered: now
                }
            )
            .is_err()
    );
    assert_eq!(image::sectors(1 << 20), 2048);
    Ok(())
}
