//! What a store has lost comes back from a replica: the same points, the same bytes, and never less than was there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::{Dir, GRANULE};
use common::damaged::{all_objects, build, collect, dir_at, place_at, restore_the_rest, short};
use common::{around, chunk, count_from_env, draft, name, open_writer, read_all, thorough};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{
    Backend, Base, CheckOptions, CheckReport, Directory, ErrorKind, RepairOptions, RepairPlan,
    RepairStep, Result, Store,
};

fn check(place: &Arc<dyn Backend>) -> CheckReport {
    let options = CheckOptions {
        deep: true,
        ..CheckOptions::default()
    };
    Store::check(place, around(0), &options).unwrap()
}

/// Plans, and does it, with a replica.
fn repair(place: &Arc<dyn Backend>, replica: &Store) -> Result<RepairPlan> {
    let options = RepairOptions {
        replica: Some(replica),
        ..RepairOptions::default()
    };
    let planned = Store::plan_repair(place, around(0), &options)?;
    Store::repair(place, around(0), &planned, &options)?;
    Ok(planned)
}

/// A replica of all points of a store.
fn replicate(from: &Arc<dyn Backend>, to: &Arc<dyn Backend>) {
    Store::create_replica(to, from, &around(0)).unwrap();
    let from = Store::open_reader(from, around(0)).unwrap();
    let to = Store::open_writer(to, around(0)).unwrap();
    for point in to.points_to_copy(&from, None) {
        to.copy_point(&from, &point.id, &|_, _| ()).unwrap();
    }
}

fn contents(place: &Arc<dyn Backend>) -> BTreeMap<String, Vec<u8>> {
    let store = Store::open_reader(place, around(0)).unwrap();
    let points = store.points();
    let content = |point: &Arc<store::PointRecord>| {
        let image = store.image(&point.disks[0].image).unwrap();
        (point.id.to_string(), read_all(&image))
    };
    points.iter().map(content).collect()
}

fn copies(planned: &RepairPlan) -> usize {
    let is_copy = |step: &&RepairStep| matches!(step, RepairStep::CopyAgain { .. });
    planned.steps.iter().filter(is_copy).count()
}

fn is_on_a_shelf(object: &Path) -> bool {
    [".con", ".tre", ".bun"]
        .iter()
        .any(|suffix| short(object).ends_with(suffix))
}

/// The content of every point is written once more, in another opening of the store. A container that is damaged, and whose
/// manifest can still be read, was found in the index then: the new point was laid on it, and did not read back.
fn build_on(dir: &Arc<dyn Dir>) {
    let all = contents(&Directory::backend(dir));
    let store = open_writer(dir, 0);
    let size = (all.len() * all.values().map(Vec::len).max().unwrap()) as u64;
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    let mut at = 0;
    for content in all.values() {
        writer.put(at, content).unwrap();
        at += content.len() as u64 / GRANULE;
    }
    let point = draft("again", writer.finish().unwrap());
    store.commit_point(point).unwrap();
}

