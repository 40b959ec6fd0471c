//! Devices and places that fail on command, all of them real: the kernel meets the fault and passes
//! it on, nothing in Standin is told.
//!
//! ```text
//! image file <- nbdkit + error filter <- nbdfuse: a file   (RawFault: production, EIO on command)
//!                   ^ SIGSTOP / SIGCONT: stutter     ^
//!                                                    loop device <- ext4   (FaultyDir: diffs, target)
//! tmpfs of a given size, filled by a ballast file   (SmallDir)
//! ```
//!
//! Neither device mapper nor an NBD driver is needed in the kernel: FUSE and loop do. The ext4 has no
//! journal: with one, the first failed write makes it read-only until it is mounted again, and a
//! device that comes back would not be a place that comes back. FUSE writes through, so a fault is
//! met when the kernel writes a page back and not when a program writes it: as on a real disk.
//!
//! Rule: whatever was mounted or attached is gone when the value is dropped, by its own name.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::bench::Bench;
use crate::loop_device::LoopDevice;
use crate::process::{self, Beside, command};
use crate::time::{elapsed, wait_for};
use process_faults::wait_told;

mod process_faults;
pub use process_faults::{MemoryLimit, Stutter};

const LIMIT: Duration = Duration::from_secs(60);

/// What a test can do to a place or a disk.
pub trait Fault {
    /// From this moment it fails.
    ///
    /// # Errors
    /// If it cannot be made to fail.
    fn begin(&mut self) -> Result<()>;

    /// It is whole again.
    ///
    /// # Errors
    /// If it cannot be restored.
    fn end(&mut self) -> Result<()>;
}

/// What nbdkit's error filter fails.
const ALL_FAILS: &[&str] = &["error-rate=100%"];
const WRITES_FAIL: &[&str] = &[
    "error-pwrite-rate=100%",
    "error-zero-rate=100%",
    "error-trim-rate=100%",
];

/// A disk, as a file, behind an nbdkit that answers EIO while a trigger file exists.
#[derive(Debug)]
pub struct RawFault {
    nbdkit: Beside,
    _fuse: Beside,
    mounted: PathBuf,
    trigger: PathBuf,
}

impl RawFault {
    /// Serves the existing file `image` as `BENCH/NAME.fuse/NAME.raw`.
    ///
    /// # Errors
    /// If a peer does not start.
    pub fn start(bench: &Bench, name: &str, image: &Path) -> Result<Self> {
        Self::failing(bench, name, image, ALL_FAILS)
    }

    fn failing(bench: &Bench, name: &str, image: &Path, fails: &[&str]) -> Result<Self> {
        let socket = bench.path(&format!("{name}.nbdkit"));
        let trigger = bench.path(&format!("{name}.trigger"));
        let mut nbdkit = command("nbdkit");
        nbdkit.args(["--foreground", "--filter=error", "--unix"]);
        nbdkit.arg(&socket).arg("file").arg(image);
        nbdkit.arg("error=EIO").args(fails);
        nbdkit.arg(format!("error-file={}", trigger.display()));
        let log = bench.path(&format!("{name}.nbdkit.log"));
        let nbdkit = Beside::start(&mut nbdkit, &log)?;
        wait_for("nbdkit", LIMIT, || Ok(socket.exists().then_some(())))?;
        let directory = bench.path(&format!("{name}.fuse"));
        std::fs::create_dir(&directory)?;
        let mounted = directory.join(format!("{name}.raw"));
        File::create_new(&mounted)?;
        let mut fuse = command("nbdfuse");
        fuse.arg(&mounted).arg("--unix").arg(&socket);
        let fuse = Beside::start(&mut fuse, &bench.path(&format!("{name}.nbdfuse.log")))?;
        let fault = Self {
            nbdkit,
            _fuse: fuse,
            mounted,
            trigger,
        };
        let size = std::fs::metadata(image)?.len();
        wait_for("nbdfuse", LIMIT, || {
            Ok((std::fs::metadata(&fault.mounted)?.len() == size).then_some(()))
        })?;
        Ok(fault)
    }

    /// The disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// Holds every request for up to `pause` until the answer is dropped.
    #[must_use]
    pub fn stutter(&self, pause: Duration) -> Stutter {
        Stutter::start(self.nbdkit.pid(), pause)
    }
}

impl Fault for RawFault {
    fn begin(&mut self) -> Result<()> {
        File::create(&self.trigger).map(drop).context("the trigger")
    }

    fn end(&mut self) -> Result<()> {
        remove(&self.trigger)
    }
}

