//! Cuts that are made, and wait to be listed: a write that began before them takes long.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use block::{BlockDevice, ErrorKind, Fua, Op, index};
use common::checked::lay_over;
use common::eventful::Eventful;
use common::watched::Watched;
use common::{Bench, in_world};
use sim::{SimDisk, SimWorld};
use splitter::{CutError, CutNote, DiskSpec, Generation, Group, Surroundings};

const SIZE: u64 = 96 * 4096 + 512;
/// For a write that has ended: enough on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Until a test fails rather than hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// A group whose disk `slow` hangs in each write until it is told how that ends.
struct Slow {
    group: Group,
    /// Of the group's files; production is elsewhere.
    world: SimWorld,
    around: Surroundings,
    entered: Mutex<mpsc::Receiver<()>>,
    release: mpsc::Sender<bool>,
    production: [Arc<dyn BlockDevice>; 2],
}

impl Slow {
    fn new(seed: u64) -> Self {
        Self::with(seed, |around| around)
    }

    fn with(seed: u64, change: impl FnOnce(Surroundings) -> Surroundings) -> Self {
        let world = SimWorld::new(seed);
        let make = |name: &str| {
            let file = world.dir().create(name).unwrap();
            file.set_len(SIZE).unwrap();
            SimDisk::new(file).unwrap()
        };
        let (enter, entered) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let hanging = hanging(make("slow"), enter, Mutex::new(released));
        let production: [Arc<dyn BlockDevice>; 2] = [Arc::new(make("fine")), Arc::new(hanging)];
        let bench = Bench::new(seed, &[]);
        let around = change(bench.around());
        Self {
            group: open(&production, around.clone()),
            world: bench.world,
            around,
            entered: Mutex::new(entered),
            release,
            production,
        }
    }

    fn write(&self, disk: usize, byte: u8) -> block::Result<()> {
        self.group.disks()[disk].write_at(&[byte; 4096], 8192, Fua::No)
    }

    /// Waits until a write hangs.
    fn enters(&self) {
        let entered = self.entered.lock().unwrap();
        entered.recv_timeout(LIMIT).unwrap();
    }

    /// Cuts while a write to the slow disk hangs: the cut is made, and waits to be listed.
    fn cut_while_it_hangs(&self) {
        self.enters();
        let error = self.group.cut(CutNote::default()).unwrap_err();
        assert!(
            matches!(&error, CutError::Busy { disk, .. } if disk.as_str() == "slow"),
            "{error}"
        );
    }

    /// A cut is made while a write to the slow disk hangs, which `succeeds` after what happens `meanwhile`.
    fn cut_through_a_write(&self, succeeds: bool, meanwhile: impl FnOnce()) {
        thread::scope(|scope| {
            let write = scope.spawn(|| self.write(1, 1));
            self.cut_while_it_hangs();
            meanwhile();
            self.release.send(succeeds).unwrap();
            assert_eq!(write.join().unwrap().is_ok(), succeeds);
        });
    }

    /// A cut that waits, and lacks what was written to the slow disk: copies were paused meanwhile.
    fn cut_that_lacks_bytes(&self) {
        self.cut_through_a_write(true, || {
            self.group.pause_copies();
            let error = self.group.give_up_ending().unwrap_err();
            assert!(matches!(error, CutError::Busy { .. }), "{error}");
        });
    }

    fn history(&self) -> Vec<([u8; 2], u64)> {
        history(&self.group)
    }

    fn production(&self) -> [u8; 2] {
        [0, 1].map(|disk| {
            let mut byte = [0];
            self.production[disk].read_at(&mut byte, 8192).unwrap();
            byte[0]
        })
    }
}

fn open(production: &[Arc<dyn BlockDevice>], around: Surroundings) -> Group {
    let spec = |(name, production): (&str, &Arc<dyn BlockDevice>)| DiskSpec {
        name: name.parse().unwrap(),
        production: Arc::clone(production),
        identity: name.to_owned(),
        stamp: None,
    };
    let specs = ["fine", "slow"].into_iter().zip(production).map(spec);
    Group::open("g".parse().unwrap(), specs.collect(), around)
        .unwrap()
        .0
}

/// What the next process finds in `world`.
fn open_in(
    world: &SimWorld,
    boot: &str,
    production: &[Arc<dyn BlockDevice>],
    around: Surroundings,
) -> Group {
    let boot = boot.into();
    open(
        production,
        Surroundings {
            boot,
            ..in_world(world, around)
        },
    )
}

