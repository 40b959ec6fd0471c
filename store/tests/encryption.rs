//! A store that is encrypted at its client: who has the key reads everything, who has none reads nothing that a guest
//! wrote, and still looks after it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Dir, GRANULE, OsRandom, SystemClock};
use common::{Content, chunk, commit, draft, key, name, read_all, thorough, with};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{
    Backend, Base, ChunkCodec, Directory, ErrorKind, Fingerprint, GcOptions, Keys, Policy,
    ScrubOptions, Store, StoreError,
};

const GRANULES: u64 = 600;
const SIZE: u64 = GRANULES * GRANULE;

fn place(dir: &Arc<dyn Dir>) -> Arc<dyn Backend> {
    Directory::backend(dir)
}

/// An encrypted store with two points: granules `0..400`, then every third of them anew.
fn two_points(dir: &Arc<dyn Dir>) -> [Vec<u8>; 2] {
    let place = place(dir);
    Store::create_encrypted(&place, &[(key(1), "a".into())], &with(None)).unwrap();
    let store = Store::open_writer(&place, with(Some(key(1)))).unwrap();
    let mut content = Content::new(SIZE);
    let mut all = Vec::new();
    for (turn, step) in [(0, 1), (1, 3)] {
        let puts = (0..400).step_by(step);
        commit(&store, &mut content, puts.map(|i| (i, 1000 * turn + i)));
        all.push(content.bytes.clone());
    }
    all.try_into().unwrap()
}

fn check_points(store: &Store, wanted: &[&Vec<u8>]) {
    let points = store.points();
    assert_eq!(points.len(), wanted.len());
    for (point, wanted) in points.iter().zip(wanted) {
        let image = &point.disks[0].image;
        assert!(read_all(&store.image(image).unwrap()) == **wanted);
        let report = store.verify_image(image, &|_, _| ()).unwrap();
        assert!(report.is_whole(), "{report:?}");
    }
}

#[test]
fn who_has_the_key_reads_what_was_written() {
    let dir = SimWorld::new(1).dir();
    let [first, second] = two_points(&dir);
    let reader = Store::open_reader(&place(&dir), with(Some(key(1)))).unwrap();
    check_points(&reader, &[&first, &second]);
}

#[test]
fn a_wrong_key_and_a_key_for_a_plain_store_are_refused() {
    let dir = SimWorld::new(1).dir();
    two_points(&dir);
    for open in [Store::open_reader, Store::open_writer] {
        let refused = open(&place(&dir), with(Some(key(2)))).err().unwrap();
        assert!(matches!(refused, StoreError::WrongKey), "{refused}");
    }
    // What lies in the place of an encrypted store may be somebody else's, who waits for plain bytes.
    let plain = SimWorld::new(2).dir();
    Store::create(&place(&plain)).unwrap();
    for open in [Store::open_reader, Store::open_writer] {
        let refused = open(&place(&plain), with(Some(key(1)))).err().unwrap();
        assert!(matches!(refused, StoreError::NotEncrypted), "{refused}");
    }
}

#[test]
fn nothing_that_a_guest_wrote_can_be_found_in_it() {
    let dir = SimWorld::new(1).dir();
    let place = place(&dir);
    Store::create_encrypted(&place, &[(key(1), "a".into())], &with(None)).unwrap();
    let store = Store::open_writer(&place, with(Some(key(1)))).unwrap();
    // Bytes that do not compress are stored as they are.
    let mut secret = vec![0; 64 * 4096];
    ChaCha8Rng::seed_from_u64(5).fill_bytes(&mut secret);
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, &secret).unwrap();
    store
        .commit_point(draft("web", writer.finish().unwrap()))
        .unwrap();
    let mut all = Vec::new();
    for folder in [
        "",
        "catalog",
        "keys",
        "lease",
        "containers/000000",
        "trees/000000",
    ] {
        for (object, _) in place.list(folder).unwrap() {
            let path = format!("{folder}/{object}");
            all.push(
                place
                    .read_whole(path.trim_start_matches('/'), 1 << 30)
                    .unwrap(),
            );
        }
    }
    assert!(all.iter().map(Vec::len).sum::<usize>() > secret.len());
    let hashes = ChunkCodec::plain().fingerprints(&secret);
    let needles = secret.chunks(4096).map(|chunk| &chunk[100..116]);
    let hashes = hashes.iter().map(|hash| &hash.as_bytes()[..16]);
    for needle in needles.chain(hashes).chain([&[1; 32][..]]) {
        let found = |bytes: &Vec<u8>| bytes.windows(needle.len()).any(|part| part == needle);
        assert!(!all.iter().any(found));
    }
}

