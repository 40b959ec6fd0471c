//! A group on simulated disks, and the images that its cuts must describe.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "shared by test crates, each of which uses its part"
)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{
    BlockDevice, ByteRange, Clock, DeviceDir, Dir, File, GRANULE, Name, Stamp, UnixNanos, index,
};
use rand::RngExt;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use sim::{SimClock, SimDisk, SimWorld};
use splitter::{CutError, DiskSpec, Generation, Group, How, Lineage, Surroundings};

pub mod checked;
pub mod eventful;
mod guest;
mod restarted;
pub mod watched;

pub type Image = Vec<u8>;

/// Where a group has its state, its maps and its diffs.
fn group_dirs(world: &SimWorld) -> [Arc<dyn Dir>; 3] {
    ["state", "maps", "diffs"].map(|name| world.dir().subdir(name).unwrap())
}

/// A device for diffs. Its name has it fail where diffs do.
const DEVICE: &str = "device.diff";
/// A frame of a few granules takes a whole segment there, so small disks need much.
const DEVICE_BYTES: u64 = 1 << 30;

/// Diffs on the bare device. Looking at it brings no end closer.
fn bare_diffs(world: &SimWorld) -> Arc<dyn Dir> {
    let open = || DeviceDir::open(world.dir(), DEVICE, "web");
    Arc::new(world.observe(open).unwrap())
}

/// The same surroundings, with the files in another world.
pub fn in_world(world: &SimWorld, around: Surroundings) -> Surroundings {
    let [state, maps, diffs] = group_dirs(world);
    Surroundings {
        state,
        maps,
        diffs,
        ..around
    }
}

pub struct Bench {
    pub world: SimWorld,
    pub rng: ChaCha8Rng,
    pub clock: Arc<SimClock>,
    sizes: Vec<u64>,
    group: Option<Group>,
    /// What each cut must describe, by generation; generation 0 is the first copy.
    images: BTreeMap<Generation, Vec<Image>>,
    boot: String,
    randoms: Arc<AtomicU64>,
    /// The clock when production was last written, per disk.
    mtime_ns: Vec<u64>,
    /// Since it was opened; then it takes nothing any more.
    production_failed: bool,
    /// A diff, a map or the live state was lost in part beside a kill.
    pub writeback_failed: bool,
    /// Since the machine started, a flush of the first disk may have failed: the kernel forgets what
    /// was to be written, and later flushes promise what they cannot keep.
    promises_void: bool,
    /// Committed by the target; a release that fails may have removed a part.
    released: Generation,
    booted_at: UnixNanos,
    lineage: Lineage,
    /// What was acknowledged by a flush, and the sectors written since then.
    flushed: Vec<(Image, BTreeSet<u64>)>,
    /// How often the intent log was what tracking went on from.
    pub recoveries: u64,
    /// How often it was so while the group was open.
    pub relearned: u64,
    /// A long write of the past, per disk.
    long_range: Vec<Option<ByteRange>>,
    /// Something fails at the moment.
    fault: bool,
    /// Cuts that were answered.
    answered: BTreeSet<Generation>,
    /// Opening is interrupted as well.
    pub rough: bool,
    /// A crash is to come. Between the failure of a flush, which the kernel tells once, and the note of
    /// it, a kill goes unnoticed: nothing can be done about that, so the model does not ask for it.
    pub will_crash: bool,
    /// Diffs lie on a device without a file system.
    bare: bool,
}

impl Bench {
    pub fn new(seed: u64, sizes: &[u64]) -> Self {
        Self::with(seed, sizes, false)
    }

    /// Diffs lie on a device without a file system.
    pub fn bare(seed: u64, sizes: &[u64]) -> Self {
        Self::with(seed, sizes, true)
    }

