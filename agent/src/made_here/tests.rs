use block::UnixNanos;
use sim::SimWorld;
use store::{Consistency, PointDisk, PointId};

use super::*;

const OURS: [u8; 16] = [1; 16];

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// An image of zeroes, as its reference is written.
fn image(size: u64) -> ImageRef {
    let mut bytes = size.to_le_bytes().to_vec();
    bytes.resize(10, 0);
    ImageRef::from_bytes(&bytes).expect("a reference")
}

fn point(generation: u64, disks: &[(&str, u64)]) -> Arc<PointRecord> {
    let disk = |(disk, size): &(&str, u64)| PointDisk {
        name: name(disk),
        size: *size,
        image: image(*size),
    };
    Arc::new(PointRecord {
        id: PointId {
            group: name("g"),
            sequence: generation,
        },
        at: UnixNanos(generation),
        lineage: OURS,
        generation,
        labels: Default::default(),
        consistency: Consistency::Crash,
        disks: disks.iter().map(disk).collect(),
        stored_new_bytes: 0,
        changed_bytes: 0,
    })
}

fn number(generation: u64) -> Made {
    Made::of_point(&point(generation, &[("a", 4096)]))
}

fn open(world: &SimWorld) -> MadeHere {
    MadeHere::open(world.dir())
}

impl MadeHere {
    fn of_points(&self, lineage: &[u8; 16], points: &[&Arc<PointRecord>]) -> Held {
        let points = points.iter().map(|point| Arc::clone(point)).collect();
        self.only_ours(lineage, points, None)
    }
}

/// A thief of a ship token lists a point of the next cut. Its protection took it for its own, released the
/// diffs of that cut, and laid the next point over it.
#[test]
fn only_what_was_asked_for_is_ours() {
    let world = SimWorld::new(1);
    open(&world).ask(number(3)).expect("written");
    let made_here = open(&world);
    let ours = made_here.of_points(&OURS, &[&point(3, &[("a", 4096)])]);
    assert!(ours.point.is_some() && !ours.foreign);
    for foreign in [
        point(4, &[("a", 4096)]),
        point(3, &[("a", 8192)]),
        point(3, &[("b", 4096)]),
        point(3, &[("a", 4096), ("b", 4096)]),
    ] {
        let found = made_here.of_points(&OURS, &[&foreign]);
        assert!(found.point.is_none() && found.foreign, "{foreign:?}");
    }
    // What is of another history concerns nobody.
    let other = made_here.of_points(&[2; 16], &[&point(4, &[("a", 4096)])]);
    assert!(other.point.is_none() && !other.foreign);
}

/// A thief lists the cut after the next one while the next one is being shipped: what is listed last is ours, and the point of
/// his cut was refused for ever.
#[test]
fn a_later_cut_that_was_listed_earlier_is_foreign() {
    let world = SimWorld::new(1);
    let made_here = open(&world);
    made_here.ask(number(3)).expect("written");
    let [ours, theirs] = [3, 4].map(|generation| point(generation, &[("a", 4096)]));
    let older = point(2, &[("a", 512)]);
    assert!(!made_here.of_points(&OURS, &[&ours, &older]).foreign);
    assert!(
        made_here
            .of_points(&OURS, &[&ours, &theirs, &older])
            .foreign
    );
}

/// A bad sector in the account kept guests from their disks, and a file that takes no writes kept all points back.
#[test]
fn an_account_that_fails_is_made_anew() {
    let world = SimWorld::new(1);
    let made_here = open(&world);
    made_here.ask(number(1)).expect("written");
    let fails = |name: &str| (name == NAME || name == NEW_NAME).then_some(io::ErrorKind::Other);
    world.set_fault(Some(Arc::new(fails)));
    assert!(made_here.ask(number(2)).is_err());
    world.set_fault(None);
    made_here.ask(number(3)).expect("made anew");
    for generation in [1, 3] {
        let listed = point(generation, &[("a", 4096)]);
        assert!(!open(&world).of_points(&OURS, &[&listed]).foreign);
    }
}