#[test]
fn without_the_key_nothing_is_read_or_written_and_nothing_breaks() {
    let dir = SimWorld::new(1).dir();
    let [first, second] = two_points(&dir);
    let store = Store::open_writer(&place(&dir), with(None)).unwrap();
    let image = store.points()[0].disks[0].image.clone();
    let opened = store.image(&image).unwrap();
    let refused = opened
        .restore_to(&common::Nowhere, 1, 1, &|_, _| ())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoKey);
    let refused = store.verify_image(&image, &|_, _| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoKey);
    let mut writer = store.image_writer(Base::Image(image)).unwrap();
    let refused = writer.put(0, &chunk(1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoKey);
    drop(writer);
    // Trees and fingerprints need none.
    let points = store.points();
    let [a, b] = [0, 1].map(|i: usize| points[i].disks[0].image.clone());
    assert!(!store.diff_images(&a, &b).unwrap().is_empty());
    let scrubbed = store.scrub(&ScrubOptions::default()).unwrap();
    assert!(
        scrubbed.lost.is_empty() && scrubbed.healed.is_empty(),
        "{scrubbed:?}"
    );
    store.hold(&points[1].id, Some("audit")).unwrap();
    let zone = jiff::tz::TimeZone::UTC;
    assert_eq!(
        store
            .verdicts(Some(&name("web")), &Policy::default(), &zone)
            .len(),
        2
    );
    drop(store);
    let reader = Store::open_reader(&place(&dir), with(Some(key(1)))).unwrap();
    check_points(&reader, &[&first, &second]);
}

#[test]
fn who_has_no_key_collects_regions_and_who_has_it_collects_chunks() {
    let dir = SimWorld::new(1).dir();
    let [_, second] = two_points(&dir);
    let blind = Store::open_writer(&place(&dir), with(None)).unwrap();
    blind
        .remove_points(&[blind.points()[0].id.clone()], Duration::ZERO)
        .unwrap();
    let before = blind.figures().chunk_count;
    let report = blind.collect_garbage(&thorough()).unwrap();
    // Of each region two chunks in three are needed: it stays.
    assert_eq!(blind.figures().chunk_count, before);
    assert!(report.sealed_bytes > 0, "{report:?}");
    drop(blind);
    let store = Store::open_writer(&place(&dir), with(Some(key(1)))).unwrap();
    let report = store.collect_garbage(&thorough()).unwrap();
    assert_eq!(report.sealed_bytes, 0);
    assert_eq!(store.figures().chunk_count, before - 134);
    check_points(&store, &[&second]);
}

#[test]
fn regions_that_nothing_needs_go_without_the_key_and_once() {
    let dir = SimWorld::new(1).dir();
    let place = place(&dir);
    Store::create_encrypted(&place, &[(key(1), "a".into())], &with(None)).unwrap();
    let store = Store::open_writer(&place, with(Some(key(1)))).unwrap();
    let mut content = Content::new(SIZE);
    commit(&store, &mut content, (0..400).map(|i| (i, i)));
    commit(&store, &mut content, (0..130).map(|i| (i, 1000 + i)));
    store
        .remove_points(&[store.points()[0].id.clone()], Duration::ZERO)
        .unwrap();
    drop(store);
    let blind = Store::open_writer(&place, with(None)).unwrap();
    let before = blind.figures();
    let report = blind.collect_garbage(&thorough()).unwrap();
    // Four whole regions of 32 chunks; of the fifth two chunks are garbage.
    assert_eq!(
        before.chunk_count - blind.figures().chunk_count,
        128,
        "{report:?}"
    );
    assert!(blind.figures().container_bytes < before.container_bytes);
    // It is not begun again and again.
    for _ in 0..3 {
        let again = blind.collect_garbage(&thorough()).unwrap();
        assert_eq!(
            (again.written_bytes, again.containers_moved),
            (0, 0),
            "{again:?}"
        );
    }
    drop(blind);
    let store = Store::open_writer(&place, with(Some(key(1)))).unwrap();
    check_points(&store, &[&content.bytes]);
    store.collect_garbage(&thorough()).unwrap();
    assert_eq!(store.figures().chunk_count, 400);
    check_points(&store, &[&content.bytes]);
}

