//! Full disks, failing disks, second writers, wrong calls.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io;
use std::sync::Arc;

use block::{Dir, GRANULE, GranuleRange, OsDir};
use common::{around, chunk, draft, name, open_writer, read_all, seed_draft};
use sim::SimWorld;
use store::{Base, Directory, ErrorKind, FinishedImage, PointRef, Result, Store};

fn new_store(world: &SimWorld) -> (Arc<dyn Dir>, Store) {
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    (dir, store)
}

fn image_of(store: &Store, chunks: std::ops::Range<u64>) -> Result<FinishedImage> {
    let size = 1000 * GRANULE;
    let mut writer = store.image_writer(Base::Empty { size })?;
    for i in chunks {
        writer.put(i % 1000, &chunk(i))?;
    }
    writer.finish()
}

#[test]
fn a_full_disk_lists_nothing_and_the_store_goes_on() {
    for full in [".con.", ".tre.", "commit-"] {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
            let world = SimWorld::new(1);
            let (dir, store) = new_store(&world);
            let first = image_of(&store, 0..50).unwrap();
            store.commit_point(draft("web", first)).unwrap();
            world.set_fault(Some(Arc::new(move |file: &str| {
                file.contains(full).then_some(kind)
            })));
            let failed = image_of(&store, 100..150)
                .and_then(|image| store.commit_point(draft("web", image)));
            let expected = match kind {
                io::ErrorKind::StorageFull => ErrorKind::Full,
                _ => ErrorKind::Io,
            };
            assert_eq!(failed.unwrap_err().kind(), expected, "{full}");
            assert_eq!(store.points().len(), 1);
            world.set_fault(None);
            let second = image_of(&store, 100..150).unwrap();
            store.commit_point(draft("web", second)).unwrap();
            drop(store);
            let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
            assert_eq!(reader.points().len(), 2);
            for point in reader.points() {
                let report = reader.verify_image(&point.disks[0].image, &|_, _| ());
                assert!(report.unwrap().is_whole());
            }
        }
    }
}

#[test]
fn an_image_writer_that_failed_stays_failed() {
    let world = SimWorld::new(1);
    let (_dir, store) = new_store(&world);
    let size = 5000 * GRANULE;
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    world.set_fault(Some(Arc::new(|file: &str| {
        file.contains(".con.").then_some(io::ErrorKind::StorageFull)
    })));
    let data: Vec<u8> = (0..5000).flat_map(chunk).collect();
    let failed = (0..).step_by(1000).take(5).try_for_each(|start| {
        let from = usize::try_from(start * GRANULE).unwrap();
        writer.put(start, &data[from..from + 4096 * 1000])
    });
    let failed = failed.and_then(|()| writer.put(0, &chunk(9)));
    world.set_fault(None);
    let again = writer.finish().unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Full, "{again}");
    drop(failed);
    assert!(image_of(&store, 0..10).is_ok(), "the store is not latched");
}

#[test]
fn after_a_failed_sync_of_names_nothing_is_committed_until_reopened() {
    let world = SimWorld::new(1);
    let (dir, store) = new_store(&world);
    let image = image_of(&store, 0..10).unwrap();
    world.set_fault(Some(Arc::new(|file: &str| {
        file.is_empty().then_some(io::ErrorKind::Other)
    })));
    let failed = store.commit_point(draft("web", image.clone())).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io);
    world.set_fault(None);
    let latched = store.commit_point(draft("web", image.clone())).unwrap_err();
    assert_eq!(latched.kind(), ErrorKind::Io);
    assert!(latched.to_string().contains("opened again"), "{latched}");
    drop(store);
    let store = open_writer(&dir, 0);
    let image = image_of(&store, 0..10).unwrap();
    store.commit_point(draft("web", image)).unwrap();
}

#[test]
fn a_second_writer_is_refused_and_readers_are_not() {
    let tmp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let second = Store::open_writer(&Directory::backend(&dir), around(1))
        .err()
        .unwrap();
    assert_eq!(second.kind(), ErrorKind::Retry, "{second}");

    let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
    let image = image_of(&store, 0..300).unwrap();
    let point = store.commit_point(draft("web", image)).unwrap();
    assert!(reader.points().is_empty());
    let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
    let latest: PointRef = "web@latest".parse().unwrap();
    assert_eq!(reader.point(&latest).unwrap(), point);
    let [ours, theirs] = [&store, &reader].map(|s| s.image(&point.disks[0].image).unwrap());
    assert_eq!(read_all(&ours), read_all(&theirs));
    assert_eq!(reader.figures().chunk_count, 300);
    let refused = reader.commit_point(draft("web", image_of(&store, 0..1).unwrap()));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);

    drop(store);
    assert!(Store::open_writer(&Directory::backend(&dir), around(1)).is_ok());
}

#[test]
fn a_writer_that_was_overtaken_is_fenced() {
    let world = SimWorld::new(1);
    let (dir, store) = new_store(&world);
    let image = image_of(&store, 0..10).unwrap();
    store.commit_point(draft("web", image.clone())).unwrap();
    let lease = dir.subdir("lease").unwrap();
    lease.create("epoch-0000000000000002").unwrap();
    let fenced = store.commit_point(draft("web", image)).unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert_eq!(store.points().len(), 1);
}

