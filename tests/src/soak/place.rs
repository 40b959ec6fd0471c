//! Where a soak happens: two groups, and devices below them that fail on command.
//!
//! ```text
//! group mortal   a.raw (stamps)   b.vmdk = plain | failing | plain   c.raw (sparse)     killed, stopped
//! group steady   s.raw                                                                  never started anew
//!                    diffs of both on one FaultyDir, targets of both on another
//! ```
//!
//! The mortal group shows that nothing is lost; the steady one that nothing grows in a process which
//! meets every fault and goes on.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::faults::{Ballast, FaultyDir, RawFault};
use crate::ledger::{Ledger, Origin};
use crate::load::{Load, Refusal, Shape};
use crate::protect::{How, Protect};
use crate::spell::Spell;
use crate::story::tail;
use crate::time::elapsed;
use crate::{Bench, image};

use super::Options;
use super::growth::Watched;

const MIB: u64 = 1 << 20;
/// A killed process on a slow device takes its time to start.
const PATIENCE: Duration = Duration::from_secs(180);

/// One disk, who writes to it, and what was written.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Its name in the group.
    pub(crate) name: &'static str,
    /// Its bytes, in order.
    pub(crate) files: Vec<PathBuf>,
    /// Its writes.
    pub(crate) ledger: Arc<Ledger>,
    /// Its writers.
    pub(crate) load: Option<Load>,
}

/// A protected group.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// Its place: state, logs, and the way to diffs and target.
    pub(crate) bench: Bench,
    /// How it is protected.
    pub(crate) how: How,
    /// The process.
    pub(crate) protect: Protect,
    /// Its disks.
    pub(crate) disks: Vec<Disk>,
    pid: Arc<AtomicU32>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Place {
    // Dropped in this order: processes, then what they stand on.
    /// The group that is killed.
    pub(crate) mortal: Guarded,
    /// The group that is not.
    pub(crate) steady: Guarded,
    /// Part of disk b.
    pub(crate) production: RawFault,
    /// Which part, and when it fails.
    pub(crate) spell: Arc<Spell>,
    /// Where the diffs of both lie.
    pub(crate) diffs: FaultyDir,
    /// Fills it.
    pub(crate) ballast: Ballast,
    /// Where the targets of both lie.
    pub(crate) backup: FaultyDir,
}

impl Place {
    /// Sets everything up; guests do not write yet.
    ///
    /// # Errors
    /// If the machine lacks what is needed, or protection does not begin.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let mut bench = Bench::new()?;
        bench.seed = options.seed;
        let mut calm = Bench::new()?;
        calm.seed = options.seed.wrapping_add(1);
        let diffs = FaultyDir::lasting(&bench, "diffs", options.diff_space)?;
        let backup = FaultyDir::mount(&bench, "backup", options.target_space)?;
        calm.place("diffs", &bench.path("diffs"))?;
        for (place, name) in [(&bench, "mortal"), (&calm, "steady")] {
            let at = backup_of(&bench, name);
            std::fs::create_dir(&at)?;
            place.place("target", &at)?;
        }
        let [a, b, c] = options.disks;
        let (a_path, a_ledger) = bench.stamped_disk("a", a)?;
        let (production, b_path, b_files, failing) = vmdk(&bench, b)?;
        let b_ledger = Arc::new(a_ledger.beside(image::sectors(b), Origin::Zeroes));
        let c_path = bench.path("c.raw");
        image::sparse(&c_path, c)?;
        let c_ledger = Arc::new(a_ledger.beside(image::sectors(c), Origin::Zeroes));
        let spell = Arc::new(Spell::on(failing));
        let disk = |name, files, ledger: Arc<Ledger>| Disk {
            name,
            files,
            ledger,
            load: None,
        };
        let disks = [&a_path, &b_path, &c_path].map(PathBuf::as_path);
        let mut how = How::new(&bench, &disks).every("1s");
        how.group = "mortal".into();
        how.patience = PATIENCE;
        let mortal = Guarded::start(
            bench,
            how,
            vec![
                disk("a", vec![a_path.clone()], a_ledger),
                disk("b", b_files, b_ledger),
                disk("c", vec![c_path.clone()], c_ledger),
            ],
        )?;
        let (s_path, s_ledger) = calm.stamped_disk("s", a)?;
        let mut how = How::new(&calm, &[&s_path]).every("1s");
        how.group = "steady".into();
        how.patience = PATIENCE;
        let steady = Guarded::start(calm, how, vec![disk("s", vec![s_path.clone()], s_ledger)])?;
        let ballast = Ballast::below(&mortal.bench.path("diffs"));
        Ok(Self {
            mortal,
            steady,
            production,
            spell,
            diffs,
            ballast,
            backup,
        })
    }

    /// Both groups.
    pub(crate) fn groups(&self) -> [&Guarded; 2] {
        [&self.mortal, &self.steady]
    }

    /// All disks of both.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.mortal.disks.iter().chain(&self.steady.disks)
    }

    /// Lets guests write to all disks.
    pub(crate) fn let_guests_write(&mut self, pace: Duration) {
        for group in [&mut self.mortal, &mut self.steady] {
            let seed = group.bench.seed.wrapping_mul(31);
            for (number, disk) in (0..).zip(&mut group.disks) {
                let mut shape = shape(disk.ledger.sectors(), pace);
                if disk.name == "b" {
                    shape.refusal = Refusal::Within(Arc::clone(&self.spell));
                }
                let seed = seed.wrapping_add(number);
                let address = &group.protect.address;
                disk.load = Some(Load::start(address, disk.name, &disk.ledger, &shape, seed));
            }
        }
    }

    /// The longest that any guest's request waited since this was last asked.
    pub(crate) fn take_latency_max(&self) -> Duration {
        let loads = self.disks().filter_map(|disk| disk.load.as_ref());
        loads.map(Load::take_latency_max).max().unwrap_or_default()
    }

    /// Keeps all files, and says where and what the processes said last.
    pub(crate) fn keep(&mut self) -> String {
        let mut said = String::new();
        for group in [&mut self.mortal, &mut self.steady] {
            group.bench.keep();
            let log = group.protect.process.log();
            let (name, at) = (&group.how.group, group.bench.dir().display());
            said += &format!("{name} is kept in {at}; its log ends:\n{}\n", tail(&log));
        }
        said
    }

    /// Where the mortal group's target lies.
    #[must_use]
    pub(crate) fn mortal_target(&self) -> PathBuf {
        backup_of(&self.mortal.bench, "mortal")
    }

    /// What is looked at for growth.
    #[must_use]
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let watched = |name, group: &Guarded| Watched {
            name,
            pid: Arc::clone(&group.pid),
            state: group.bench.path("state").join(name),
            diffs: group.bench.path("diffs").join(name),
            target: group.bench.path("target"),
        };
        vec![
            watched("mortal", &self.mortal),
            watched("steady", &self.steady),
        ]
    }
}