/// Random points, removals and collections, by turns with and without the key: what is listed reads back.
#[test]
fn histories_with_and_without_the_key() {
    let seed = sim::seed_from_env(3);
    for history in 0..common::count_from_env("STANDIN_HISTORIES", 12) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(history));
        let dir = SimWorld::new(seed).dir();
        let place = place(&dir);
        Store::create_encrypted(&place, &[(key(1), "a".into())], &with(None)).unwrap();
        let mut wanted: Vec<Vec<u8>> = Vec::new();
        for _ in 0..rng.random_range(3..8) {
            let store = Store::open_writer(&place, with(Some(key(1)))).unwrap();
            for _ in 0..rng.random_range(1..4) {
                let bytes = wanted.last().cloned();
                let mut content =
                    bytes.map_or_else(|| Content::new(SIZE), |bytes| Content { bytes });
                let puts: Vec<_> = (0..rng.random_range(1..200))
                    .map(|_| (rng.random_range(0..GRANULES), rng.random_range(0..3000)))
                    .collect();
                commit(&store, &mut content, puts);
                wanted.push(content.bytes);
            }
            check_points(&store, &wanted.iter().collect::<Vec<_>>());
            drop(store);
            let secret = rng.random_bool(0.4).then(|| key(1));
            let store = Store::open_writer(&place, with(secret)).unwrap();
            let points = store.points();
            for i in (0..points.len() - 1).rev() {
                if rng.random_bool(0.3) {
                    store
                        .remove_points(&[points[i].id.clone()], Duration::ZERO)
                        .unwrap();
                    wanted.remove(i);
                }
            }
            let options = GcOptions {
                compact_below: rng.random_range(0.3..=1.0),
                ..thorough()
            };
            store.collect_garbage(&options).unwrap();
            let scrubbed = store.scrub(&ScrubOptions::default()).unwrap();
            assert!(
                scrubbed.lost.is_empty(),
                "seed {seed}, history {history}: {scrubbed:?}"
            );
        }
        let reader = Store::open_reader(&place, with(Some(key(1)))).unwrap();
        check_points(&reader, &wanted.iter().collect::<Vec<_>>());
    }
}

#[test]
fn regions_are_taken_from_who_has_the_key_by_who_has_none() {
    let dir = SimWorld::new(1).dir();
    let [_, second] = two_points(&dir);
    let theirs = Store::open_reader(&place(&dir), with(Some(key(1)))).unwrap();
    let base = theirs.points()[1].disks[0].image.clone();
    let codec = theirs.codec().unwrap();
    drop(theirs);
    let blind = Store::open_writer(&place(&dir), with(None)).unwrap();
    let mut writer = blind.image_writer(Base::Image(base)).unwrap();
    let mut content = Content { bytes: second };
    // One that the store has, wherever it lies; zeroes; and two that it lacks.
    let known = codec.fingerprints(&chunk(7));
    assert!(writer.put_known(500, &known[0]).unwrap());
    assert!(writer.put_known(4, &Fingerprint::ZERO).unwrap());
    let new = [chunk(90_000), chunk(90_001)].concat();
    let named = codec.fingerprints(&new);
    assert!(!writer.put_known(501, &named[0]).unwrap());
    let region = codec.pack(new.clone());
    writer
        .put_packed(&[Some(501), Some(3)], &named, region.clone())
        .unwrap();
    // The answer was lost: again, to no other effect.
    writer
        .put_packed(&[Some(501), Some(3)], &named, region.clone())
        .unwrap();
    assert!(writer.put_known(502, &named[1]).unwrap());
    for (granule, mut data) in [
        (500, chunk(7)),
        (501, chunk(90_000)),
        (3, chunk(90_001)),
        (502, chunk(90_001)),
    ] {
        content.put(granule, &mut data);
    }
    content.put(4, &mut vec![0; 4096]);
    // What is not encrypted has no place here, and shapes must fit.
    let plain = ChunkCodec::plain().pack(new);
    for refused in [
        writer.put_packed(&[Some(501), Some(3)], &named, plain),
        writer.put_packed(&[Some(501)], &named, region.clone()),
        writer.put_packed(&[Some(501), Some(GRANULES)], &named, region.clone()),
        writer.put_packed(
            &[Some(501), Some(3)],
            &[named[0], Fingerprint::ZERO],
            region,
        ),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    }
    blind
        .commit_point(draft("web", writer.finish().unwrap()))
        .unwrap();
    let before = blind.figures().chunk_count;
    drop(blind);
    let store = Store::open_writer(&place(&dir), with(Some(key(1)))).unwrap();
    assert_eq!(store.figures().chunk_count, before);
    let newest = store.newest(&name("web")).unwrap();
    assert!(read_all(&store.image(&newest.disks[0].image).unwrap()) == content.bytes);
}

