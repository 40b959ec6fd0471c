//! `kill -9` at any moment: it restarts, serves, and the next point is exact.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tests::ledger::Window;
use tests::loop_device::LoopDevice;
use tests::protect::How;
use tests::time::{count_from_env, let_pass};
use tests::{Bench, Ledger, Load, Protect, Shape, image};

const DISK: u64 = 64 << 20;

fn kills() -> u64 {
    count_from_env("STANDIN_KILLS", 12)
}

/// Writers that outlive the server, so that the restarted one is under load at once.
fn stubborn(pace_us: u64) -> Shape {
    Shape {
        reconnect: Some(Duration::from_secs(60)),
        pace: Duration::from_micros(pace_us),
        ..Shape::mixed(0..image::sectors(DISK))
    }
}

fn moment(rng: &mut ChaCha8Rng, longest_ms: u64) -> Duration {
    Duration::from_micros(rng.random_range(0..longest_ms * 1000))
}

/// Stops the load, cuts, and holds the point against production and against the ledger.
fn check_quiet(bench: &Bench, how: &How, load: Load, ledger: &Arc<Ledger>) -> Result<()> {
    let protect = Protect::start(bench, how)?;
    load.wait_acked(50)?;
    load.stop()?;
    let (point, window) = protect.cut_beside(ledger)?;
    bench
        .compare(&point, None, &how.disks[0])
        .context("against production")?;
    bench
        .check_point(&point, ledger, window)
        .context("against what was acknowledged")?;
    protect.stop()
}

/// Every point that was ever listed still reads back.
fn verify_all(bench: &Bench) -> Result<usize> {
    let target = bench.target();
    // Hundreds of points, each read whole.
    let mut verify = tests::standin::command(["point", "verify", "--all", "--target", &target]);
    tests::process::run(&mut verify, Duration::from_secs(1200))?;
    Ok(bench.points()?.len())
}

#[test]
fn kill9_under_write_load_with_cuts_and_ships() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]);
    kill9_under_write_load(&bench, how, &ledger, kills())
}

/// The guests' sectors are smaller than the device's: most writes change a part of one, and the process is killed
/// between reading and writing it.
#[test]
fn kill9_past_the_page_cache() -> Result<()> {
    let bench = Bench::new()?;
    let (image, ledger) = bench.stamped_disk("image", DISK)?;
    let device = LoopDevice::attach(&image, 4096)?;
    let disk = bench.path("disk");
    std::os::unix::fs::symlink(device.path(), &disk)?;
    let how = How::new(&bench, &[&disk]).with(&["--direct"]);
    kill9_under_write_load(&bench, how, &ledger, kills() / 2)
}

/// Diffs lie on a block device of their own, without a file system.
#[test]
fn kill9_with_diffs_on_a_bare_device() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let image = bench.path("device");
    image::sparse(&image, 1 << 30)?;
    let device = LoopDevice::attach(&image, 512)?;
    let how = How::new(&bench, &[&disk]).diff_dir(device.path());
    kill9_under_write_load(&bench, how, &ledger, kills() / 2)
}

/// Points go as fast as they come, and what only they needed is collected beside ships and restores.
#[test]
fn kill9_while_garbage_is_collected() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let keep = [
        ["--keep-last", "40"],
        ["--keep-delay", "0"],
        ["--upkeep-every", "300ms"],
        ["--quarantine", "0"],
        ["--upkeep-rate", "off"],
    ];
    let how = How::new(&bench, &[&disk]).with(keep.as_flattened());
    kill9_under_write_load(&bench, how.clone(), &ledger, kills())?;
    let protect = Protect::start(&bench, &how)?;
    tests::time::wait_for("points go", Duration::from_secs(60), || {
        Ok((bench.points()?.len() <= 41).then_some(()))
    })?;
    protect.stop()?;
    let target = bench.target();
    let gc = ["store", "gc", &target, "--thorough", "--quarantine", "0"];
    tests::standin::json(gc)?;
    let again = tests::standin::json(gc)?;
    ensure!(
        again["live_chunks"] == again["chunks"] && again["freed_bytes"] == 0,
        "garbage is left: {again}"
    );
    let scrub = tests::standin::json(["store", "scrub", &target])?;
    ensure!(scrub["whole"] == true, "{scrub}");
    verify_all(&bench)?;
    Ok(())
}

fn kill9_under_write_load(bench: &Bench, how: How, ledger: &Arc<Ledger>, kills: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(bench.seed);
    // Cuts so often that a kill falls into a cut or a ship as often as between them.
    let how = how.every("150ms");
    for kill in 0..kills {
        let protect = Protect::start(bench, &how)?;
        let seed = bench.seed + kill;
        let load = Load::start(&protect.address, "disk", ledger, &stubborn(200), seed);
        load.wait_acked(200)?;
        let_pass(moment(&mut rng, 900));
        protect.kill9()?;
        if rng.random() {
            // Once more, while it restarts.
            let restarting = Protect::spawn(bench, &how)?;
            let_pass(moment(&mut rng, 120));
            restarting.kill9()?;
        }
        check_quiet(bench, &how, load, ledger).with_context(|| format!("after kill {kill}"))?;
    }
    let points = verify_all(bench)?;
    eprintln!(
        "{kills} kills, {} writes, {points} points read back",
        ledger.writes()
    );
    Ok(())
}

