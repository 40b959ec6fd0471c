//! Stores written by every version, kept forever: they are read, written on, collected and scrubbed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::{Dir, GRANULE, GranuleRange, OsDir};
use common::{Content, chunk, draft, name, read_all, seed_draft, thorough};
use store::{Around, Base, Directory, GcOptions, ScrubOptions, Secret, Store};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const VERSIONS: [u32; 3] = [1, 2, ENCRYPTED];
const NEWEST: u32 = 2;
/// The newest again, encrypted.
const ENCRYPTED: u32 = 3;
const GRANULES: u64 = 600;

/// The contents of its three points, and how they were made.
fn contents(mut step: impl FnMut(usize, &[(u64, u64)], GranuleRange)) -> Vec<Vec<u8>> {
    let mut content = Content::new(GRANULES * GRANULE - 512);
    let mut points = Vec::new();
    for round in 0..3_u64 {
        let puts: Vec<_> = (0..60)
            .map(|i| ((i * 7 + round * 150) % 599, round * 50 + i))
            .collect();
        for (at, number) in &puts {
            content.put(*at, &mut chunk(*number));
        }
        let zeroes = GranuleRange {
            start: round * 20,
            end: round * 20 + 30,
        };
        content.zero(zeroes);
        points.push(content.bytes.clone());
        step(usize::try_from(round).unwrap(), &puts, zeroes);
    }
    points
}

fn around(version: u32) -> Around {
    let secret = (version == ENCRYPTED).then(|| Arc::new(Secret::Key([3; 32].into())));
    Around {
        secret,
        ..common::around(0)
    }
}

fn golden(version: u32) -> String {
    format!("{FIXTURES}/store-v{version}")
}

/// Writes a fixture of the newest version; the others are what they are.
fn write_golden(version: u32) {
    let path = golden(version);
    let _ = fs::remove_dir_all(&path);
    let dir: Arc<dyn Dir> = Arc::new(OsDir::create_all(&path).unwrap());
    let place = Directory::backend(&dir);
    let around = around(version);
    match around.secret.clone().map(Arc::unwrap_or_clone) {
        None => Store::create(&place).unwrap(),
        Some(key) => {
            let passphrase = Secret::passphrase(b"golden").unwrap();
            let secrets = [(key, "key".into()), (passphrase, "passphrase".into())];
            Store::create_encrypted(&place, &secrets, &around).unwrap();
        }
    }
    let store = Store::open_writer(&place, around).unwrap();
    contents(|round, puts, zeroes| {
        let base = match store.newest(&name("web")) {
            Some(point) => Base::Image(point.disks[0].image.clone()),
            None => Base::Empty {
                size: GRANULES * GRANULE - 512,
            },
        };
        let mut writer = store.image_writer(base).unwrap();
        for (at, number) in puts {
            writer.put(*at, &chunk(*number)).unwrap();
        }
        writer.zero(zeroes).unwrap();
        let image = writer.finish().unwrap();
        if round == 1 {
            store.save_seed(seed_draft("other", image.clone())).unwrap();
        }
        store.commit_point(draft("web", image)).unwrap();
    });
    // Bundles of each kind, and something in quarantine.
    let newest = store.newest(&name("web")).unwrap();
    let base = || Base::Image(newest.disks[0].image.clone());
    for i in 0..12 {
        let mut writer = store.image_writer(base()).unwrap();
        writer.put(i, &chunk(7000 + i)).unwrap();
        let image = writer.finish().unwrap();
        let point = store.commit_point(draft("mail", image)).unwrap();
        let id = std::slice::from_ref(&point.id);
        match i {
            0 => store.hold(&point.id, Some("kept")).unwrap(),
            1 => store.remove_points(id, Duration::from_hours(1)).unwrap(),
            2 => store.remove_points(id, Duration::ZERO).unwrap(),
            _ => {}
        }
    }
    let options = GcOptions {
        compact_below: 1.0,
        ..GcOptions::default()
    };
    store.collect_garbage(&options).unwrap();
    assert!(store.figures().quarantined_bytes > 0);
    store.scrub(&ScrubOptions::default()).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn the_stores_of_all_versions_are_read_and_written_on() {
    if std::env::var_os("STANDIN_WRITE_FIXTURES").is_some() {
        [NEWEST, ENCRYPTED].into_iter().for_each(write_golden);
    }
    VERSIONS.into_iter().for_each(is_read_and_written_on);
}

fn is_read_and_written_on(version: u32) {
    let tmp = tempfile::tempdir().unwrap();
    copy_tree(Path::new(&golden(version)), tmp.path());
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
    let expected = contents(|_, _, _| ());
    let of_web = |store: &Store| {
        let mut points = store.points();
        points.retain(|point| point.id.group == name("web"));
        points
    };
    let check = |store: &Store| {
        for (point, content) in of_web(store).iter().zip(&expected) {
            let image = store.image(&point.disks[0].image).unwrap();
            assert!(read_all(&image) == *content, "{}", point.id);
            assert_eq!(point.labels["why"], "test");
        }
    };
    let place = Directory::backend(&dir);
    let reader = Store::open_reader(&place, around(version)).unwrap();
    assert_eq!(of_web(&reader).len(), 3);
    assert!(reader.seed(&name("other")).is_some());
    check(&reader);
    let roots = of_web(&reader);
    let roots = roots.iter().map(|point| {
        let image = reader.image(&point.disks[0].image).unwrap();
        image.root().unwrap().to_string()
    });
    let roots: Vec<_> = roots.collect();
    // The same contents have the same roots, whatever version wrote them; with one key.
    let like = if version == ENCRYPTED { version } else { 1 };
    let path = format!("{}-roots", golden(like));
    if version == ENCRYPTED && std::env::var_os("STANDIN_WRITE_FIXTURES").is_some() {
        fs::write(&path, roots.join("\n")).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), roots.join("\n"));
    if version >= 2 {
        let figures = reader.figures();
        assert!(figures.quarantined_bytes > 0, "{figures:?}");
        assert_eq!(reader.removed_points().len(), 1);
        assert!(reader.last_scrub().is_some());
        let held = reader
            .points()
            .iter()
            .any(|p| reader.protection(&p.id).hold.is_some());
        assert!(held);
    }

    if version == ENCRYPTED {
        let secret = Some(Arc::new(Secret::passphrase(b"golden").unwrap()));
        let by_passphrase = Around {
            secret,
            ..around(version)
        };
        check(&Store::open_reader(&place, by_passphrase).unwrap());
    }

    let store = Store::open_writer(&place, around(version)).unwrap();
    let newest = store.newest(&name("web")).unwrap();
    let base = Base::Image(newest.disks[0].image.clone());
    let mut writer = store.image_writer(base).unwrap();
    writer.put(0, &chunk(0)).unwrap();
    let image = writer.finish().unwrap();
    store.commit_point(draft("web", image)).unwrap();
    check(&store);
    assert_eq!(of_web(&store).len(), 4);
    store.collect_garbage(&thorough()).unwrap();
    let report = store.scrub(&ScrubOptions::default()).unwrap();
    assert!(report.is_whole() && report.healed.is_empty(), "{report:?}");
    check(&store);
}
