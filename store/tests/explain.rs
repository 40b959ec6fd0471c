//! What holds the space of a store: of two points that share half of their chunks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block::GRANULE;
use common::{chunk, draft, name, open_writer};
use sim::SimWorld;
use store::{Base, Directory, GcOptions, PointRecord, Store};

const SIZE: u64 = 300 * GRANULE;

/// A point of these chunks.
fn point(store: &Store, group: &str, chunks: std::ops::Range<u64>) -> Arc<PointRecord> {
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    for i in chunks {
        writer.put(i, &chunk(i)).unwrap();
    }
    store
        .commit_point(draft(group, writer.finish().unwrap()))
        .unwrap()
}

#[test]
fn what_each_point_and_group_needs_and_what_is_garbage() {
    let world = SimWorld::new(1);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    let first = point(&store, "web", 0..100);
    let second = point(&store, "web", 50..150);
    let [a, b] = [&first, &second].map(|point| store.explain_point(&point.id).unwrap());
    // The first container holds chunks 0 to 99, the second 100 to 149.
    assert_eq!(a.alone_bytes, a.needed_bytes / 2);
    let second_container = b.alone_bytes;
    assert_eq!(b.needed_bytes, a.needed_bytes / 2 + second_container);
    assert!(!a.newest && b.newest);

    let all = store.explain().unwrap();
    assert_eq!(all.needed_bytes, a.needed_bytes + second_container);
    assert_eq!((all.removed_bytes, all.removed_until), (0, None));
    assert_eq!(all.groups, [(name("web"), 2, all.needed_bytes)]);
    assert_eq!(all.garbage_bytes, 0);

    // Another group needs some of them, too.
    point(&store, "mail", 0..10);
    let shared = store.explain().unwrap();
    assert_eq!(shared.needed_bytes, all.needed_bytes);
    assert_eq!(shared.groups[0], (name("mail"), 1, 0));
    let tenth = a.needed_bytes / 10;
    assert!(
        shared.groups[1].2.abs_diff(all.needed_bytes - tenth) <= 1,
        "{shared:?}"
    );

    let image = &first.disks[0].image;
    let ids = |offset| {
        let chunk = store.explain_chunk(image, offset).unwrap();
        chunk.map(|chunk| {
            chunk
                .points
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(ids(5 * GRANULE + 17).unwrap(), ["mail@1", "web@1"]);
    assert_eq!(ids(70 * GRANULE).unwrap(), ["web@1", "web@2"]);
    assert_eq!(ids(200 * GRANULE), None);

    store
        .remove_points(std::slice::from_ref(&first.id), Duration::from_hours(1))
        .unwrap();
    let removed = store.explain().unwrap();
    assert!(
        removed.removed_bytes.abs_diff(a.alone_bytes - tenth) <= 1,
        "{removed:?}"
    );
    assert!(removed.removed_until.is_some());
    assert!(removed.garbage_bytes <= 1, "{removed:?}");
    store.bring_back(&first.id).unwrap();
    store
        .remove_points(std::slice::from_ref(&first.id), Duration::ZERO)
        .unwrap();
    let garbage = store.explain().unwrap();
    assert!(garbage.garbage_bytes.abs_diff(a.alone_bytes - tenth) <= 1);
    let options = GcOptions {
        compact_below: 1.0,
        ..GcOptions::default()
    };
    store.collect_garbage(&options).unwrap();
    let collected = store.explain().unwrap();
    assert!(collected.garbage_bytes < garbage.garbage_bytes);
    assert!(collected.quarantined_bytes > 0);
    assert!(store.explain_point(&first.id).is_err(), "it is gone");
}

/// Chunks that only a first copy under way needed were needed by nobody, by what was told of them: nobody could see what held the
/// space.
#[test]
fn what_a_first_copy_under_way_needs() {
    let dir = SimWorld::new(1).dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 0);
    let listed = point(&store, "web", 0..100);
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    for i in 60..140 {
        writer.put(i, &chunk(i)).unwrap();
    }
    let begun = writer.finish().unwrap();
    let image = begun.image().clone();
    store.save_seed(common::seed_draft("mail", begun)).unwrap();
    let all = store.explain().unwrap();
    let web = store.explain_point(&listed.id).unwrap();
    // Of its chunks 40 lie in a container of its own, and 40 in that of the point.
    let alone = all.needed_bytes - web.needed_bytes;
    assert_eq!(all.seeds, [(name("mail"), alone)]);
    assert_eq!(all.groups[0], (name("mail"), 0, alone));
    let of = |granule| {
        store
            .explain_chunk(&image, granule * GRANULE)
            .unwrap()
            .unwrap()
    };
    let (shared, own) = (of(70), of(120));
    let listed_alone = std::slice::from_ref(&listed.id);
    assert_eq!(shared.points, listed_alone);
    assert_eq!((own.points.len(), own.removed_until), (0, None));
    assert_eq!([shared.seeds, own.seeds], [[name("mail")], [name("mail")]]);
    let kept = Duration::from_hours(1);
    store.remove_points(listed_alone, kept).unwrap();
    assert_eq!(of(70).points, listed_alone);
    assert!(of(70).removed_until.is_some());
}