fn backup_of(bench: &Bench, name: &str) -> PathBuf {
    bench.path("backup").join(name)
}

/// A load that is thin, mixed, and dense where it matters: requests of a burst meet each other.
fn shape(sectors: usize, pace: Duration) -> Shape {
    Shape {
        connections: 2,
        depth: 8,
        read_percent: 15,
        big_permille: 4,
        hot_percent: 25,
        bursts: true,
        pace,
        reconnect: Some(PATIENCE),
        ..Shape::mixed(0..sectors)
    }
}

/// A flat VMDK whose middle quarter lies on a device that fails on command; its parts, and the sectors
/// of that one.
fn vmdk(
    bench: &Bench,
    size: u64,
) -> Result<(RawFault, PathBuf, Vec<PathBuf>, std::ops::Range<usize>)> {
    let [first, middle, last] = [size / 4, size / 4, size / 2].map(|part| part / MIB * MIB);
    let backing = bench.path("b-middle.img");
    image::sparse(&backing, middle)?;
    let fault = RawFault::start(bench, "b-middle", &backing)?;
    let directory = fault.path().parent().context("it lies in a directory")?;
    let files = ["b-first.raw", "b-middle.raw", "b-last.raw"];
    image::sparse(&directory.join(files[0]), first)?;
    image::sparse(&directory.join(files[2]), last)?;
    let path = directory.join("b.vmdk");
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n",
    );
    for (file, size) in files.iter().zip([first, middle, last]) {
        text += &format!("RW {} FLAT \"{file}\" 0\n", size / 512);
    }
    std::fs::File::create_new(&path)?.write_all(text.as_bytes())?;
    let failing = image::sectors(first)..image::sectors(first + middle);
    let files = files.map(|file| directory.join(file)).to_vec();
    Ok((fault, path, files, failing))
}

impl Guarded {
    fn start(bench: Bench, how: How, disks: Vec<Disk>) -> Result<Self> {
        let protect = Protect::start(&bench, &how)?;
        protect.wait_point(PATIENCE)?;
        let pid = Arc::new(AtomicU32::new(protect.process.pid()));
        Ok(Self {
            bench,
            how,
            protect,
            disks,
            pid,
        })
    }

    /// `kill -9`; if `twice`, once more a moment after the next start. Then a start; how long that took
    /// until it served.
    ///
    /// # Errors
    /// If it does not serve again.
    pub(crate) fn kill(&mut self, twice: Option<Duration>) -> Result<Duration> {
        self.pid.store(0, Ordering::Release);
        self.protect.process.kill9()?;
        if let Some(moment) = twice {
            let mut starting = Protect::spawn(&self.bench, &self.how)?;
            crate::time::let_pass(moment);
            starting.process.kill9()?;
        }
        self.start_again()
    }

    /// `SIGTERM`, and a start.
    ///
    /// # Errors
    /// If it does not end with success, or does not serve again.
    pub(crate) fn stop_and_start(&mut self) -> Result<Duration> {
        self.stop_for_good()?;
        self.start_again()
    }

    /// `SIGTERM`; nothing follows.
    ///
    /// # Errors
    /// If it does not end with success.
    pub(crate) fn stop_for_good(&mut self) -> Result<()> {
        self.pid.store(0, Ordering::Release);
        let status = self.protect.interrupt(Signal::TERM)?;
        anyhow::ensure!(status.success(), "a clean stop ended with {status}");
        Ok(())
    }

    fn start_again(&mut self) -> Result<Duration> {
        let began = elapsed();
        self.protect = Protect::start(&self.bench, &self.how)?;
        self.pid
            .store(self.protect.process.pid(), Ordering::Release);
        Ok(elapsed() - began)
    }
}