/// Byte 8192 of both disks after each sealed generation, with its dirty bytes.
fn history(group: &Group) -> Vec<([u8; 2], u64)> {
    let mut images = vec![vec![0; index(SIZE)]; 2];
    let sealed = group.sealed();
    let history = sealed.iter().map(|sealed| {
        images = lay_over(&images, sealed);
        ([images[0][8192], images[1][8192]], sealed.dirty_bytes())
    });
    history.collect()
}

/// A cut waited for a write in flight with the gates of the other disks closed: one production
/// device that hung would have stopped the guests of every disk of the group. What is written meanwhile is of the
/// next cut.
#[test]
fn a_hanging_disk_delays_the_cut_and_holds_up_no_other_disk() {
    let slow = Slow::new(5);
    slow.cut_through_a_write(true, || {
        slow.write(0, 2).unwrap();
        // Neither is lost, nor made twice.
        slow.group.cut(CutNote::default()).unwrap_err();
        slow.group.end_cut(Duration::ZERO).unwrap_err();
        assert!(slow.group.ending().is_some() && slow.group.sealed().is_empty());
    });
    slow.group.end_cut(PATIENCE).unwrap().expect("it waited");
    let next = slow.group.cut(CutNote::default()).unwrap();
    assert_eq!(slow.history(), [([0, 1], 4096), ([2, 1], 4096)]);
    assert_eq!(next.generation, slow.group.sealed()[1].generation);
}

/// What a write leaves uncopied that ends after the cut is read from production, which is what it was then.
#[test]
fn a_write_that_fails_after_the_cut_it_began_before_is_in_that_cut_as_production_has_it() {
    let slow = Slow::new(7);
    slow.cut_through_a_write(false, || ());
    assert_eq!(slow.group.disks()[1].stale_bytes(), 0);
    slow.group.end_cut(PATIENCE).unwrap().expect("it waited");
    slow.group.cut(CutNote::default()).unwrap();
    // It was written all the same.
    assert_eq!(slow.production(), [0, 1]);
    assert_eq!(slow.history(), [([0, 1], 4096), ([0, 1], 0)]);
}

/// Where it was written over by then nobody knows what it was: that cut is lost, and the next is exact.
#[test]
fn a_write_that_fails_and_is_written_over_costs_the_cut_and_not_the_next() {
    let slow = Slow::new(8);
    slow.cut_through_a_write(false, || ());
    thread::scope(|scope| {
        let over = scope.spawn(|| slow.write(1, 3));
        slow.enters();
        slow.release.send(true).unwrap();
        over.join().unwrap().unwrap();
    });
    let error = slow.group.end_cut(PATIENCE).unwrap_err();
    assert!(matches!(error, CutError::Overwritten { .. }), "{error}");
    slow.group.cut(CutNote::default()).unwrap();
    assert_eq!(slow.history(), [([0, 3], 4096)]);
}

/// A write that began before the cut is in no generation, once its lineage is given up, but in the log.
#[test]
fn going_back_to_the_log_waits_for_the_writes_of_a_cut_that_waits() {
    let slow = Slow::new(9);
    slow.cut_through_a_write(true, || {
        let error = slow.group.relearn("the test says so").unwrap_err();
        assert!(
            matches!(error, CutError::InFlight { .. }) && !error.waits(),
            "{error}"
        );
    });
    slow.group.relearn("the test says so").unwrap();
    slow.group.cut(CutNote::default()).unwrap();
    let [(last, _)] = slow.history()[..] else {
        panic!("the cut that waited is lost with its lineage");
    };
    assert_eq!(last, slow.production());
}

/// A write that cannot be marked may come after the flip: whatever the cut that waits would read from production
/// to be complete may then be of later.
#[test]
fn a_write_that_could_not_be_marked_costs_the_cut_that_waits() {
    let slow = Slow::new(10);
    slow.cut_through_a_write(false, || {
        // The first write to that disk: its mark takes a page.
        slow.world.set_fault(Some(Arc::new(|name: &str| {
            name.ends_with(".map").then_some(io::ErrorKind::StorageFull)
        })));
        slow.write(0, 2).unwrap();
        slow.world.set_fault(None);
    });
    let error = slow.group.end_cut(PATIENCE).unwrap_err();
    assert!(matches!(error, CutError::Distrusted), "{error}");
    assert!(slow.group.sealed().is_empty() && slow.group.ending().is_none());
    slow.group.relearn("the test says so").unwrap();
    slow.group.cut(CutNote::default()).unwrap();
    let [(last, _)] = slow.history()[..] else {
        panic!("no more than the next cut");
    };
    assert_eq!(last, [2, 1]);
}

