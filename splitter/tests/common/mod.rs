//! A group on simulated disks, and the images that its cuts must describe.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "shared by test crates, each of which uses its part"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{
    BlockDevice, ByteRange, Clock, Fua, GRANULE, Hole, Name, Speed, Stamp, ZeroOptions, index,
};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sim::{SimClock, SimDisk, SimWorld};
use splitter::{
    CutError, CutNote, DiskSpec, Generation, Group, How, OpenError, Opened, RunContent,
    SealedGeneration, Surroundings,
};

pub type Image = Vec<u8>;

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
    faulty: bool,
    /// Committed by the target; a release that fails may have removed a part.
    released: Generation,
}

impl Bench {
    pub fn new(seed: u64, sizes: &[u64]) -> Self {
        let world = SimWorld::new(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (at, size) in sizes.iter().enumerate() {
            let file = world.dir().create(&format!("production-{at}")).unwrap();
            file.set_len(*size).unwrap();
            let first: Vec<u8> = (0..*size / 2).map(|_| rng.random()).collect();
            file.write_all_at(&first, 0).unwrap();
            file.sync_data().unwrap();
        }
        world.dir().sync().unwrap();
        let mut bench = Self {
            world,
            rng,
            clock: Arc::new(SimClock::new()),
            sizes: sizes.to_vec(),
            group: None,
            images: BTreeMap::new(),
            boot: "boot-1".into(),
            randoms: Arc::new(AtomicU64::new(seed << 32)),
            mtime_ns: vec![0; sizes.len()],
            faulty: false,
            released: Generation::NONE,
        };
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
        Surroundings {
            state: self.world.dir().subdir("state").unwrap(),
            diffs: self.world.dir().subdir("diffs").unwrap(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            boot: self.boot.clone(),
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
        let (group, opened) = self.open_again().unwrap();
        self.group = Some(group);
        if !matches!(opened.how, How::Resumed { .. }) {
            // The agent copies the disks anew; here at once.
            self.forget();
        }
        opened.how
    }

    pub fn restart(&mut self, world: SimWorld, boot: &str) -> How {
        self.group = None;
        self.world = world;
        self.faulty = false;
        self.boot = boot.into();
        self.start()
    }

    pub fn restart_after_kill(&mut self, seed: u64) {
        let boot = self.boot.clone();
        let how = self.restart(self.world.kill(), &boot);
        let lost = |why: &String| why.contains("untracked");
        // A kill while the very first files were being made leaves nothing to go on from.
        let fine = matches!(&how, How::Resumed { .. } | How::Fresh)
            || matches!(&how, How::Distrusted { why } if lost(why));
        assert!(fine, "seed {seed}: {how:?}");
        self.check_sealed(seed);
    }

    pub fn restart_after_power_cut(&mut self, seed: u64) {
        let boot = format!("boot-{}", self.rng.random::<u32>());
        let how = self.restart(self.world.cut_power(), &boot);
        assert!(!matches!(how, How::Resumed { .. }), "seed {seed}: {how:?}");
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
        if self.world.crashed() {
            return self.restart_after_kill(seed);
        }
        assert!(healthy, "seed {seed}: a clean close failed");
        let boot = format!("boot-{}", self.rng.random::<u32>());
        let world = if power {
            self.world.cut_power()
        } else {
            self.world.kill()
        };
        let how = self.restart(world, &boot);
        let lost = matches!(&how, How::Distrusted { why } if why.contains("untracked"));
        assert!(
            matches!(how, How::Resumed { .. }) || lost,
            "seed {seed}: {how:?}"
        );
        self.check_sealed(seed);
    }

    /// The diff directory is full, or production fails, or all is well again.
    pub fn toggle_fault(&mut self) {
        let fault = match self.rng.random_range(0..4) {
            0 => Some((".diff", io::ErrorKind::StorageFull)),
            1 => Some(("production-0", io::ErrorKind::Other)),
            _ => None,
        };
        self.faulty = fault.is_some();
        self.world.set_fault(fault.map(|(name, kind)| {
            Arc::new(move |n: &str| n.ends_with(name).then_some(kind)) as sim::Fault
        }));
    }

    fn some_range(&mut self, disk: usize) -> ByteRange {
        let sectors = self.sizes[disk] / 512;
        let start = self.rng.random_range(0..sectors);
        let most = if self.rng.random_bool(0.1) { 800 } else { 24 };
        let count = self.rng.random_range(1..=most).min(sectors - start);
        ByteRange::at(start * 512, count * 512).unwrap()
    }

    fn some_disk(&mut self) -> usize {
        self.rng.random_range(0..self.sizes.len())
    }

    /// Requests fail only when production does, or the world has ended.
    fn guest(&mut self, disk: usize, answer: block::Result<()>) {
        self.mtime_ns[disk] = self.clock.wall().0;
        let excused = self.world.crashed() || (self.faulty && disk == 0);
        assert!(answer.is_ok() || excused, "{answer:?}");
        if self.rng.random_bool(0.02) {
            self.clock.advance(Duration::from_secs(30));
        }
    }

    pub fn write(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        let byte: u8 = self.rng.random();
        let salt: u8 = self.rng.random();
        let data: Vec<u8> = (0..range.len())
            .map(|i| byte ^ (i as u8).wrapping_mul(salt))
            .collect();
        let fua = if self.rng.random_bool(0.1) {
            Fua::Yes
        } else {
            Fua::No
        };
        let answer = self.group().disks()[disk].write_at(&data, range.start(), fua);
        self.guest(disk, answer);
    }

    pub fn zero(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        let options = ZeroOptions {
            fua: Fua::No,
            hole: Hole::Allowed,
            speed: Speed::Any,
        };
        let answer = self.group().disks()[disk].write_zeroes(range, options);
        self.guest(disk, answer);
    }

    pub fn trim(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
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
                self.check_sealed(seed);
            }
            Err(CutError::Distrusted) => self.restart_tracking(),
            Err(CutError::Degraded { .. } | CutError::Io { .. } | CutError::Production { .. }) => {}
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }

    /// Each sealed generation, laid over the image of any cut it may build on, is its cut's image.
    fn check_sealed(&mut self, seed: u64) {
        let sealed = self.group().sealed().into_iter();
        for sealed in sealed
            .filter(|s| s.generation > self.released)
            .collect::<Vec<_>>()
        {
            // A cut that a kill interrupted after its store was made, but never answered.
            if !self.images.contains_key(&sealed.generation) {
                let production = self.production();
                self.images.insert(sealed.generation, production);
            }
            let expected = &self.images[&sealed.generation];
            let bases = self.images.range(sealed.since..sealed.generation);
            assert!(
                bases.clone().count() > 0,
                "seed {seed}: nothing to build on"
            );
            for (base, images) in bases {
                let built = self.world.observe(|| lay_over(images, &sealed));
                assert!(
                    built == *expected,
                    "seed {seed}: {base} + {} differs",
                    sealed.generation
                );
            }
        }
    }

    pub fn release(&mut self) {
        let sealed = self.group().sealed();
        let Some(some) = sealed.first() else { return };
        self.released = some.generation;
        let _ = self.group().release(some);
    }

    pub fn fold(&mut self) {
        let sealed = self.group().sealed();
        if sealed.is_empty() {
            return;
        }
        let damaged = Arc::clone(&sealed[self.rng.random_range(0..sealed.len())]);
        let from = damaged.generation;
        match self.group().fold_from(&damaged) {
            Ok(()) => drop(self.images.split_off(&from)),
            Err(CutError::Distrusted) => self.restart_tracking(),
            Err(_) => {}
        }
    }

    pub fn restart_tracking(&mut self) {
        match self.group().restart_tracking("the test says so") {
            Ok(_) => self.forget(),
            Err(error) => assert!(matches!(error, CutError::Io { .. }), "{error}"),
        }
    }

    /// The files of the diff directory.
    pub fn diff_names(&self) -> Vec<String> {
        self.world.dir().subdir("diffs").unwrap().list().unwrap()
    }

    /// A new history: the disks are copied anew.
    fn forget(&mut self) {
        self.images = BTreeMap::from([(Generation::NONE, self.production())]);
        self.released = Generation::NONE;
    }

    pub fn newest_images(&self) -> Vec<Image> {
        self.images.last_key_value().unwrap().1.clone()
    }

    pub fn set_newest_images(&mut self, images: Vec<Image>) {
        let newest = *self.images.last_key_value().unwrap().0;
        self.images.insert(newest, images);
    }

    pub fn touch_from_outside(&mut self) {
        self.clock.advance(Duration::from_secs(60));
        self.mtime_ns[0] = self.clock.wall().0;
    }

    pub fn truncate_diff(&self, generation: Generation) {
        let dir = self.world.dir().subdir("diffs").unwrap();
        let infix = format!(".{generation}.");
        let name = dir.list().unwrap().into_iter();
        let name = name
            .filter(|n| n.contains(&infix))
            .find(|n| n.ends_with(".diff"))
            .unwrap();
        dir.open(&name).unwrap().set_len(4096).unwrap();
    }
}

/// What a target makes of a base and a sealed generation.
pub fn lay_over(base: &[Image], sealed: &SealedGeneration) -> Vec<Image> {
    let mut images = base.to_vec();
    for (image, disk) in images.iter_mut().zip(&sealed.disks) {
        let reader = disk.reader().unwrap();
        for run in reader.runs() {
            let mut bytes = vec![0; index(run.granules.count() * GRANULE)];
            if run.content == RunContent::Data {
                reader.read(run.granules, &mut bytes).unwrap();
            }
            let range = run.granules.bytes(disk.size());
            let len = index(range.len());
            assert!(
                bytes[len..].iter().all(|b| *b == 0),
                "past the end of the disk is zero"
            );
            image[index(range.start())..index(range.end())].copy_from_slice(&bytes[..len]);
        }
    }
    images
}
