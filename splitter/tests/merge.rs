//! Merges of sealed generations that are interrupted, or that lost what they were to move.

mod common;

use common::Bench;
use splitter::{CutNote, Generation};

fn two_sealed(seed: u64) -> Bench {
    let mut bench = Bench::new(seed, &[64 * 4096]);
    for _ in 0..2 {
        for _ in 0..12 {
            bench.write();
        }
        bench.cut_and_check(seed);
    }
    bench
}

/// What the later cut builds on would be asked of the target for nothing: it would seem to be missing, and
/// the disks would be copied anew.
#[test]
fn a_merged_cut_builds_on_what_the_older_one_built_on_also_after_a_kill() {
    let mut bench = two_sealed(1);
    let since = bench.group().sealed()[0].since;
    bench.group().coalesce().unwrap().unwrap();
    bench.restart(bench.world.kill(), "boot-1");
    let sealed = bench.group().sealed();
    assert_eq!(sealed.len(), 1);
    assert_eq!(
        (sealed[0].since, sealed[0].generation),
        (since, Generation(2))
    );
    bench.check_sealed(1);
}

/// The older diff's loss was told, and forgotten when both became one entry: bytes that were not there any
/// more were moved to the later one.
#[test]
fn a_merge_that_was_killed_does_not_go_on_with_lost_bytes() {
    for op in 1..60 {
        let mut bench = two_sealed(op);
        bench.rough = true;
        bench.world.crash_after(op);
        let _ = bench.group().coalesce();
        if !bench.world.crashed() {
            return;
        }
        let world = bench.world.kill();
        bench.writeback_failed = true;
        world.fail_writeback(
            |name| name.contains(".1.") && name.ends_with(".diff"),
            false,
        );
        bench.restart(world, "boot-1");
        bench.world.crash_after(u64::MAX >> 1);
        bench.check_sealed(op);
        bench.group().cut(CutNote::default()).unwrap();
    }
    panic!("a merge of so many operations");
}

/// A cut that is killed before its diffs are complete holds, of a granule that was written twice, the older bytes.
/// Merged into the next cut they would have been a wrong point.
#[test]
fn a_cut_that_was_killed_before_it_was_complete_is_not_merged() {
    for op in 1..60 {
        let mut bench = Bench::new(op, &[64 * 4096]);
        bench.rough = true;
        bench.fill(0..32, 1);
        bench.fill(3..4, 2);
        bench.world.crash_after(op);
        let cut = bench.group().cut(CutNote::default());
        if !bench.world.crashed() {
            assert!(cut.is_ok() && op > 3, "{op}: {cut:?}");
            return;
        }
        bench.restart(bench.world.kill(), "boot-1");
        bench.world.crash_after(u64::MAX >> 1);
        bench.check_sealed(op);
        bench.fill(8..9, 3);
        bench.cut_and_check(op);
        let _ = bench.group().coalesce();
        bench.check_sealed(op);
    }
    panic!("a cut of so many operations");
}

/// Somebody cut `before=upgrade` while the target was away for some seconds. Cuts piled up, that one was merged into a later
/// one, and the point before the upgrade was never listed.
#[test]
fn a_cut_with_a_label_is_merged_away_last() {
    let mut bench = Bench::new(3, &[64 * 4096]);
    for generation in 1..=4 {
        // The one with the label moves least.
        for _ in 0..if generation == 2 { 1 } else { 12 } {
            bench.write();
        }
        let mut note = CutNote::default();
        if generation == 2 {
            note.labels.insert("before".into(), "upgrade".into());
        }
        bench.group().cut(note).unwrap();
    }
    let left = |bench: &Bench| -> Vec<Generation> {
        let sealed = bench.group().sealed();
        sealed.iter().map(|sealed| sealed.generation).collect()
    };
    for _ in 0..2 {
        bench.group().coalesce().unwrap().unwrap();
        assert!(left(&bench).contains(&Generation(2)), "{:?}", left(&bench));
    }
    bench.group().coalesce().unwrap().unwrap();
    assert_eq!(left(&bench), [Generation(4)]);
}
