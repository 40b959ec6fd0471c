//! Every object of a store, damaged in every way: noticed and named, and never a wrong byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use block::{BlockDevice, ByteRange, GRANULE, index};
use common::damaged::{
    SIZE, all_objects, build, collect, damage, dir_at, has_a_copy, is_last_commit, objects,
    place_at, restore_the_rest, short,
};
use common::lost_sector::{LostSector, SECTOR};
use common::{around, chunk, count_from_env, open_writer, read_all};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{
    Backend, Base, ErrorKind, Image, RestoreSink, ScrubOptions, ScrubPosition, ScrubReport, Store,
    StoreError,
};

/// What reading everything says: nothing, or the texts of the complaints. Panics at a wrong byte.
fn complaints(path: &Path, contents: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    complaints_of(&place_at(path), contents)
}

fn complaints_of(place: &Arc<dyn Backend>, contents: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let store = match Store::open_reader(place, around(2)) {
        Ok(store) => store,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            return vec![e.to_string()];
        }
    };
    let mut found = Vec::new();
    for (id, content) in contents {
        let Ok(point) = store.point(&id.parse().unwrap()) else {
            continue;
        };
        let image = &point.disks[0].image;
        let report = store.verify_image(image, &|_, _| ()).unwrap();
        let lost = report.damage.iter().flat_map(|damage| &damage.ranges);
        let lost: Vec<_> = lost.copied().collect();
        found.extend(report.damage.iter().map(|damage| damage.what.clone()));
        let Ok(image) = store.image(image) else {
            assert!(!lost.is_empty(), "a verified image opens");
            continue;
        };
        check_restored(&image, content, lost.is_empty());
        let mut buf = vec![0; 4096];
        for (i, expected) in content.chunks(4096).enumerate() {
            let at = i as u64 * GRANULE;
            match image.read_at(&mut buf, at) {
                Ok(()) => assert!(buf == expected, "{id} returns a wrong byte at {at}"),
                Err(e) => {
                    assert_eq!(e.kind(), block::ErrorKind::Corrupt);
                    let named = lost.iter().any(|r| r.start() <= at && at < r.end());
                    assert!(named, "{id}: {at} is unreadable, and verify did not say so");
                }
            }
        }
    }
    found
}

/// A restore gives no wrong byte, and says that it gives all of them only of an image that is whole.
fn check_restored(image: &Image, content: &[u8], is_whole: bool) {
    let disk = Restored {
        content,
        bytes: AtomicU64::new(0),
    };
    match image.restore_to(&disk, 2, 2, &|_, _| ()) {
        Ok(()) => assert_eq!(disk.bytes.into_inner(), content.len() as u64),
        Err(e) => assert!(!is_whole && e.kind() == ErrorKind::Corrupt, "{e}"),
    }
}

/// Compares what is restored.
struct Restored<'a> {
    content: &'a [u8],
    bytes: AtomicU64,
}

impl RestoreSink for Restored<'_> {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let wanted = &self.content[index(offset)..][..data.len()];
        assert!(data == wanted, "a wrong byte is restored at {offset}");
        self.bytes.fetch_add(data.len() as u64, Relaxed);
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.write(range.start(), &vec![0; index(range.len())])
    }
}

/// What a scrub of the store, which heals, says: names of what it healed, and of what is lost.
fn scrub(path: &Path, heal: bool) -> std::result::Result<ScrubReport, StoreError> {
    scrub_of(&place_at(path), heal)
}

fn scrub_of(place: &Arc<dyn Backend>, heal: bool) -> std::result::Result<ScrubReport, StoreError> {
    let store = Store::open_writer(place, around(0))?;
    let options = ScrubOptions {
        heal,
        threads: 3,
        ..ScrubOptions::default()
    };
    store.scrub(&options)
}

