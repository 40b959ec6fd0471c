//! What guests write just before a cut is in memory only when the generation is sealed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use block::{BlockDevice, File, Fua, index};
use common::checked::lay_over;
use common::eventful::Eventful;
use common::{Bench, Image, in_world};
use sim::{SimDisk, SimWorld};
use splitter::{CutNote, DiskSpec, Group, Surroundings};

const SIZE: u64 = 64 * 4096;

fn open(world: &SimWorld, around: Surroundings) -> Group {
    let around = in_world(world, around);
    let production = SimDisk::new(file(world)).unwrap();
    let spec = DiskSpec {
        name: "d".parse().unwrap(),
        production: Arc::new(production),
        identity: "d".into(),
        stamp: None,
    };
    Group::open("g".parse().unwrap(), vec![spec], around)
        .unwrap()
        .0
}

fn file(world: &SimWorld) -> Arc<dyn File> {
    world.dir().open("production").unwrap()
}

fn production(world: &SimWorld) -> Image {
    let mut bytes = vec![0; index(SIZE)];
    file(world).read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn write(group_disk: &dyn BlockDevice, byte: u8) {
    group_disk.write_at(&[byte; 4096], 8192, Fua::No).unwrap();
}

/// Killed when a generation was sealed and what its guests wrote last was in memory only, the cut would have been
/// taken for complete: with the bytes of an earlier write to the same block, which is in a frame. Killed
/// at every operation of the cut.
#[test]
fn a_cut_that_was_killed_before_it_had_all_its_bytes_is_no_point() {
    let mut sealed_and_lacking = 0;
    for operation in 0..60 {
        let bench = Bench::new(7, &[]);
        let world = SimWorld::new(operation);
        world.dir().create("production").unwrap();
        file(&world).set_len(SIZE).unwrap();
        let clock = Arc::new(Eventful::default());
        let around = Surroundings {
            clock: clock.clone(),
            ..bench.around()
        };
        let group = open(&world, around.clone());
        let mut target = production(&world);
        let disk = Arc::clone(&group.disks()[0]);
        // Its frame is written by the cut, before it looks at the clock.
        write(&*disk, 1);
        let dies = world.clone();
        clock.at_look(1, move || {
            write(&*disk, 2);
            dies.crash_after(operation);
        });
        let cut = group.cut(CutNote::default());
        drop(group);
        let world = world.kill();
        let group = open(&world, around);
        for sealed in group.sealed() {
            if sealed.is_unfinished() {
                sealed_and_lacking += 1;
                assert!(cut.is_err(), "a cut that was answered is complete");
                group.fold_from(&sealed).unwrap();
                break;
            }
            target = lay_over(&[target], &sealed).remove(0);
            group.release(&sealed).unwrap();
        }
        group.cut(CutNote::default()).unwrap();
        for sealed in group.sealed() {
            target = lay_over(&[target], &sealed).remove(0);
        }
        assert!(target == production(&world), "killed at {operation}");
    }
    assert!(sealed_and_lacking > 0, "no kill met the moment");
}