impl Drop for RawFault {
    fn drop(&mut self) {
        let _ = remove(&self.trigger);
        unmount(&self.mounted);
    }
}

/// A directory that is a whole ext4 on a [`RawFault`].
#[derive(Debug)]
pub struct FaultyDir {
    // Dropped in this order: the mount, the loop device, the disk below it.
    mount: Mount,
    _attached: LoopDevice,
    raw: RawFault,
}

impl FaultyDir {
    /// Mounts one of `size` bytes at `BENCH/NAME`, an empty directory that may exist.
    ///
    /// # Errors
    /// If a peer does not start, or the kernel lacks FUSE, loop or ext4.
    pub fn mount(bench: &Bench, name: &str, size: u64) -> Result<Self> {
        Self::mount_with(bench, name, size, "rw", ALL_FAILS)
    }

    /// The same, but every write waits for the device: a fault of it is a guest's wait at once.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub fn mount_synchronous(bench: &Bench, name: &str, size: u64) -> Result<Self> {
        Self::mount_with(bench, name, size, "sync", ALL_FAILS)
    }

    /// As [`mount`](Self::mount), for many faults one after the other: only writes fail. An ext4 that cannot
    /// read a bitmap once takes part of itself for damaged until it is mounted anew.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub fn lasting(bench: &Bench, name: &str, size: u64) -> Result<Self> {
        let made = Self::mount_with(bench, name, size, "rw", WRITES_FAIL)?;
        made.mend()?;
        Ok(made)
    }

    fn mount_with(
        bench: &Bench,
        name: &str,
        size: u64,
        options: &str,
        fails: &[&str],
    ) -> Result<Self> {
        let image = bench.path(&format!("{name}.img"));
        crate::image::sparse(&image, size)?;
        let format = "mkfs.ext4 -q -F -m 0 -O ^has_journal -E lazy_itable_init=0";
        process::sh(
            bench.dir(),
            &format!("{format} '{}'", image.display()),
            LIMIT,
        )?;
        let raw = RawFault::failing(bench, &format!("{name}-device"), &image, fails)?;
        let attached = LoopDevice::attach(raw.path(), 512)?;
        let mount = Mount::new(
            &bench.path(name),
            &["-t", "ext4", "-o", options, attached.path()],
        )?;
        Ok(Self {
            mount,
            _attached: attached,
            raw,
        })
    }

    /// As [`RawFault::stutter`].
    #[must_use]
    pub fn stutter(&self, pause: Duration) -> Stutter {
        self.raw.stutter(pause)
    }

    /// Has the kernel write back, over and over, until the answer is dropped.
    #[must_use]
    pub fn write_back(&self) -> WriteBack {
        WriteBack::start(self.mount.0.clone())
    }

    /// Makes the kernel forget what it holds clean: what is read afterwards comes from the device.
    ///
    /// # Errors
    /// If the directories cannot be read: the device must be whole.
    pub fn forget_cache(&self) -> Result<()> {
        for file in files_below(&self.mount.0)? {
            // What vanished meanwhile, or cannot be opened any more, is forgotten.
            let Ok(file) = File::open(&file) else {
                continue;
            };
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Has the kernel write again what the file system says of its files, after a fault swallowed that: a
    /// device that lost it for good would be another device, and to be made anew.
    ///
    /// # Errors
    /// If the directories cannot be read.
    pub fn mend(&self) -> Result<()> {
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        // Which blocks are free: all are taken and given back.
        let mut ballast = Ballast(self.mount.0.join("mend"));
        ballast.begin()?;
        ballast.end()?;
        for file in files_below(&self.mount.0)? {
            if let Ok(file) = File::open(&file) {
                // What vanished meanwhile needs no mending.
                let _ = rustix::fs::futimens(&file, &times);
            }
        }
        // A device that is slow to come back may not take it all; the next event mends again.
        let _ = process::say(command("sync").arg("-f").arg(&self.mount.0), LIMIT);
        Ok(())
    }

    /// Makes the kernel forget the files themselves, and which of them it could not write back. Nobody may
    /// have one open, and the device must be whole.
    ///
    /// # Errors
    /// If the kernel is not told.
    pub fn forget_files(&self) -> Result<()> {
        self.forget_cache()?;
        // All file systems' are dropped that nobody uses and that are not dirty. Only a new mount would be
        // more to the point, and a file system whose own blocks were refused does not survive it.
        std::fs::write("/proc/sys/vm/drop_caches", "2").context("drop cached inodes")
    }
}

impl Fault for FaultyDir {
    fn begin(&mut self) -> Result<()> {
        self.raw.begin()
    }

    fn end(&mut self) -> Result<()> {
        self.raw.end()
    }
}

/// A small file system that a ballast fills to the last byte.
#[derive(Debug)]
pub struct SmallDir(Mount);

impl SmallDir {
    /// Mounts one of `size` bytes at `BENCH/NAME`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mount(bench: &Bench, name: &str, size: u64) -> Result<Self> {
        let size = format!("size={size}");
        Mount::new(&bench.path(name), &["-t", "tmpfs", "-o", &size, "tmpfs"]).map(Self)
    }
}