/// Containers, trees and bundles are deleted, overwritten, cut off: with a replica every point is whole again, and stays so
/// when garbage is collected.
#[test]
fn what_is_lost_comes_back_from_a_replica() {
    let cases = count_from_env("STANDIN_CASES", 20);
    let seed = sim::seed_from_env(std::process::id().into());
    let tmp = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| tmp.path().join(name));
    fs::create_dir(&ours).unwrap();
    fs::create_dir(&theirs).unwrap();
    let mut known = build(&ours);
    collect(&ours, &mut known);
    let (place, replica) = (|| place_at(&ours), place_at(&theirs));
    replicate(&place(), &replica);
    let replica = Store::open_reader(&replica, around(0)).unwrap();
    let points = Store::open_reader(&place(), around(0)).unwrap().points();
    let whole = contents(&place());
    let all = all_objects(&ours);
    let mut copied = 0;
    for case in 0..cases {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(case));
        let mut story = format!("seed {}:", seed.wrapping_add(case));
        let shelved: Vec<_> = all.iter().filter(|(o, _)| is_on_a_shelf(o)).collect();
        for _ in 0..rng.random_range(1..5) {
            let (object, good) = shelved[rng.random_range(0..shelved.len())];
            story = format!("{story} {}", short(object));
            match rng.random_range(0..3) {
                0 => drop(fs::remove_file(object)),
                1 => fs::write(object, &good[..rng.random_range(0..good.len())]).unwrap(),
                _ => {
                    let mut noise = good.clone();
                    let half = noise.len() / 2;
                    rng.fill_bytes(&mut noise[..half]);
                    fs::write(object, noise).unwrap();
                }
            }
        }
        let planned = repair(&place(), &replica).expect(&story);
        copied += copies(&planned);
        assert!(planned.lost.is_empty(), "{story}: {planned:?}");
        let report = check(&place());
        assert!(report.is_whole(), "{story}: {planned:?}, then {report:?}");
        let store = Store::open_reader(&place(), around(0)).unwrap();
        let ids = |points: &[Arc<store::PointRecord>]| -> Vec<_> {
            points.iter().map(|p| (p.id.clone(), p.at)).collect()
        };
        assert_eq!(ids(&store.points()), ids(&points), "{story}");
        drop(store);
        assert!(contents(&place()) == whole, "{story}");
        build_on(&dir_at(&ours));
        let report = check(&place());
        assert!(report.is_whole(), "{story}: {report:?}");
        let store = open_writer(&dir_at(&ours), 0);
        let newest = store.newest(&name("again")).unwrap();
        store
            .remove_points(std::slice::from_ref(&newest.id), Duration::ZERO)
            .unwrap();
        store.collect_garbage(&thorough()).expect(&story);
        store.collect_garbage(&thorough()).expect(&story);
        drop(store);
        assert!(check(&place()).is_whole(), "{story}");
        assert!(contents(&place()) == whole, "{story}");
        for (object, good) in &all {
            fs::write(object, good).unwrap();
        }
        restore_the_rest(&ours, &all);
    }
    assert!(copied > 0);
}

/// A point of that number that was cut at another time, or by another protection, is another point.
#[test]
fn a_store_with_other_points_gives_nothing() {
    let [ours, theirs] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    build(ours.path());
    let place = place_at(theirs.path());
    Store::create_replica(&place, &place_at(ours.path()), &around(0)).unwrap();
    let other = open_writer(&dir_at(theirs.path()), 0);
    let size = common::damaged::SIZE;
    for round in 0..4 {
        let mut writer = other.image_writer(Base::Empty { size }).unwrap();
        writer.put(round, &chunk(round)).unwrap();
        let mut draft = draft("web", writer.finish().unwrap());
        draft.lineage = [0xee; 16];
        other.commit_point(draft).unwrap();
    }
    let container = all_objects(ours.path())
        .into_iter()
        .find(|(object, _)| short(object).ends_with(".con"));
    fs::remove_file(container.unwrap().0).unwrap();
    let options = RepairOptions {
        replica: Some(&other),
        ..RepairOptions::default()
    };
    let planned = Store::plan_repair(&place_at(ours.path()), around(0), &options).unwrap();
    assert_eq!(copies(&planned), 0, "{planned:?}");
    assert!(!planned.lost.is_empty());
}

/// What a replica has lost, too, is named; all else comes back.
#[test]
fn a_replica_that_is_damaged_itself_gives_what_it_has() {
    let [ours, theirs] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let known = build(ours.path());
    replicate(&place_at(ours.path()), &place_at(theirs.path()));
    let containers = |path: &Path| -> Vec<_> {
        let all = all_objects(path).into_iter().map(|(object, _)| object);
        all.filter(|object| short(object).ends_with(".con"))
            .collect()
    };
    containers(ours.path())
        .iter()
        .for_each(|c| fs::remove_file(c).unwrap());
    fs::remove_file(containers(theirs.path()).last().unwrap()).unwrap();
    let replica = Store::open_reader(&place_at(theirs.path()), around(0)).unwrap();
    let refused = repair(&place_at(ours.path()), &replica).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    let report = check(&place_at(ours.path()));
    let (whole, lost): (Vec<_>, Vec<_>) = report.points.iter().partition(|p| p.lost.is_empty());
    assert!(!whole.is_empty() && !lost.is_empty(), "{report:?}");
    let store = Store::open_reader(&place_at(ours.path()), around(0)).unwrap();
    for point in whole {
        let id = point.point.clone().unwrap();
        let record = store.points().into_iter().find(|p| p.id == id).unwrap();
        let image = store.image(&record.disks[0].image).unwrap();
        assert!(read_all(&image) == known[&id.to_string()], "{id}");
    }
}

