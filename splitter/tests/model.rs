//! The splitter against a list of images: whatever happens, the image that the next cut describes
//! is production at the cut, byte for byte.
//!
//! A history is a seed: random writes, zeroes, trims, cuts, releases and folds on a simulated
//! disk, with kills and power cuts at any operation (torn, lost, reordered; in recovery, too), clean
//! stops, and diffs, maps, logs or production that fail for a while.

mod common;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use block::{GRANULE, index};
use common::{Bench, Image};
use rand::RngExt;
use splitter::{CutError, How};

/// Histories of a run; `STANDIN_HISTORIES` asks for more.
const HISTORIES: u64 = 200;

/// Of so many histories, one has its diffs on a bare device.
const DEVICE_EVERY: u64 = 8;

#[test]
fn every_cut_is_production_whatever_happened() {
    let first = sim::seed_from_env(1);
    let asked = std::env::var("STANDIN_HISTORIES").ok();
    let count = asked.map_or(HISTORIES, |n| n.parse().unwrap());
    let mut recoveries = 0;
    let mut relearned = 0;
    for seed in first..first + count {
        match std::panic::catch_unwind(|| history(seed)) {
            Ok([at_open, in_between]) => {
                recoveries += at_open;
                relearned += in_between;
            }
            Err(_) => panic!(
                "history {}; replay with STANDIN_SEED={seed}",
                seed - first + 1
            ),
        }
    }
    eprintln!(
        "{count} histories, {recoveries} recoveries from the intent log, {relearned} without a stop"
    );
    assert!(count < 50 || recoveries > count / 2, "{recoveries}");
    assert!(count < 50 || relearned > count / 4, "{relearned}");
}

/// Returns how often tracking went on from the intent log, at an open and in between.
fn history(seed: u64) -> [u64; 2] {
    let sizes = [100 * 4096 + 512, 24 * 4096];
    let mut bench = match seed % DEVICE_EVERY {
        0 => Bench::bare(seed, &sizes),
        _ => Bench::new(seed, &sizes),
    };
    bench.rough = true;
    for _ in 0..6 {
        let steps = bench.rng.random_range(1..120);
        let crash = bench.rng.random_bool(0.7);
        bench.will_crash |= crash;
        if crash {
            let after = bench.rng.random_range(1..400);
            bench.world.crash_after(after);
        }
        for _ in 0..steps {
            step(&mut bench, seed);
            if bench.world.crashed() {
                break;
            }
        }
        end(&mut bench, seed);
    }
    bench.world.set_fault(None);
    bench.group().resume_copies();
    bench.cut_and_check(seed);
    [bench.recoveries, bench.relearned]
}

fn step(bench: &mut Bench, seed: u64) {
    let roll = bench.rng.random_range(0..100);
    if roll > 69 {
        common::trace(|| format!("step {roll}"));
    }
    match roll {
        0..=59 => bench.write(),
        60..=69 => bench.zero(),
        70..=74 => bench.trim(),
        75..=82 => bench.cut_and_check(seed),
        83 => bench.group().frame_writer().write(Duration::ZERO),
        84 if bench.rng.random_bool(0.5) => bench.toggle_copies(),
        84 => drop(bench.group().tend_logs()),
        85..=86 => bench.flush(),
        87..=89 => bench.tend_intent_log(),
        90..=91 => bench.release(),
        92..=93 => bench.coalesce(),
        94..=95 => bench.fold(),
        96 => bench.toggle_fault(),
        97 if bench.rng.random_bool(0.3) => bench.relearn(),
        97 => bench.toggle_fault(),
        _ => bench.heal(),
    }
}

/// Ends the process in some way, and starts the next one.
fn end(bench: &mut Bench, seed: u64) {
    let crashed = bench.world.crashed();
    common::trace(|| format!("end, crashed {crashed}"));
    match bench.rng.random_range(0..10) {
        0..=5 => bench.restart_after_kill(seed),
        6..=7 => bench.restart_after_power_cut(seed),
        8 if !crashed => bench.restart_after_clean_close(seed, false),
        9 if !crashed => bench.restart_after_clean_close(seed, true),
        _ => bench.restart_after_kill(seed),
    }
}

#[test]
fn a_kill_costs_a_reread_of_what_was_in_flight_only() {
    let mut bench = Bench::new(5, &[16384 * 4096]);
    for _ in 0..2000 {
        bench.write();
    }
    let dirty = bench.group().figures().dirty_bytes;
    bench.world.crash_after(2);
    for _ in 0..3 {
        bench.write();
    }
    let how = bench.restart(bench.world.kill(), "boot-1");
    let How::Resumed { stale_bytes } = how else {
        panic!("{how:?}")
    };
    // What five frames may have staged, and what was in flight.
    let limit = (5 * 84 + 16) << 12;
    assert!(dirty > 4 * limit, "{dirty} bytes say little");
    assert!(
        stale_bytes <= limit,
        "{stale_bytes} of {dirty} dirty bytes are read again"
    );
    bench.cut_and_check(5);
}

