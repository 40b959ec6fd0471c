//! Garbage collection beside everything else, in a simulated place that loses power: writers, readers, removals and
//! collections step by step in any order, against a model that knows every byte.
//!
//! ```text
//! STANDIN_SEED=.. STANDIN_HISTORIES=100000 cargo nextest run -p store --test collect_histories
//! ```
//!
//! Held: what is listed, pinned by an open image or built on by a writer reads back exact, at every moment and after
//! every crash; a reader of another process gets the bytes of a listed point, however often things move under its
//! feet, and never wrong ones; at the end a thorough collection leaves nothing that no point needs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use block::{BlockDevice, Dir, GRANULE, GranuleRange, index};
use common::{Content, around, chunk, count_from_env, draft, name, read_all, seed_draft, thorough};
use parking_lot::Mutex;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{
    Around, Base, Directory, ErrorKind, FinishedImage, GcOptions, Image, ImageRef, ImageWriter,
    PointId, Result, Store, StoreError,
};

const GRANULES: u64 = 700;
const SIZE: u64 = GRANULES * GRANULE - 512;
const GROUPS: [&str; 2] = ["web", "mail"];

/// What an image holds. Copied only to be changed: it was half of a history's time.
type Bytes = Arc<Vec<u8>>;

/// What must be there.
#[derive(Default)]
struct Told {
    points: BTreeMap<PointId, Bytes>,
    seeds: BTreeMap<String, Bytes>,
    /// A commit that was begun and not answered: it may have happened.
    begun: Option<Begun>,
}

enum Begun {
    Point(String, Bytes),
    Seed(String, Bytes),
    Removal(Vec<PointId>),
    Back(PointId, Bytes),
}

/// One process with the store open for writing, and what it is doing.
struct Process<'a> {
    store: Store,
    rng: ChaCha8Rng,
    told: &'a mut Told,
    writers: Vec<(ImageWriter, Content)>,
    finished: Vec<(FinishedImage, Bytes)>,
    open: Vec<(Image, Bytes)>,
    /// Other processes that read: with what was listed when they opened the store.
    readers: Vec<(Store, BTreeMap<PointId, ImageRef>)>,
    dir: Arc<dyn Dir>,
}

