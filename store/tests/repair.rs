//! After a repair a store is as before or better: never is a byte of a point lost by it, and never an object.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, GRANULE};
use common::damaged::{
    all_objects, build, collect, damage, dir_at, objects, place_at, restore_the_rest, short,
};
use common::{around, chunk, count_from_env, draft, name, open_writer, read_all, thorough};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{
    Backend, Base, CheckOptions, CheckReport, Directory, ErrorKind, GcOptions, RepairOptions,
    RepairPlan, RepairStep, Result, Store,
};

fn check(place: &Arc<dyn Backend>) -> CheckReport {
    Store::check(place, around(0), &CheckOptions::default()).unwrap()
}

fn plan(place: &Arc<dyn Backend>) -> RepairPlan {
    Store::plan_repair(place, around(0), &RepairOptions::default()).unwrap()
}

/// Plans, and does it.
fn repair(place: &Arc<dyn Backend>) -> Result<RepairPlan> {
    let options = RepairOptions::default();
    let planned = Store::plan_repair(place, around(0), &options)?;
    Store::repair(place, around(0), &planned, &options)?;
    Ok(planned)
}

/// The bytes of every point that can be read, block by block.
type Readable = BTreeMap<String, Vec<Option<Vec<u8>>>>;

/// What reads back, by what a check says of a store that may not open; `None` for a block that does not.
fn readable(place: &Arc<dyn Backend>) -> Readable {
    let Ok(store) = Store::open_reader(place, around(0)) else {
        return Readable::new();
    };
    let points = store.points();
    let blocks = |image: &store::ImageRef| {
        let Ok(image) = store.image(image) else {
            return vec![None; block::index(image.size() / GRANULE)];
        };
        let block = |at: u64| {
            let mut bytes = vec![0; 4096];
            image.read_at(&mut bytes, at * GRANULE).ok().map(|()| bytes)
        };
        (0..image.size() / GRANULE).map(block).collect()
    };
    points
        .iter()
        .map(|point| (point.id.to_string(), blocks(&point.disks[0].image)))
        .collect()
}

/// Whatever was readable is, and is the same.
fn assert_no_less(before: &Readable, after: &Readable, story: &str) {
    for (point, blocks) in before {
        let now = &after[point];
        for (at, (was, is)) in blocks.iter().zip(now).enumerate() {
            assert!(was.is_none() || was == is, "{story}: block {at} of {point}");
        }
    }
}

/// With how many objects something is wrong, and how many bytes points have lost.
fn severity(report: &CheckReport) -> (bool, usize, u64) {
    let ranges = report.points.iter().flat_map(|point| &point.lost);
    let ranges = ranges.flat_map(|(_, ranges)| ranges);
    let damaged = report.lost.len() + report.healable.len() + report.astray.len();
    (
        !report.catalog.opens(),
        damaged,
        ranges.map(|range| range.len()).sum(),
    )
}

fn assert_no_worse(before: &CheckReport, after: &CheckReport, story: &str) {
    let (a, b) = (severity(before), severity(after));
    assert!(
        b.0 <= a.0 && b.1 <= a.1 && b.2 <= a.2,
        "{story}: {a:?}, then {b:?}: {after:?}"
    );
}

fn full_store() -> (tempfile::TempDir, Vec<(PathBuf, Vec<u8>)>) {
    let tmp = tempfile::tempdir().unwrap();
    let mut contents = build(tmp.path());
    collect(tmp.path(), &mut contents);
    let all = all_objects(tmp.path());
    (tmp, all)
}

fn is_bundle(object: &Path) -> bool {
    object.extension().is_some_and(|suffix| suffix == "bun")
}

/// A store with what collections have moved from in quarantine, of several collections; what its points hold or held.
fn store_with_quarantine(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut contents = build(path);
    let keep = GcOptions {
        quarantine: Duration::from_hours(24),
        ..thorough()
    };
    for round in 0..2 {
        let store = open_writer(&dir_at(path), 0);
        store.collect_garbage(&keep).unwrap();
        let base = store.newest(&name("web")).unwrap().disks[0].image.clone();
        let mut writer = store.image_writer(Base::Image(base)).unwrap();
        for i in 0..150 {
            let number = 50_000 + round * 1000 + i;
            writer.put(i * 9, &chunk(number)).unwrap();
        }
        let finished = writer.finish().unwrap();
        let content = read_all(&store.image(finished.image()).unwrap());
        let point = store.commit_point(draft("web", finished)).unwrap();
        contents.insert(point.id.to_string(), content);
        let oldest = store.points()[0].id.clone();
        store.remove_points(&[oldest], Duration::ZERO).unwrap();
    }
    let store = open_writer(&dir_at(path), 0);
    store.collect_garbage(&keep).unwrap();
    contents
}

