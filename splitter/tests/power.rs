//! Stories of power cuts that came out of a review: what must not be believed afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, Fua};
use common::Bench;
use common::checked::lay_over;
use splitter::{CutError, CutNote, How};

const SIZE: u64 = 720 * 4096;

fn fault(on: &'static [&'static str]) -> Option<sim::Fault> {
    let hit = |name: &str| on.iter().any(|part| name.contains(part));
    Some(Arc::new(move |name: &str| {
        hit(name).then_some(io::ErrorKind::Other)
    }))
}

/// A group with a point of its first writes, and a region that nobody has written.
fn bench(seed: u64) -> Bench {
    let mut bench = Bench::new(seed, &[SIZE]);
    bench.write();
    bench.cut_and_check(seed);
    bench.release();
    bench
}

fn write_far_away(bench: &Bench, fua: Fua) -> block::Result<()> {
    bench.group().disks()[0].write_at(&[0xEE; 4096], 700 * 4096, fua)
}

/// Only the time since the machine started was asked: a disk that was run without us after the crash,
/// and before the machine was started once more, was believed to be as we left it.
#[test]
fn a_disk_changed_between_a_crash_and_the_next_boot_is_distrusted() {
    for power in [false, true] {
        let mut bench = bench(21);
        let world = match power {
            true => bench.cut_power(),
            false => bench.world.kill(),
        };
        bench.die(world);
        bench.touch_from_outside();
        bench.reboot();
        let world = bench.world.kill();
        let how = bench.restart(world, "boot-3");
        assert!(
            matches!(how, How::Distrusted { .. }),
            "power {power}: {how:?}"
        );
    }
}

/// An idle guest never came to know that the log was broken, and every cut failed for ever.
#[test]
fn a_log_that_breaks_outside_of_a_write_lets_tracking_restart() {
    let mut bench = bench(22);
    bench.clock.advance(Duration::from_secs(31));
    bench.group().tend_intent_log().unwrap();
    bench.cut_and_check(22);
    bench.release();
    bench.world.set_fault(fault(&["intent."]));
    bench.group().tend_intent_log().unwrap_err();
    bench.world.set_fault(None);
    let error = bench.group().cut(Default::default()).unwrap_err();
    assert!(matches!(error, CutError::Distrusted), "{error}");
    bench.restart_tracking();
    bench.write();
    bench.cut_and_check(22);
}

/// The second header was written over the first and only one: torn, it cost a copy of the disks.
#[test]
fn a_torn_header_costs_a_reread_and_no_copy() {
    for seed in 0..60 {
        for op in 1..4 {
            let mut bench = bench(seed);
            bench.clock.advance(Duration::from_secs(31));
            bench.group().tend_intent_log().unwrap();
            bench.cut_and_check(seed);
            bench.release();
            let base = bench.newest_images();
            bench.world.crash_after(op);
            let _ = bench.group().tend_intent_log();
            let world = bench.cut_power();
            let how = bench.restart(world, "boot-2");
            assert!(matches!(how, How::Recovered { .. }), "seed {seed}: {how:?}");
            bench.check_next(&base, &format!("seed {seed}, operation {op}"));
        }
    }
}

/// The bit was in the page cache only, since its sync had failed; the next process synced again, which
/// succeeds without writing it, and believed it.
#[test]
fn bits_whose_sync_failed_are_written_again_before_they_are_believed() {
    for seed in 0..80 {
        let mut bench = bench(seed);
        let base = bench.newest_images();
        bench.world.set_fault(fault(&["sync intent."]));
        bench.world.crash_after(1 + seed % 4);
        let _ = write_far_away(&bench, Fua::No);
        let world = bench.world.kill();
        if !matches!(bench.restart(world, "boot-1"), How::Resumed { .. }) {
            continue;
        }
        write_far_away(&bench, Fua::Yes).unwrap();
        let world = bench.cut_power();
        let how = bench.restart(world, "boot-2");
        assert!(matches!(how, How::Recovered { .. }), "{how:?}");
        bench.check_next(&base, &format!("seed {seed}"));
    }
}

/// A failed flush is told once. The next process flushed again, was told that all is well, and took
/// the region out of the log.
#[test]
fn a_failed_flush_of_production_is_remembered_until_the_power_is_cut() {
    let mut bench = bench(31);
    write_far_away(&bench, Fua::No).unwrap();
    bench.world.set_fault(fault(&["sync production"]));
    bench.group().disks()[0].flush().unwrap_err();
    bench.world.set_fault(None);
    let world = bench.world.kill();
    let how = bench.restart(world, "boot-1");
    assert!(matches!(how, How::Resumed { .. }), "{how:?}");
    for _ in 0..4 {
        bench.clock.advance(Duration::from_secs(31));
        bench.group().tend_intent_log().unwrap();
        bench.cut_and_check(31);
        bench.release();
    }
    let world = bench.cut_power();
    let how = bench.restart(world, "boot-2");
    assert!(matches!(how, How::Distrusted { .. }), "{how:?}");
    // Forgotten with the copy that this costs.
    let world = bench.cut_power();
    let how = bench.restart(world, "boot-3");
    assert!(matches!(how, How::Recovered { .. }), "{how:?}");
}

