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
    BlockDevice, ByteRange, Clock, DeviceDir, Dir, File, Fua, GRANULE, Hole, Name, Speed, Stamp,
    UnixNanos, ZeroOptions, index,
};
use rand::RngExt;
use rand::SeedableRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand_chacha::ChaCha8Rng;
use sim::{SimClock, SimDisk, SimWorld};
use splitter::{
    CutError, CutNote, DiskSpec, Generation, Group, How, Lineage, OpenError, Opened, RunContent,
    SealedGeneration, Surroundings,
};

pub mod eventful;
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

    pub fn open_again(&self) -> Result<(Group, Opened), OpenError> {
        Group::open("web".parse().unwrap(), self.specs(), self.around())
    }

    fn start(&mut self) -> How {
        let (group, opened) = self.open_through_crashes();
        self.group = Some(group);
        // A restart of tracking may have been complete although its caller never heard of it.
        if opened.lineage != self.lineage {
            self.forget();
        }
        // Whoever recovers leaves a gap, and may be killed before he says so.
        let newest = self
            .images
            .last_key_value()
            .map_or(0, |(newest, _)| newest.0);
        if self.group().open_generation().0 > newest + 1000 {
            self.lose_cuts();
        }
        match opened.how {
            How::Resumed { .. } => {}
            How::Recovered { .. } => self.recoveries += 1,
            // The agent copies the disks anew; here at once.
            How::Fresh | How::Distrusted { .. } => self.forget(),
        }
        opened.how
    }

    /// In a rough history, opening is killed and loses power now and then, too.
    fn open_through_crashes(&mut self) -> (Group, Opened) {
        loop {
            if self.rough && self.rng.random_bool(0.2) {
                self.world.crash_after(self.rng.random_range(1..60));
            }
            match self.open_again() {
                // What did not come in here comes later.
                Ok(opened) => {
                    self.will_crash = self.rough;
                    return opened;
                }
                Err(error) => assert!(self.world.crashed(), "{error}"),
            }
            self.world = if self.rng.random_bool(0.5) {
                self.lose_power()
            } else {
                self.world.kill()
            };
        }
    }

    pub fn restart(&mut self, world: SimWorld, boot: &str) -> How {
        self.group = None;
        self.world = world;
        self.production_failed = false;
        self.fault = false;
        self.boot = boot.into();
        self.start()
    }

    /// Cuts that the target has not are gone; it may have committed more than was released.
    fn lose_cuts(&mut self) {
        trace(|| format!("cuts are lost, {} is released", self.released));
        let listed = self.images.keys().copied();
        let may_be_newest = listed.filter(|g| *g >= self.released);
        if let Some(newest) = may_be_newest.choose(&mut self.rng) {
            self.images.split_off(&newest.next());
        }
    }

    fn lose_power(&mut self) -> SimWorld {
        self.boot = format!("boot-{}", self.rng.random::<u32>());
        self.cut_power()
    }

    /// The world in which the machine starts again.
    pub fn cut_power(&mut self) -> SimWorld {
        self.booted_at = self.clock.wall();
        self.world.cut_power()
    }

    pub fn restart_after_kill(&mut self, seed: u64) {
        let boot = self.boot.clone();
        let world = self.world.kill();
        if self.rough && self.rng.random_bool(0.3) {
            let lost = [".diff", ".diff", ".map", "live."][self.rng.random_range(0..4)];
            self.writeback_failed = true;
            trace(|| format!("lost {lost}"));
            world.fail_writeback(|name| name.contains(lost), self.rng.random_bool(0.5));
        }
        let how = self.restart(world, &boot);
        trace(|| format!("{how:?}, open is {}", self.group().open_generation()));
        // A kill while the very first files were being made leaves nothing to go on from.
        let fine = matches!(
            &how,
            How::Resumed { .. } | How::Recovered { .. } | How::Fresh
        ) || matches!(&how, How::Distrusted { why } if is_legal(why));
        assert!(fine, "seed {seed}: {how:?}");
        self.check_sealed(seed);
    }

    pub fn restart_after_power_cut(&mut self, seed: u64) {
        let world = self.lose_power();
        let boot = self.boot.clone();
        let how = self.restart(world, &boot);
        // Killed once more while it recovered, it goes on from what it had recovered.
        let fine = self.rough || !matches!(how, How::Resumed { .. });
        assert!(fine, "seed {seed}: {how:?}");
        self.check_flushed(seed);
    }

    /// What a flush promised is on the disk, where nothing was written since.
    fn check_flushed(&mut self, seed: u64) {
        let production = self.production();
        let void = usize::from(std::mem::take(&mut self.promises_void));
        let kept = production.iter().zip(&self.flushed).skip(void);
        for (found, (flushed, touched)) in kept {
            let sectors = found.chunks(512).zip(flushed.chunks(512)).enumerate();
            for (sector, (found, flushed)) in sectors {
                let lost = found != flushed && !touched.contains(&(sector as u64));
                assert!(!lost, "seed {seed}: sector {sector} lost a flushed write");
            }
        }
        // All that survived is on the disk.
        let images = production.into_iter();
        self.flushed = images.map(|image| (image, BTreeSet::new())).collect();
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

    pub fn restart_after_clean_close(&mut self, seed: u64, power: bool) {
        self.world.set_fault(None);
        let stamp = |(len, at): (&u64, &u64)| {
            Some(Stamp {
                len: *len,
                mtime_ns: *at,
            })
        };
        let stamps: Vec<_> = self.sizes.iter().zip(&self.mtime_ns).map(stamp).collect();
        let healthy = self.group.take().unwrap().close(&stamps).is_ok();
        // Who closes may be the first to be told.
        let excused = self.production_failed || self.writeback_failed;
        if self.world.crashed() || (excused && !healthy) {
            return self.restart_after_kill(seed);
        }
        assert!(healthy, "seed {seed}: a clean close failed");
        let boot = format!("boot-{}", self.rng.random::<u32>());
        self.booted_at = self.clock.wall();
        let world = if power {
            self.world.cut_power()
        } else {
            self.world.restart()
        };
        let how = self.restart(world, &boot);
        // An intent log that could not be written leaves nothing to go on from.
        let lost = matches!(&how, How::Distrusted { why } if is_legal(why));
        let fine = matches!(
            how,
            How::Resumed { .. } | How::Recovered { .. } | How::Fresh
        );
        assert!(fine || lost, "seed {seed}: {how:?}");
        self.check_sealed(seed);
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

    fn some_range(&mut self, disk: usize) -> ByteRange {
        // Guests write the same runs again: journals, logs.
        if self.rng.random_bool(0.2)
            && let Some(again) = self.long_range[disk]
        {
            return again;
        }
        let sectors = self.sizes[disk] / 512;
        let start = self.rng.random_range(0..sectors);
        let most = if self.rng.random_bool(0.1) { 800 } else { 24 };
        let count = self.rng.random_range(1..=most).min(sectors - start);
        let range = ByteRange::at(start * 512, count * 512).unwrap();
        if range.granules_touched().count() > 8 {
            self.long_range[disk] = Some(range);
        }
        range
    }

    fn some_disk(&mut self) -> usize {
        self.rng.random_range(0..self.sizes.len())
    }

    /// Requests fail only when production does, or the world has ended.
    fn guest(&mut self, disk: usize, answer: block::Result<()>) {
        // The last request may have ended before it came to production.
        if !self.world.crashed() {
            self.mtime_ns[disk] = self.clock.wall().0;
        }
        let excused = self.world.crashed() || (self.production_failed && disk == 0);
        assert!(answer.is_ok() || excused, "{answer:?}");
        if self.rng.random_bool(0.02) {
            self.clock.advance(Duration::from_secs(30));
        }
    }

    pub fn write(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        trace(|| format!("write disk {disk} {:?}", range.granules_touched()));
        let byte: u8 = self.rng.random();
        let salt: u8 = self.rng.random();
        let data: Vec<u8> = (0..range.len())
            .map(|i| byte ^ (i as u8).wrapping_mul(salt))
            .collect();
        let fua = if self.rng.random_bool(0.03) {
            Fua::Yes
        } else {
            Fua::No
        };
        self.note_touched(disk, range);
        let mut answer = None;
        self.group().disks()[disk].write_and_answer(&data, range.start(), fua, &mut |outcome| {
            assert!(answer.replace(outcome).is_none(), "a second answer");
        });
        let answer = answer.expect("an answer");
        if answer.is_ok() && fua == Fua::Yes {
            self.note_flush(disk);
        }
        self.guest(disk, answer);
    }

    /// Writes granules of the first disk.
    pub fn fill(&mut self, granules: std::ops::Range<u64>, byte: u8) {
        let data = vec![byte; index((granules.end - granules.start) * GRANULE)];
        let answer = self.group().disks()[0].write_at(&data, granules.start * GRANULE, Fua::No);
        self.guest(0, answer);
    }

    pub fn zero(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        trace(|| format!("zero disk {disk} {:?}", range.granules_touched()));
        let options = ZeroOptions {
            fua: Fua::No,
            hole: Hole::Allowed,
            speed: Speed::Any,
        };
        self.note_touched(disk, range);
        let answer = self.group().disks()[disk].write_zeroes(range, options);
        self.guest(disk, answer);
    }

    pub fn trim(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        self.note_touched(disk, range);
        let answer = self.group().disks()[disk].trim(range, Fua::No);
        if range.granules_covered().is_empty() {
            // Ignored: the file's time does not change either.
            return answer.unwrap_or_default();
        }
        self.guest(disk, answer);
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

    pub fn cut_and_check(&mut self, seed: u64) {
        match self.group().cut(CutNote::default()) {
            Ok(cut) => {
                let production = self.production();
                self.images.insert(cut.generation, production);
                self.answered.insert(cut.generation);
                trace(|| format!("cut {}", cut.generation));
                self.check_sealed_since(seed, cut.generation);
            }
            Err(CutError::Distrusted) => self.relearn(),
            Err(CutError::MapOnly) => assert!(self.group().copies_are_paused()),
            Err(
                error @ (CutError::Degraded { .. }
                | CutError::Io { .. }
                | CutError::Production { .. }),
            ) => {
                let excused = self.fault || self.writeback_failed || self.world.crashed();
                assert!(
                    excused,
                    "seed {seed}: a cut failed though nothing did: {error}"
                );
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }

    /// Each sealed generation, laid over the image of any cut it may build on, is its cut's image.
    pub fn check_sealed(&mut self, seed: u64) {
        self.check_sealed_since(seed, self.released.next());
    }

    fn check_sealed_since(&mut self, seed: u64, first: Generation) {
        for sealed in self.group().sealed() {
            // A cut that a kill interrupted after its store was made, but never answered.
            if !self.images.contains_key(&sealed.generation) {
                let production = self.production();
                self.images.insert(sealed.generation, production);
            }
        }
        for sealed in self.group().sealed() {
            let _ = self.group().finish_merge(&sealed);
        }
        if self.world.crashed() {
            return;
        }
        let sealed = self.group().sealed();
        // Of what was released, a part may be gone.
        let kept = sealed.iter().filter(|s| s.generation > self.released);
        for sealed in kept.filter(|s| s.is_unfinished()) {
            let mut parts = self.images.range(sealed.since.next()..=sealed.generation);
            let answered = parts.all(|(generation, _)| self.answered.contains(generation));
            let excused = self.writeback_failed || self.fault || !answered;
            assert!(excused, "seed {seed}: a merge is lost");
        }
        let sealed = sealed.into_iter().filter(|sealed| !sealed.is_unfinished());
        for sealed in sealed.filter(|s| s.generation >= first).collect::<Vec<_>>() {
            let expected = &self.images[&sealed.generation];
            let mut bases = self.images.range(sealed.since..sealed.generation);
            // The oldest and the newest that it may build on.
            let (oldest, newest) = (bases.next(), bases.next_back());
            assert!(
                oldest.is_some(),
                "seed {seed}: nothing to build on since {} of {:?}, released {}",
                sealed.since,
                self.images.keys(),
                self.released
            );
            for (base, images) in oldest.into_iter().chain(newest) {
                let Ok(built) = self.world.observe(|| try_lay_over(images, &sealed)) else {
                    // It is lost, and its reader says so; whoever ships it folds it.
                    let excused =
                        self.writeback_failed || !self.answered.contains(&sealed.generation);
                    assert!(excused, "seed {seed}: a sealed diff is lost");
                    continue;
                };
                assert!(
                    built == *expected,
                    "seed {seed}: {base} + {} differs in {}",
                    sealed.generation,
                    differing(&built, expected)
                );
            }
        }
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

    /// The next point, on top of `base`, is production.
    pub fn check_next(&mut self, base: &[Image], story: &str) {
        self.group().cut(CutNote::default()).unwrap();
        let sealed = self.group().sealed().pop().unwrap();
        assert!(lay_over(base, &sealed) == self.production(), "{story}");
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

/// The first granule that differs, for whoever looks for the reason.
fn differing(built: &[Image], expected: &[Image]) -> String {
    for (disk, (built, expected)) in built.iter().zip(expected).enumerate() {
        let both = built.chunks(4096).zip(expected.chunks(4096));
        let differ: Vec<_> = (0..)
            .zip(both)
            .filter(|(_, (b, e))| b != e)
            .map(|(at, _)| at)
            .collect::<Vec<u32>>();
        if !differ.is_empty() {
            return format!("granules {differ:?} of disk {disk}");
        }
    }
    "nothing".into()
}

/// Whether a history may make tracking begin anew for this reason: something failed.
fn is_legal(why: &str) -> bool {
    ["untracked", "a flush of a disk failed", "the live state"]
        .iter()
        .any(|reason| why.contains(reason))
}

/// What a target makes of a base and a sealed generation.
pub fn lay_over(base: &[Image], sealed: &SealedGeneration) -> Vec<Image> {
    try_lay_over(base, sealed).unwrap()
}

fn try_lay_over(base: &[Image], sealed: &SealedGeneration) -> io::Result<Vec<Image>> {
    let mut images = base.to_vec();
    for (image, disk) in images.iter_mut().zip(&sealed.disks) {
        let reader = disk.reader().map_err(io::Error::other)?;
        let mut past_the_end_is_zero = true;
        for run in reader.runs() {
            let mut bytes = vec![0; index(run.granules.count() * GRANULE)];
            if run.content == RunContent::Data {
                reader.read(run.granules, &mut bytes)?;
            }
            let range = run.granules.bytes(disk.size());
            let len = index(range.len());
            past_the_end_is_zero &= bytes[len..].iter().all(|b| *b == 0);
            image[index(range.start())..index(range.end())].copy_from_slice(&bytes[..len]);
        }
        reader.finish().map_err(io::Error::other)?;
        assert!(past_the_end_is_zero, "past the end of the disk is zero");
    }
    Ok(images)
}
