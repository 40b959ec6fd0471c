//! Power cuts and kills at every operation: what is listed is whole, what was acknowledged is
//! listed, and the store goes on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use block::{Dir, GRANULE, GranuleRange};
use common::{Content, around, draft, name, open_writer, read_all, seed_draft};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{Base, Directory, Result, Store};

const SIZE: u64 = 300 * GRANULE;
const COMMITS: u64 = 5;

/// What the user was told.
#[derive(Default)]
struct Acknowledged {
    points: Vec<Vec<u8>>,
    /// The content of a point whose commit was begun.
    begun: Option<Vec<u8>>,
}

/// Creates or opens a store and commits points until an operation fails.
fn work(dir: &Arc<dyn Dir>, seed: u64, told: &mut Acknowledged) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    if Store::open_reader(&Directory::backend(dir), around(0)).is_err() {
        common::create(&Directory::backend(dir))?;
    }
    let store = Store::open_writer(&Directory::backend(dir), around(0))?;
    for _ in 0..COMMITS {
        let base = match store.newest(&name("web")) {
            Some(point) => Base::Image(point.disks[0].image.clone()),
            None => Base::Empty { size: SIZE },
        };
        let mut content = match &base {
            Base::Image(image) => Content {
                bytes: read_all(&store.image(image)?),
            },
            Base::Empty { size } => Content::new(*size),
        };
        let mut writer = store.image_writer(base)?;
        for _ in 0..rng.random_range(1..4) {
            let start = rng.random_range(0..290);
            let mut data = vec![0; 4096 * rng.random_range(1..10)];
            rng.fill_bytes(&mut data);
            content.put(start, &mut data);
            writer.put(start, &data)?;
            let granules = GranuleRange {
                start,
                end: start + 1,
            };
            content.zero(granules);
            writer.zero(granules)?;
        }
        let finished = writer.finish()?;
        if rng.random_bool(0.3) {
            store.save_seed(seed_draft("other", finished.clone()))?;
        }
        told.begun = Some(content.bytes.clone());
        store.commit_point(draft("web", finished))?;
        told.points.push(content.bytes);
        told.begun = None;
    }
    Ok(())
}

/// The listed points are those that were acknowledged, and at most the one that was under way.
fn check(dir: &Arc<dyn Dir>, told: &mut Acknowledged, story: &str) {
    let Ok(store) = Store::open_reader(&Directory::backend(dir), around(0)) else {
        assert!(told.points.is_empty(), "{story}: points were lost");
        told.begun = None;
        return;
    };
    let points = store.points();
    let begun = told.begun.take();
    if points.len() == told.points.len() + 1 {
        told.points.extend(begun);
    }
    assert_eq!(points.len(), told.points.len(), "{story}");
    for (point, content) in points.iter().zip(&told.points) {
        let image = &point.disks[0].image;
        let report = store.verify_image(image, &|_, _| ()).unwrap();
        assert!(report.is_whole(), "{story}: {report:?}");
        assert!(
            read_all(&store.image(image).unwrap()) == *content,
            "{story}"
        );
    }
    if let Some(seed) = store.seed(&name("other")) {
        let report = store.verify_image(&seed.disks[0].image, &|_, _| ());
        assert!(report.unwrap().is_whole(), "{story}");
    }
}

#[test]
fn a_power_cut_or_kill_at_any_operation_loses_nothing_that_was_acknowledged() {
    let seed = sim::seed_from_env(7);
    let whole = SimWorld::new(seed);
    work(&whole.dir(), seed, &mut Acknowledged::default()).unwrap();
    let ops = whole.ops();
    assert!(ops > 50, "{ops}");
    for crash_at in 1..=ops {
        let story = format!("seed {seed}, operation {crash_at} of {ops}");
        let world = SimWorld::new(seed);
        let mut told = Acknowledged::default();
        world.crash_after(crash_at);
        assert!(work(&world.dir(), seed, &mut told).is_err(), "{story}");
        // What a killed process left may be unsynced: the next one must not build on sand.
        let world = if crash_at % 2 == 0 {
            world.cut_power()
        } else {
            world.kill()
        };
        check(&world.dir(), &mut told, &story);
        work(&world.dir(), seed + 1, &mut told).expect(&story);
        let world = world.cut_power();
        check(&world.dir(), &mut told, &format!("{story}, then on"));
        assert!(told.points.len() as u64 >= COMMITS, "{story}");
    }
}