    fn with(seed: u64, sizes: &[u64], bare: bool) -> Self {
        let world = SimWorld::new(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (at, size) in sizes.iter().enumerate() {
            let file = world.dir().create(&format!("production-{at}")).unwrap();
            file.set_len(*size).unwrap();
            let first: Vec<u8> = (0..*size / 2).map(|_| rng.random()).collect();
            file.write_all_at(&first, 0).unwrap();
            file.sync_data().unwrap();
        }
        if bare {
            let device = world.dir().create(DEVICE).unwrap();
            device.set_len(DEVICE_BYTES).unwrap();
            device.sync_data().unwrap();
        }
        world.dir().sync().unwrap();
        let mut bench = Self {
            world,
            bare,
            rng,
            clock: Arc::new(SimClock::new()),
            sizes: sizes.to_vec(),
            group: None,
            images: BTreeMap::new(),
            boot: "boot-1".into(),
            randoms: Arc::new(AtomicU64::new(seed << 32)),
            mtime_ns: vec![0; sizes.len()],
            production_failed: false,
            writeback_failed: false,
            promises_void: false,
            released: Generation::NONE,
            booted_at: UnixNanos(0),
            lineage: Lineage([0; 16]),
            flushed: Vec::new(),
            recoveries: 0,
            relearned: 0,
            long_range: vec![None; sizes.len()],
            fault: false,
            answered: BTreeSet::new(),
            rough: false,
            will_crash: false,
        };
        let images = bench.production().into_iter();
        bench.flushed = images.map(|image| (image, BTreeSet::new())).collect();
        if !sizes.is_empty() {
            assert_eq!(bench.start(), How::Fresh);
        }
        bench
    }

    pub fn group(&self) -> &Group {
        self.group.as_ref().unwrap()
    }

    fn specs(&self) -> Vec<DiskSpec> {
        let spec = |(at, size): (usize, &u64)| {
            let file = self.world.dir().open(&format!("production-{at}")).unwrap();
            DiskSpec {
                name: format!("disk{at}").parse::<Name>().unwrap(),
                production: Arc::new(SimDisk::new(file).unwrap()),
                identity: format!("file-{at}"),
                stamp: Some(Stamp {
                    len: *size,
                    mtime_ns: self.mtime_ns[at],
                }),
            }
        };
        self.sizes.iter().enumerate().map(spec).collect()
    }

    pub fn around(&self) -> Surroundings {
        let randoms = Arc::clone(&self.randoms);
        let [state, maps, diffs] = group_dirs(&self.world);
        Surroundings {
            state,
            maps,
            diffs: if self.bare {
                bare_diffs(&self.world)
            } else {
                diffs
            },
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            boot: self.boot.clone(),
            booted_at: self.booted_at,
            random: Arc::new(move || {
                let n = randoms
                    .fetch_add(1, Ordering::SeqCst)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&n.to_be_bytes());
                bytes
            }),
        }
    }

    fn note_flush(&mut self, disk: usize) {
        self.flushed[disk] = (self.production().swap_remove(disk), BTreeSet::new());
    }

    fn note_touched(&mut self, disk: usize, range: ByteRange) {
        self.flushed[disk]
            .1
            .extend(range.start() / 512..range.end() / 512);
    }

    /// The guest's flush.
    pub fn flush(&mut self) {
        let disk = self.some_disk();
        if self.group().disks()[disk].flush().is_ok() {
            self.note_flush(disk);
        }
    }

    /// What stage two does after a release.
    pub fn tend_intent_log(&mut self) {
        if self.rng.random_bool(0.5) {
            self.clock.advance(Duration::from_secs(31));
        }
        let _ = self.group().tend_intent_log();
    }

    /// Diffs, maps, the log or production fail, or all is well again.
    pub fn toggle_fault(&mut self) {
        let fault = match self.rng.random_range(0..12) {
            0 | 1 => Some((".diff", io::ErrorKind::StorageFull)),
            2 | 3 if !self.will_crash => Some(("production-0", io::ErrorKind::Other)),
            4 => Some((".map", io::ErrorKind::StorageFull)),
            5 => Some(("intent.", io::ErrorKind::Other)),
            6 => Some(("sync intent.", io::ErrorKind::Other)),
            7 if !self.will_crash => Some(("sync production-0", io::ErrorKind::Other)),
            8 => Some(("tracking", io::ErrorKind::StorageFull)),
            9 => Some(("live.", io::ErrorKind::Other)),
            _ => None,
        };
        if fault.is_some_and(|(name, _)| name.contains("production")) {
            self.production_failed = true;
            self.promises_void = true;
        }
        self.fault = fault.is_some();
        self.world.set_fault(fault.map(|(name, kind)| {
            Arc::new(move |n: &str| n.contains(name).then_some(kind)) as sim::Fault
        }));
    }

    pub fn heal(&mut self) {
        let _ = self.group().heal();
    }

