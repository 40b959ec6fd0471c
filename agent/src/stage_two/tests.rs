//! Random histories of writes, cuts, seeds, ships, kills and power cuts on a simulated disk that
//! holds everything: production, state, diffs and two targets, of which the user now and then takes
//! the other. Every listed point is the moment of its cut, and after every crash the next point is
//! what production is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{BlockDevice, Clock, Fua, Name, UnixNanos, ZeroOptions, index};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::{SimClock, SimDisk, SimWorld};
use splitter::{DiskSpec, Generation, Group, How, Lineage, Surroundings};
use store::{Around, Directory, Store};

use super::*;
use crate::audit::Auditor;
use crate::engine::{Policy, SCHEDULED_TRIES};
use crate::hooks::HookOptions;
use crate::limits::Limits;
use crate::places::{Record, StateRoot};
use crate::schedule::Every;
use crate::target::Target;
use crate::target_writer::TargetWriter;
use crate::world::World;
use dd_target::Rate;

/// Sizes of the disks; the last one ends in the middle of a granule.
const SIZES: [u64; 2] = [360 << 10, (40 << 10) + 512];

const TARGETS: [&str; 2] = ["target", "other target"];

/// Histories of a run; `STANDIN_HISTORIES` asks for more.
const HISTORIES: u64 = 50;

type Image = Vec<u8>;