#[test]
fn a_region_whose_chunks_are_not_what_they_are_said_to_be_is_refused() {
    let dir = SimWorld::new(1).dir();
    Store::create(&place(&dir)).unwrap();
    let store = Store::open_writer(&place(&dir), with(None)).unwrap();
    let codec = ChunkCodec::plain();
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    let lies = codec.fingerprints(&chunk(2));
    let refused = writer.put_packed(&[Some(0)], &lies, codec.pack(chunk(1)));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    // It goes on; what was checked for an image of another size is not believed, either.
    let truth = codec.fingerprints(&chunk(1));
    let size = SIZE + 4096;
    let larger = store.image_writer(Base::Empty { size }).unwrap();
    let checked = larger.region_check();
    let checked = checked.check(vec![Some(0)], truth.clone(), codec.pack(chunk(1)));
    let refused = writer.put_checked(checked.unwrap());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    writer
        .put_packed(&[Some(0)], &truth, codec.pack(chunk(1)))
        .unwrap();
    writer.put(1, &chunk(3)).unwrap();
    writer
        .put_packed(&[Some(2)], &lies, codec.pack(chunk(2)))
        .unwrap();
    let image = writer.finish().unwrap();
    let read = read_all(&store.image(image.image()).unwrap());
    assert!(read[..3 * 4096] == [chunk(1), chunk(3), chunk(2)].concat());
}

/// A power cut or a kill at every operation of a change of keys: the store opens by a way that was told to be one.
#[test]
fn a_crash_while_keys_change_keeps_nobody_out() {
    for at in 0..60 {
        let world = SimWorld::new(at);
        let place = place(&world.dir());
        Store::create_encrypted(&place, &[(key(1), "a".into())], &with(None)).unwrap();
        world.crash_after(at);
        let clock = SystemClock::new();
        let change = || -> store::Result<bool> {
            let mut keys = Keys::open(&place)?;
            let wrapped = keys.wrap(&key(1), &key(2), "b", &OsRandom, clock.wall())?;
            keys.append(&wrapped, &OsRandom)?;
            keys.remove(&key(2), 1, &OsRandom)?;
            Ok(true)
        };
        let changed = change().unwrap_or(false);
        let after = match at % 2 {
            0 => world.cut_power(),
            _ => world.kill(),
        };
        let place = Directory::backend(&after.dir());
        let opens = |byte| Store::open_writer(&place, with(Some(key(byte)))).is_ok();
        let [old, new] = [opens(1), opens(2)];
        assert!(old || new, "operation {at}");
        assert!(!changed || new && !old, "operation {at}");
    }
}

/// Regions that came packed had filled all but a few slots of a container; a chunk that came by itself took one of those, and
/// the next region did not fit any more: the image failed, each time anew.
#[test]
fn chunks_and_regions_share_a_container_to_its_end() {
    let dir = SimWorld::new(1).dir();
    Store::create(&place(&dir)).unwrap();
    let store = Store::open_writer(&place(&dir), with(None)).unwrap();
    let codec = ChunkCodec::plain();
    let size = 5000 * GRANULE;
    let mut writer = store.image_writer(Base::Empty { size }).unwrap();
    let mut content = Content::new(size);
    let mut at = 0;
    // 127 regions of 32 are 4064 of 4096 slots.
    for region in 0..140 {
        if region == 127 {
            let mut data = chunk(70_000);
            content.put(at, &mut data);
            writer.put(at, &data).unwrap();
            at += 1;
        }
        let mut chunks: Vec<u8> = (at..at + 32).flat_map(chunk).collect();
        let granules: Vec<_> = (at..at + 32).map(Some).collect();
        content.put(at, &mut chunks);
        let named = codec.fingerprints(&chunks);
        writer
            .put_packed(&granules, &named, codec.pack(chunks))
            .unwrap();
        at += 32;
    }
    let image = writer.finish().unwrap();
    assert!(read_all(&store.image(image.image()).unwrap()) == content.bytes);
}
