//! Random images against the real store, beside a model: a `Vec<u8>` per point.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{BlockDevice, Dir, GRANULE, GranuleRange, OsDir};
use common::{Content, around, draft, open_writer, read_all, seed_draft};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{Base, Directory, ImageRef, ImageWriter, PointRef, Store};

/// One run: images of odd sizes grow by random puts and zeroes in any order, are committed, saved
/// as seeds, reopened; every point ever committed keeps its content.
fn run(dir: &Arc<dyn Dir>, seed: u64, steps: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    common::create(&Directory::backend(dir)).unwrap();
    let mut store = open_writer(dir, rng.random_range(0..3));
    let size = 512 * rng.random_range(1..12_000);
    let mut content = Content::new(size);
    let mut newest: Option<ImageRef> = None;
    let mut points: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut images: Vec<(ImageRef, Vec<u8>)> = Vec::new();
    for step in 0..steps {
        let base = match &newest {
            None => Base::Empty { size },
            Some(image) => Base::Image(image.clone()),
        };
        let mut writer = store.image_writer(base).unwrap();
        for _ in 0..rng.random_range(0..20) {
            change(&mut rng, &mut content, &mut writer);
        }
        let finished = writer.finish().unwrap();
        newest = Some(finished.image().clone());
        let image = store.image(finished.image()).unwrap();
        assert_eq!(read_all(&image), content.bytes, "step {step}");
        let image = finished.image().clone();
        match rng.random_range(0..4) {
            0 => store.save_seed(seed_draft("web", finished)).unwrap(),
            _ => {
                let point = store.commit_point(draft("web", finished)).unwrap();
                assert!(store.seed(&"web".parse().unwrap()).is_none());
                points.insert(point.id.to_string(), content.bytes.clone());
                images.push((image, content.bytes.clone()));
            }
        }
        if rng.random_bool(0.2) {
            drop(store);
            store = open_writer(dir, rng.random_range(0..3));
        }
    }
    check_diffs(&store, &images, &mut rng);
    drop(store);
    let reader = Store::open_reader(&Directory::backend(dir), around(0)).unwrap();
    assert_eq!(reader.points().len(), points.len());
    for (id, bytes) in &points {
        let point = reader.point(&id.parse::<PointRef>().unwrap()).unwrap();
        let image = reader.image(&point.disks[0].image).unwrap();
        assert_eq!(read_all(&image), *bytes, "{id}");
        let report = reader
            .verify_image(&point.disks[0].image, &|_, _| ())
            .unwrap();
        assert!(report.is_whole(), "{report:?}");
        assert_eq!(report.checked_bytes, size);
    }
}

fn change(rng: &mut ChaCha8Rng, content: &mut Content, writer: &mut ImageWriter) {
    let all = content.bytes.len().div_ceil(4096) as u64;
    let start = rng.random_range(0..all);
    let count = rng.random_range(1..=(all - start).min(600));
    if rng.random_bool(0.25) {
        let granules = GranuleRange {
            start,
            end: start + count,
        };
        content.zero(granules);
        return writer.zero(granules).unwrap();
    }
    let mut data = vec![0; block::index(count * GRANULE)];
    for chunk in data.chunks_exact_mut(4096) {
        match rng.random_range(0..4) {
            0 => {}
            // Few values: duplicates within and across images.
            1 => chunk.fill(rng.random_range(0..5)),
            _ => rng.fill_bytes(chunk),
        }
    }
    content.put(start, &mut data);
    writer.put(start, &data).unwrap();
}

fn check_diffs(store: &Store, images: &[(ImageRef, Vec<u8>)], rng: &mut ChaCha8Rng) {
    for _ in 0..10 {
        let [a, b] = [0; 2].map(|_| &images[rng.random_range(0..images.len())]);
        let ranges = store.diff_images(&a.0, &b.0).unwrap();
        let mut expected = Vec::new();
        for (i, (x, y)) in a.1.chunks(4096).zip(b.1.chunks(4096)).enumerate() {
            if x != y {
                expected.push(i as u64);
            }
        }
        let found: Vec<u64> = ranges
            .iter()
            .flat_map(|r| r.start() / GRANULE..r.end().div_ceil(GRANULE))
            .collect();
        assert_eq!(found, expected);
        let roots = [a, b].map(|i| store.image(&i.0).unwrap().root().unwrap());
        assert_eq!(roots[0] == roots[1], a.1 == b.1);
    }
}

#[test]
fn every_point_keeps_its_content_in_a_simulated_directory() {
    let seed = sim::seed_from_env(1);
    for i in 0..12 {
        run(&SimWorld::new(seed + i).dir(), seed + i, 12);
    }
}

#[test]
fn every_point_keeps_its_content_in_a_real_directory() {
    let seed = sim::seed_from_env(100);
    for i in 0..4 {
        let tmp = tempfile::tempdir().unwrap();
        let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
        run(&dir, seed + i, 20);
    }
}

#[test]
fn the_same_content_has_the_same_root_whatever_its_history() {
    let world = SimWorld::new(5);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    let size = 700 * GRANULE + 512;
    let mut content = Content::new(size);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut base = Base::Empty { size };
    let mut finished = None;
    for _ in 0..40 {
        let mut writer = store.image_writer(base).unwrap();
        change(&mut rng, &mut content, &mut writer);
        let image = finished.insert(writer.finish().unwrap());
        base = Base::Image(image.image().clone());
    }
    let finished = finished.unwrap();
    let long = finished.image().clone();
    let mut at_once = store.image_writer(Base::Empty { size }).unwrap();
    for granule in (0..701).rev() {
        let mut chunk = content.bytes[block::index(granule * GRANULE)..].to_vec();
        chunk.resize(4096, 0);
        at_once.put(granule, &chunk).unwrap();
    }
    let at_once = at_once.finish().unwrap();
    let root = |image: &ImageRef| store.image(image).unwrap().root().unwrap();
    assert_eq!(root(&long), root(at_once.image()));
    assert!(
        store
            .diff_images(&long, at_once.image())
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.image(&long).unwrap().size(), size);
}