#[test]
fn a_first_copy_is_ours_as_far_as_it_was_saved() {
    let world = SimWorld::new(1);
    let made_here = open(&world);
    let seed = |cursor_granule| {
        Arc::new(SeedRecord {
            group: name("g"),
            lineage: OURS,
            generation: 0,
            disks: vec![store::SeedDiskRecord {
                name: name("a"),
                size: 8192,
                cursor_granule,
                image: image(8192),
            }],
        })
    };
    made_here.ask(Made::of_seed(&seed(1))).expect("written");
    for (copied, is_ours) in [(1, true), (2, false)] {
        let found = made_here.only_ours(&OURS, Vec::new(), Some(seed(copied)));
        assert_eq!((found.seed.is_some(), !found.foreign), (is_ours, is_ours));
    }
}

/// A protection that began before there was an account goes on from its newest point.
#[test]
fn without_a_file_what_is_found_first_is_believed() {
    let world = SimWorld::new(1);
    let newest = point(3, &[("a", 4096)]);
    // The process ends before it asks for anything.
    assert!(!open(&world).of_points(&OURS, &[&newest]).foreign);
    let made_here = open(&world);
    assert!(!made_here.of_points(&OURS, &[&newest]).foreign);
    let later = point(4, &[("a", 4096)]);
    assert!(made_here.of_points(&OURS, &[&later]).foreign);
    made_here.ask(number(5)).expect("written");
    let made_here = open(&world);
    // That one was not listed in the end.
    assert!(!made_here.of_points(&OURS, &[&newest]).foreign);
    assert!(made_here.of_points(&OURS, &[&later]).foreign);
}

#[test]
fn the_newest_point_stays_ours_however_many_attempts_fail() {
    let world = SimWorld::new(1);
    let made_here = open(&world);
    made_here.ask(number(1)).expect("written");
    for attempt in 0..3 * KEPT_MAX as u64 {
        let newest = point(1, &[("a", 4096)]);
        assert!(!made_here.of_points(&OURS, &[&newest]).foreign);
        made_here.ask(number(2 + attempt)).expect("written");
    }
    let newest = point(1, &[("a", 4096)]);
    assert!(!open(&world).of_points(&OURS, &[&newest]).foreign);
}

#[test]
fn damage_makes_nothing_ours() {
    let world = SimWorld::new(1);
    let made_here = open(&world);
    made_here.ask(number(1)).expect("written");
    made_here.ask(number(2)).expect("written");
    let file = world.dir().open(NAME).expect("it is there");
    let spoil = |at| file.write_all_at(&[0xa5; 3], at).expect("written");
    let is_ours = |generation| {
        let newest = point(generation, &[("a", 4096)]);
        !open(&world).of_points(&OURS, &[&newest]).foreign
    };
    // The newest slot is the first one: one that is lost leaves the other.
    spoil(HEAD as u64);
    assert!(is_ours(1) && !is_ours(2));
    spoil((SLOT + HEAD) as u64);
    assert!(!is_ours(1) && !is_ours(2));
    file.set_len(100).expect("cut off");
    assert!(!is_ours(1));
}

/// Power is cut, or writes fail, at every operation: what may have been asked for is always known.
#[test]
fn whatever_was_asked_for_is_known_after_a_crash() {
    for crash_at in 0..30 {
        for seed in 0..20 {
            let world = SimWorld::new(seed);
            let made_here = open(&world);
            world.crash_after(crash_at);
            let asked: Vec<_> = (1..6)
                .take_while(|generation| made_here.ask(number(*generation)).is_ok())
                .collect();
            for world in [world.cut_power(), world.kill()] {
                let after = open(&world);
                for generation in &asked {
                    let listed = point(*generation, &[("a", 4096)]);
                    // A file that is not there yet believes; so nothing may have been asked for.
                    let made_here = open(&world);
                    assert!(made_here.state.lock().file.is_some(), "{crash_at} {seed}");
                    assert!(
                        !made_here.of_points(&OURS, &[&listed]).foreign,
                        "{crash_at} {seed}"
                    );
                }
                after.ask(number(9)).expect("it goes on");
                let listed = point(9, &[("a", 4096)]);
                assert!(!open(&world).of_points(&OURS, &[&listed]).foreign);
            }
        }
    }
}