/// The process ends while a cut waits, with writes under way on both sides of it.
#[test]
fn a_process_that_ends_while_a_cut_waits_leaves_what_makes_the_next_cut_exact() {
    for power in [false, true] {
        let slow = Slow::new(11);
        let world = thread::scope(|scope| {
            let older = scope.spawn(|| slow.write(1, 1));
            slow.cut_while_it_hangs();
            slow.write(0, 2).unwrap();
            let newer = scope.spawn(|| slow.group.disks()[1].write_at(&[3; 4096], 0, Fua::No));
            slow.enters();
            let world = match power {
                false => slow.world.kill(),
                true => slow.world.cut_power(),
            };
            // In production both were done; nobody heard of it.
            for write in [older, newer] {
                slow.release.send(true).unwrap();
                let _ = write.join().unwrap();
            }
            world
        });
        let boot = match power {
            false => &slow.around.boot,
            true => "another",
        };
        let group = open_in(&world, boot, &slow.production, slow.around.clone());
        let sealed = group.sealed();
        assert!(sealed.iter().all(|sealed| sealed.is_unfinished()));
        assert_eq!(sealed.len(), usize::from(!power));
        if let [waited] = &sealed[..] {
            group.fold_from(waited).unwrap();
        }
        group.cut(CutNote::default()).unwrap();
        let [(last, _)] = history(&group)[..] else {
            panic!("one cut");
        };
        assert_eq!(last, [2, 1]);
        let image = lay_over(&vec![vec![0; index(SIZE)]; 2], &group.sealed()[0]);
        assert_eq!(image[1][..4096], [3; 4096]);
    }
}

/// While copies are paused the device is left alone, also by a cut that still has something to write there.
#[test]
fn a_cut_that_lacks_bytes_waits_until_copies_resume_or_is_given_up() {
    for gives_up in [false, true] {
        let slow = Slow::new(12);
        slow.cut_that_lacks_bytes();
        let error = slow.group.end_cut(PATIENCE).unwrap_err();
        assert!(matches!(error, CutError::Incomplete { .. }), "{error}");
        assert!(slow.group.ending().is_some());
        if gives_up {
            let error = slow.group.give_up_ending().unwrap_err();
            assert!(matches!(error, CutError::MapOnly), "{error}");
            assert!(slow.group.ending().is_none());
        }
        slow.group.resume_copies();
        let ended = slow.group.end_cut(PATIENCE).unwrap();
        assert_eq!(ended.is_none(), gives_up);
        slow.group.cut(CutNote::default()).unwrap();
        let last = slow.history().last().unwrap().0;
        let count = 2 - usize::from(gives_up);
        assert_eq!((last, slow.group.sealed().len()), ([0, 1], count));
    }
}

/// Copies are paused right before the flip, and a write to that disk is only marked: made and not listed, it waits.
#[test]
fn copies_that_are_paused_just_before_a_cut_leave_it_waiting() {
    let clock = Arc::new(Eventful::default());
    let slow = Slow::with(16, |around| Surroundings {
        clock: clock.clone(),
        ..around
    });
    let group = Arc::new(slow.group);
    let in_event = Arc::clone(&group);
    clock.at_look(3, move || {
        in_event.pause_copies();
        in_event.disks()[0]
            .write_at(&[2; 4096], 8192, Fua::No)
            .unwrap();
    });
    let error = group.cut(CutNote::default()).unwrap_err();
    assert!(matches!(error, CutError::Incomplete { .. }), "{error}");
    assert!(error.waits() && group.ending().is_some() && group.sealed().is_empty());
    group.resume_copies();
    group.end_cut(PATIENCE).unwrap().expect("it waited");
    assert_eq!(history(&group), [([2, 0], 4096)]);
}

/// Closed as it was, its map was in no sync. After a power cut the next process believed what was left of it.
#[test]
fn a_cut_that_lacks_bytes_is_in_the_open_generation_after_a_clean_close() {
    for seed in 20..40 {
        let slow = Slow::new(seed);
        slow.write(0, 7).unwrap();
        slow.cut_that_lacks_bytes();
        let Slow {
            group,
            world,
            around,
            production,
            ..
        } = slow;
        group.close(&[None, None]).unwrap();
        let group = open_in(&world.cut_power(), "another", &production, around);
        assert!(group.sealed().is_empty());
        group.cut(CutNote::default()).unwrap();
        assert_eq!(history(&group), [([7, 1], 2 * 4096)], "seed {seed}");
    }
}

