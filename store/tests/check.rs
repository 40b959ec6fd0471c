//! A check names whatever is damaged, and nothing else; it changes nothing, needs no lease, and the catalog need not open.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::damaged::{
    all_objects, build, collect, damage, dir_at, has_a_copy, is_last_commit, objects, place_at,
    short,
};
use common::{around, chunk, count_from_env, draft, open_writer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{Base, CheckOptions, CheckReport, Result, Store};

/// Looks at everything, and sees to it that nothing is changed by that.
fn check(path: &Path, deep: bool) -> Result<CheckReport> {
    let before = all_objects(path);
    let names = objects(path);
    let options = CheckOptions {
        deep,
        threads: 2,
        ..CheckOptions::default()
    };
    let report = Store::check(&place_at(path), around(0), &options);
    assert!(all_objects(path) == before, "a check changes nothing");
    assert_eq!(objects(path), names, "not even a lease");
    report
}

/// The names of all objects with which something is wrong.
fn named(report: &CheckReport) -> BTreeSet<String> {
    let catalog = report.catalog.lost.iter().map(|entry| &entry.lost.object);
    let lost = report
        .lost
        .iter()
        .chain(&report.spare)
        .chain(&report.astray);
    let all = catalog.chain(lost.map(|lost| &lost.object));
    let all = all.chain(report.healable.iter().map(|healable| &healable.object));
    all.chain(&report.catalog.differing).cloned().collect()
}

/// Whether an object is named, and no other.
fn is_alone(found: &BTreeSet<String>, object: &Path) -> bool {
    found.len() == 1 && found.iter().all(|name| name.ends_with(&short(object)))
}

fn has_losses(report: &CheckReport) -> bool {
    report.points.iter().any(|point| !point.lost.is_empty())
}

fn full_store() -> (tempfile::TempDir, Vec<(PathBuf, Vec<u8>)>) {
    let tmp = tempfile::tempdir().unwrap();
    let mut contents = build(tmp.path());
    collect(tmp.path(), &mut contents);
    let all = all_objects(tmp.path());
    (tmp, all)
}

#[test]
fn a_whole_store_is_found_whole() {
    let (tmp, all) = full_store();
    for deep in [false, true] {
        let report = check(tmp.path(), deep).unwrap();
        assert!(report.is_whole(), "{report:?}");
        assert!(named(&report).is_empty(), "{report:?}");
        assert_eq!(report.points.len(), 5, "{report:?}");
        assert_eq!(report.unneeded.unwrap().objects, 0, "{report:?}");
        assert_eq!(report.objects + 1, all.len() as u64, "all but `format`");
    }
}

/// One object is damaged in any way: that one is named, no other, and points have lost something only if it is lost.
#[test]
fn whatever_is_damaged_is_found_and_nothing_else_is() {
    let cases = count_from_env("STANDIN_CASES", 250);
    let seed = sim::seed_from_env(std::process::id().into());
    let (tmp, all) = full_store();
    let mut closed = 0;
    for case in 0..cases {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(case));
        let (object, good) = &all[rng.random_range(0..all.len())];
        let others: Vec<&Vec<u8>> = all
            .iter()
            .filter(|(path, _)| path != object && path.parent() == object.parent())
            .map(|(_, bytes)| bytes)
            .collect();
        if others.is_empty() || short(object) == "format" {
            continue;
        }
        let (how, bad, in_reach) = damage(&mut rng, good, &others);
        if bad == *good {
            continue;
        }
        let story = format!("seed {}: {object:?} has {how}", seed.wrapping_add(case));
        fs::write(object, &bad).unwrap();
        let report = check(tmp.path(), case % 2 == 0).unwrap();
        let found = named(&report);
        assert!(is_alone(&found, object), "{story}: {report:?}");
        match in_reach.filter(|_| !has_a_copy(object)) {
            Some(true) => assert!(report.is_whole(), "{story}: {report:?}"),
            Some(false) => assert!(!report.is_whole(), "{story}: {report:?}"),
            None => {}
        }
        let opens = Store::open_reader(&place_at(tmp.path()), around(0)).is_ok();
        assert_eq!(report.catalog.opens(), opens, "{story}: {report:?}");
        closed += u64::from(!opens);
        fs::write(object, good).unwrap();
    }
    assert!(closed > 0, "the catalog did not open at times");
    assert!(check(tmp.path(), true).unwrap().is_whole());
}

/// An object is gone: it is named, with the points that have lost something.
#[test]
fn whatever_is_missing_is_found_and_nothing_else_is() {
    let (tmp, all) = full_store();
    for (object, good) in &all {
        // Without it nobody can say which store this is; without the last commit it is an older store.
        if short(object) == "format" || is_last_commit(object) {
            continue;
        }
        fs::remove_file(object).unwrap();
        let report = check(tmp.path(), false).unwrap();
        let found = named(&report);
        assert!(is_alone(&found, object), "{object:?}: {report:?}");
        if has_a_copy(object) {
            assert!(report.is_whole(), "{object:?}: {report:?}");
            fs::write(object, good).unwrap();
            continue;
        }
        assert!(!report.is_whole(), "{object:?}: {report:?}");
        let on_a_shelf = object.extension().is_some();
        assert_eq!(report.catalog.opens(), on_a_shelf, "{object:?}");
        if on_a_shelf {
            assert!(has_losses(&report), "{object:?}: {report:?}");
        }
        fs::write(object, good).unwrap();
    }
}

/// The catalog does not open, and all but the lost commit is there: the points of the others are read and checked.
#[test]
fn points_are_checked_where_the_catalog_does_not_open() {
    let (tmp, all) = full_store();
    let commits = all
        .iter()
        .filter(|(path, _)| short(path).starts_with("commit-"));
    let (second, _) = commits.clone().nth(1).unwrap();
    fs::remove_file(second).unwrap();
    assert!(Store::open_reader(&place_at(tmp.path()), around(0)).is_err());
    let report = check(tmp.path(), true).unwrap();
    let points: Vec<String> = report
        .points
        .iter()
        .map(|point| point.point.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(points, ["mail@1", "web@1", "web@3", "web@4"], "{report:?}");
    assert!(!has_losses(&report), "{report:?}");
    assert_eq!(report.catalog.commits + 1, commits.count() as u64);
}

/// What a crashed writer leaves is counted; a store to which somebody writes is checked beside it.
#[test]
fn leftovers_are_counted_beside_a_writer() {
    let (tmp, _) = full_store();
    let half = tmp.path().join("containers/000000/000000000abc.con.tmp-1");
    fs::write(&half, b"half").unwrap();
    let report = check(tmp.path(), false).unwrap();
    assert_eq!(report.half_created.len(), 1, "{report:?}");
    assert_eq!(report.half_created[0].bytes, 4);
    assert!(report.is_whole());

    let store = open_writer(&dir_at(tmp.path()), 0);
    assert!(!half.exists());
    let mut writer = store.image_writer(Base::Empty { size: 4096 * 99 }).unwrap();
    (0..99).for_each(|i| writer.put(i, &chunk(700_000 + i)).unwrap());
    let finished = writer.finish().unwrap();
    let report = check(tmp.path(), false).unwrap();
    assert!(report.is_whole(), "{report:?}");
    let unneeded = report.unneeded.unwrap();
    assert_eq!(unneeded.objects, 2, "a container and its tree: {report:?}");
    store.commit_point(draft("late", finished)).unwrap();
    let report = check(tmp.path(), false).unwrap();
    assert!(report.is_whole() && report.points.len() == 6, "{report:?}");
    assert_eq!(report.unneeded.unwrap().objects, 0, "{report:?}");
}