/// Any damage to any one object: nothing wrong is ever returned, what is in reach of its armor is healed for good, and
/// the rest is named: the object, the points and the ranges. A second scrub finds what the first left.
#[test]
fn damage_of_any_kind_is_healed_or_named_and_never_believed() {
    let cases = count_from_env("STANDIN_CASES", 250);
    let seed = sim::seed_from_env(std::process::id().into());
    let tmp = tempfile::tempdir().unwrap();
    let mut contents = build(tmp.path());
    collect(tmp.path(), &mut contents);
    assert!(complaints(tmp.path(), &contents).is_empty());
    let all = all_objects(tmp.path());
    let mut healed = 0;
    for case in 0..cases {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(case));
        // There are more commits than anything else.
        let shelved = |object: &&(PathBuf, Vec<u8>)| object.0.extension().is_some();
        let on_shelves: Vec<_> = all.iter().filter(shelved).collect();
        let (object, good) = match rng.random_bool(0.3) {
            true => &all[rng.random_range(0..all.len())],
            false => on_shelves[rng.random_range(0..on_shelves.len())],
        };
        let kind = |path: &Path| path.extension().map(OsStr::to_owned);
        let others: Vec<&Vec<u8>> = all
            .iter()
            .filter(|(path, _)| path != object && kind(path) == kind(object))
            .map(|(_, bytes)| bytes)
            .collect();
        if others.is_empty() {
            continue;
        }
        let (how, bad, mut in_reach) = damage(&mut rng, good, &others);
        if has_a_copy(object) {
            in_reach = Some(true);
        }
        if bad == *good {
            continue;
        }
        let story = format!(
            "seed {}: {} has {how}",
            seed.wrapping_add(case),
            object.display()
        );
        fs::write(object, &bad).unwrap();
        // Every byte that reads is right; what does not read is named.
        let found = complaints(tmp.path(), &contents);
        match in_reach {
            Some(true) => assert!(found.is_empty(), "{story}: {found:?}"),
            Some(false) => assert!(names(&found, object), "{story}: {found:?}"),
            None => assert!(
                found.is_empty() || names(&found, object),
                "{story}: {found:?}"
            ),
        }
        let report = scrub(tmp.path(), true);
        let is_now = fs::read(object).unwrap();
        match report {
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{story}: {e}");
                assert!(!found.is_empty(), "{story}: {e}");
            }
            Ok(report) if found.is_empty() && report.lost.is_empty() => {
                assert!(report.is_whole(), "{story}: {report:?}");
                assert!(is_now == *good, "{story}: it is as it was");
                assert_eq!(report.healed.len(), 1, "{story}: {report:?}");
                assert!(report.healed[0].object.contains(&short(object)), "{story}");
                healed += 1;
            }
            Ok(report) => {
                assert_ne!(in_reach, Some(true), "{story}: {report:?}");
                // What points need of it may be right all the same.
                assert_eq!(
                    found.is_empty(),
                    report.hits.is_empty(),
                    "{story}: {report:?}"
                );
                let lost = report
                    .lost
                    .iter()
                    .any(|l| l.object.contains(&short(object)));
                assert!(lost, "{story}: {report:?}");
                assert!(
                    is_now == bad,
                    "{story}: what cannot be healed is left as it is"
                );
            }
        }
        fs::write(object, good).unwrap();
        restore_the_rest(tmp.path(), &all);
    }
    // About a quarter is in reach.
    assert!(healed * 8 > cases, "{healed} of {cases} were healed");
    assert!(complaints(tmp.path(), &contents).is_empty());
}

fn names(complaints: &[String], object: &Path) -> bool {
    complaints.iter().any(|text| text.contains(&short(object)))
}

/// A disk that loses a sector returns no wrong bytes: it fails every read that touches it. Taken for a failure of the
/// place, that would end each restore there; but the object's armor has the bytes, as it has those of a flipped bit.
/// So readers get them, whichever sector it is, and a scrub writes the object anew, where the disk is sound. An object
/// that lies in that one sector is lost, and named.
#[test]
fn a_lost_sector_is_healed_to_be_read_and_put_right_by_a_scrub() {
    let tmp = tempfile::tempdir().unwrap();
    let mut contents = build(tmp.path());
    collect(tmp.path(), &mut contents);
    let all = all_objects(tmp.path());
    let (mut healed, mut lost) = (BTreeSet::new(), 0);
    for (object, good) in &all {
        let name = object.strip_prefix(tmp.path()).unwrap().to_str().unwrap();
        let sectors = (good.len() as u64).div_ceil(SECTOR);
        for sector in BTreeSet::from([0, sectors / 2, sectors - 1]) {
            let story = format!("sector {sector} of {sectors} of {name}");
            let disk = LostSector::of(place_at(tmp.path()), name, sector);
            let place: Arc<dyn Backend> = Arc::clone(&disk) as _;
            let found = complaints_of(&place, &contents);
            // A small object lies in one sector with its armor; then it takes a copy.
            if sectors > 4 || has_a_copy(object) {
                assert!(found.is_empty(), "{story}: {found:?}");
                let report = scrub_of(&place, false).unwrap();
                assert_eq!(report.healed.len(), 1, "{story}: {report:?}");
                assert!(
                    !disk.watch.is_replaced(),
                    "{story}: nothing was to be changed"
                );
                let report = scrub_of(&place, true).unwrap();
                assert!(report.is_whole(), "{story}: {report:?}");
                assert_eq!(report.healed.len(), 1, "{story}: {report:?}");
                assert_eq!(report.healed[0].object, name, "{story}");
                assert!(disk.watch.is_replaced(), "{story}");
                assert!(fs::read(object).unwrap() == *good, "{story}");
                let report = scrub_of(&place, true).unwrap();
                assert!(report.healed.is_empty(), "{story}: {report:?}");
                healed.extend(object.extension().map(std::ffi::OsStr::to_owned));
            } else {
                assert!(names(&found, object), "{story}: {found:?}");
                lost += 1;
            }
            restore_the_rest(tmp.path(), &all);
        }
    }
    healed.remove(std::ffi::OsStr::new("copy"));
    assert_eq!(healed.len(), 2, "containers and bundles: {healed:?}");
    assert!(lost > 0);
}