#[test]
fn nothing_is_planned_for_a_whole_store() {
    let (tmp, all) = full_store();
    let planned = plan(&place_at(tmp.path()));
    assert_eq!(planned, RepairPlan::default());
    assert!(all_objects(tmp.path()) == all);
}

/// Any damage to one or two objects: after a repair a check finds less or the same, what was readable is, and every object
/// is there as it was, but for those that were healed.
#[test]
fn after_a_repair_a_store_is_as_before_or_better() {
    let cases = count_from_env("STANDIN_CASES", 60);
    let seed = sim::seed_from_env(std::process::id().into());
    let tmp = tempfile::tempdir().unwrap();
    let contents = store_with_quarantine(tmp.path());
    let all = all_objects(tmp.path());
    let place = || place_at(tmp.path());
    let (mut healed, mut begun_anew, mut reused) = (0, 0, 0);
    for case in 0..cases {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(case));
        let mut story = format!("seed {}:", seed.wrapping_add(case));
        // Of what moved there are copies; there is less of it than of anything else.
        let moved = all.iter().filter(|(object, _)| is_bundle(object));
        let moved: Vec<_> = moved.collect();
        for _ in 0..rng.random_range(1..3) {
            let (object, good) = match case % 4 {
                0 => moved[rng.random_range(0..moved.len())],
                _ => &all[rng.random_range(0..all.len())],
            };
            if short(object) == "format" {
                continue;
            }
            if rng.random_bool(0.3) {
                let _ = fs::remove_file(object);
                story = format!("{story} {} is gone", short(object));
                continue;
            }
            let others: Vec<&Vec<u8>> = all
                .iter()
                .filter(|(path, _)| path != object && path.parent() == object.parent())
                .map(|(_, bytes)| bytes)
                .collect();
            if others.is_empty() {
                continue;
            }
            let (how, bad, _) = damage(&mut rng, good, &others);
            story = format!("{story} {} has {how}", short(object));
            fs::write(object, bad).unwrap();
        }
        let damaged = all_objects(tmp.path());
        let (before, could_read) = (check(&place()), readable(&place()));
        let planned = repair(&place()).unwrap();
        let after = check(&place());
        assert_no_worse(&before, &after, &story);
        assert!(after.catalog.opens(), "{story}");
        let can_read = readable(&place());
        assert_no_less(&could_read, &can_read, &story);
        assert!(
            !planned.changes_something() || before != after,
            "{story}: {planned:?}"
        );
        for (point, blocks) in &can_read {
            // A point that was removed is there again where the commit that removed it is lost.
            for (is, right) in blocks.iter().zip(contents[point].chunks(4096)) {
                let right = is.as_ref().is_none_or(|is| is == right);
                assert!(right, "{story}: {point} returns a wrong byte");
            }
        }
        for (object, bytes) in &damaged {
            let now = fs::read(object).unwrap();
            let good = &all.iter().find(|(path, _)| path == object).unwrap().1;
            assert!(now == *bytes || now == *good, "{story}: {object:?}");
        }
        let again = plan(&place());
        assert!(
            !again.changes_something(),
            "{story}: {planned:?}, then {again:?}"
        );
        for step in &planned.steps {
            match step {
                RepairStep::Heal(_) => healed += 1,
                RepairStep::BeginAnew { .. } => begun_anew += 1,
                RepairStep::UseCopy { .. } => reused += 1,
                _ => {}
            }
        }
        for (object, good) in &all {
            fs::write(object, good).unwrap();
        }
        restore_the_rest(tmp.path(), &all);
    }
    assert!(
        healed > 0 && begun_anew > 0 && reused > 0,
        "{healed} {begun_anew} {reused}"
    );
}

