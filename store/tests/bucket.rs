//! A store in an object store that fails as those do, with two writers that both believe to be the one.
//!
//! ```text
//! STANDIN_SEED=.. STANDIN_HISTORIES=2000 cargo nextest run -p store --test bucket histories
//! ```
//!
//! The network between a writer and the bucket (common/network.rs) is calm, bad, or hardly there.
//!
//! Held: whatever a commit was told to have listed is listed and reads back exact, until it is told to be removed; what
//! nobody could say of a commit is one or the other, and exact.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/network.rs"]
mod network;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use block::{GRANULE, SystemClock};
use common::{Content, Nowhere, chunk, count_from_env, draft, read_all, thorough};
use network::{Client, Lie, Manners, Network};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{
    Around, Backend, Base, Bucket, ErrorKind, PointId, PointRef, ScrubOptions, Store, StoreError,
};

const GRANULES: u64 = 300;
const SIZE: u64 = GRANULES * GRANULE;
/// Long beside what a step takes, short beside a test.
const TERM: Duration = Duration::from_millis(30);

/// A bucket that a server of such manners keeps.
fn bucket(network: &Arc<Network>, manners: Manners, cut: &Arc<AtomicBool>) -> Bucket {
    let client = Client::new(network, manners, cut);
    let bucket = Bucket::new(Arc::new(client), "p".into(), "bucket".into()).unwrap();
    bucket.with_create_pause(Duration::ZERO)
}

fn around() -> Around {
    Around {
        workers: 0,
        headroom_bytes: 0,
        lease_term: TERM,
        secret: common::secret().map(Arc::new),
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
        let cut = Arc::default();
        (Arc::new(bucket(&self.network, Manners::Honest, &cut)), cut)
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
            _ => store.collect_garbage(&thorough()).map(drop),
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
        common::create(&place).unwrap();
        for _ in 0..steps {
            self.network
                .set_faults([0, 5, 5, 40, 40, 600][self.rng.random_range(0..6)]);
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
        self.network.set_faults(0);
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
        store.collect_garbage(&thorough()).unwrap();
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
    let first = sim::seed_from_env(u64::from(std::process::id()) << 16);
    let count = count_from_env("STANDIN_HISTORIES", 40);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for history in 0..count {
        let seed = first + history;
        println!("history {history}; replay with STANDIN_SEED={seed}");
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
    let network = Network::new(1);
    let place =
        || -> Arc<dyn Backend> { Arc::new(bucket(&network, Manners::Honest, &Arc::default())) };
    common::create(&place()).unwrap();
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
    let careless = bucket(&Network::new(1), Manners::Careless, &Arc::default());
    let place: Arc<dyn Backend> = Arc::new(careless);
    common::create(&place).unwrap();
    let refused = Store::open_writer(&place, around()).err().unwrap();
    assert!(
        matches!(refused, StoreError::NoConditions { .. }),
        "{refused}"
    );
}

/// Bodies that are shorter or longer than the server says, of another place, or of an object that cannot be so long. One
/// that ended before what was asked for was a length below zero.
#[test]
fn a_server_that_lies_about_lengths_is_found_out() {
    for lie in [
        Lie::Shorter,
        Lie::Longer,
        Lie::Elsewhere,
        Lie::Endless,
        Lie::Shrunk,
    ] {
        let network = Network::new(1);
        let honest = bucket(&network, Manners::Honest, &Arc::default());
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        honest.create("a/b", &bytes, 1).unwrap();
        let liar = bucket(&network, Manners::Lying(lie), &Arc::default());
        // Of its length it tells the truth.
        assert_eq!(liar.list("a").unwrap(), [("b".to_owned(), 3_000_000)]);
        let mut buf = vec![0; 300_000];
        for at in [0, 250_000, 1_000_000, 2_700_000] {
            let found_out = liar.read("a/b", at, &mut buf).unwrap_err().to_string();
            assert!(!found_out.contains("panicked"), "{lie:?}: {found_out}");
        }
        liar.read_whole("a/b", 4_000_000).unwrap_err();
    }
}

/// An object was cut off when it was listed, and another process healed it since: what the list said of it is not the end.
#[test]
fn a_length_that_was_listed_is_asked_for_again_where_it_ends() {
    let network = Network::new(1);
    let [reader, healer] = [(); 2].map(|()| bucket(&network, Manners::Honest, &Arc::default()));
    healer.create("a/b", &[1; 1000], 1).unwrap();
    assert_eq!(reader.list("a").unwrap(), [("b".to_owned(), 1000)]);
    healer.replace("a/b", &[1; 700_000], 1).unwrap();
    let mut buf = vec![0; 600_000];
    reader.read("a/b", 50_000, &mut buf).unwrap();
    assert!(buf == [1; 600_000]);
    let past = reader.read("a/b", 650_000, &mut buf).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
}

/// Four requests for each container: how long it is, its end, and its regions in two pieces.
#[test]
fn a_restore_asks_once_for_a_container_of_which_it_needs_a_good_part() {
    let network = Network::new(1);
    let [writer, reader] = [(); 2].map(|()| -> Arc<dyn Backend> {
        Arc::new(bucket(&network, Manners::Honest, &Arc::default()))
    });
    common::create(&writer).unwrap();
    let store = Store::open_writer(&writer, around()).unwrap();
    let granules = 9000;
    let mut image = store
        .image_writer(Base::Empty {
            size: granules * GRANULE,
        })
        .unwrap();
    for granule in 0..granules {
        image.put(granule, &chunk(granule + 1)).unwrap();
    }
    let point = store
        .commit_point(draft("web", image.finish().unwrap()))
        .unwrap();
    let restorer = Store::open_reader(&reader, around()).unwrap();
    let image = restorer.image(&point.disks[0].image).unwrap();
    drop(network.take_gets());
    image.restore_to(&Nowhere, 2, 2, &|_, _| ()).unwrap();
    let gets = network.take_gets();
    let of_containers = gets
        .iter()
        .filter(|(path, _)| path.as_ref().contains("containers/"));
    let counts: Vec<_> = of_containers.map(|(_, count)| *count).collect();
    // The last one is small, and read as before.
    assert!(counts[..2] == [1, 1] && counts[2] <= 3, "{gets:?}");
}

/// How long an object is, and what it says of itself, comes with its last bytes: one request. Some servers refuse that where it is shorter.
#[test]
fn objects_are_read_from_their_ends_or_as_the_server_likes_it() {
    for (manners, gets) in [(Manners::Honest, (1, 1)), (Manners::Strict, (3, 2))] {
        let network = Network::new(1);
        let bucket = bucket(&network, manners, &Arc::default());
        let long = vec![5; 2_000_000];
        for (name, bytes) in [
            ("a/none", &[][..]),
            ("a/short", &[3; 1000]),
            ("a/long", &long),
        ] {
            bucket.create(name, bytes, 1).unwrap();
        }
        drop(network.take_gets());
        assert_eq!(bucket.len("a/none").unwrap(), 0);
        let mut buf = [0; 1000];
        bucket.read("a/short", 0, &mut buf).unwrap();
        assert_eq!(buf, [3; 1000]);
        bucket.read("a/long", 1_999_000, &mut buf).unwrap();
        assert_eq!(buf, [5; 1000]);
        let got = network.take_gets();
        let of = |name: &str| got[&format!("p/{name}").into()];
        assert_eq!((of("a/short"), of("a/long")), gets, "{manners:?}");
    }
}