    /// The disks as they are at this moment.
    pub fn production(&self) -> Vec<Image> {
        let read = |(at, size): (usize, &u64)| {
            let file = self.world.dir().open(&format!("production-{at}")).unwrap();
            let mut bytes = vec![0; index(*size)];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        self.sizes.iter().enumerate().map(read).collect()
    }

    pub fn release(&mut self) {
        let sealed = self.group().sealed();
        let Some(some) = sealed.choose(&mut self.rng) else {
            return;
        };
        trace(|| {
            format!(
                "release {} of {:?}",
                some.generation,
                sealed.iter().map(|s| s.generation.0).collect::<Vec<_>>()
            )
        });
        // A target keeps what it has, also where the files could not all be removed.
        self.released = self.released.max(some.generation);
        let _ = self.group().release(some);
    }

    pub fn fold(&mut self) {
        let mut sealed = self.group().sealed();
        // A target has the others, even if not all their files could be removed.
        sealed.retain(|s| s.generation > self.released);
        if sealed.is_empty() {
            return;
        }
        let damaged = Arc::clone(&sealed[self.rng.random_range(0..sealed.len())]);
        let from = damaged.generation;
        match self.group().fold_from(&damaged) {
            Ok(()) => drop(self.images.split_off(&from)),
            Err(CutError::Distrusted) => self.relearn(),
            Err(_) => {}
        }
    }

    /// Down to the dirty map alone, or back.
    pub fn toggle_copies(&mut self) {
        if self.group().copies_are_paused() {
            let _ = self.group().probe_diffs();
            // Caught up in part, in whole, or not at all.
            let left = Cell::new(self.rng.random_range(0..6_u32));
            let go_on = || left.replace(left.get().saturating_sub(1)) > 0;
            let _ = self.group().catch_up(&go_on);
            return self.group().resume_copies();
        }
        self.group().pause_copies();
    }

    /// Merges two cuts into one; who reads one of them keeps it from that.
    pub fn coalesce(&mut self) {
        let sealed = self.group().sealed();
        let claimed = sealed.choose(&mut self.rng).cloned();
        let keep = self.rng.random_bool(0.3);
        let claim = claimed
            .filter(|_| keep)
            .and_then(|sealed| Some((sealed.generation, sealed.claim()?)));
        if let Ok(Some(merged)) = self.group().coalesce() {
            let kept = claim.as_ref().map(|(generation, _)| *generation);
            assert!(kept != Some(merged.lost) && kept != Some(merged.into));
        }
    }

    /// Goes on from the intent log, or anew where that cannot be.
    pub fn relearn(&mut self) {
        match self.group().relearn("the test says so") {
            Ok(_) => {
                self.relearned += 1;
                self.lose_cuts();
            }
            Err(CutError::Distrusted | CutError::Io { .. }) => self.restart_tracking(),
            Err(error) => panic!("{error}"),
        }
    }

    pub fn restart_tracking(&mut self) {
        match self.group().restart_tracking("the test says so") {
            Ok(_) => self.forget(),
            Err(CutError::Io { .. } | CutError::Production { .. }) => {
                // It may be the new history that could not be made to last.
                if self.group().lineage() != self.lineage && !self.world.crashed() {
                    self.forget();
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The maps and diffs.
    pub fn diff_names(&self) -> Vec<String> {
        let list = |dir| self.world.dir().subdir(dir).unwrap().list().unwrap();
        ["maps", "diffs"].into_iter().flat_map(list).collect()
    }

    /// A new history: the disks are copied anew.
    fn forget(&mut self) {
        self.lineage = self.group().lineage();
        self.images = BTreeMap::from([(Generation::NONE, self.production())]);
        self.released = Generation::NONE;
        self.answered.clear();
    }

    pub fn newest_images(&self) -> Vec<Image> {
        self.images.last_key_value().unwrap().1.clone()
    }

    pub fn set_newest_images(&mut self, images: Vec<Image>) {
        let newest = *self.images.last_key_value().unwrap().0;
        self.images.insert(newest, images);
    }

    /// Somebody else writes to the first disk, where we did not.
    pub fn touch_from_outside(&mut self) {
        self.clock.advance(Duration::from_secs(600));
        self.mtime_ns[0] = self.clock.wall().0;
        let file = self.world.dir().open("production-0").unwrap();
        let end = self.sizes[0] - GRANULE;
        file.write_all_at(&[0xEE; 4096], end).unwrap();
        file.sync_data().unwrap();
    }

    /// The first disk was written just now.
    pub fn note_time_of_change(&mut self) {
        self.mtime_ns[0] = self.clock.wall().0;
    }

    /// The process is gone, and another one has not been started yet.
    pub fn die(&mut self, world: SimWorld) {
        self.group = None;
        self.world = world;
    }

    /// The machine starts anew a while later.
    pub fn reboot(&mut self) {
        self.clock.advance(Duration::from_secs(3600));
        self.booted_at = self.clock.wall();
        self.boot = format!("boot-{}", self.rng.random::<u32>());
        self.world = self.world.restart();
    }

    pub fn damage_maps(&self) {
        let dir = self.world.dir().subdir("maps").unwrap();
        let names = dir.list().unwrap().into_iter();
        for name in names.filter(|name| name.ends_with(".map")) {
            dir.open(&name).unwrap().set_len(4096).unwrap();
        }
    }

    pub fn truncate_diff(&self, generation: Generation) {
        self.first_diff(generation).set_len(4096).unwrap();
    }

    pub fn overwrite_diff(&self, generation: Generation, offset: u64, bytes: &[u8]) {
        let file = self.first_diff(generation);
        file.write_all_at(bytes, offset).unwrap();
    }

    fn first_diff(&self, generation: Generation) -> Arc<dyn File> {
        let dir = self.world.dir().subdir("diffs").unwrap();
        let infix = format!(".{generation}.");
        let name = dir.list().unwrap().into_iter();
        let name = name
            .filter(|n| n.contains(&infix))
            .find(|n| n.ends_with(".diff"))
            .unwrap();
        dir.open(&name).unwrap()
    }
}

/// With `STANDIN_TRACE` set: what a history does, for whoever replays one.
#[expect(clippy::print_stderr, reason = "asked for by whoever runs it")]
pub fn trace(what: impl FnOnce() -> String) {
    if std::env::var_os("STANDIN_TRACE").is_some() {
        eprintln!("{}", what());
    }
}