/// A commit is lost that listed a point: the others are there again, the plan names the point, and its number is not given
/// to another one.
#[test]
fn a_catalog_goes_on_after_a_lost_commit() {
    let (tmp, _) = full_store();
    let place = place_at(tmp.path());
    let catalog = objects(&tmp.path().join("catalog"));
    fs::write(&catalog[3], b"no commit at all").unwrap();
    assert!(Store::open_reader(&place, around(0)).is_err());
    let planned = repair(&place).unwrap();
    let Some(RepairStep::BeginAnew {
        number,
        lost,
        may_have_listed,
    }) = planned.steps.first()
    else {
        panic!("{planned:?}");
    };
    assert_eq!(*number, catalog.len() as u64 + 1);
    assert!(lost.len() == 1 && lost[0].object.ends_with(&short(&catalog[3])));
    let named: Vec<String> = may_have_listed.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["web@4"], "{planned:?}");
    assert_eq!(fs::read(&catalog[3]).unwrap(), b"no commit at all");

    let store = open_writer(&dir_at(tmp.path()), 0);
    let points = store.points();
    let ids: Vec<String> = points.iter().map(|p| p.id.to_string()).collect();
    assert_eq!(ids, ["web@1", "web@2", "web@3", "mail@1"]);
    let mut writer = store.image_writer(Base::Empty { size: GRANULE }).unwrap();
    writer.put(0, &chunk(1)).unwrap();
    let point = store.commit_point(draft("web", writer.finish().unwrap()));
    assert_eq!(point.unwrap().id.to_string(), "web@5");
    store.collect_garbage(&thorough()).unwrap();
    drop(store);
    let report = check(&place);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.catalog.lost.len(), 1);
    assert_eq!(report.catalog.lost[0].covered_by, Some(*number));
}

/// A reader that knew the catalog before it was damaged follows a repair, and is told what the store says now.
#[test]
fn a_reader_of_before_follows_a_repair() {
    let (tmp, _) = full_store();
    let place = place_at(tmp.path());
    let reader = Store::open_reader(&place, around(0)).unwrap();
    let point = reader.newest(&name("mail")).unwrap();
    let content = read_all(&reader.image(&point.disks[0].image).unwrap());
    let catalog = objects(&tmp.path().join("catalog"));
    fs::remove_file(&catalog[1]).unwrap();
    // A place of its own: files that are open stay readable.
    let place = place_at(tmp.path());
    repair(&place).unwrap();
    // Everything is moved under its feet.
    let store = open_writer(&dir_at(tmp.path()), 0);
    let kept = store.newest(&name("mail")).unwrap();
    let ids: Vec<_> = store.points().iter().map(|p| p.id.clone()).collect();
    let old: Vec<_> = ids.into_iter().filter(|id| *id != kept.id).collect();
    store.remove_points(&old[..1], Duration::ZERO).unwrap();
    store.collect_garbage(&thorough()).unwrap();
    let fresh = Store::open_reader(&place, around(0)).unwrap();
    let image = fresh.image(&point.disks[0].image).unwrap();
    assert!(read_all(&image) == content);
    assert!(read_all(&reader.image(&point.disks[0].image).unwrap()) == content);
}

/// What is lost of a bundle still lies in the objects that a collection moved it from: they are used again, and leave the
/// quarantine, so that no later collection removes them.
#[test]
fn what_lies_in_quarantine_is_used_again() {
    let tmp = tempfile::tempdir().unwrap();
    store_with_quarantine(tmp.path());
    let place = place_at(tmp.path());
    let whole = readable(&place);
    for bundle in objects(&tmp.path().join("bundles")) {
        fs::remove_file(bundle).unwrap();
    }
    assert!(!check(&place).is_whole());
    let planned = repair(&place).unwrap();
    let copies = |step: &RepairStep| matches!(step, RepairStep::UseCopy { .. });
    assert!(planned.steps.iter().any(copies), "{planned:?}");
    let report = check(&place);
    assert!(report.is_whole(), "{planned:?}, then {report:?}");
    let store = open_writer(&dir_at(tmp.path()), 0);
    store.collect_garbage(&thorough()).unwrap();
    store.collect_garbage(&thorough()).unwrap();
    drop(store);
    assert!(check(&place).is_whole());
    assert!(readable(&place) == whole);
}

/// A repair has the lease, does what it said, and nothing else.
#[test]
fn a_repair_does_what_was_planned_or_nothing() {
    let (tmp, _) = full_store();
    let place = place_at(tmp.path());
    let catalog = objects(&tmp.path().join("catalog"));
    let good = fs::read(&catalog[2]).unwrap();
    fs::remove_file(&catalog[2]).unwrap();
    let options = RepairOptions::default();
    let planned = plan(&place);
    fs::write(&catalog[2], &good).unwrap();
    let refused = Store::repair(&place, around(0), &planned, &options).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Retry, "{refused}");
    assert_eq!(objects(&tmp.path().join("catalog")), catalog);

    let writer = open_writer(&dir_at(tmp.path()), 0);
    let refused = Store::repair(&place, around(0), &plan(&place), &options).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Retry, "{refused}");
    drop(writer);
}

