//! A tracked disk is a disk like any other, and so is the simulated one below it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use block::BlockDevice;
use common::Bench;
use sim::{SimDisk, SimWorld};

#[test]
fn a_tracked_disk_keeps_the_contract() {
    block::conformance::check(|| {
        let bench = Bench::new(1, &[(1 << 20) + 512]);
        (
            Arc::clone(&bench.group().disks()[0]) as Arc<dyn BlockDevice>,
            bench,
        )
    });
}

#[test]
fn a_simulated_disk_keeps_the_contract() {
    block::conformance::check(|| {
        let world = SimWorld::new(1);
        let file = world.dir().create("disk").unwrap();
        file.set_len((1 << 20) + 512).unwrap();
        (
            Arc::new(SimDisk::new(file).unwrap()) as Arc<dyn BlockDevice>,
            world,
        )
    });
}

/// What an export shows as `qemu:dirty-bitmap` covers what was asked, without a gap, and is the
/// open generation only.
#[test]
fn the_dirty_bitmap_shows_the_open_generation() {
    use block::{ByteRange, DirtyBitmap, Fua};
    let bench = Bench::new(2, &[1 << 20]);
    let disk = &bench.group().disks()[0];
    disk.write_at(&[1; 512], 8192, Fua::No).unwrap();
    disk.write_at(&[1; 8192], 65536, Fua::No).unwrap();
    let all = ByteRange::new(512, 1 << 20).unwrap();
    let shown: Vec<_> = disk.dirty_status(all, usize::MAX).unwrap();
    let plain: Vec<_> = shown
        .iter()
        .map(|e| (e.range.start(), e.range.end(), e.dirty))
        .collect();
    let expected = [
        (512, 8192, false),
        (8192, 12288, true),
        (12288, 65536, false),
        (65536, 73728, true),
        (73728, 1 << 20, false),
    ];
    assert_eq!(plain, expected);
    assert_eq!(disk.dirty_status(all, 2).unwrap().len(), 2);
    bench.group().cut(splitter::CutNote::default()).unwrap();
    let shown = disk.dirty_status(all, usize::MAX).unwrap();
    assert!(shown.iter().all(|extent| !extent.dirty), "{shown:?}");
}