struct Bench {
    world: SimWorld,
    rng: ChaCha8Rng,
    clock: Arc<SimClock>,
    randoms: Arc<AtomicU64>,
    boots: u64,
    /// Which of the targets is used.
    target: usize,
    engine: Option<Engine>,
    store: Option<TargetWriter>,
    /// What the disks were when a generation was cut, or was about to be.
    moments: BTreeMap<(Lineage, Generation), Vec<Image>>,
    /// Points that were seen listed on each target: they stay.
    listed: [BTreeSet<String>; 2],
    home: tempfile::TempDir,
    recoveries: u64,
    audited_bytes: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (at, size) in SIZES.iter().enumerate() {
            let file = world
                .dir()
                .create(&format!("production{at}"))
                .expect("created");
            let mut bytes = vec![0; index(*size)];
            rng.fill_bytes(&mut bytes[..index(size / 2)]);
            file.write_all_at(&bytes, 0).expect("written");
            file.sync_data().expect("synced");
        }
        let targets = TARGETS.map(|name| world.dir().subdir(name).expect("created"));
        world.dir().sync().expect("synced");
        targets
            .iter()
            .for_each(|dir| Store::create(&Directory::backend(dir)).expect("created"));
        let mut bench = Self {
            world,
            rng,
            clock: Arc::new(SimClock::new()),
            randoms: Arc::new(AtomicU64::new(seed << 20)),
            boots: 0,
            target: 0,
            engine: None,
            store: None,
            moments: BTreeMap::new(),
            listed: Default::default(),
            home: tempfile::tempdir().expect("a directory"),
            recoveries: 0,
            audited_bytes: 0,
        };
        bench.start();
        bench
    }

    fn world_of(&self) -> World {
        let randoms = Arc::clone(&self.randoms);
        World {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            boot: format!("boot {}", self.boots),
            booted_at: UnixNanos(0),
            random: Arc::new(move || {
                let number = randoms
                    .fetch_add(1, Ordering::Relaxed)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                bytes
            }),
        }
    }

    fn start(&mut self) {
        let spec = |(at, _): (usize, &u64)| {
            let file = self
                .world
                .dir()
                .open(&format!("production{at}"))
                .expect("there");
            DiskSpec {
                name: format!("disk{at}").parse().expect("a name"),
                production: Arc::new(SimDisk::new(file).expect("there")),
                identity: format!("production {at}"),
                stamp: None,
            }
        };
        let world = self.world_of();
        let around = Surroundings {
            state: self.world.dir().subdir("state").expect("there"),
            maps: self.world.dir().subdir("maps").expect("there"),
            diffs: self.world.dir().subdir("diffs").expect("there"),
            clock: Arc::clone(&world.clock),
            boot: world.boot.clone(),
            booted_at: world.booted_at,
            random: Arc::clone(&world.random),
        };
        let name: Name = "g".parse().expect("a name");
        let specs = SIZES.iter().enumerate().map(spec).collect();
        let (group, opened) = Group::open(name.clone(), specs, around).expect("opens");
        self.recoveries += u64::from(matches!(opened.how, How::Recovered { .. }));
        let place = StateRoot::at(self.home.path()).group(&name);
        std::fs::create_dir_all(place.dir()).expect("created");
        let target = Target::directory("/nowhere".into());
        let record = Record {
            target: target.to_string(),
            disks: vec![],
            every: "manual".into(),
            lineage: None,
        };
        let engine = Engine::new(
            group,
            world,
            target,
            Policy {
                every: Every::Manual,
                hooks: HookOptions::default(),
                audit_rate: None,
                ship_rate: None,
                keep: crate::KeepOptions::default(),
                limits: Limits::default(),
            },
            place,
            record,
        )
        .expect("opens");
        engine.note_began(&opened.how, false);
        self.engine = Some(engine);
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it runs")
    }

    fn open_store(&self) -> store::Result<Store> {
        let dir = self
            .world
            .dir()
            .subdir(TARGETS[self.target])
            .expect("there");
        let around = Around {
            workers: 0,
            ..Around::new(Arc::clone(&self.clock) as Arc<dyn Clock>)
        };
        Store::open_writer(&Directory::backend(&dir), around)
    }

    fn production(&self) -> Vec<Image> {
        let read = |disk: &Arc<splitter::TrackedDisk>| {
            let mut bytes = vec![0; index(disk.size())];
            disk.read_at(&mut bytes, 0).expect("readable");
            bytes
        };
        self.world
            .observe(|| self.engine().group.disks().iter().map(read).collect())
    }

    /// A guest's request. It fails only if the world has ended.
    fn write(&mut self) {
        let disk = self.rng.random_range(0..SIZES.len());
        let sectors = SIZES[disk] / 512;
        let first = self.rng.random_range(0..sectors);
        let count = self.rng.random_range(1..=24.min(sectors - first));
        let range = block::ByteRange::at(first * 512, count * 512).expect("inside");
        let mut data = vec![0; index(range.len())];
        self.rng.fill_bytes(&mut data);
        let tracked = &self.engine().group.disks()[disk];
        let done = match data[0] {
            0..60 => tracked.write_zeroes(range, ZeroOptions::RELAXED),
            60..80 => tracked.write_at(&data, range.start(), Fua::Yes),
            _ => tracked.write_at(&data, range.start(), Fua::No),
        };
        // Regions leave the intent log after a while.
        if data[1] < 16 {
            self.clock.advance(Duration::from_secs(31));
        }
        assert!(done.is_ok() || self.world.crashed(), "{done:?}");
    }

    fn cut(&mut self) {
        if !self.engine().shared.lock().seeded {
            return;
        }
        let group = &self.engine().group;
        let moment = (group.lineage(), group.open_generation());
        let production = match self.world.crashed() {
            true => return,
            false => self.production(),
        };
        self.moments.insert(moment, production);
        let done = self.engine().cut(BTreeMap::new(), SCHEDULED_TRIES);
        assert!(done.is_ok() || self.world.crashed(), "{done:?}");
    }

    /// One step of stage two, as its thread takes it.
    fn step(&mut self) -> Option<Round> {
        if self.store.is_none() {
            self.store = self.open_store().ok().map(TargetWriter::Store);
        }
        self.store.as_ref()?;
        let engine = self.engine.as_ref().expect("it runs");
        let done = round(engine, &mut self.store);
        if let Err(error) = &done {
            assert!(self.world.crashed(), "{}", error.chain());
            self.store = None;
        }
        done.ok()
    }

    /// What nobody has written since the newest point is as it says.
    fn audit(&mut self) {
        let engine = self.engine.as_ref().expect("it runs");
        let rate = Rate::new(1).expect("a rate");
        let before = engine.audit.status(rate, 0).bytes_checked;
        let mut auditor = Auditor::new(engine);
        self.world.observe(|| {
            for _ in SIZES {
                auditor.step().expect("nothing fails");
            }
        });
        let after = engine.audit.status(rate, 0);
        assert_eq!(after.last_miss, None);
        self.audited_bytes += after.bytes_checked - before;
    }

    /// Until everything that was cut is on the target.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            if matches!(self.step().expect("nothing fails"), Round::Idle) {
                return;
            }
        }
        panic!("stage two does not come to rest");
    }

    fn crash(&mut self) {
        (self.engine, self.store) = (None, None);
        if self.rng.random() {
            self.world = self.world.kill();
        } else {
            self.world = self.world.cut_power();
            self.boots += 1;
        }
        if self.rng.random_range(0..4) == 0 {
            self.target = 1 - self.target;
        }
        self.start();
        self.check_points();
    }

    fn check_points(&mut self) {
        let store = self.open_store().expect("opens");
        let mut found = BTreeSet::new();
        for point in store.points() {
            let moment = (Lineage(point.lineage), Generation(point.generation));
            let images = self.moments.get(&moment).expect("a point of a cut");
            for (disk, expected) in point.disks.iter().zip(images) {
                let mut bytes = vec![0; index(disk.size)];
                let image = store.image(&disk.image).expect("opens");
                image.read_at(&mut bytes, 0).expect("reads back");
                assert!(
                    bytes == *expected,
                    "{} disk {} is not its moment",
                    point.id,
                    disk.name
                );
            }
            found.insert(point.id.to_string());
        }
        let listed = &mut self.listed[self.target];
        assert!(found.is_superset(listed), "a listed point is gone");
        *listed = found;
    }

    /// Whatever happened: the next point is what production is.
    fn check_next_point(&mut self) {
        for _ in 0..3 {
            self.settle();
            self.cut();
            self.settle();
            // A cut whose base the target lacks is lost, and the disks are copied anew.
            self.audit();
            if self.newest_is_last_cut() {
                self.store = None;
                return self.check_points();
            }
        }
        panic!("no cut becomes a point");
    }

    fn newest_is_last_cut(&self) -> bool {
        let engine = self.engine();
        let newest = self
            .store
            .as_ref()
            .and_then(|target| target.store()?.newest(&engine.name));
        let Some(newest) = newest else { return false };
        let moment = (Lineage(newest.lineage), Generation(newest.generation));
        let last = (
            engine.group.lineage(),
            engine.group.open_generation().previous(),
        );
        if moment == last {
            assert!(
                self.moments[&moment] == self.production(),
                "{} is not production",
                newest.id
            );
        }
        moment == last
    }
}

