//! Guests that write from several threads at once, while cuts go on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use block::{BlockDevice, ByteRange, Fua, ZeroOptions};
use common::checked::lay_over;
use common::{Bench, Image};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use splitter::{CutError, CutNote, Group};

const THREADS: usize = 4;
const DISKS: usize = 4;
const ROUNDS: u64 = 150;
const SIZE: u64 = 96 * 4096 + 512;

/// Every sealed diff, laid over the cut before it; what the target would have.
fn ship_all(group: &Group, images: &mut Vec<Image>) {
    for sealed in group.sealed() {
        *images = lay_over(images, &sealed);
        group.release(&sealed).unwrap();
    }
}

#[test]
fn overlapping_writes_reach_production_and_diff_in_one_order() {
    let seed = sim::seed_from_env(3);
    let bench = Bench::new(seed, &[SIZE]);
    let mut images = bench.production();
    let disk = Arc::clone(&bench.group().disks()[0]);
    // Many short rounds: what one write leaves wrong, a later one to the same granules would mend.
    for round in 0..ROUNDS {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS as u64)
                .map(|at| {
                    let disk = Arc::clone(&disk);
                    scope.spawn(move || overlap(&*disk, seed + round * 100 + at))
                })
                .collect();
            let stop = StopOnDrop(&done);
            scope.spawn(|| bring_frames(bench.group(), &done));
            while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
                cut(bench.group());
                ship_all(bench.group(), &mut images);
            }
            drop(stop);
        });
        cut(bench.group());
        ship_all(bench.group(), &mut images);
        assert!(images == bench.production(), "seed {seed}, round {round}");
    }
}

/// While the maps are given up, writes are noted in the intent log alone.
#[test]
fn what_is_written_while_the_log_is_gone_back_to_is_in_the_next_cut() {
    let seed = sim::seed_from_env(5);
    let bench = Bench::new(seed, &[SIZE; 2]);
    let mut images = bench.production();
    for round in 0..ROUNDS {
        // Regions leave the log: each first write brings one back, some of them at the wrong moment.
        for _ in 0..6 {
            bench.clock.advance(Duration::from_secs(31));
            bench.group().tend_intent_log().unwrap();
            cut(bench.group());
            ship_all(bench.group(), &mut images);
        }
        thread::scope(|scope| {
            for at in 0..THREADS {
                let disk = Arc::clone(&bench.group().disks()[at % 2]);
                scope.spawn(move || overlap(&*disk, seed + round * 100 + at as u64));
            }
            // Once: another time would read again what the first one overlooked.
            while let Err(error) = bench.group().relearn("the test says so") {
                assert!(matches!(error, CutError::InFlight { .. }), "{error}");
            }
        });
        cut(bench.group());
        ship_all(bench.group(), &mut images);
        assert!(images == bench.production(), "seed {seed}, round {round}");
    }
}

fn overlap(disk: &dyn BlockDevice, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..120 {
        let sector = rng.random_range(0..SIZE / 512);
        let count = rng.random_range(1..=20).min(SIZE / 512 - sector);
        let range = ByteRange::at(sector * 512, count * 512).unwrap();
        match rng.random_range(0..10) {
            0 => disk.write_zeroes(range, ZeroOptions::RELAXED).unwrap(),
            1 => disk.trim(range, Fua::No).unwrap(),
            _ => {
                let data = vec![rng.random(); usize::try_from(range.len()).unwrap()];
                disk.write_at(&data, range.start(), Fua::No).unwrap();
            }
        }
    }
}

/// Each thread counts: the same number to disk 0, then 1, 2, 3, each after the other's answer. In
/// every cut the numbers of a thread never increase from one disk to the next, and differ by one
/// at most. The cells of all threads share granules.
#[test]
fn a_cut_of_a_group_is_one_instant() {
    let bench = Bench::new(sim::seed_from_env(4), &[SIZE; DISKS]);
    let mut images = bench.production();
    let stop = AtomicBool::new(false);
    for thread in 0..THREADS {
        bench
            .group()
            .disks()
            .iter()
            .for_each(|disk| put(&**disk, thread, 0));
    }
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (disks, stop) = (bench.group().disks(), &stop);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    disks.iter().for_each(|disk| put(&**disk, thread, number));
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| bring_frames(bench.group(), &stop));
        for _ in 0..500 {
            cut(bench.group());
            ship_all(bench.group(), &mut images);
            (0..THREADS).for_each(|thread| check(&images, thread));
        }
    });
}

/// What the agent's threads do beside the guests. Two of them: who begins a log anew waits for guests who wait for
/// frames.
fn bring_frames(group: &Group, stop: &AtomicBool) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let writer = group.frame_writer();
            while !stop.load(Ordering::Relaxed) {
                writer.write(Duration::from_millis(1));
            }
        });
        while !stop.load(Ordering::Relaxed) {
            group.tend_logs().unwrap();
            thread::park_timeout(Duration::from_millis(1));
        }
    });
}

/// On a busy machine a write may take longer than a cut waits.
fn cut(group: &Group) {
    let mut made = group.cut(CutNote::default()).map(drop);
    while let Err(CutError::Busy { .. }) = made {
        made = group.end_cut(Duration::from_secs(1)).map(drop);
    }
    made.unwrap();
}

/// Ends the writers even where a check fails: a failed test must not hang.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const CELL: usize = 512;

fn put(disk: &dyn BlockDevice, thread: usize, number: u64) {
    let cell: Vec<u8> = number.to_le_bytes().repeat(CELL / 8);
    disk.write_at(&cell, (thread * CELL) as u64 + 4096 * 7, Fua::No)
        .unwrap();
}

fn check(images: &[Image], thread: usize) {
    let start = thread * CELL + 4096 * 7;
    let number = |image: &Image| {
        let words = image[start..start + CELL].chunks_exact(8);
        let words: Vec<u64> = words
            .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
            .collect();
        assert!(words.iter().all(|word| *word == words[0]), "a torn cell");
        words[0]
    };
    let numbers: Vec<u64> = images.iter().map(number).collect();
    assert!(numbers.is_sorted_by(|a, b| a >= b), "{numbers:?}");
    assert!(numbers[0] - numbers[DISKS - 1] <= 1, "{numbers:?}");
}