/// A power cut brought back the files of a generation that had been released, in part; who was then
/// killed between recovering and cleaning up believed it.
#[test]
fn released_generations_do_not_rise_from_the_dead() {
    let mut interrupted = 0;
    for seed in 0..100 {
        for op in 1..40 {
            let mut bench = Bench::new(seed, &[64 * 4096]);
            bench.write();
            bench.cut_and_check(seed);
            bench.release();
            bench.clock.advance(Duration::from_secs(31));
            bench.group().tend_intent_log().unwrap();
            bench.write();
            bench.cut_and_check(seed);
            bench.release();
            bench.group().tend_intent_log().unwrap();
            let base = bench.newest_images();
            let world = bench.cut_power();
            bench.die(world);
            bench.reboot();
            bench.world.crash_after(op);
            if bench.open_again().is_ok() {
                break;
            }
            let world = bench.world.kill();
            bench.die(world);
            let (group, opened) = bench.open_again().unwrap();
            assert!(opened.sealed.is_empty(), "seed {seed}: {opened:?}");
            group.cut(Default::default()).unwrap();
            let sealed = group.sealed().pop().unwrap();
            assert!(
                lay_over(&base, &sealed) == bench.production(),
                "seed {seed}"
            );
            interrupted += 1;
        }
    }
    assert!(interrupted > 500, "{interrupted}");
}

/// A damaged map is recovered from by the log; whoever is killed while it does so recovers again, and
/// does not believe the map that is half made.
#[test]
fn a_recovery_that_is_killed_is_begun_again() {
    let mut interrupted = 0;
    for op in 1..60 {
        let mut bench = bench(op);
        let base = bench.newest_images();
        for _ in 0..5 {
            bench.write();
        }
        let world = bench.world.kill();
        bench.die(world);
        bench.damage_maps();
        bench.world.crash_after(op);
        if bench.open_again().is_ok() {
            break;
        }
        let world = bench.world.kill();
        let how = bench.restart(world, "boot-1");
        // The record may be gone by then, or the very files that a new lineage begins with.
        if matches!(how, How::Resumed { .. } | How::Recovered { .. }) {
            bench.check_next(&base, &format!("operation {op}: {how:?}"));
            interrupted += 1;
        }
    }
    assert!(interrupted > 8, "{interrupted}");
}

/// Neither the log nor the record could be written: the state directory had become read-only. The
/// time of the disk's last change tells.
#[test]
fn writes_that_nobody_could_note_are_told_by_the_disks_time() {
    let mut bench = bench(23);
    bench.world.set_fault(fault(&["intent.", "tracking"]));
    bench.clock.advance(Duration::from_secs(300));
    write_far_away(&bench, Fua::Yes).unwrap();
    bench.note_time_of_change();
    let world = bench.cut_power();
    bench.die(world);
    bench.reboot();
    let world = bench.world.kill();
    let how = bench.restart(world, "boot-3");
    assert!(matches!(how, How::Distrusted { .. }), "{how:?}");
}

/// The kernel had forgotten that it could not write the live state back, and the first process that found that
/// was killed before it had removed the record. It had brought the old words into the page cache: the next one
/// found them there, took that for a good sign, and went on in a generation that had been sealed.
#[test]
fn a_live_state_that_was_forgotten_is_not_believed_by_the_second_who_looks() {
    for op in 1..60 {
        let mut bench = Bench::new(op, &[64 * 4096]);
        bench.fill(0..3, 1);
        bench.group().cut(CutNote::default()).unwrap();
        bench.fill(1..9, 2);
        let before = bench.group().lineage();
        let world = bench.world.kill();
        bench.die(world);
        bench
            .world
            .fail_writeback(|name| name.contains("live."), true);
        bench.world.crash_after(op);
        let first = bench.open_again();
        if !bench.world.crashed() {
            assert!(matches!(first.unwrap().1.how, How::Distrusted { .. }));
            return;
        }
        drop(first);
        let how = bench.restart(bench.world.kill(), "boot-1");
        // The new lineage may have been complete but for its debris.
        assert!(before != bench.group().lineage(), "operation {op}: {how:?}");
    }
    panic!("an open of so many operations");
}