/// A process was killed between naming `format` and syncing that name; the next one wrote points,
/// each durable, into a store whose own name was not: a power cut then lost the store, and all of
/// them. Found by a fresh seed.
#[test]
fn a_store_whose_creator_was_killed_is_made_durable_before_it_is_built_on() {
    for op in 1..40 {
        for seed in 0..16 {
            let world = SimWorld::new(seed);
            world.crash_after(op);
            let _ = common::create(&Directory::backend(&world.dir()));
            let world = world.kill();
            let mut told = Acknowledged::default();
            work(&world.dir(), seed, &mut told).unwrap();
            check(
                &world.cut_power().dir(),
                &mut told,
                &format!("operation {op}, seed {seed}"),
            );
        }
    }
}

/// A writer was killed between naming a commit and syncing that name. A reader listed its point; a
/// power cut before the next writer opened the store took the point away again. Found by a fresh
/// seed.
#[test]
fn what_a_reader_listed_a_power_cut_does_not_take_back() {
    let mut listed_unacknowledged = 0;
    for seed in 0..24 {
        let whole = SimWorld::new(seed);
        work(&whole.dir(), seed, &mut Acknowledged::default()).unwrap();
        for crash_at in whole.ops() / 2..whole.ops() {
            let world = SimWorld::new(seed);
            let mut told = Acknowledged::default();
            world.crash_after(crash_at);
            let _ = work(&world.dir(), seed, &mut told);
            let world = world.kill();
            let acknowledged = told.points.len();
            let story = format!("seed {seed}, operation {crash_at}");
            check(&world.dir(), &mut told, &story);
            listed_unacknowledged += told.points.len() - acknowledged;
            check(&world.cut_power().dir(), &mut told, &story);
        }
    }
    assert!(listed_unacknowledged > 10, "{listed_unacknowledged}");
}

#[test]
fn crashes_again_and_again_in_one_store() {
    let seed = sim::seed_from_env(70);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = SimWorld::new(seed);
    let mut told = Acknowledged::default();
    for round in 0..60 {
        world.crash_after(rng.random_range(1..80));
        let _ = work(&world.dir(), seed + round, &mut told);
        world = if rng.random_bool(0.5) {
            world.cut_power()
        } else {
            world.kill()
        };
        check(
            &world.dir(),
            &mut told,
            &format!("seed {seed}, round {round}"),
        );
    }
    assert!(told.points.len() > 10, "{}", told.points.len());
}

#[test]
fn half_written_files_are_removed_by_the_next_writer() {
    let world = SimWorld::new(3);
    let dir = world.dir();
    common::create(&Directory::backend(&dir)).unwrap();
    let debris = "000000000009.con.tmp-4";
    let shard = dir.subdir("containers").unwrap().subdir("000000").unwrap();
    shard.create(debris).unwrap();
    drop(open_writer(&dir, 0));
    assert!(shard.list().unwrap().is_empty());
}

/// A killed writer leaves containers whose names were never synced. The next writer finds them and
/// stores nothing anew: it must make those names durable before it builds a point on them.
#[test]
fn chunks_that_a_killed_writer_left_are_built_on_only_once_durable() {
    for seed in 0..32 {
        let world = SimWorld::new(seed);
        let write = |dir: &Arc<dyn Dir>| {
            let store = open_writer(dir, 0);
            let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
            for i in 0..100 {
                writer.put(i, &common::chunk(i)).unwrap();
            }
            (writer.finish().unwrap(), store)
        };
        common::create(&Directory::backend(&world.dir())).unwrap();
        drop(write(&world.dir()));
        let world = world.kill();
        let (image, store) = write(&world.dir());
        store.commit_point(draft("web", image)).unwrap();
        assert_eq!(store.figures().chunk_count, 100, "nothing is stored anew");
        let world = world.cut_power();
        let reader = Store::open_reader(&Directory::backend(&world.dir()), around(0)).unwrap();
        let image = &reader.points()[0].disks[0].image;
        let report = reader.verify_image(image, &|_, _| ()).unwrap();
        assert!(report.is_whole(), "seed {seed}: {report:?}");
    }
}