#[test]
fn a_power_cut_costs_a_reread_of_the_regions_that_were_written() {
    let mut bench = Bench::new(6, &[4096 * 4096]);
    bench.write();
    bench.write();
    bench.restart_after_power_cut(6);
    let stale = bench.group().disks()[0].stale_bytes();
    assert!(
        (1..=1 << 20).contains(&stale),
        "{stale} bytes of 16 MiB are read again"
    );
    bench.cut_and_check(6);
}

/// The log of a lineage does not grow for ever: what was shipped long ago leaves it.
#[test]
fn regions_that_were_shipped_and_flushed_leave_the_log() {
    let mut bench = Bench::new(16, &[4096 * 4096]);
    for _ in 0..50 {
        bench.write();
    }
    for _ in 0..6 {
        bench.tend_intent_log();
        bench.cut_and_check(16);
        bench.release();
    }
    bench.restart_after_power_cut(16);
    assert_eq!(bench.group().disks()[0].stale_bytes(), 0);
    bench.write();
    bench.cut_and_check(16);
}

#[test]
fn a_full_diff_directory_fails_the_cut_and_never_the_guest() {
    let mut bench = Bench::new(7, &[64 * 4096]);
    bench.cut_and_check(7);
    let full = |n: &str| n.ends_with(".diff").then_some(io::ErrorKind::StorageFull);
    bench.world.set_fault(Some(Arc::new(full)));
    for _ in 0..50 {
        bench.write();
    }
    let error = bench.group().cut(Default::default()).unwrap_err();
    assert!(
        matches!(error, CutError::Degraded { .. } | CutError::Io { .. }),
        "{error}"
    );
    bench.world.set_fault(None);
    bench.cut_and_check(7);
}

#[test]
fn a_full_map_gives_up_the_lineage_and_never_the_guest() {
    let mut bench = Bench::new(8, &[64 * 4096]);
    bench.world.set_fault(Some(Arc::new(|n: &str| {
        n.ends_with(".map").then_some(io::ErrorKind::StorageFull)
    })));
    bench.write();
    bench.world.set_fault(None);
    let error = bench.group().cut(Default::default()).unwrap_err();
    assert!(matches!(error, CutError::Distrusted), "{error}");
    let before = bench.group().lineage();
    bench.restart_tracking();
    assert_ne!(bench.group().lineage(), before);
    bench.write();
    bench.cut_and_check(8);
}

#[test]
fn a_disk_written_from_outside_is_noticed() {
    let mut bench = Bench::new(9, &[64 * 4096]);
    bench.write();
    bench.touch_from_outside();
    let how = bench.restart(bench.world.kill(), "boot-1");
    let How::Distrusted { why } = how else {
        panic!("{how:?}")
    };
    assert!(why.contains("changed while it was not protected"), "{why}");
}

#[test]
fn two_processes_cannot_track_one_group() {
    let bench = Bench::new(10, &[64 * 4096]);
    let error = bench.open_again().map(|_| ()).unwrap_err();
    assert!(
        matches!(error, splitter::OpenError::InUse { .. }),
        "{error}"
    );
}

#[test]
fn a_truncated_sealed_diff_is_named_and_its_granules_come_with_the_next_cut() {
    let mut bench = Bench::new(11, &[64 * 4096]);
    bench.write();
    bench.cut_and_check(11);
    bench.write();
    let base: Vec<Image> = bench.newest_images();
    let cut = bench.group().cut(Default::default()).unwrap();
    bench.truncate_diff(cut.generation);
    let sealed = bench.group().sealed();
    let error = sealed.last().unwrap().disks[0]
        .reader()
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    bench.group().fold_from(sealed.last().unwrap()).unwrap();
    bench.set_newest_images(base);
    bench.write();
    bench.cut_and_check(11);
}

