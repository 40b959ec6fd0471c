//! Tracking that begins anew while guests write.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{Arc, Mutex};

use block::{BlockDevice, Fua};
use common::watched::Watched;
use common::{Bench, in_world};
use sim::{SimDisk, SimWorld};
use splitter::{DiskSpec, Group, How, Surroundings};

const SIZE: u64 = 4 << 20;

type Event = Box<dyn FnOnce() + Send>;

fn open(
    world: &SimWorld,
    boot: &str,
    disk: &Arc<Watched>,
    around: &Surroundings,
) -> (Arc<Group>, How) {
    let around = Surroundings {
        boot: boot.into(),
        ..in_world(world, around.clone())
    };
    // As a block device has none: what changed it must be known without.
    let spec = DiskSpec {
        name: "d".parse().unwrap(),
        production: Arc::clone(disk) as Arc<dyn BlockDevice>,
        identity: "d".into(),
        stamp: None,
    };
    let (group, opened) = Group::open("g".parse().unwrap(), vec![spec], around).unwrap();
    (Arc::new(group), opened.how)
}

/// A write between the swap and the record of the new lineage is in the log of the new one alone. Who finds the record
/// of the old one after a power cut, and goes on from its log, misses it.
#[test]
fn a_power_cut_while_tracking_begins_anew_leaves_no_log_that_misses_a_write() {
    for seed in 0..40 {
        let production = SimWorld::new(seed);
        let file = production.dir().create("d").unwrap();
        file.set_len(SIZE).unwrap();
        let mut disk = Watched::new(Arc::new(SimDisk::new(file).unwrap()));
        let event: Arc<Mutex<Option<Event>>> = Arc::default();
        let on_flush = Arc::clone(&event);
        disk.before_flush = Box::new(move || {
            let event = on_flush.lock().unwrap().take();
            if let Some(event) = event {
                event();
            }
        });
        let disk = Arc::new(disk);
        let bench = Bench::new(seed, &[]);
        let around = bench.around();
        let (group, how) = open(&bench.world, "one", &disk, &around);
        assert_eq!(how, How::Fresh);
        group.disks()[0].write_at(&[1; 4096], 0, Fua::No).unwrap();
        let (writer, dies) = (Arc::clone(&group), bench.world.clone());
        *event.lock().unwrap() = Some(Box::new(move || {
            let cold = SIZE - 4096;
            writer.disks()[0]
                .write_at(&[2; 4096], cold, Fua::No)
                .unwrap();
            dies.crash_after(0);
        }));
        group.restart_tracking("the test says so").unwrap_err();
        let (_, how) = open(&bench.world.cut_power(), "two", &disk, &around);
        // The disks are copied anew.
        assert!(
            matches!(how, How::Fresh | How::Distrusted { .. }),
            "seed {seed}: {how:?}"
        );
    }
}
