//! A store in an object store that fails as those do, with two writers that both believe to be the one.
//!
//! ```text
//! STANDIN_SEED=.. STANDIN_HISTORIES=2000 cargo nextest run -p store --features bucket --test bucket histories
//! ```
//!
//! The network between a writer and the bucket is calm, bad, or hardly there; it loses requests, loses answers, delivers what it lost later (after another
//! writer has taken over, too), lists what was there a while ago, and is cut.
//!
//! Held: whatever a commit was told to have listed is listed and reads back exact, until it is told to be removed; what
//! nobody could say of a commit is one or the other, and exact.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use block::{GRANULE, SystemClock};
use common::{Content, chunk, draft, read_all};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult,
};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{
    Around, Backend, Base, Bucket, ErrorKind, GcOptions, PointId, PointRef, ScrubOptions, Store,
    StoreError,
};

const GRANULES: u64 = 300;
const SIZE: u64 = GRANULES * GRANULE;
/// Long beside what a step takes, short beside a test.
const TERM: Duration = Duration::from_millis(30);

/// The bucket, and all that lies between it and its clients.
#[derive(Debug)]
struct Network {
    bucket: InMemory,
    weather: Mutex<Weather>,
}

#[derive(Debug)]
struct Weather {
    rng: ChaCha8Rng,
    /// Of a thousand requests so many go wrong.
    faults: u32,
    /// What was lost, and may still arrive.
    late: Vec<Late>,
    /// Objects of the newest requests, which a list may not know of, or still know.
    recent: Vec<Path>,
}

#[derive(Debug)]
enum Late {
    Put(Path, PutPayload, PutMode),
    Delete(Path),
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
enum Fate {
    Done,
    /// It never arrives, or later.
    Lost,
    /// It is done, and nobody hears of it.
    Unanswered,
}

impl Network {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            bucket: InMemory::new(),
            weather: Mutex::new(Weather {
                rng: ChaCha8Rng::seed_from_u64(seed),
                faults: 0,
                late: Vec::new(),
                recent: Vec::new(),
            }),
        })
    }

    /// The beat comes when it wants: it shall not decide what becomes of the others.
    fn fate(&self, path: &Path) -> Fate {
        let mut weather = self.weather.lock();
        let faults = weather.faults;
        if path.as_ref().contains("beat-") || weather.rng.random_range(0..1000) >= faults {
            return Fate::Done;
        }
        match weather.rng.random_bool(0.5) {
            true => Fate::Lost,
            false => Fate::Unanswered,
        }
    }

    /// Some of what was lost arrives.
    async fn deliver(&self, part: f64) {
        let arrived: Vec<Late> = {
            let mut weather = self.weather.lock();
            let Weather { rng, late, .. } = &mut *weather;
            let (now, later): (Vec<_>, Vec<_>) = std::mem::take(late)
                .into_iter()
                .partition(|_| rng.random_bool(part));
            *late = later;
            now
        };
        for late in arrived {
            // Nobody hears of it, whatever becomes of it.
            match late {
                Late::Put(path, bytes, mode) => {
                    let _ = self.bucket.put_opts(&path, bytes, mode.into()).await;
                }
                Late::Delete(path) => drop(self.bucket.delete(&path).await),
            }
        }
    }
}

/// One process's way to the bucket.
#[derive(Debug)]
struct Client {
    network: Arc<Network>,
    cut: Arc<AtomicBool>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a client")
    }
}

fn lost() -> Error {
    Error::Generic {
        store: "network",
        source: "no answer".into(),
    }
}

impl Client {
    fn reach(&self) -> Result<(), Error> {
        match self.cut.load(SeqCst) {
            true => Err(lost()),
            false => Ok(()),
        }
    }

    fn note(&self, path: &Path) {
        let recent = &mut self.network.weather.lock().recent;
        recent.push(path.clone());
        if recent.len() > 5 {
            recent.remove(0);
        }
    }

