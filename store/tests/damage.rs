//! Every object of a store, damaged in every way: noticed and named, and never a wrong byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{BlockDevice, Dir, GRANULE, GranuleRange, OsDir, index};
use common::{around, chunk, draft, open_writer, read_all};
use store::{Base, Directory, ErrorKind, Store};

const SIZE: u64 = 2000 * GRANULE;

/// A store with a few points; what they hold, by name.
fn build(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = dir_at(path);
    Store::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let mut contents = BTreeMap::new();
    let mut base = Base::Empty { size: SIZE };
    for round in 0..4 {
        let mut writer = store.image_writer(base).unwrap();
        for i in 0..200 {
            let at = (round * 337 + i * 3) % 2000;
            writer.put(at, &chunk(round * 1000 + i)).unwrap();
        }
        let zeroes = GranuleRange {
            start: round * 100,
            end: round * 100 + 50,
        };
        writer.zero(zeroes).unwrap();
        let finished = writer.finish().unwrap();
        base = Base::Image(finished.image().clone());
        let image = store.image(finished.image()).unwrap();
        let point = store.commit_point(draft("web", finished)).unwrap();
        contents.insert(point.id.to_string(), read_all(&image));
    }
    contents
}

fn dir_at(path: &Path) -> Arc<dyn Dir> {
    Arc::new(OsDir::open(path).unwrap())
}

fn objects(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(objects(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// What reading everything says: nothing, or the texts of the complaints. Panics at a wrong byte.
fn complaints(path: &Path, contents: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let store = match Store::open_reader(&Directory::backend(&dir_at(path)), around(2)) {
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

/// The part of a path that messages use.
fn short(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Bytes that nothing reads in normal work: a tree object's own checksum (for scrubs).
fn is_spare(path: &Path, at: usize, len: usize) -> bool {
    path.extension().is_some_and(|e| e == "tre") && at + 4 >= len
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_and_named() {
    let tmp = tempfile::tempdir().unwrap();
    let contents = build(tmp.path());
    assert!(complaints(tmp.path(), &contents).is_empty());
    let mut cases = 0;
    for object in objects(tmp.path()) {
        if object.starts_with(tmp.path().join("lease")) {
            continue;
        }
        let good = fs::read(&object).unwrap();
        // Ends byte by byte, the middle in strides: every field, region and record is hit.
        let edges = (0..good.len().min(70)).chain(good.len().saturating_sub(120)..good.len());
        let middle = (70..good.len()).step_by((good.len() / 40).max(1));
        for at in edges.chain(middle).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&object, &bad).unwrap();
            let found = complaints(tmp.path(), &contents);
            let named = found.iter().any(|text| text.contains(&short(&object)));
            assert!(
                named || is_spare(&object, at, good.len()),
                "{object:?} at {at}: {found:?}"
            );
            cases += 1;
        }
        fs::write(&object, &good).unwrap();
    }
    assert!(cases > 150, "{cases}");
    assert!(complaints(tmp.path(), &contents).is_empty());
}

#[test]
fn a_truncated_deleted_or_swapped_object_is_noticed_and_named() {
    let tmp = tempfile::tempdir().unwrap();
    let contents = build(tmp.path());
    let all = objects(tmp.path());
    for object in &all {
        let good = fs::read(object).unwrap();
        if object.starts_with(tmp.path().join("lease")) {
            continue;
        }
        let noticed = |what: &str| {
            let found = complaints(tmp.path(), &contents);
            let named = found.iter().any(|text| text.contains(&short(object)));
            assert!(named, "{object:?} {what}: {found:?}");
        };
        for len in [0, 1, 20, good.len() / 2, good.len() - 10] {
            fs::write(object, &good[..len]).unwrap();
            noticed("cut off");
        }
        fs::remove_file(object).unwrap();
        let name = short(object);
        // Without its format a directory is no store; without its last commit it is an older store.
        if name != "format" && name != "commit-0000000000000004" {
            noticed("deleted");
        }
        let same_kind = |other: &&PathBuf| {
            other.parent() == object.parent() && other.extension() == object.extension()
        };
        let others = all.iter().filter(same_kind).filter(|o| *o != object);
        for other in others {
            fs::copy(other, object).unwrap();
            noticed("swapped");
        }
        fs::write(object, &good).unwrap();
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
