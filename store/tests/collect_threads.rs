//! Garbage collection beside threads that write, remove and read, on real files.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use block::{BlockDevice, Dir, GRANULE, index};
use common::{Content, around, chunk, count_from_env, draft, open_writer, read_all, thorough};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{Base, Directory, PointId, Store};

const GRANULES: u64 = 700;
const SIZE: u64 = GRANULES * GRANULE - 512;

/// Real threads on real files: writers that build on each other's chunks, removals, readers of another process, and one
/// collection after the other without any quarantine. Whoever was told that a point is listed reads it back.
#[test]
fn threads_write_remove_and_read_while_garbage_is_collected() {
    let seed = sim::seed_from_env(std::process::id().into());
    let rounds = count_from_env("STANDIN_ROUNDS", 60);
    let tmp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(block::OsDir::open(tmp.path()).unwrap());
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let listed: Mutex<BTreeMap<PointId, Vec<u8>>> = Mutex::default();
    let writing = AtomicU64::new(3);
    let write = &|thread: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed + thread);
        for _ in 0..rounds {
            let mut content = Content::new(SIZE);
            let base = listed
                .lock()
                .iter()
                .next_back()
                .map(|(id, bytes)| (id.clone(), bytes.clone()));
            let based = base.and_then(|(id, bytes)| {
                let point = store.point(&store::PointRef::Id(id)).ok()?;
                let image = point.disks[0].image.clone();
                let writer = store.image_writer(Base::Image(image)).ok()?;
                content.bytes = bytes;
                Some(writer)
            });
            let fresh = || store.image_writer(Base::Empty { size: SIZE }).unwrap();
            let mut writer = based.unwrap_or_else(fresh);
            for _ in 0..rng.random_range(1..4) {
                let start = rng.random_range(0..GRANULES - 100);
                let first = rng.random_range(0..300);
                let mut data: Vec<u8> = (first..first + 90).flat_map(chunk).collect();
                content.put(start, &mut data);
                writer.put(start, &data).unwrap();
            }
            if rng.random_bool(0.2) {
                continue;
            }
            let image = writer.finish().unwrap();
            let point = store.commit_point(draft("web", image)).unwrap();
            listed.lock().insert(point.id.clone(), content.bytes);
            let old = {
                let mut listed = listed.lock();
                let old = listed.keys().next().cloned().filter(|_| listed.len() > 4);
                old.inspect(|id| drop(listed.remove(id)))
            };
            if let Some(old) = old {
                store
                    .remove_points(std::slice::from_ref(&old), Duration::ZERO)
                    .unwrap();
            }
        }
        writing.fetch_sub(1, SeqCst);
    };
    let is_writing = || writing.load(SeqCst) > 0;
    let read = || {
        while is_writing() {
            let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
            for point in reader.points() {
                let image = reader.image(&point.disks[0].image);
                let mut found = vec![0; index(SIZE)];
                let read = image.map(|image| image.read_at(&mut found, 0).is_ok());
                // It may have been removed while it was read.
                if let Some(bytes) = listed.lock().get(&point.id) {
                    assert!(matches!(read, Ok(true)), "{}: {read:?}", point.id);
                    assert!(found == *bytes, "{} reads wrong", point.id);
                }
            }
        }
    };
    let mut collections = 0;
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || write(thread));
        }
        scope.spawn(read);
        while is_writing() {
            store.collect_garbage(&thorough()).unwrap();
            let report = store.scrub(&store::ScrubOptions::default()).unwrap();
            assert!(report.is_whole(), "{report:?}");
            collections += 1;
        }
    });
    assert!(collections > 2, "{collections}");
    for (id, bytes) in listed.into_inner() {
        let point = store.point(&store::PointRef::Id(id.clone())).unwrap();
        let image = &point.disks[0].image;
        assert!(
            store.verify_image(image, &|_, _| ()).unwrap().is_whole(),
            "{id}"
        );
        assert!(read_all(&store.image(image).unwrap()) == bytes, "{id}");
    }
}
