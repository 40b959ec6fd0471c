//! A store written by version 1, kept forever: it is read, and written on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use block::{Dir, GRANULE, GranuleRange, OsDir};
use common::{Content, around, chunk, draft, name, open_writer, read_all, seed_draft};
use store::{Base, Directory, Store};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-v1");
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

fn write_golden() {
    let _ = fs::remove_dir_all(GOLDEN);
    let dir: Arc<dyn Dir> = Arc::new(OsDir::create_all(GOLDEN).unwrap());
    Store::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
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
fn the_store_of_version_1_is_read_and_written_on() {
    if std::env::var_os("STANDIN_WRITE_FIXTURES").is_some() {
        write_golden();
    }
    let tmp = tempfile::tempdir().unwrap();
    copy_tree(Path::new(GOLDEN), tmp.path());
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
    let expected = contents(|_, _, _| ());
    let check = |store: &Store| {
        for (point, content) in store.points().iter().zip(&expected) {
            let image = store.image(&point.disks[0].image).unwrap();
            assert!(read_all(&image) == *content, "{}", point.id);
            assert_eq!(point.labels["why"], "test");
        }
    };
    let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
    assert_eq!(reader.points().len(), 3);
    assert!(reader.seed(&name("other")).is_some());
    check(&reader);
    let roots = reader.points();
    let roots = roots.iter().map(|point| {
        let image = reader.image(&point.disks[0].image).unwrap();
        image.root().unwrap().to_string()
    });
    let roots: Vec<_> = roots.collect();
    let path = format!("{GOLDEN}-roots");
    if std::env::var_os("STANDIN_WRITE_FIXTURES").is_some() {
        fs::write(&path, roots.join("\n")).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), roots.join("\n"));

    let store = open_writer(&dir, 0);
    let newest = store.newest(&name("web")).unwrap();
    let base = Base::Image(newest.disks[0].image.clone());
    let mut writer = store.image_writer(base).unwrap();
    writer.put(0, &chunk(0)).unwrap();
    let image = writer.finish().unwrap();
    store.commit_point(draft("web", image)).unwrap();
    check(&store);
    assert_eq!(store.points().len(), 4);
}
