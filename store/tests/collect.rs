//! What a collection must leave and must move, case by case.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block::{Dir, GRANULE};
use common::{Content, around, chunk, draft, open_writer, read_all, thorough};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{Around, Base, Directory, GcOptions, Store};

const GRANULES: u64 = 700;
const SIZE: u64 = GRANULES * GRANULE - 512;

/// Points share a tree. One hides a chunk of it under a change, another needs that chunk: having marked the tree for
/// the one is not having marked it for the other.
#[test]
fn what_one_point_hides_another_may_need() {
    hidden_and_needed(&[("web", Some(5)), ("web", Some(300))]);
    hidden_and_needed(&[("mail", Some(5)), ("web", None)]);
}

/// Points with the granule in which each differs from a tree that they share.
fn hidden_and_needed(points: &[(&str, Option<u64>)]) {
    let world = SimWorld::new(1);
    let place = Directory::backend(&world.dir());
    common::create(&place).unwrap();
    let folding = Around {
        list_runs_max: 0,
        ..around(0)
    };
    let store = Store::open_writer(&place, folding).unwrap();
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    let content: Vec<u8> = (0..GRANULES - 1).flat_map(chunk).collect();
    writer.put(0, &content).unwrap();
    let tree = writer.finish().unwrap();
    let base = Base::Image(tree.image().clone());
    let first = store.commit_point(draft("tree", tree)).unwrap();
    drop(store);
    let store = open_writer(&world.dir(), 0);
    for (group, changed) in points {
        let mut writer = store.image_writer(base.clone()).unwrap();
        if let Some(changed) = changed {
            writer.put(*changed, &chunk(9000)).unwrap();
        }
        let image = writer.finish().unwrap();
        store.commit_point(draft(group, image)).unwrap();
    }
    let first = std::slice::from_ref(&first.id);
    store.remove_points(first, Duration::ZERO).unwrap();
    store.collect_garbage(&thorough()).unwrap();
    for (point, (_, changed)) in store.points().iter().zip(points) {
        let image = store.image(&point.disks[0].image).unwrap();
        let mut expected = Content::new(SIZE);
        expected.put(0, &mut content.clone());
        if let Some(changed) = changed {
            expected.put(*changed, &mut chunk(9000));
        }
        assert!(read_all(&image) == expected.bytes, "{}", point.id);
    }
}

/// Of containers that compress well, what is left does not compress at all. How long their sections would be was taken
/// from their number of chunks: hundreds of them went into one bundle, longer than any object may be, and were lost.
/// Found by review.
#[test]
fn bundles_are_closed_by_what_they_hold_and_not_by_what_was_expected() {
    const CONTAINERS: u64 = 24;
    const KEPT: u64 = 82;
    let tmp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(block::OsDir::open(tmp.path()).unwrap());
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let size = CONTAINERS * 4096 * GRANULE;
    let mut all = store.image_writer(Base::Empty { size }).unwrap();
    let mut noise = Vec::new();
    for container in 0..CONTAINERS {
        for slot in 0..4096 {
            let at = container * 4096 + slot;
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.resize(4096, 7);
            if slot < KEPT {
                rng.fill_bytes(&mut bytes);
                noise.push((at, bytes.clone()));
            }
            all.put(at, &bytes).unwrap();
        }
    }
    let all = store.commit_point(draft("all", all.finish().unwrap()));
    let mut few = store.image_writer(Base::Empty { size }).unwrap();
    for (at, bytes) in &noise {
        few.put(*at, bytes).unwrap();
    }
    let few = store
        .commit_point(draft("few", few.finish().unwrap()))
        .unwrap();
    let all = std::slice::from_ref(&all.as_ref().unwrap().id).to_vec();
    store.remove_points(&all, Duration::ZERO).unwrap();
    let options = GcOptions {
        quarantine: Duration::ZERO,
        ..GcOptions::default()
    };
    let report = store.collect_garbage(&options).unwrap();
    assert_eq!(report.containers_moved, CONTAINERS, "{report:?}");
    let bundles = dir.subdir("bundles").unwrap().subdir("000000").unwrap();
    let len = |name: &String| bundles.open(name).unwrap().len().unwrap();
    let lens: Vec<u64> = bundles.list().unwrap().iter().map(len).collect();
    assert!(
        lens.len() > 1 && lens.iter().all(|len| *len < 8 << 20),
        "{lens:?}"
    );
    let image = &few.disks[0].image;
    let report = store.verify_image(image, &|_, _| ()).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.data_bytes, CONTAINERS * KEPT * GRANULE);
}