/// A store in a simulated directory: the commit of a sweep is lost, and a container has a few wrong bytes.
fn damaged_world(seed: u64) -> SimWorld {
    let world = SimWorld::new(seed);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    for round in 0..4 {
        let size = 99 * GRANULE;
        let mut writer = store.image_writer(Base::Empty { size }).unwrap();
        for i in 0..90 {
            writer.put(i, &chunk(round * 40 + i)).unwrap();
        }
        let finished = writer.finish().unwrap();
        store.commit_point(draft("web", finished)).unwrap();
        if round == 2 {
            let oldest = store.points()[0].id.clone();
            store.remove_points(&[oldest], Duration::ZERO).unwrap();
            let keep = GcOptions {
                compact_below: 1.0,
                ..GcOptions::default()
            };
            store.collect_garbage(&keep).unwrap();
        }
    }
    drop(store);
    // Three points, and one removed: the fifth commit is the first of the sweep.
    let catalog = dir.subdir("catalog").unwrap();
    let commit = catalog.open("commit-0000000000000005").unwrap();
    let len = block::index(commit.len().unwrap());
    commit.write_all_at(&vec![0x55; len], 0).unwrap();
    commit.sync_data().unwrap();
    let containers = dir.subdir("containers").unwrap().subdir("000000").unwrap();
    let newest = containers.list().unwrap().into_iter().max().unwrap();
    let container = containers.open(&newest).unwrap();
    container.write_all_at(&[0x55; 3], 70).unwrap();
    container.sync_data().unwrap();
    world.cut_power()
}

/// A kill or a power cut at every operation of a repair: the store is as it was or better, and the next repair does the
/// rest.
#[test]
fn a_crash_at_any_operation_of_a_repair_leaves_the_store_as_it_was_or_better() {
    let seed = sim::seed_from_env(11);
    let whole = damaged_world(seed);
    let before = check(&Directory::backend(&whole.dir()));
    assert!(!before.catalog.opens(), "{before:?}");
    let from = whole.ops();
    repair(&Directory::backend(&whole.dir())).unwrap();
    let ops = whole.ops() - from;
    let repaired = readable(&Directory::backend(&whole.dir()));
    assert_eq!(repaired.len(), 3);
    assert!(ops > 20, "{ops}");
    for crash_at in 1..=ops {
        let story = format!("seed {seed}, operation {crash_at} of {ops}");
        let world = damaged_world(seed);
        world.crash_after(crash_at);
        assert!(
            repair(&Directory::backend(&world.dir())).is_err(),
            "{story}"
        );
        let world = match crash_at % 2 {
            0 => world.cut_power(),
            _ => world.kill(),
        };
        let place = Directory::backend(&world.dir());
        assert_no_worse(&before, &check(&place), &story);
        repair(&place).expect(&story);
        let place = Directory::backend(&world.cut_power().dir());
        assert!(readable(&place) == repaired, "{story}");
        let after = check(&place);
        assert!(
            after.catalog.opens() && after.healable.is_empty(),
            "{story}: {after:?}"
        );
    }
}

/// The index is built from the manifests whenever a writer opens the store; what of them cannot be read is named.
#[test]
fn the_index_is_what_the_manifests_say() {
    let (tmp, _) = full_store();
    let store = open_writer(&dir_at(tmp.path()), 0);
    let whole = store.index().unwrap();
    assert_eq!(whole.chunks, store.figures().chunk_count);
    assert!(
        whole.entries > 0 && whole.entries <= whole.chunks,
        "{whole:?}"
    );
    assert!(whole.damaged.is_empty() && whole.sampling == 0, "{whole:?}");
    drop(store);
    let containers = objects(&tmp.path().join("containers"));
    fs::write(&containers[0], b"no container at all").unwrap();
    let index = open_writer(&dir_at(tmp.path()), 0).index().unwrap();
    assert_eq!(index.damaged.len(), 1, "{index:?}");
    assert!(index.damaged[0].ends_with(&short(&containers[0])));
    assert!(index.entries < whole.entries, "{index:?}");
}