impl Fault for SmallDir {
    fn begin(&mut self) -> Result<()> {
        let mut ballast = File::create(self.0.0.join("ballast"))?;
        let block = vec![0x5a; 64 << 10];
        for step in [block.len(), 4096] {
            while ballast.write_all(&block[..step]).is_ok() {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        remove(&self.0.0.join("ballast"))
    }
}

/// A file that takes all that a file system has left, by reservation: nothing is written.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Ballast {
    /// In `directory`; it does not exist yet.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self(directory.join("ballast"))
    }
}

impl Fault for Ballast {
    fn begin(&mut self) -> Result<()> {
        let ballast = File::create(&self.0)?;
        let (mut at, mut step) = (0, 1 << 30);
        while step >= 4096 {
            match rustix::fs::fallocate(&ballast, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                Err(Errno::NOSPC) => step /= 2,
                Err(error) => return Err(error).context("reserve space"),
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        remove(&self.0)
    }
}

/// A place that is not where it was, as a share that is not mounted.
///
/// A process that holds it open goes on writing to it; one that starts meanwhile finds nothing.
#[derive(Debug)]
pub struct Gone(pub PathBuf);

impl Gone {
    fn elsewhere(&self) -> PathBuf {
        self.0.with_extension("gone")
    }
}

impl Fault for Gone {
    fn begin(&mut self) -> Result<()> {
        Ok(std::fs::rename(&self.0, self.elsewhere())?)
    }

    fn end(&mut self) -> Result<()> {
        Ok(std::fs::rename(self.elsewhere(), &self.0)?)
    }
}

/// A directory below which nothing can be made, renamed or removed: a share that turned read-only.
///
/// Not renamed away: a process that holds the directory open goes on writing to it under any name.
#[derive(Debug)]
pub struct Frozen(pub PathBuf);

impl Frozen {
    /// Directories only: what is below them comes and goes while they are gone through.
    fn chattr(&self, how: &str) -> Result<()> {
        let mut find = command("find");
        find.arg(&self.0)
            .args(["-type", "d", "-exec", "chattr", how, "{}", "+"]);
        process::run(&mut find, LIMIT).map(drop)
    }
}

impl Fault for Frozen {
    fn begin(&mut self) -> Result<()> {
        self.chattr("+i")
    }

    fn end(&mut self) -> Result<()> {
        self.chattr("-i")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Makes the kernel write back what it holds of a file system, again and again. Without it nothing
/// of a short fault is met: dirty pages wait half a minute, and the fault is over by then.
#[derive(Debug)]
pub struct WriteBack {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Written>>,
}

/// How writing back went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// How long the slowest took.
    pub slowest: Duration,
    /// Whether one failed: bytes did not reach the device.
    pub failed: bool,
}

impl WriteBack {
    /// Of a block device that nobody mounted.
    #[must_use]
    pub fn of_device(path: &str) -> Self {
        Self::start_with("sync", &[], path.into())
    }

    fn start(at: PathBuf) -> Self {
        // The whole file system: fsync of a file might take an error from whoever wrote.
        Self::start_with("sync", &["-f"], at)
    }

    fn start_with(program: &'static str, args: &'static [&str], at: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut written = Written::default();
            while !told.load(Ordering::Relaxed) {
                let began = elapsed();
                let said = process::say(command(program).args(args).arg(&at), LIMIT);
                written.failed |= !said.is_ok_and(|said| said.status.success());
                written.slowest = written.slowest.max(elapsed() - began);
                wait_told(&told, Duration::from_millis(200));
            }
            written
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it.
    pub fn stop(mut self) -> Written {
        self.end()
    }

    fn end(&mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.thread.take().and_then(|thread| thread.join().ok());
        written.unwrap_or_default()
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, how: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        process::run(command("mount").args(how).arg(at), LIMIT)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Lazily: a process that was killed a moment ago may still hold a file there.
fn unmount(at: &Path) {
    if process::run(command("umount").arg(at), LIMIT).is_err() {
        let _ = process::say(command("umount").arg("-l").arg(at), LIMIT);
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}