#[test]
fn kill9_right_after_a_cut_was_asked_for() -> Result<()> {
    let bench = Bench::new()?;
    let mut rng = ChaCha8Rng::seed_from_u64(bench.seed);
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]);
    Protect::start(&bench, &how)?.stop()?;
    for kill in 0..kills() {
        let protect = Protect::start(&bench, &how)?;
        let seed = bench.seed + 1000 + kill;
        let load = Load::start(&protect.address, "disk", &ledger, &stubborn(200), seed);
        load.wait_acked(300)?;
        let state = bench.state();
        let mut cut = tests::standin::command(["cut", "g", "--state", &state]);
        let cut = tests::process::Beside::start(&mut cut, &bench.path("cut.log"))?;
        let_pass(moment(&mut rng, 60));
        protect.kill9()?;
        drop(cut);
        check_quiet(&bench, &how, load, &ledger).with_context(|| format!("after kill {kill}"))?;
    }
    verify_all(&bench)?;
    Ok(())
}

#[test]
fn kill9_during_the_seed() -> Result<()> {
    for round in 0..kills().div_ceil(4) {
        let bench = Bench::new()?;
        let mut rng = ChaCha8Rng::seed_from_u64(bench.seed + round);
        let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
        let how = How::new(&bench, &[&disk]);
        let mut load = None;
        for kill in 0..4 {
            let protect = Protect::start(&bench, &how)?;
            load.get_or_insert_with(|| {
                let shape = stubborn(2_000);
                Load::start(&protect.address, "disk", &ledger, &shape, bench.seed + kill)
            });
            let_pass(moment(&mut rng, 150));
            protect.kill9()?;
        }
        let load = load.context("four rounds started it")?;
        check_quiet(&bench, &how, load, &ledger).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// What is re-read after a crash is at most what was written since the last cut: in truth only what was
/// in flight, since diff and dirty map survive the process. Never the disk.
#[test]
fn kill9_rereads_what_was_in_flight_and_not_the_disk() -> Result<()> {
    let bench = Bench::new()?;
    let big = 320 << 20;
    let (disk, ledger) = bench.empty_disk("disk", big)?;
    let how = How::new(&bench, &[&disk]);
    let mut protect = Protect::start(&bench, &how)?;
    protect.cut()?;
    let mut figures = Vec::new();
    for kill in 0..6 {
        // Long requests, many at once: a kill finds some of them half way.
        let shape = Shape {
            depth: 16,
            longest: 512,
            pace: Duration::ZERO,
            reconnect: Some(Duration::from_secs(60)),
            ..Shape::mixed(0..image::sectors(big))
        };
        let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed + kill);
        load.wait_acked(300)?;
        let written = protect.status()?["dirty_bytes"]
            .as_u64()
            .context("dirty_bytes")?;
        protect.kill9()?;
        let acked = load.stop()?;
        protect = Protect::start(&bench, &how)?;
        let (point, window) = protect.cut_beside(&ledger)?;
        let reread = reread_bytes(&protect)?;
        bench.check_point(&point, &ledger, window)?;
        figures.push((acked, written, reread));
        // Four connections, sixteen requests of at most 256 KiB each, whole granules.
        let in_flight = 4 * 16 * ((512 * 512) + 2 * 4096);
        ensure!(
            reread <= in_flight,
            "{reread} bytes re-read, {in_flight} could be in flight"
        );
        ensure!(
            reread < big / 16,
            "{reread} bytes re-read of a disk of {big}"
        );
    }
    eprintln!(
        "(requests acknowledged, dirty bytes before the kill, bytes re-read after): {figures:?}"
    );
    ensure!(
        figures.iter().any(|(.., reread)| *reread > 0),
        "no kill found a write half way"
    );
    protect.stop()
}

/// Bytes re-read from production since this process started.
fn reread_bytes(protect: &Protect) -> Result<u64> {
    let status = protect.status()?;
    status["reread_bytes"]
        .as_u64()
        .with_context(|| format!("no reread_bytes in {status}"))
}

#[test]
fn kill9_leaves_the_newest_point_the_newest() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", 8 << 20)?;
    let how = How::new(&bench, &[&disk]);
    let protect = Protect::start(&bench, &how)?;
    let shape = Shape::mixed(0..image::sectors(8 << 20));
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed);
    load.wait_acked(500)?;
    load.stop()?;
    let before = protect.cut()?;
    protect.kill9()?;
    let restarted = Protect::start(&bench, &how)?;
    ensure!(
        restarted.status()?["point"] == before.as_str(),
        "the listed point is still newest"
    );
    restarted.stop()?;
    bench.check_point(&before, &ledger, Window::ANY)
}