/// A scrub heals what nobody reads as well: an object whose armor alone is damaged.
#[test]
fn a_scrub_finds_what_no_reader_meets() {
    let tmp = tempfile::tempdir().unwrap();
    let contents = build(tmp.path());
    let containers = objects(&tmp.path().join("containers"));
    let good = fs::read(&containers[0]).unwrap();
    let mut bad = good.clone();
    let at = bad.len() - 70;
    bad[at] ^= 1;
    fs::write(&containers[0], &bad).unwrap();
    assert!(complaints(tmp.path(), &contents).is_empty());
    let report = scrub(tmp.path(), false).unwrap();
    assert_eq!(report.healed.len(), 1);
    assert!(
        fs::read(&containers[0]).unwrap() == bad,
        "nothing was to be changed"
    );
    let report = scrub(tmp.path(), true).unwrap();
    assert_eq!(report.healed[0].damaged_bytes, 1);
    assert!(fs::read(&containers[0]).unwrap() == good);
    assert!(scrub(tmp.path(), true).unwrap().healed.is_empty());
}

/// A scrub that was stopped goes on where it was, and finds what an undisturbed one finds.
#[test]
fn a_scrub_is_stopped_and_goes_on() {
    let tmp = tempfile::tempdir().unwrap();
    build(tmp.path());
    let store = open_writer(&dir_at(tmp.path()), 0);
    let whole = store.scrub(&ScrubOptions::default()).unwrap();
    let (mut after, mut objects, mut stops) = (None, 0, 0);
    loop {
        let options = ScrubOptions {
            after,
            threads: 1 + stops % 3,
            stop: &|| true,
            ..ScrubOptions::default()
        };
        let report = store.scrub(&options).unwrap();
        objects += report.objects;
        assert!(report.is_whole());
        let Some(reached) = report.reached else { break };
        let word = reached.to_word();
        after = ScrubPosition::parse(&word);
        assert_eq!(after, Some(reached), "{word}");
        stops += 1;
    }
    // That scrub itself is a commit.
    assert_eq!(objects, whole.objects + 1);
    assert!(stops > 5, "{stops}");
}

/// Objects that are gone, each of them: named, with what it costs, and nothing else is touched.
#[test]
fn a_deleted_object_is_named_with_what_it_costs() {
    let tmp = tempfile::tempdir().unwrap();
    let mut contents = build(tmp.path());
    collect(tmp.path(), &mut contents);
    for object in objects(tmp.path()) {
        if object.starts_with(tmp.path().join("lease")) {
            continue;
        }
        let good = fs::read(&object).unwrap();
        let is_last_commit = is_last_commit(&object);
        fs::remove_file(&object).unwrap();
        let name = short(&object);
        // Without its format a directory is no store; without its last commit it is an older store.
        if has_a_copy(&object) {
            assert!(complaints(tmp.path(), &contents).is_empty(), "{object:?}");
            let report = scrub(tmp.path(), true).unwrap();
            assert!(report.is_whole() && report.healed.len() == 1, "{report:?}");
            assert!(fs::read(&object).unwrap() == good, "{object:?}");
            continue;
        }
        if name != "format" && !is_last_commit {
            let found = complaints(tmp.path(), &contents);
            assert!(names(&found, &object), "{object:?}: {found:?}");
        }
        if object.extension().is_some() {
            let report = scrub(tmp.path(), true).unwrap();
            let lost = report.lost.iter().any(|lost| lost.object.contains(&name));
            assert!(lost && !report.hits.is_empty(), "{object:?}: {report:?}");
        }
        fs::write(&object, &good).unwrap();
    }
    assert!(complaints(tmp.path(), &contents).is_empty());
}

#[test]
fn a_damaged_container_is_not_built_on() {
    let tmp = tempfile::tempdir().unwrap();
    build(tmp.path());
    let containers = objects(&tmp.path().join("containers"));
    let mut bytes = fs::read(&containers[0]).unwrap();
    let len = bytes.len();
    bytes[len - 30] ^= 1;
    fs::write(&containers[0], bytes).unwrap();
    let store = open_writer(&dir_at(tmp.path()), 1);
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    for i in 0..200 {
        writer.put(i, &chunk(i)).unwrap();
    }
    let finished = writer.finish().unwrap();
    let report = store.verify_image(finished.image(), &|_, _| ()).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.data_bytes, 200 * GRANULE);
    let bytes = read_all(&store.image(finished.image()).unwrap());
    assert_eq!(bytes[..4096], chunk(0)[..]);
    assert_eq!(bytes.len(), index(SIZE));
}
