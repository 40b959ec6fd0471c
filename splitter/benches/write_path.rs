//! What tracking costs a guest's write, and how long a cut takes to change generations.
//!
//! `cargo bench -p splitter` runs the same random writes on the raw file and on the same file
//! tracked, in turn, in `$TMPDIR`, and prints both and the ratio; then cuts under full load.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints and may panic"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use block::{Access, BlockDevice, Clock, Fua, OsDir, SystemClock};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use splitter::{CutNote, DiskSpec, Group, Surroundings};

const SIZE: u64 = 1 << 30;
const WRITES: u64 = 60_000;
const ROUNDS: usize = 5;

fn main() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    let production = block::open_production(&path, Access::ReadWrite)
        .unwrap()
        .device;
    let group = open(temp.path(), vec![Arc::clone(&production)]);
    let tracked: Arc<dyn BlockDevice> = group.disks()[0].clone();
    fill(&*production);
    for threads in [1, 2] {
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let raw = iops(&production, threads, round as u64);
            let ours = iops(&tracked, threads, round as u64);
            group.cut(CutNote::default()).unwrap();
            release(&group);
            ratios.push(ours / raw);
            println!(
                "{threads} thread(s): raw {raw:9.0}/s  tracked {ours:9.0}/s  {:.2}",
                ours / raw
            );
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{threads} thread(s): 4 KiB random writes, median ratio {:.2}",
            ratios[ROUNDS / 2]
        );
    }
    drop(group);
    for disks in [1, 16] {
        cut_pauses(temp.path(), disks);
    }
}

/// Allocated from the start, so that both sides meet the same file system.
fn fill(disk: &dyn BlockDevice) {
    let data = vec![0x5a; 1 << 20];
    (0..SIZE >> 20).for_each(|mib| disk.write_at(&data, mib << 20, Fua::No).unwrap());
}

fn iops(disk: &Arc<dyn BlockDevice>, threads: u64, seed: u64) -> f64 {
    let clock = SystemClock::new();
    let start = clock.monotonic();
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(seed << 8 | thread);
                let data = [thread.to_le_bytes()[0]; 4096];
                for _ in 0..WRITES / threads {
                    let at = rng.random_range(0..SIZE / 4096) * 4096;
                    disk.write_at(&data, at, Fua::No).unwrap();
                }
            });
        }
    });
    WRITES as f64 / (clock.monotonic() - start).as_secs_f64()
}

fn cut_pauses(temp: &Path, count: usize) {
    let disks = (0..count).map(|at| {
        let path = temp.join(format!("group{count}-{at}.raw"));
        std::fs::File::create(&path)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        block::open_production(&path, Access::ReadWrite)
            .unwrap()
            .device
    });
    let group = open(&temp.join(format!("group{count}")), disks.collect());
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut pauses = Vec::new();
    thread::scope(|scope| {
        for thread in 0..2u64 {
            let (stop, written, disks) = (&stop, &written, group.disks());
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(thread);
                while !stop.load(Ordering::Relaxed) {
                    let disk = &disks[rng.random_range(0..disks.len())];
                    let at = rng.random_range(0..disk.size() / 4096) * 4096;
                    disk.write_at(&[1; 4096], at, Fua::No).unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..200 {
            let before = written.load(Ordering::Relaxed);
            while written.load(Ordering::Relaxed) < before + 500 {
                thread::yield_now();
            }
            pauses.push(group.cut(CutNote::default()).unwrap().pause);
            release(&group);
        }
        stop.store(true, Ordering::Relaxed);
    });
    pauses.sort();
    let us = |pause: &Duration| pause.as_micros();
    let (median, p99, max) = (us(&pauses[100]), us(&pauses[198]), us(&pauses[199]));
    println!(
        "cut of {count} disk(s) under load: pause median {median} us, p99 {p99} us, max {max} us"
    );
}

fn release(group: &Group) {
    let sealed = group.sealed();
    group.release(sealed.last().unwrap()).unwrap();
}

fn open(dir: &Path, disks: Vec<Arc<dyn BlockDevice>>) -> Group {
    let around = Surroundings {
        state: Arc::new(OsDir::create_all(dir.join("state")).unwrap()),
        maps: Arc::new(OsDir::create_all(dir.join("maps")).unwrap()),
        diffs: Arc::new(OsDir::create_all(dir.join("diffs")).unwrap()),
        clock: Arc::new(SystemClock::new()),
        boot: "bench".into(),
        booted_at: block::UnixNanos(0),
        random: Arc::new(|| [7; 16]),
    };
    let spec = |(at, production)| DiskSpec {
        name: format!("disk{at}").parse().unwrap(),
        production,
        identity: format!("{at}"),
        stamp: None,
    };
    let specs = disks.into_iter().enumerate().map(spec).collect();
    Group::open("bench".parse().unwrap(), specs, around)
        .unwrap()
        .0
}