    /// What a list leaves out: it is of a moment ago.
    fn unlisted(&self) -> Vec<Path> {
        let mut weather = self.network.weather.lock();
        let faults = weather.faults * 10;
        match weather.rng.random_range(0..1000) < faults {
            true => weather.recent.clone(),
            false => Vec::new(),
        }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Client {
    async fn put_opts(
        &self,
        path: &Path,
        bytes: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult, Error> {
        let mut fate = self.network.fate(path);
        if self.cut.load(SeqCst) {
            // What was under way when the line was cut may arrive when it is there again.
            fate = Fate::Lost;
        }
        if fate == Fate::Lost {
            let late = Late::Put(path.clone(), bytes, options.mode);
            self.network.weather.lock().late.push(late);
            return Err(lost());
        }
        let done = self.network.bucket.put_opts(path, bytes, options).await;
        self.note(path);
        match fate {
            Fate::Unanswered => Err(lost()),
            _ => done,
        }
    }

    async fn put_multipart_opts(
        &self,
        _path: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        unimplemented!("objects are put whole")
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult, Error> {
        self.reach()?;
        match self.network.fate(path) {
            Fate::Done => self.network.bucket.get_opts(path, options).await,
            _ => Err(lost()),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        let (network, reach) = (Arc::clone(&self.network), self.reach());
        let one = move |path: Result<Path, Error>| {
            let (network, reached) = (Arc::clone(&network), reach.is_ok());
            async move {
                let path = path?;
                let fate = network.fate(&path);
                if !reached || fate == Fate::Lost {
                    if reached {
                        let late = Late::Delete(path);
                        network.weather.lock().late.push(late);
                    }
                    return Err(lost());
                }
                // S3 does not say that there was nothing.
                match network.bucket.delete(&path).await {
                    Err(e) if !matches!(e, Error::NotFound { .. }) => return Err(e),
                    _ => {}
                }
                match fate {
                    Fate::Unanswered => Err(lost()),
                    _ => Ok(path),
                }
            }
        };
        paths.then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        if let Err(e) = self.reach() {
            return futures_util::stream::once(async { Err(e) }).boxed();
        }
        let unlisted = self.unlisted();
        let listed = self.network.bucket.list(prefix);
        let known = move |object: &Result<ObjectMeta, Error>| {
            let known = object
                .as_ref()
                .is_ok_and(|object| !unlisted.contains(&object.location));
            async move { known }
        };
        listed.filter(known).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.reach()?;
        let unlisted = self.unlisted();
        let mut listed = self.network.bucket.list_with_delimiter(prefix).await?;
        listed
            .objects
            .retain(|object| !unlisted.contains(&object.location));
        Ok(listed)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<(), Error> {
        unimplemented!("objects are put whole")
    }
}

fn around() -> Around {
    Around {
        workers: 0,
        headroom_bytes: 0,
        lease_term: TERM,
        ..Around::new(Arc::new(SystemClock::new()))
    }
}

/// What must be listed.
#[derive(Default)]
struct Told {
    points: BTreeMap<PointId, Vec<u8>>,
    /// Of these commits nobody knows: points and their content.
    maybe_listed: Vec<Vec<u8>>,
    maybe_removed: Vec<PointId>,
}

struct Process {
    store: Store,
    cut: Arc<AtomicBool>,
    group: &'static str,
    /// How many have opened the store by then.
    turn: u64,
}

struct History {
    network: Arc<Network>,
    rng: ChaCha8Rng,
    told: Told,
    processes: Vec<Process>,
    turns: u64,
    story: String,
}

impl History {
    fn client(&self) -> (Arc<dyn Backend>, Arc<AtomicBool>) {
        let cut = Arc::new(AtomicBool::new(false));
        let client = Client {
            network: Arc::clone(&self.network),
            cut: Arc::clone(&cut),
        };
        let bucket = Bucket::new(Arc::new(client), "p".into(), "bucket".into()).unwrap();
        (Arc::new(bucket.with_create_pause(Duration::ZERO)), cut)
    }

    fn note(&mut self, what: impl fmt::Display) {
        self.story.push_str(&format!("  {what}\n"));
    }

    /// Opens the store as a further process.
    fn open(&mut self) {
        let (place, cut) = self.client();
        self.turns += 1;
        let opened = Store::open_writer(&place, around());
        self.note(format_args!("open: {:?}", opened.as_ref().err()));
        match opened {
            Ok(store) => {
                self.check(&store);
                let group = ["web", "mail"][self.rng.random_range(0..2)];
                let turn = self.turns;
                self.processes.push(Process {
                    store,
                    cut,
                    group,
                    turn,
                });
            }
            Err(e) => assert!(may_fail(&e), "open: {e:?}\n{}", self.story),
        }
    }

    /// One of the processes does something; who fails ends.
    fn step(&mut self) {
        if self.processes.is_empty() {
            return self.open();
        }
        let i = self.rng.random_range(0..self.processes.len());
        let (store, group) = (self.processes[i].store.clone(), self.processes[i].group);
        let done = match self.rng.random_range(0..10) {
            0..6 => self.write(&store, group),
            6..8 => self.remove(&store),
            _ => {
                let options = GcOptions {
                    quarantine: Duration::ZERO,
                    compact_below: 1.0,
                    ..GcOptions::default()
                };
                store.collect_garbage(&options).map(drop)
            }
        };
        drop(store);
        if let Err(e) = done {
            self.note(format_args!("{i} fails: {e:?}"));
            // Whoever was fenced may miss what the next writer has removed: of points that are not listed any more.
            let fenced = self.processes[i].turn < self.turns;
            let missed = fenced && e.kind() == ErrorKind::Corrupt;
            assert!(missed || may_fail(&e), "{e:?}\n{}", self.story);
            // Late commits of others are no reason to say that there is a newer writer.
            let mistaken = !fenced && e.kind() == ErrorKind::Fenced;
            assert!(!mistaken, "{e:?}\n{}", self.story);
            self.processes.swap_remove(i);
        }
    }

    fn write(&mut self, store: &Store, group: &'static str) -> store::Result<()> {
        let newest = store.newest(&common::name(group));
        // A process that was fenced may know points that are gone.
        let known = newest.and_then(|point| {
            let bytes = self.told.points.get(&point.id)?.clone();
            Some((Base::Image(point.disks[0].image.clone()), bytes))
        });
        let (base, bytes) =
            known.unwrap_or_else(|| (Base::Empty { size: SIZE }, Content::new(SIZE).bytes));
        let mut content = Content { bytes };
        let mut writer = store.image_writer(base)?;
        for _ in 0..self.rng.random_range(1..4) {
            let start = self.rng.random_range(0..GRANULES);
            let count = self.rng.random_range(1..=(GRANULES - start).min(60));
            let first = self.rng.random_range(0..200);
            let mut data: Vec<u8> = (first..first + count).flat_map(chunk).collect();
            content.put(start, &mut data);
            writer.put(start, &data)?;
        }
        let image = writer.finish()?;
        self.told.maybe_listed.push(content.bytes.clone());
        let point = store.commit_point(draft(group, image))?;
        self.told.maybe_listed.pop();
        self.note(format_args!("listed {}", point.id));
        let before = self.told.points.insert(point.id.clone(), content.bytes);
        assert!(before.is_none(), "{} twice\n{}", point.id, self.story);
        Ok(())
    }

    fn remove(&mut self, store: &Store) -> store::Result<()> {
        let all: Vec<PointId> = store.points().iter().map(|p| p.id.clone()).collect();
        if all.is_empty() {
            return Ok(());
        }
        let id = all[self.rng.random_range(0..all.len())].clone();
        self.told.maybe_removed.push(id.clone());
        store.remove_points(std::slice::from_ref(&id), Duration::ZERO)?;
        self.told.maybe_removed.pop();
        self.note(format_args!("removed {id}"));
        self.told.points.remove(&id);
        Ok(())
    }

    /// What is listed is what was told, or what nobody could say; and it reads back.
    fn check(&mut self, store: &Store) {
        let mut listed = BTreeMap::new();
        for point in store.points() {
            let image = store.image(&point.disks[0].image);
            let read = image.map(|image| {
                let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
                block::BlockDevice::read_at(&image, &mut bytes, 0).map(|()| bytes)
            });
            let bytes = match read {
                Ok(Ok(bytes)) => bytes,
                // The weather.
                Ok(Err(e)) if e.kind() != block::ErrorKind::Corrupt => return,
                Err(e) if e.kind() == ErrorKind::Io => return,
                other => panic!("{} reads {:?}\n{}", point.id, other.map(drop), self.story),
            };
            listed.insert(point.id.clone(), bytes);
        }
        for (id, bytes) in &listed {
            match self.told.points.get(id) {
                Some(told) => assert!(told == bytes, "{id} reads wrong\n{}", self.story),
                None => assert!(
                    self.told.maybe_listed.contains(bytes),
                    "{id} is listed, and nobody made it\n{}",
                    self.story
                ),
            }
        }
        for id in self.told.points.keys() {
            assert!(
                listed.contains_key(id) || self.told.maybe_removed.contains(id),
                "{id} is not listed\n{}",
                self.story
            );
        }
        self.told.points = listed;
    }

    fn run(&mut self, runtime: &tokio::runtime::Runtime, steps: usize) {
        let (place, _) = self.client();
        Store::create(&place).unwrap();
        for _ in 0..steps {
            self.network.weather.lock().faults =
                [0, 5, 5, 40, 40, 600][self.rng.random_range(0..6)];
            match self.rng.random_range(0..20) {
                0 => {
                    self.note("killed");
                    for process in &self.processes {
                        process.cut.store(true, SeqCst);
                    }
                    self.processes.clear();
                }
                // Another one takes over while it is cut off; then both are there.
                1 | 2 if self.processes.len() == 1 => {
                    self.note("cut off");
                    self.processes[0].cut.store(true, SeqCst);
                    self.open();
                    self.processes[0].cut.store(false, SeqCst);
                }
                3 => self.processes.clear(),
                4..6 => runtime.block_on(self.network.deliver(0.5)),
                _ => self.step(),
            }
        }
        self.note("the end");
        self.processes.clear();
        self.network.weather.lock().faults = 0;
        runtime.block_on(self.network.deliver(0.5));
        let store = loop {
            let (place, _) = self.client();
            match Store::open_writer(&place, around()) {
                Ok(store) => break store,
                Err(e) => assert!(e.kind() == ErrorKind::Retry, "{e:?}\n{}", self.story),
            }
        };
        runtime.block_on(self.network.deliver(1.0));
        self.check(&store);
        let options = GcOptions {
            quarantine: Duration::ZERO,
            compact_below: 1.0,
            ..GcOptions::default()
        };
        store.collect_garbage(&options).unwrap();
        let report = store.scrub(&ScrubOptions::default()).unwrap();
        assert!(report.lost.is_empty(), "{report:?}\n{}", self.story);
        self.check(&store);
    }
}

/// What the weather and the other writer may do to a call.
fn may_fail(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::Retry | ErrorKind::Fenced | ErrorKind::NotFound
    )
}

#[test]
fn histories_with_two_writers_in_bad_weather() {
    let seed = std::env::var("STANDIN_SEED").map_or_else(
        |_| u64::from(std::process::id()) << 16,
        |seed| seed.parse().unwrap(),
    );
    let count = std::env::var("STANDIN_HISTORIES").map_or(40, |count| count.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for history in 0..count {
        let seed = seed + history;
        println!("seed {seed}, history {history}");
        let mut history = History {
            network: Network::new(seed),
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0xb0c4),
            told: Told::default(),
            processes: Vec::new(),
            turns: 0,
            story: format!("seed {seed}:\n"),
        };
        history.run(&runtime, 60);
    }
}

/// A second protection was started with the same bucket, and would have fenced the first.
#[test]
fn a_writer_that_lives_keeps_its_lease_and_one_that_ends_gives_it_back() {
    let memory = Arc::new(InMemory::new());
    let place = || -> Arc<dyn Backend> {
        Arc::new(Bucket::new(memory.clone(), "".into(), "bucket".into()).unwrap())
    };
    Store::create(&place()).unwrap();
    let first = Store::open_writer(&place(), around()).unwrap();
    let second = Store::open_writer(&place(), around()).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::Retry, "{second}");
    let mut writer = first.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, &chunk(1)).unwrap();
    let point = first.commit_point(draft("web", writer.finish().unwrap()));
    let id = point.unwrap().id.clone();
    drop(first);
    let patient = Around {
        lease_term: Duration::from_secs(3600),
        ..around()
    };
    let third = Store::open_writer(&place(), patient).unwrap();
    let point = third.point(&PointRef::Id(id)).unwrap();
    let image = third.image(&point.disks[0].image).unwrap();
    assert_eq!(read_all(&image)[..4096], chunk(1));
}

/// A gateway that knows no conditional puts let two writers take the same lease, and the same commit.
#[test]
fn a_server_without_conditional_puts_is_refused() {
    let network = Network::new(1);
    let client = Client {
        network,
        cut: Arc::default(),
    };
    let careless = Careless(client);
    let bucket = Bucket::new(Arc::new(careless), "".into(), "careless".into()).unwrap();
    let place: Arc<dyn Backend> = Arc::new(bucket);
    Store::create(&place).unwrap();
    let refused = Store::open_writer(&place, around()).err().unwrap();
    assert!(
        matches!(refused, StoreError::NoConditions { .. }),
        "{refused}"
    );
}

/// Bodies that are shorter or longer than the server says, of another place, or of an object that cannot be so long.
#[test]
fn a_server_that_lies_about_lengths_is_found_out() {
    for lie in [Lie::Shorter, Lie::Longer, Lie::Elsewhere, Lie::Endless] {
        let memory = Arc::new(InMemory::new());
        let honest = Bucket::new(memory.clone(), "".into(), "honest".into()).unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        honest.create("a/b", &bytes, 1).unwrap();
        let liar = Liar(memory, lie);
        let bucket = Bucket::new(Arc::new(liar), "".into(), "liar".into()).unwrap();
        let mut buf = vec![0; 300_000];
        for at in [0, 250_000, 1_000_000, 2_700_000] {
            bucket.read("a/b", at, &mut buf).unwrap_err();
        }
        bucket.read_whole("a/b", 4_000_000).unwrap_err();
    }
}

/// Overwrites what it should only create.
#[derive(Debug)]
struct Careless(Client);

/// Sends other bytes than it says.
#[derive(Debug)]
struct Liar(Arc<InMemory>, Lie);

#[derive(Clone, Copy, Debug)]
enum Lie {
    Shorter,
    Longer,
    Elsewhere,
    Endless,
}

impl Liar {
    async fn lie(&self, path: &Path, options: GetOptions) -> Result<GetResult, Error> {
        let honest = self.0.get_opts(path, options).await?;
        let (mut meta, mut range) = (honest.meta.clone(), honest.range.clone());
        let mut bytes = honest.bytes().await?.to_vec();
        match self.1 {
            Lie::Shorter => bytes.truncate(bytes.len() / 2),
            Lie::Longer => bytes.extend([7; 5000]),
            Lie::Elsewhere => range = range.start + 512..range.end + 512,
            Lie::Endless => meta.size = u64::MAX,
        }
        Ok(GetResult {
            payload: GetResultPayload::Stream(
                futures_util::stream::once(async { Ok(bytes.into()) }).boxed(),
            ),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }
}

impl fmt::Display for Careless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("careless")
    }
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a liar")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(
        &self,
        path: &Path,
        bytes: PutPayload,
        _options: PutOptions,
    ) -> Result<PutResult, Error> {
        self.0.put_opts(path, bytes, PutOptions::default()).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult, Error> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, a: &Path, b: &Path, options: CopyOptions) -> Result<(), Error> {
        self.0.copy_opts(a, b, options).await
    }
}

#[async_trait::async_trait]
impl ObjectStore for Liar {
    async fn put_opts(
        &self,
        path: &Path,
        bytes: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult, Error> {
        self.0.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult, Error> {
        self.lie(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, a: &Path, b: &Path, options: CopyOptions) -> Result<(), Error> {
        self.0.copy_opts(a, b, options).await
    }
}
