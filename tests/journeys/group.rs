//! The disks of a group are cut at one instant.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::nbd::{Address, Client};
use tests::protect::How;
use tests::served::Served;
use tests::time::{count_from_env, elapsed, let_pass};
use tests::{Bench, Load, Protect, Shape};

const DISKS: usize = 4;
const SIZE: u64 = 8 << 20;
/// Where the counter lies; the background load writes beyond.
const COUNTER: u64 = 64 * 1024;

fn name(disk: usize) -> String {
    format!("disk{disk}")
}

/// Writes the same counter to disk 0, then 1, then 2, then 3, each after the other's
/// acknowledgement, until told to stop; the last value.
fn count(address: &Address, stop: &AtomicBool) -> Result<u64> {
    let clients = (0..DISKS).map(|disk| Client::connect(address, &name(disk)));
    let mut clients = clients.collect::<std::io::Result<Vec<_>>>()?;
    let mut counter = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        counter += 1;
        for client in &mut clients {
            client.write(COUNTER, &counter.to_le_bytes().repeat(64))?;
        }
    }
    Ok(counter)
}

/// The counters that a point holds, in the order they were written.
fn counters(served: &Served) -> Result<Vec<u64>> {
    let read = |disk| -> Result<u64> {
        let bytes = Client::connect(&served.address, &name(disk))?.read(COUNTER, 512)?;
        Ok(u64::from_le_bytes(bytes[..8].try_into()?))
    };
    (0..DISKS).map(read).collect()
}

#[test]
fn group_counters_never_increase_from_one_disk_to_the_next() -> Result<()> {
    let cuts = count_from_env("STANDIN_GROUP_CUTS", 150);
    let bench = Bench::new()?;
    let mut disks: Vec<PathBuf> = Vec::new();
    let mut ledgers = Vec::new();
    for disk in 0..DISKS {
        let (path, ledger) = bench.empty_disk(&name(disk), SIZE)?;
        disks.push(path);
        ledgers.push(ledger);
    }
    let disks: Vec<_> = disks.iter().map(PathBuf::as_path).collect();
    let protect = Protect::start(&bench, &How::new(&bench, &disks))?;
    protect.cut()?;

    let stop = Arc::new(AtomicBool::new(false));
    let (address, told) = (protect.address.clone(), Arc::clone(&stop));
    let counting = std::thread::spawn(move || count(&address, &told));
    let shape = Shape {
        connections: 1,
        depth: 4,
        longest: 64,
        pace: Duration::from_millis(1),
        ..Shape::mixed(256..tests::image::sectors(SIZE))
    };
    let loads: Vec<_> = (0..DISKS)
        .map(|disk| {
            let seed = bench.seed + disk as u64;
            Load::start(&protect.address, &name(disk), &ledgers[disk], &shape, seed)
        })
        .collect();
    let began = elapsed();
    for _ in 0..cuts {
        let said = protect.cut_only()?;
        ensure!(
            said.status.success(),
            "a cut failed: {}{}",
            said.out,
            said.err
        );
        let_pass(Duration::from_millis(5));
    }
    let took = elapsed() - began;
    for load in loads {
        load.stop()?;
    }
    stop.store(true, Ordering::Relaxed);
    let last = counting
        .join()
        .expect("it returns its errors")
        .context("the counter failed")?;
    protect.cut()?;

    let points = bench.points()?;
    ensure!(
        points.len() as u64 > cuts,
        "{} points of {cuts} cuts",
        points.len()
    );
    let (mut distinct, mut uneven) = (0, 0);
    let mut before = 0;
    for point in &points {
        let id = point["id"].as_str().context("a point has an id")?;
        let counters = counters(&Served::start(&bench, id, &[])?)?;
        ensure!(counters.is_sorted_by(|a, b| a >= b), "{id}: {counters:?}");
        ensure!(counters[0] - counters[DISKS - 1] <= 1, "{id}: {counters:?}");
        ensure!(
            counters[0] >= before,
            "{id} is older than its elder: {counters:?} < {before}"
        );
        distinct += u64::from(counters[0] > before);
        uneven += u64::from(counters[0] != counters[DISKS - 1]);
        before = counters[0];
    }
    ensure!(
        before == last,
        "the last point holds {before}, written was {last}"
    );
    eprintln!(
        "{cuts} cuts in {took:?}, counter to {last}; {distinct} points show progress, {uneven} fell \
         between two disks"
    );
    // A claim that is never tried proves nothing.
    ensure!(
        distinct * 2 > cuts,
        "the counter hardly moved between the cuts"
    );
    ensure!(uneven > 0, "no cut fell between two disks");
    let target = bench.target();
    tests::standin::run(["point", "verify", "g@latest", "--target", &target])?;
    for (disk, ledger) in ledgers.iter().enumerate() {
        ensure!(ledger.writes() > 0);
        bench.compare("g@latest", Some(&name(disk)), disks[disk])?;
    }
    protect.stop()
}
