//! Removing points: delayed, undone, refused for what is held or locked; and the store's own time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Dir, GRANULE, UnixNanos};
use common::{around, chunk, draft, name, thorough};
use sim::{SimClock, SimWorld};
use store::{Around, Base, Directory, ErrorKind, Keep, PointId, Policy, Result, Store};

const DAY: Duration = Duration::from_hours(24);

fn open(dir: &Arc<dyn Dir>, clock: &Arc<SimClock>) -> Store {
    let around = Around {
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        ..around(0)
    };
    Store::open_writer(&Directory::backend(dir), around).unwrap()
}

/// A store with points web@1 to web@`count`.
fn store_with(dir: &Arc<dyn Dir>, clock: &Arc<SimClock>, count: u64) -> (Store, Vec<PointId>) {
    common::create(&Directory::backend(dir)).unwrap();
    let store = open(dir, clock);
    let mut ids = Vec::new();
    for i in 0..count {
        let size = 100 * GRANULE;
        let mut writer = store.image_writer(Base::Empty { size }).unwrap();
        writer.put(i, &chunk(i)).unwrap();
        let point = store.commit_point(draft("web", writer.finish().unwrap()));
        ids.push(point.unwrap().id.clone());
    }
    (store, ids)
}

fn collect(store: &Store) {
    store.collect_garbage(&thorough()).unwrap();
}

fn refused(result: Result<()>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protected, "{error}");
    error.to_string()
}

#[test]
fn a_removed_point_comes_back_whole_until_its_time_is_over() {
    let world = SimWorld::new(1);
    let clock = Arc::new(SimClock::new());
    let (store, ids) = store_with(&world.dir(), &clock, 3);
    store.remove_points(&ids[..2], DAY).unwrap();
    assert_eq!(store.points().len(), 1);
    assert_eq!(store.removed_points().len(), 2);
    // A collection leaves alone what can be brought back.
    collect(&store);
    assert_eq!(store.figures().chunk_count, 3);
    store.bring_back(&ids[0]).unwrap();
    let listed: Vec<_> = store.points().iter().map(|p| p.id.clone()).collect();
    assert_eq!(listed, [ids[0].clone(), ids[2].clone()]);
    assert!(store.bring_back(&ids[0]).is_err(), "it is listed");

    clock.advance(DAY);
    collect(&store);
    assert!(store.removed_points().is_empty());
    let gone = store.bring_back(&ids[1]).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(store.figures().chunk_count, 2);
}

#[test]
fn a_held_point_stays_until_the_hold_is_lifted() {
    let world = SimWorld::new(1);
    let clock = Arc::new(SimClock::new());
    let (store, ids) = store_with(&world.dir(), &clock, 3);
    store.hold(&ids[1], Some("case 7")).unwrap();
    let why = refused(store.remove_points(&ids[..2], DAY));
    assert!(why.contains("web@2") && why.contains("case 7"), "{why}");
    assert_eq!(store.points().len(), 3, "all or none");
    drop(store);
    let store = open(&world.dir(), &clock);
    refused(store.remove_points(&ids[1..2], DAY));
    store.hold(&ids[1], None).unwrap();
    store.remove_points(&ids[1..2], Duration::ZERO).unwrap();
    assert!(store.removed_points().is_empty());
}

#[test]
fn a_lock_is_never_shortened_and_no_clock_that_is_set_ends_it_while_the_store_is_open() {
    let world = SimWorld::new(1);
    let clock = Arc::new(SimClock::new());
    let (store, ids) = store_with(&world.dir(), &clock, 2);
    let until = UnixNanos(store.now().0 + 3 * u64::try_from(DAY.as_nanos()).unwrap());
    store.lock_until(&ids[0], until).unwrap();
    let why = refused(store.remove_points(&ids[..1], DAY));
    assert!(why.contains("locked until"), "{why}");
    refused(store.lock_until(&ids[0], UnixNanos(until.0 - 1)));
    let longer = UnixNanos(until.0 + 1);
    store.lock_until(&ids[0], longer).unwrap();

    // The clock is set years ahead while the store is open: it goes by the machine's own counting.
    clock.set_wall(UnixNanos(until.0 * 2));
    refused(store.remove_points(&ids[..1], DAY));
    // ... and back: the store's time goes on from its last commit.
    clock.set_wall(UnixNanos(5));
    let before = store.now();
    drop(store);
    let store = open(&world.dir(), &clock);
    assert!(
        store.now() >= UnixNanos(before.0 - 1_000_000_000),
        "{:?}",
        store.now()
    );
    refused(store.remove_points(&ids[..1], DAY));
    clock.advance(3 * DAY + Duration::from_secs(1));
    store.remove_points(&ids[..1], DAY).unwrap();
}

#[test]
fn a_policy_previews_and_removes_nothing_that_is_protected() {
    let world = SimWorld::new(1);
    let clock = Arc::new(SimClock::new());
    let (store, ids) = store_with(&world.dir(), &clock, 5);
    store.hold(&ids[0], Some("")).unwrap();
    let policy = Policy {
        last: 2,
        ..Policy::default()
    };
    let verdicts = store.verdicts(Some(&name("web")), &policy, &jiff::tz::TimeZone::UTC);
    let going: Vec<_> = verdicts.iter().filter(|v| v.goes()).collect();
    let going: Vec<_> = going.iter().map(|v| v.point.id.clone()).collect();
    assert_eq!(going, [ids[2].clone(), ids[1].clone()]);
    assert!(verdicts.last().unwrap().keep.contains(&Keep::Held));
    assert!(
        store
            .verdicts(Some(&name("mail")), &policy, &jiff::tz::TimeZone::UTC)
            .is_empty()
    );
    store.remove_points(&going, DAY).unwrap();
    let again = store.verdicts(None, &policy, &jiff::tz::TimeZone::UTC);
    assert!(again.iter().all(|v| !v.goes()));
    let unknown = store.remove_points(&going, DAY).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}
