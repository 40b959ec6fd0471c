//! Every point is one instant, whatever four connections were doing to the disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tests::ledger::Window;
use tests::process;
use tests::protect::How;
use tests::time::count_from_env;
use tests::{Bench, Ledger, Load, Protect, Shape};

const DISK: u64 = 24 << 20;

/// Overlapping requests within a hot zone, and as many spread over the whole disk.
fn loads(protect: &Protect, ledger: &Arc<Ledger>, seed: u64) -> [Load; 2] {
    let hot = Shape::mixed(4096..6144);
    let wide = Shape {
        connections: 2,
        longest: 300,
        ..Shape::mixed(0..tests::image::sectors(DISK))
    };
    [(hot, 1), (wide, 2)]
        .map(|(shape, n)| Load::start(&protect.address, "disk", ledger, &shape, seed + n))
}

#[test]
fn exact_points_under_overlapping_unaligned_zeroing_trimming_writes() -> Result<()> {
    let cuts = count_from_env("STANDIN_EXACT_CUTS", 12);
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    let loads = loads(&protect, &ledger, bench.seed);
    let mut points = Vec::new();
    for _ in 0..cuts {
        for load in &loads {
            load.wait_acked(200)?;
        }
        points.push(protect.cut_beside(&ledger)?);
    }
    for load in loads {
        load.stop()?;
    }
    let quiet = protect.cut_beside(&ledger)?;
    bench.compare(&quiet.0, None, &disk)?;
    points.push(quiet);
    eprintln!("{} writes, {} points", ledger.writes(), points.len());
    for (point, window) in &points {
        bench.check_point(point, &ledger, *window)?;
    }
    protect.stop()
}

#[test]
fn exact_points_of_a_schedule_and_of_the_last_cut_at_the_end() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]).every("300ms"))?;
    protect.wait_point(Duration::from_secs(60))?;
    let loads = loads(&protect, &ledger, bench.seed);
    for _ in 0..10 {
        for load in &loads {
            load.wait_acked(300)?;
        }
    }
    for load in loads {
        load.stop()?;
    }
    let asked = ledger.tick();
    // SIGTERM cuts and ships a last time: the newest point holds everything.
    protect.stop()?;
    let points = bench.points()?;
    assert!(points.len() > 3, "a schedule makes points: {points:?}");
    for point in &points {
        let id = point["id"].as_str().expect("a point has an id");
        bench.check_point(id, &ledger, Window::ANY)?;
    }
    let last = Window {
        asked,
        answered: ledger.tick(),
    };
    bench.check_point("g@latest", &ledger, last)?;
    bench.compare("g@latest", None, &disk)
}

/// The same claim through code that is not ours.
#[test]
fn exact_after_a_quiet_cut_says_qemu_img_compare() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.empty_disk("disk", DISK)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    let uri = protect.address.uri("disk");
    let compare = |live: &str, format: &str, restored: &str| {
        let line = format!("qemu-img compare -f raw -F {format} '{live}' '{restored}'");
        process::sh(bench.dir(), &line, Duration::from_secs(60)).map(drop)
    };
    for round in 0..3 {
        let load = Load::start(
            &protect.address,
            "disk",
            &ledger,
            &Shape::mixed(0..40_000),
            round,
        );
        load.wait_acked(500)?;
        load.stop()?;
        let point = protect.cut()?;
        compare(
            &uri,
            "raw",
            &bench.restore(&point, None)?.display().to_string(),
        )?;
        let (target, output) = (bench.target(), bench.text(&format!("restored{round}.vmdk")));
        let vmdk = ["restore", &point, "--target", &target, "--output", &output];
        tests::standin::run(vmdk.into_iter().chain(["--format", "vmdk"]))?;
        compare(&uri, "vmdk", &output)?;
    }
    protect.stop()?;
    // QEMU opens no file that we have locked; now it is free.
    compare(
        &bench.text("disk.raw"),
        "raw",
        &bench.restore("g@latest", None)?.display().to_string(),
    )
}