/// A commit of a request that had been given up arrived late, and a writer that was alone was told for good that another one
/// had taken over.
#[test]
fn a_commit_number_that_is_taken_without_a_newer_writer_asks_for_the_store_to_be_opened_again() {
    let world = SimWorld::new(1);
    let (dir, store) = new_store(&world);
    let image = image_of(&store, 0..10).unwrap();
    let catalog = dir.subdir("catalog").unwrap();
    catalog.create("commit-0000000000000001").unwrap();
    let overtaken = store.commit_point(draft("web", image)).unwrap_err();
    assert_eq!(overtaken.kind(), ErrorKind::Retry, "{overtaken}");
    assert!(store.must_be_opened_again());
}

#[test]
fn a_seed_is_replaced_resumed_and_ended_by_its_point() {
    let world = SimWorld::new(1);
    let (dir, store) = new_store(&world);
    let web = name("web");
    let half = image_of(&store, 0..40).unwrap();
    store.save_seed(seed_draft("web", half)).unwrap();
    let other = image_of(&store, 0..5).unwrap();
    store.save_seed(seed_draft("mail", other)).unwrap();
    drop(store);

    let store = open_writer(&dir, 0);
    let seed = store.seed(&web).unwrap();
    assert_eq!((seed.lineage, seed.generation), ([3; 16], 0));
    let base = Base::Image(seed.disks[0].image.clone());
    let mut writer = store.image_writer(base).unwrap();
    for i in 40..80 {
        writer.put(i, &chunk(i)).unwrap();
    }
    let whole = writer.finish().unwrap();
    store.save_seed(seed_draft("web", whole.clone())).unwrap();
    store.commit_point(draft("web", whole)).unwrap();
    assert!(store.seed(&web).is_none());
    assert!(store.seed(&name("mail")).is_some());
    drop(store);

    let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
    assert!(reader.seed(&web).is_none() && reader.seed(&name("mail")).is_some());
    let point = reader.newest(&web).unwrap();
    let bytes = read_all(&reader.image(&point.disks[0].image).unwrap());
    let expected: Vec<u8> = (0..80).flat_map(chunk).collect();
    assert!(bytes.starts_with(&expected));
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let world = SimWorld::new(1);
    let (dir, store) = new_store(&world);
    let invalid = |result: Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid);
    let size = GRANULE + 512;
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    invalid(writer.put(0, &[1; 512]));
    invalid(writer.put(2, &[1; 4096]));
    invalid(writer.put(u64::MAX, &[1; 4096]));
    invalid(writer.put(1, &[1; 4096]));
    invalid(writer.zero(GranuleRange { start: 0, end: 3 }));
    writer.put(0, &[1; 4096]).unwrap();
    let image = writer.finish().unwrap();
    let mut twice = draft("web", image.clone());
    twice.disks.push((name("disk"), image));
    invalid(store.commit_point(twice).map(drop));
    invalid(store.image_writer(Base::Empty { size: 513 }).map(drop));
    invalid(common::create(&Directory::backend(&dir)));
    let nothing = SimWorld::new(2).dir();
    let missing = Store::open_reader(&Directory::backend(&nothing), around(0))
        .err()
        .unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    nothing.create("precious").unwrap();
    invalid(common::create(&Directory::backend(&nothing)));
    let no_point = store.point(&"web@1".parse().unwrap()).unwrap_err();
    assert_eq!(no_point.kind(), ErrorKind::NotFound);
}

#[test]
fn opening_stays_short_after_many_points_and_finds_them_all() {
    let world = SimWorld::new(1);
    let (dir, store) = new_store(&world);
    let mut base = Base::Empty {
        size: 4096 * GRANULE,
    };
    for i in 0..300 {
        let mut writer = store.image_writer(base).unwrap();
        writer.put(i * 13 % 4096, &chunk(i)).unwrap();
        let finished = writer.finish().unwrap();
        base = Base::Image(finished.image().clone());
        store.commit_point(draft("web", finished)).unwrap();
    }
    let catalog = dir.subdir("catalog").unwrap();
    let names = catalog.list().unwrap();
    assert!(names.iter().any(|n| n == "checkpoint-0000000000000100"));
    // What a checkpoint covers is not read: the commits before it could go.
    for old in 1..=256 {
        catalog.remove(&format!("commit-{old:016x}")).unwrap();
    }
    let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
    assert_eq!(reader.points(), store.points());
    drop(store);
    let store = open_writer(&dir, 0);
    let Base::Image(last) = base else {
        unreachable!("the loop ran")
    };
    let mut writer = store.image_writer(Base::Image(last)).unwrap();
    writer.put(5, &chunk(5000)).unwrap();
    let point = store.commit_point(draft("web", writer.finish().unwrap()));
    assert_eq!(point.unwrap().id.to_string(), "web@301");
}
