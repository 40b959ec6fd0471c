//! A store with an object of every kind, and ways to damage them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Dir, GRANULE, GranuleRange, OsDir};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use store::{Backend, Base, Directory, PointRef};

use super::{chunk, draft, open_writer, read_all, thorough};

pub(crate) const SIZE: u64 = 2000 * GRANULE;

/// A store with a few points; what they hold, by name.
pub(crate) fn build(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = dir_at(path);
    super::create(&Directory::backend(&dir)).unwrap();
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

pub(crate) fn dir_at(path: &Path) -> Arc<dyn Dir> {
    Arc::new(OsDir::open(path).unwrap())
}

pub(crate) fn place_at(path: &Path) -> Arc<dyn Backend> {
    Directory::backend(&dir_at(path))
}

pub(crate) fn objects(path: &Path) -> Vec<PathBuf> {
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

/// The part of a path that messages use.
pub(crate) fn short(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Damages a copy of an object in some way, and says whether its armor can reach that; `None`: it may or may not.
pub(crate) fn damage(
    rng: &mut ChaCha8Rng,
    good: &[u8],
    others: &[&Vec<u8>],
) -> (&'static str, Vec<u8>, Option<bool>) {
    let mut bad = good.to_vec();
    match rng.random_range(0..6) {
        0 => {
            let at = rng.random_range(0..bad.len());
            bad[at] ^= 1 << rng.random_range(0..8);
            ("a flipped bit", bad, Some(true))
        }
        1 => {
            let sectors = bad.len().div_ceil(4096);
            let sector = rng.random_range(0..sectors) * 4096;
            let end = (sector + 4096).min(bad.len());
            rng.fill_bytes(&mut bad[sector..end]);
            // A small object lies in one sector with its armor.
            ("a sector of noise", bad, (sectors > 4).then_some(true))
        }
        2 => {
            let at = rng.random_range(0..bad.len());
            let len = rng.random_range(1..(bad.len() - at + 1).min(60_000));
            bad[at..at + len].fill(0);
            ("a stretch of zeroes", bad, None)
        }
        3 => {
            bad.truncate(rng.random_range(0..good.len()));
            ("cut off", bad, None)
        }
        4 => {
            let other = others[rng.random_range(0..others.len())];
            ("another object's bytes", other.clone(), Some(false))
        }
        _ => {
            for _ in 0..rng.random_range(2..40) {
                let at = rng.random_range(0..bad.len());
                bad[at] = bad[at].wrapping_add(rng.random_range(1..255));
            }
            ("bytes here and there", bad, None)
        }
    }
}

/// Opening a store to write leaves new objects: the next case begins as this one did.
pub(crate) fn restore_the_rest(path: &Path, all: &[(PathBuf, Vec<u8>)]) {
    let known: BTreeSet<&PathBuf> = all.iter().map(|(path, _)| path).collect();
    for object in objects(path) {
        if !known.contains(&object) && !object.starts_with(path.join("lease")) {
            fs::remove_file(object).unwrap();
        }
    }
}

/// Moves what is small into bundles: there are objects of every kind then.
pub(crate) fn collect(path: &Path, contents: &mut BTreeMap<String, Vec<u8>>) {
    let store = open_writer(&dir_at(path), 0);
    let report = store.collect_garbage(&thorough());
    assert!(report.unwrap().containers_moved > 0);
    // Some more, so that not everything lies in bundles.
    let latest: PointRef = "web@latest".parse().unwrap();
    let base = store.point(&latest).unwrap().disks[0].image.clone();
    let mut writer = store.image_writer(Base::Image(base)).unwrap();
    for i in 0..700 {
        writer.put(i, &chunk(90_000 + i)).unwrap();
    }
    let finished = writer.finish().unwrap();
    let content = read_all(&store.image(finished.image()).unwrap());
    let point = store.commit_point(draft("mail", finished)).unwrap();
    contents.insert(point.id.to_string(), content);
}

pub(crate) fn is_last_commit(object: &Path) -> bool {
    if !short(object).starts_with("commit-") {
        return false;
    }
    let commits = objects(object.parent().unwrap());
    commits.last().is_some_and(|last| last == object)
}

/// Whether another object has the same bytes.
pub(crate) fn has_a_copy(object: &Path) -> bool {
    object
        .parent()
        .is_some_and(|folder| folder.ends_with("keys"))
}

/// Every object but those of the lease, with its bytes.
pub(crate) fn all_objects(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    objects(path)
        .into_iter()
        .filter(|object| !object.starts_with(path.join("lease")))
        .map(|object| (object.clone(), fs::read(&object).unwrap()))
        .collect()
}