/// A store in a simulated directory, and its replica; then the first container and the newest tree object are noise.
fn damaged_world(seed: u64) -> (SimWorld, Arc<dyn Backend>) {
    let world = SimWorld::new(seed);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    let mut base = Base::Empty { size: 99 * GRANULE };
    for round in 0..3 {
        let mut writer = store.image_writer(base).unwrap();
        for i in 0..40 {
            writer.put(round * 20 + i, &chunk(round * 40 + i)).unwrap();
        }
        let finished = writer.finish().unwrap();
        base = Base::Image(finished.image().clone());
        store.commit_point(draft("web", finished)).unwrap();
    }
    let removed = store.points()[1].id.clone();
    store
        .remove_points(&[removed], Duration::from_hours(1))
        .unwrap();
    drop(store);
    let replica = Directory::backend(&SimWorld::new(seed ^ 1).dir());
    replicate(&Directory::backend(&dir), &replica);
    for folder in ["containers", "trees"] {
        let folder = dir.subdir(folder).unwrap().subdir("000000").unwrap();
        let names = folder.list().unwrap();
        let name = match names[0].ends_with(".con") {
            true => names.iter().min().unwrap(),
            false => names.iter().max().unwrap(),
        };
        let object = folder.open(name).unwrap();
        let len = block::index(object.len().unwrap());
        object.write_all_at(&vec![0x55; len], 0).unwrap();
        object.sync_data().unwrap();
    }
    (world.cut_power(), replica)
}

/// Bytes of points that cannot be read.
fn lost(report: &CheckReport) -> u64 {
    let ranges = report.points.iter().flat_map(|point| &point.lost);
    ranges.flat_map(|(_, ranges)| ranges).map(|r| r.len()).sum()
}

/// A kill or a power cut at every operation: nothing is lost by it, and the next repair does the rest.
#[test]
fn a_crash_at_any_operation_leaves_no_less_than_there_was() {
    let seed = sim::seed_from_env(5);
    let (whole, replica) = damaged_world(seed);
    let replica = Store::open_reader(&replica, around(0)).unwrap();
    let before = lost(&check(&Directory::backend(&whole.dir())));
    assert!(before > 0);
    let from = whole.ops();
    let planned = repair(&Directory::backend(&whole.dir()), &replica).unwrap();
    assert!(copies(&planned) > 1, "{planned:?}");
    let ops = whole.ops() - from;
    // The point that was removed is not in the replica.
    let after = check(&Directory::backend(&whole.dir()));
    let listed = after.points.iter().filter(|point| !point.removed);
    assert!(
        listed.clone().count() == 2 && listed.clone().all(|p| p.lost.is_empty()),
        "{after:?}"
    );
    let repaired = contents(&Directory::backend(&whole.dir()));
    for crash_at in 1..=ops {
        let story = format!("seed {seed}, operation {crash_at} of {ops}");
        let (world, theirs) = damaged_world(seed);
        let replica = Store::open_reader(&theirs, around(0)).unwrap();
        world.crash_after(crash_at);
        let crashed = repair(&Directory::backend(&world.dir()), &replica);
        assert!(crashed.is_err(), "{story}");
        let world = match crash_at % 2 {
            0 => world.cut_power(),
            _ => world.kill(),
        };
        let place = Directory::backend(&world.dir());
        assert!(lost(&check(&place)) <= before, "{story}");
        repair(&place, &replica).expect(&story);
        let place = Directory::backend(&world.cut_power().dir());
        assert!(contents(&place) == repaired, "{story}");
        assert!(lost(&check(&place)) <= lost(&after), "{story}");
    }
}

#[test]
fn a_store_that_lacks_nothing_takes_nothing_from_a_replica() {
    let [ours, theirs] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    build(ours.path());
    replicate(&place_at(ours.path()), &place_at(theirs.path()));
    let replica = Store::open_reader(&place_at(theirs.path()), around(0)).unwrap();
    assert!(replica.newest(&name("web")).is_some());
    let planned = repair(&place_at(ours.path()), &replica).unwrap();
    assert_eq!(planned, RepairPlan::default());
}