/// A write to the diff file succeeds once it is in the page cache. Where the disk below then failed
/// to take it, the cache let go of it, and the sealed diff read back zeroes: a wrong point, listed.
#[test]
fn bytes_that_never_reached_the_disk_are_not_trusted() {
    let mut bench = Bench::new(12, &[64 * 4096]);
    let base = bench.production();
    bench.write();
    bench.group().cut(Default::default()).unwrap();
    let sealed = bench.group().sealed();
    let reader = sealed[0].disks[0].reader().unwrap();
    let run = reader.runs().next().unwrap();
    // The first granule behind the header of the first frame.
    bench.overwrite_diff(sealed[0].generation, 4096, &[0; 4096]);
    let mut bytes = vec![0; index(run.granules.count() * GRANULE)];
    let error = reader.read(run.granules, &mut bytes).unwrap_err();
    assert!(
        error.to_string().contains("is not what was written"),
        "{error}"
    );
    drop(reader);
    // A header: the diff cannot even be opened.
    bench.overwrite_diff(sealed[0].generation, 64, &[0; 64]);
    let error = sealed[0].disks[0].reader().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("has lost its header"), "{error}");
    // The open generation's copies are made again; and again where it is told that it lost some.
    bench.group().fold_from(&sealed[0]).unwrap();
    assert_eq!(bench.group().heal().unwrap(), 4096 * count_of(&sealed[0]));
    bench.write();
    let lost = |n: &str| n.ends_with(".diff").then_some(io::ErrorKind::Other);
    bench.world.set_writeback_fault(Some(Arc::new(lost)));
    bench.check_next(&base, "after it was told of lost bytes");
}

fn count_of(sealed: &splitter::SealedGeneration) -> u64 {
    sealed.dirty_bytes() / 4096
}

#[test]
fn a_map_that_never_reached_the_disk_gives_up_the_lineage() {
    let mut bench = Bench::new(13, &[64 * 4096]);
    bench.write();
    let lost = |n: &str| n.ends_with(".map").then_some(io::ErrorKind::Other);
    bench.world.set_writeback_fault(Some(Arc::new(lost)));
    let error = bench.group().cut(Default::default()).unwrap_err();
    assert!(matches!(error, CutError::Distrusted), "{error}");
}

/// A full directory kept a distrusted group from opening at all, because the new lineage's files
/// were made before the old one's were removed: no guest could be served.
#[test]
fn what_a_lost_lineage_left_does_not_keep_the_next_one_from_beginning() {
    let mut bench = Bench::new(14, &[64 * 4096]);
    bench.write();
    bench.cut_and_check(14);
    let before = bench.diff_names();
    assert!(before.len() > 2);
    let state = bench.world.dir().subdir("state").unwrap();
    state.remove("tracking").unwrap();
    let how = bench.restart(bench.world.kill(), "boot-1");
    assert_eq!(how, How::Fresh);
    assert_eq!(bench.diff_names().len(), 2, "one map and one diff");
}

/// The second restart marked the first lineage lost, not the one whose diffs took the writes: a
/// kill then went on with a lineage that had missed some, and the point was wrong.
#[test]
fn a_restart_after_one_that_failed_half_way_trusts_neither() {
    for op in 1..60 {
        let mut bench = Bench::new(op, &[64 * 4096]);
        bench.world.set_fault(Some(fail_once_after(op)));
        let first = bench.group().restart_tracking("first");
        let first_lineage = bench.group().lineage();
        bench.write();
        bench.world.set_fault(None);
        bench.world.crash_after(op % 17 + 1);
        let second = bench.group().restart_tracking("second");
        if first.is_err() && second.is_err() {
            let how = bench.restart(bench.world.kill(), "boot-1");
            let trusted = matches!(how, How::Resumed { .. } | How::Recovered { .. });
            // The second one may have been complete but for its debris.
            assert!(
                !trusted || bench.group().lineage() != first_lineage,
                "operation {op}: {how:?}"
            );
        }
    }
}

/// Fails exactly the operation number `nth` from here.
fn fail_once_after(nth: u64) -> sim::Fault {
    let count = std::sync::atomic::AtomicU64::new(0);
    Arc::new(move |name: &str| {
        if name.contains("production") {
            return None;
        }
        let now = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        (now == nth).then_some(io::ErrorKind::StorageFull)
    })
}

/// Numbers begin again with a new lineage: a release of the old one's generation, held by a ship
/// that was under way, dropped the new one's diff before any target had it.
#[test]
fn a_release_of_an_old_lineage_drops_nothing_of_the_new_one() {
    let mut bench = Bench::new(15, &[64 * 4096]);
    bench.write();
    bench.cut_and_check(15);
    let old = bench.group().sealed().pop().unwrap();
    bench.restart_tracking();
    bench.write();
    bench.cut_and_check(15);
    bench.group().release(&old).unwrap();
    bench.group().fold_from(&old).unwrap();
    let kept = bench.group().sealed();
    assert_eq!(kept.len(), 1);
    assert_ne!(kept[0].lineage, old.lineage);
    assert!(kept[0].disks[0].reader().is_ok());
}