/// Returns how often tracking went on from the intent log, and how much was audited.
fn history(seed: u64) -> [u64; 2] {
    let mut bench = Bench::new(seed);
    for _ in 0..6 {
        let end = bench.rng.random_range(0..400);
        bench.world.crash_after(end);
        for _ in 0..60 {
            match bench.rng.random_range(0..12) {
                0..5 => bench.write(),
                5..7 => bench.cut(),
                7..9 => bench.audit(),
                _ => drop(bench.step()),
            }
            if bench.world.crashed() {
                break;
            }
        }
        bench.crash();
        if bench.rng.random() {
            bench.check_next_point();
        }
    }
    bench.check_next_point();
    assert!(!bench.listed[bench.target].is_empty());
    [bench.recoveries, bench.audited_bytes]
}

#[test]
fn every_point_is_its_moment_through_kills_and_power_cuts() {
    let first = sim::seed_from_env(1);
    let asked = std::env::var("STANDIN_HISTORIES").ok();
    let count = asked.map_or(HISTORIES, |n| n.parse().expect("a number"));
    let mut all = [0, 0];
    for seed in first..first + count {
        match std::panic::catch_unwind(|| history(seed)) {
            Ok(one) => all = [all[0] + one[0], all[1] + one[1]],
            Err(_) => panic!("replay with STANDIN_SEED={seed}"),
        }
    }
    let [recoveries, audited] = all;
    eprintln!(
        "{count} histories, {recoveries} recoveries from the intent log, {audited} bytes audited"
    );
    assert!(audited > count * SIZES[0], "{audited}");
    assert!(count < 50 || recoveries > count / 2, "{recoveries}");
}