impl Process<'_> {
    fn step(&mut self) -> Result<()> {
        match self.rng.random_range(0..24) {
            0..3 => self.begin(),
            3..9 => self.write(),
            9..12 => self.finish(),
            12..15 => self.commit(),
            15 => {
                self.writers.truncate(1);
                self.finished.truncate(1);
                Ok(())
            }
            16..18 => self.remove(),
            18 => self.open(),
            19..21 => self.read_open(),
            21 => self.read_elsewhere(),
            22 => {
                self.open.clear();
                Ok(())
            }
            _ => {
                let reader = Store::open_reader(&Directory::backend(&self.dir), around(0))?;
                let points = reader.points();
                let listed = points
                    .iter()
                    .map(|p| (p.id.clone(), p.disks[0].image.clone()));
                let listed = listed.collect();
                self.readers.truncate(1);
                self.readers.push((reader, listed));
                Ok(())
            }
        }
    }

    fn pick<T>(rng: &mut ChaCha8Rng, of: &[T]) -> Option<usize> {
        (!of.is_empty()).then(|| rng.random_range(0..of.len()))
    }

    fn begin(&mut self) -> Result<()> {
        if self.writers.len() > 2 {
            return Ok(());
        }
        let mut bases = vec![(Base::Empty { size: SIZE }, None)];
        for (id, bytes) in &self.told.points {
            let point = self.store.point(&store::PointRef::Id(id.clone()))?;
            bases.push((Base::Image(point.disks[0].image.clone()), Some(bytes)));
        }
        for (image, bytes) in &self.finished {
            bases.push((Base::Image(image.image().clone()), Some(bytes)));
        }
        let (base, bytes) = bases.swap_remove(self.rng.random_range(0..bases.len()));
        let content = match bytes {
            None => Content::new(SIZE),
            Some(bytes) => Content {
                bytes: bytes.to_vec(),
            },
        };
        let writer = self.store.image_writer(base)?;
        self.writers.push((writer, content));
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let Some(i) = Self::pick(&mut self.rng, &self.writers) else {
            return Ok(());
        };
        let (writer, content) = &mut self.writers[i];
        let start = self.rng.random_range(0..GRANULES);
        let count = self.rng.random_range(1..=(GRANULES - start).min(90));
        if self.rng.random_bool(0.2) {
            let granules = GranuleRange {
                start,
                end: start + count,
            };
            content.zero(granules);
            return writer.zero(granules);
        }
        // Stretches of a few hundred known chunks: much is a duplicate of what may be garbage by now.
        let first = self.rng.random_range(0..400);
        let mut data = (first..first + count)
            .map(chunk)
            .collect::<Vec<_>>()
            .concat();
        content.put(start, &mut data);
        writer.put(start, &data)?;
        if self.rng.random_bool(0.1) {
            writer.hold_less()?;
            assert!(writer.held_bytes() < 64 << 10, "{}", writer.held_bytes());
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let Some(i) = Self::pick(&mut self.rng, &self.writers) else {
            return Ok(());
        };
        let (writer, content) = self.writers.swap_remove(i);
        self.finished
            .push((writer.finish()?, Arc::new(content.bytes)));
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let Some(i) = Self::pick(&mut self.rng, &self.finished) else {
            return Ok(());
        };
        let (image, bytes) = self.finished.swap_remove(i);
        let group = GROUPS[self.rng.random_range(0..GROUPS.len())].to_owned();
        if self.rng.random_bool(0.2) {
            self.told.begun = Some(Begun::Seed(group.clone(), bytes.clone()));
            self.store.save_seed(seed_draft(&group, image))?;
            self.told.seeds.insert(group, bytes);
        } else {
            self.told.begun = Some(Begun::Point(group.clone(), bytes.clone()));
            let point = self.store.commit_point(draft(&group, image))?;
            self.told.points.insert(point.id.clone(), bytes);
            self.told.seeds.remove(&group);
        }
        self.told.begun = None;
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        let all: Vec<PointId> = self.told.points.keys().cloned().collect();
        let some: Vec<PointId> = all
            .into_iter()
            .filter(|_| self.rng.random_bool(0.4))
            .collect();
        self.told.begun = Some(Begun::Removal(some.clone()));
        let delay = Duration::from_secs(self.rng.random_range(0..2) * 3600);
        self.store.remove_points(&some, delay)?;
        let gone: Vec<_> = some
            .iter()
            .filter_map(|id| self.told.points.remove_entry(id))
            .collect();
        self.told.begun = None;
        if delay > Duration::ZERO && self.rng.random_bool(0.5) {
            // Second thoughts.
            for (id, bytes) in gone {
                self.told.begun = Some(Begun::Back(id.clone(), bytes.clone()));
                self.store.bring_back(&id)?;
                self.told.points.insert(id, bytes);
                self.told.begun = None;
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let all: Vec<_> = self.told.points.iter().collect();
        let Some(i) = Self::pick(&mut self.rng, &all) else {
            return Ok(());
        };
        let (id, bytes) = all[i];
        let point = self.store.point(&store::PointRef::Id(id.clone()))?;
        let image = self.store.image(&point.disks[0].image)?;
        self.open.push((image, bytes.clone()));
        Ok(())
    }

    /// Images that are open read as they did, whatever became of their points.
    fn read_open(&mut self) -> Result<()> {
        let Some(i) = Self::pick(&mut self.rng, &self.open) else {
            return Ok(());
        };
        let (image, bytes) = &self.open[i];
        let found = read_part(image, &mut self.rng)?;
        assert!(
            bytes[found.0..][..found.1.len()] == found.1,
            "an open image changed"
        );
        Ok(())
    }

    /// Another process reads what it saw listed long ago.
    fn read_elsewhere(&mut self) -> Result<()> {
        let Some(i) = Self::pick(&mut self.rng, &self.readers) else {
            return Ok(());
        };
        let (reader, listed) = &self.readers[i];
        for (id, image) in listed {
            let still_listed = self.told.points.get(id);
            let found = reader
                .image(image)
                .and_then(|image| read_part(&image, &mut self.rng));
            match (found, still_listed) {
                (Ok((at, found)), Some(bytes)) => {
                    assert!(
                        bytes[at..][..found.len()] == found,
                        "{id} reads wrong elsewhere"
                    );
                }
                (Ok(_), None) => {}
                (Err(e), None) if e.kind() == ErrorKind::Corrupt => {}
                (Err(e), _) => return Err(e),
            }
        }
        Ok(())
    }
}

fn read_part(image: &Image, rng: &mut ChaCha8Rng) -> Result<(usize, Vec<u8>)> {
    let at = rng.random_range(0..SIZE - 1);
    let len = rng.random_range(1..(SIZE - at).min(300_000));
    let mut buf = vec![0; index(len)];
    image.read_at(&mut buf, at).map_err(|e| match e.kind() {
        block::ErrorKind::Corrupt => StoreError::Missing {
            object: format!("{e:?}"),
            ranges: Vec::new(),
        },
        _ => StoreError::NoPoint(format!("{e:?}")),
    })?;
    Ok((index(at), buf))
}

/// Opens the store, does steps and collections, and steps in the middle of collections, until something fails.
fn live(dir: &Arc<dyn Dir>, seed: u64, told: &mut Told, steps: usize) -> Result<()> {
    let place = Directory::backend(dir);
    if Store::open_reader(&place, around(0)).is_err() {
        common::create(&place)?;
    }
    let around = Around {
        // Some of these have no trees, some fold with every image.
        list_runs_max: [0, 30, 1000][index(seed % 3)],
        ..around(0)
    };
    let store = Store::open_writer(&place, around)?;
    let process = Process {
        store: store.clone(),
        rng: ChaCha8Rng::seed_from_u64(seed),
        told,
        writers: Vec::new(),
        finished: Vec::new(),
        open: Vec::new(),
        readers: Vec::new(),
        dir: Arc::clone(dir),
    };
    let process = Mutex::new(process);
    let failed = Mutex::new(None);
    let step = || {
        if failed.lock().is_some() {
            return;
        }
        let done = process.lock().step();
        if let Err(e) = done {
            failed.lock().get_or_insert(e);
        }
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 1);
    for _ in 0..steps {
        step();
        if rng.random_bool(0.15) {
            let busy = rng.random_range(0..4);
            // Steps make images, and images make collections longer.
            let left = AtomicU64::new(80);
            let one_of_few = || {
                left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
                    .is_ok()
            };
            let in_between = |_| (0..busy).filter(|_| one_of_few()).for_each(|_| step());
            let options = GcOptions {
                dry_run: rng.random_bool(0.1),
                quarantine: Duration::from_secs(rng.random_range(0..2) * 3600),
                compact_below: [0.3, 0.7, 1.0][rng.random_range(0..3)],
                // Marks of some twenty containers at a time, or of all.
                memory: [12_000, 64 << 20][rng.random_range(0..2)],
                pace: &in_between,
                stop: &|| failed.lock().is_some(),
            };
            store.collect_garbage(&options)?;
        }
        if let Some(e) = failed.lock().take() {
            return Err(e);
        }
    }
    Ok(())
}

/// Everything that was told is there, and nothing else but what was begun.
fn check(dir: &Arc<dyn Dir>, told: &mut Told, story: &str) {
    let Ok(store) = Store::open_reader(&Directory::backend(dir), around(0)) else {
        assert!(told.points.is_empty() && told.seeds.is_empty(), "{story}");
        told.begun = None;
        return;
    };
    let listed: Vec<PointId> = store.points().iter().map(|p| p.id.clone()).collect();
    match told.begun.take() {
        None => {}
        Some(Begun::Point(group, bytes)) => {
            let new: Vec<_> = listed
                .iter()
                .filter(|id| !told.points.contains_key(id))
                .collect();
            if let [id] = new[..] {
                assert_eq!(id.group.as_str(), group);
                told.points.insert(id.clone(), bytes);
                told.seeds.remove(&group);
            }
        }
        Some(Begun::Seed(group, bytes)) => {
            let saved = store.seed(&name(&group));
            if saved
                .is_some_and(|seed| read_all(&store.image(&seed.disks[0].image).unwrap()) == *bytes)
            {
                told.seeds.insert(group, bytes);
            }
        }
        Some(Begun::Removal(ids)) if ids.iter().all(|id| !listed.contains(id)) => {
            told.points.retain(|id, _| !ids.contains(id));
        }
        Some(Begun::Back(id, bytes)) if listed.contains(&id) => {
            told.points.insert(id, bytes);
        }
        Some(Begun::Removal(_) | Begun::Back(..)) => {}
    }
    assert!(
        listed.iter().eq(told.points.keys()) || sorted(&listed).eq(told.points.keys()),
        "{story}: {listed:?}"
    );
    for (id, bytes) in &told.points {
        let point = store.point(&store::PointRef::Id(id.clone())).unwrap();
        let image = &point.disks[0].image;
        let report = store.verify_image(image, &|_, _| ()).unwrap();
        assert!(report.is_whole(), "{story}: {id}: {report:?}");
        assert!(
            read_all(&store.image(image).unwrap()) == **bytes,
            "{story}: {id}"
        );
    }
    for (group, bytes) in &told.seeds {
        let seed = store
            .seed(&name(group))
            .unwrap_or_else(|| panic!("{story}: no seed"));
        let image = store.image(&seed.disks[0].image).unwrap();
        assert!(read_all(&image) == **bytes, "{story}: the seed of {group}");
    }
}

fn sorted(ids: &[PointId]) -> impl Iterator<Item = &PointId> {
    let mut ids: Vec<_> = ids.iter().collect();
    ids.sort();
    ids.into_iter()
}

/// After two thorough collections nothing is left that no point or seed needs.
fn check_clean(dir: &Arc<dyn Dir>, told: &mut Told, story: &str) {
    let store = Store::open_writer(&Directory::backend(dir), around(0)).unwrap();
    // What was removed and not brought back is not waited for here.
    let removed = store.removed_points();
    for (point, _) in &removed {
        store.bring_back(&point.id).unwrap();
        store
            .remove_points(std::slice::from_ref(&point.id), Duration::ZERO)
            .unwrap();
    }
    store.collect_garbage(&thorough()).unwrap();
    let report = store.collect_garbage(&thorough()).unwrap();
    assert_eq!(report.live_chunks, report.chunks, "{story}: {report:?}");
    assert_eq!(
        (report.containers_gone, report.trees_gone),
        (0, 0),
        "{story}"
    );
    let figures = store.figures();
    assert_eq!(figures.quarantined_bytes, 0, "{story}");
    if told.points.is_empty() && told.seeds.is_empty() {
        assert_eq!(figures.stored_bytes, 0, "{story}: {figures:?}");
    }
    drop(store);
    // What the catalog says and what a writer finds are the same.
    let reader = Store::open_reader(&Directory::backend(dir), around(0)).unwrap();
    let found = Store::open_writer(&Directory::backend(dir), around(0)).unwrap();
    let [says, has] = [reader.figures(), found.figures()];
    assert_eq!(says.chunk_count, has.chunk_count, "{story}");
    assert_eq!(says.stored_bytes, has.stored_bytes, "{story}");
    let stored: u64 = objects_in(dir, &["containers", "trees", "bundles"]);
    assert_eq!(has.stored_bytes, stored, "{story}: bytes on the disk");
    drop(found);
    check(dir, told, story);
}

fn objects_in(dir: &Arc<dyn Dir>, folders: &[&str]) -> u64 {
    let len = |folder: &str| -> u64 {
        let folder = dir.subdir(folder).unwrap();
        let mut all = 0;
        for shard in 0..8 {
            let shard = folder.subdir(&format!("{shard:06x}")).unwrap();
            let names = shard.list().unwrap();
            let lens = names
                .iter()
                .map(|name| shard.open(name).unwrap().len().unwrap());
            all += lens.sum::<u64>();
        }
        all
    };
    folders.iter().map(|folder| len(folder)).sum()
}

fn history(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = SimWorld::new(seed);
    let mut told = Told::default();
    for life in 0..4 {
        let story = format!("seed {seed}, life {life}");
        if rng.random_bool(0.8) {
            world.crash_after(rng.random_range(1..600));
        }
        let lived = live(&world.dir(), rng.next_u64(), &mut told, 40);
        if let Err(e) = lived {
            assert!(world.crashed(), "{story}: {e}: {e:?}");
        }
        world = match rng.random_bool(0.5) {
            true => world.cut_power(),
            false => world.kill(),
        };
        check(&world.dir(), &mut told, &story);
    }
    if Store::open_reader(&Directory::backend(&world.dir()), around(0)).is_ok() {
        let story = format!("seed {seed}, at the end");
        check_clean(&world.dir(), &mut told, &story);
        let world = world.cut_power();
        check(&world.dir(), &mut told, &story);
    }
}

#[test]
fn histories_of_writers_readers_and_collections_that_crash() {
    let histories = count_from_env("STANDIN_HISTORIES", 150);
    let first = sim::seed_from_env(std::process::id().into());
    for i in 0..histories {
        let seed = first.wrapping_add(i);
        if std::panic::catch_unwind(|| history(seed)).is_err() {
            panic!("history {}; replay with STANDIN_SEED={seed}", i + 1);
        }
    }
}
