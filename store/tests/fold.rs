//! Images of more scattered changes than their lists may hold: folded into trees of several levels.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use block::{BlockDevice, GRANULE, GranuleRange};
use common::{around, chunk, draft, open_writer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{Base, Directory, FinishedImage, Image, ImageRef, Store};

/// 3 GiB: a tree of two inner levels.
const GRANULES: u64 = 3 << 18;

/// Granule -> number of its chunk; absent: zeroes.
type Model = BTreeMap<u64, u64>;

fn check(image: &Image, model: &Model, rng: &mut ChaCha8Rng) {
    let mut buf = vec![0; 4096];
    let zero = vec![0; 4096];
    let picks: Vec<u64> = (0..3000).map(|_| rng.random_range(0..GRANULES)).collect();
    let written = model.keys().step_by(model.len() / 3000 + 1).copied();
    for granule in picks.into_iter().chain(written) {
        image.read_at(&mut buf, granule * GRANULE).unwrap();
        let expected = model
            .get(&granule)
            .map_or_else(|| zero.clone(), |i| chunk(*i));
        assert!(buf == expected, "granule {granule}");
    }
}

#[test]
fn more_changes_than_lists_may_hold_become_part_of_the_tree() {
    let seed = sim::seed_from_env(11);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let world = SimWorld::new(seed);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let mut model = Model::new();
    let mut base = Base::Empty {
        size: GRANULES * GRANULE,
    };
    let mut images: Vec<(FinishedImage, Model)> = Vec::new();
    // The first image folds while it is written, the next ones by adding up.
    for changes in [150_000, 30_000, 30_000, 30_000, 10] {
        let mut writer = store.image_writer(base).unwrap();
        for _ in 0..changes {
            let granule = rng.random_range(0..GRANULES);
            let number = rng.random_range(1..2000);
            writer.put(granule, &chunk(number)).unwrap();
            model.insert(granule, number);
        }
        let start = rng.random_range(0..GRANULES / 2);
        let zeroes = GranuleRange {
            start,
            end: start + GRANULES / 5,
        };
        writer.zero(zeroes).unwrap();
        model.retain(|granule, _| !(zeroes.start..zeroes.end).contains(granule));
        let finished = writer.finish().unwrap();
        let image = store.image(finished.image()).unwrap();
        check(&image, &model, &mut rng);
        base = Base::Image(finished.image().clone());
        images.push((finished, model.clone()));
    }
    for (finished, model) in &images {
        let reference = finished.image();
        let report = store.verify_image(reference, &|_, _| ()).unwrap();
        assert!(report.is_whole(), "{report:?}");
        assert_eq!(report.data_bytes, model.len() as u64 * GRANULE);
        let status = store.image(reference).unwrap();
        let all = block::ByteRange::at(0, GRANULES * GRANULE).unwrap();
        let extents = status.block_status(all, usize::MAX).unwrap();
        let data = extents.iter().filter(|e| !e.state.reads_zero());
        let data: u64 = data.map(|extent| extent.range.len()).sum();
        assert_eq!(data, report.data_bytes);
    }
    // The same content, written in order and at once, has the same root and does not differ.
    let (last, model) = images.last().unwrap();
    let size = GRANULES * GRANULE;
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    for (granule, number) in model {
        writer.put(*granule, &chunk(*number)).unwrap();
    }
    let again = writer.finish().unwrap();
    let root = |image: &ImageRef| store.image(image).unwrap().root().unwrap();
    assert_eq!(root(last.image()), root(again.image()));
    assert!(
        store
            .diff_images(last.image(), again.image())
            .unwrap()
            .is_empty()
    );
    let earlier = &images[3];
    let ranges = store.diff_images(earlier.0.image(), last.image()).unwrap();
    let differing = |granule: &u64| earlier.1.get(granule) != model.get(granule);
    let expected = (0..GRANULES).filter(differing).count() as u64;
    let found: u64 = ranges.iter().map(|range| range.len() / GRANULE).sum();
    assert_eq!(found, expected);
}

/// Change lists were counted before they were merged. Merging splits a run that is written over in
/// its middle, so an image came to hold more runs than a reader accepts: its commit was durable, and
/// from then on the store could not be opened.
#[test]
fn lists_that_grow_by_merging_are_folded_before_they_are_too_long() {
    let world = SimWorld::new(1);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let size = 70_000 * GRANULE;
    let some: Vec<u8> = (0..2000).flat_map(chunk).collect();
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    for start in (0..70_000).step_by(2000) {
        writer.put(start, &some).unwrap();
    }
    let mut image = writer.finish().unwrap();
    for round in 0..40 {
        let base = Base::Image(image.image().clone());
        let mut writer = store.image_writer(base).unwrap();
        let step = if round == 0 { 2 } else { 30_000 };
        for start in (0..69_000).skip(round).step_by(step) {
            let end = start + 1;
            writer.zero(GranuleRange { start, end }).unwrap();
        }
        image = writer.finish().unwrap();
        store.commit_point(draft("web", image.clone())).unwrap();
    }
    drop(store);
    let reader = Store::open_reader(&Directory::backend(&dir), around(0)).unwrap();
    assert_eq!(reader.points().len(), 40);
    let report = reader.verify_image(image.image(), &|_, _| ()).unwrap();
    assert!(report.is_whole(), "{report:?}");
}

#[test]
fn zeroing_a_huge_disk_costs_nothing() {
    let world = SimWorld::new(1);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    let size = 1 << 50;
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    writer.put(1 << 37, &chunk(1)).unwrap();
    let all = GranuleRange::of_size(size);
    writer.zero(all).unwrap();
    writer.put(1 << 37, &chunk(2)).unwrap();
    let image = store.image(writer.finish().unwrap().image()).unwrap();
    let range = block::ByteRange::at(0, size).unwrap();
    assert_eq!(image.block_status(range, 10).unwrap().len(), 3);
    let mut buf = vec![0; 8192];
    image.read_at(&mut buf, (1 << 49) - 4096).unwrap();
    assert_eq!(buf, [vec![0; 4096], chunk(2)].concat());
}