/// What the cut that waits builds on is given up: it goes with it, but not before its writes have ended.
#[test]
fn a_cut_that_waits_is_folded_with_the_one_it_builds_on() {
    for paused in [false, true] {
        let slow = Slow::new(13);
        slow.write(0, 5).unwrap();
        slow.group.cut(CutNote::default()).unwrap();
        let damaged = Arc::clone(&slow.group.sealed()[0]);
        slow.cut_through_a_write(true, || {
            let error = slow.group.fold_from(&damaged).unwrap_err();
            assert!(matches!(error, CutError::Busy { .. }), "{error}");
            if paused {
                slow.group.pause_copies();
            }
        });
        slow.group.fold_from(&damaged).unwrap();
        assert!(slow.group.sealed().is_empty() && slow.group.ending().is_none());
        assert_eq!(slow.group.since(), Generation::NONE);
        slow.group.resume_copies();
        slow.group.cut(CutNote::default()).unwrap();
        assert_eq!(slow.history(), [([5, 1], 2 * 4096)]);
    }
}

/// A clean end of the process lists it.
#[test]
fn a_cut_that_waited_is_there_after_a_clean_close() {
    let slow = Slow::new(14);
    slow.cut_through_a_write(true, || slow.write(0, 2).unwrap());
    let Slow {
        group,
        around,
        production,
        ..
    } = slow;
    group.close(&[None, None]).unwrap();
    let around = Surroundings {
        boot: "another".into(),
        ..around
    };
    let group = open(&production, around);
    assert_eq!(history(&group), [([0, 1], 4096)]);
    group.cut(CutNote::default()).unwrap();
    assert_eq!(history(&group), [([0, 1], 4096), ([2, 1], 4096)]);
}

/// Tracking begins anew while a cut waits: it waits for the slow disk with nobody but that disk's guest at its gate.
#[test]
fn tracking_begins_anew_while_a_cut_waits_and_no_other_disk_is_held_up() {
    let slow = Slow::new(15);
    thread::scope(|scope| {
        let write = scope.spawn(|| slow.write(1, 1));
        slow.cut_while_it_hangs();
        let old = slow.group.lineage();
        let restart = scope.spawn(|| slow.group.restart_tracking("the test says so"));
        slow.write(0, 2).unwrap();
        slow.release.send(true).unwrap();
        write.join().unwrap().unwrap();
        assert_ne!(restart.join().unwrap().unwrap(), old);
    });
    assert!(slow.group.sealed().is_empty() && slow.group.ending().is_none());
    slow.group.cut(CutNote::default()).unwrap();
    // The seed has what was written before the restart; what came after is in the cut. The write to the other disk
    // was either.
    let [([fine, slow_disk], _)] = slow.history()[..] else {
        panic!("one cut of the new lineage");
    };
    assert!([0, 2].contains(&fine) && slow_disk == 0);
}

/// A disk whose writes hang until it is told how they end.
fn hanging(
    disk: SimDisk,
    enter: mpsc::Sender<()>,
    released: Mutex<mpsc::Receiver<bool>>,
) -> Watched {
    let mut disk = Watched::new(Arc::new(disk));
    disk.after_write = Box::new(move |written| {
        enter.send(()).unwrap();
        // Not for ever: a failed test must not hang.
        let succeeds = released.lock().unwrap().recv_timeout(LIMIT);
        match succeeds.unwrap_or(true) {
            true => Ok(()),
            false => {
                let why = "the test says so";
                Err(block::Error::because(
                    Op::Write,
                    written,
                    ErrorKind::Io,
                    why,
                ))
            }
        }
    });
    disk
}

/// A guest's write is answered before its copy is in the diff. A cut that came in between would seal a
/// diff without it.
#[test]
fn a_write_that_is_answered_and_not_yet_copied_is_still_in_flight() {
    let bench = Bench::new(6, &[SIZE]);
    let images = bench.production();
    let (group, disk) = (bench.group(), Arc::clone(&bench.group().disks()[0]));
    // Not whole granules: production is read for the copy, after the answer.
    disk.write_and_answer(&[9; 5000], 700, Fua::No, &mut |outcome| {
        outcome.unwrap();
        assert!(disk.is_dirty(0) && disk.stale_bytes() == 2 * 4096);
        let error = group.cut(CutNote::default()).unwrap_err();
        assert!(matches!(error, CutError::Busy { .. }), "{error}");
    });
    assert_eq!(disk.stale_bytes(), 0);
    group.end_cut(PATIENCE).unwrap().expect("it waited");
    assert!(lay_over(&images, &group.sealed()[0]) == bench.production());
}
