//! Places that are full, read-only, gone or taken: no guest's write fails, no wrong point is listed, and what others have
//! there stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::loop_device::LoopDevice;
use tests::nbd::Client;
use tests::process::{self, Said};
use tests::protect::How;
use tests::time::wait_for;
use tests::{Bench, Load, Protect, Shape, image, standin};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A protect that must not come up; what it said, within its first seconds.
pub(crate) fn refused(bench: &Bench, how: &How, words: &[&str]) -> Result<Said> {
    let said = process::say(&mut standin::command(how.args(bench)), LIMIT)?;
    ensure!(!said.status.success(), "it was let in");
    let text = said.err.to_lowercase();
    ensure!(
        !text.contains("panicked"),
        "a panic is no message:\n{}",
        said.err
    );
    for word in words {
        ensure!(
            text.contains(&word.to_lowercase()),
            "no `{word}` in the message:\n{}",
            said.err
        );
    }
    Ok(said)
}

/// Bytes in use on a file system.
pub(crate) fn used(mount: &Mount) -> Result<u64> {
    let line = format!("df --output=used -B1 '{}' | tail -n 1", mount.0.display());
    Ok(process::sh(Path::new("/"), &line, LIMIT)?.trim().parse()?)
}

/// A file system of its own, unmounted when dropped.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn tmpfs(at: PathBuf, mib: u64) -> Result<Self> {
        Self::of(at, &format!("tmpfs -o size={mib}M"))
    }

    /// One that is the page cache, and nothing behind it.
    pub(crate) fn ramfs(at: PathBuf) -> Result<Self> {
        Self::of(at, "ramfs")
    }

    fn of(at: PathBuf, kind: &str) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let line = format!("mount -t {kind} standin-test '{}'", at.display());
        process::sh(Path::new("/"), &line, LIMIT)?;
        Ok(Self(at))
    }

    pub(crate) fn at(&self) -> &Path {
        &self.0
    }

    pub(crate) fn remount(&self, options: &str) -> Result<()> {
        let line = format!("mount -o remount,{options} '{}'", self.0.display());
        process::sh(Path::new("/"), &line, LIMIT).map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let line = format!("umount '{0}' || umount -l '{0}'", self.0.display());
        let _ = process::sh(Path::new("/"), &line, LIMIT);
    }
}

/// Waits until `status` says what is wrong with the target.
fn wait_complaint(protect: &Protect, words: &[&str]) -> Result<()> {
    wait_for("status to name the trouble", LIMIT, || {
        let status = protect.status()?.to_string().to_lowercase();
        Ok(words.iter().any(|word| status.contains(word)).then_some(()))
    })
    .with_context(|| format!("{:?}; log:\n{}", protect.status(), protect.process.log()))
}

#[test]
fn places_a_full_target_stops_no_guest_and_lists_no_wrong_point() -> Result<()> {
    let bench = Bench::new()?;
    let mount = Mount::tmpfs(bench.path("target"), 48)?;
    let (disk, ledger) = bench.empty_disk("disk", 256 * MIB)?;
    let how = How::new(&bench, &[&disk]).every("300ms");
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(LIMIT)?;
    let shape = Shape {
        longest: 400,
        zero_percent: 0,
        ..Shape::mixed(0..image::sectors(256 * MIB))
    };
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed);
    wait_complaint(&protect, &["full", "space"])?;
    load.wait_acked(500)
        .context("the guest waits for a full target")?;
    let target = bench.target();
    standin::run(["point", "verify", "--all", "--target", &target])?;
    mount.remount("size=2G")?;
    load.wait_acked(100)?;
    load.stop()?;
    let point = protect.cut()?;
    bench.compare(&point, None, &disk)?;
    standin::run(["point", "verify", "--all", "--target", &target])?;
    protect.stop()
}

#[test]
fn places_a_read_only_target_stops_no_guest_and_is_taken_up_again() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.empty_disk("disk", 64 * MIB)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]).every("300ms"))?;
    protect.wait_point(LIMIT)?;
    let shape = Shape::mixed(0..image::sectors(64 * MIB));
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed);
    load.wait_acked(200)?;
    // A mount in use does not become read-only, and permissions do not bind root: this does.
    process::sh(
        bench.dir(),
        "find target -type d -exec chattr +i {} +",
        LIMIT,
    )?;
    let complaint = wait_complaint(&protect, &["read-only", "permi"]);
    let guest = load
        .wait_acked(500)
        .context("the guest waits for a read-only target");
    process::sh(
        bench.dir(),
        "find target -type d -exec chattr -i {} +",
        LIMIT,
    )?;
    complaint?;
    guest?;
    load.wait_acked(200)?;
    load.stop()?;
    let point = protect.cut()?;
    bench.compare(&point, None, &disk)?;
    protect.stop()?;
    // And a target that is read-only from the start is refused, or says so, without a point.
    let bench = Bench::new()?;
    let mount = Mount::tmpfs(bench.path("target"), 8)?;
    mount.remount("ro")?;
    let other = bench.path("other.raw");
    image::sparse(&other, 8 * MIB)?;
    let how = How::new(&bench, &[&other]);
    refused(&bench, &how, &["read-only"]).map(drop)
}

/// Law: a guest's write never fails because protection failed.
/// A share was not mounted when the group started again: a store was made in its mount point, the disks
/// were copied anew into it, and `protected` was said of a target that held none of the old points.
#[test]
fn places_a_target_that_vanished_is_waited_for_and_not_made_anew() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.empty_disk("disk", 64 * MIB)?;
    let mut protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    let first = protect.cut()?;
    protect.process.kill9()?;
    fs::rename(bench.path("target"), bench.path("away"))?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    wait_complaint(&protect, &["holds no store any more"])?;
    ensure!(!bench.path("target").exists(), "a store was made");
    Client::connect(&protect.address, "disk")?.write(0, &[7; 4096])?;
    fs::rename(bench.path("away"), bench.path("target"))?;
    let second = protect.cut()?;
    ensure!(first != second, "the history began anew at {second}");
    bench.compare(&second, None, &disk)?;
    protect.stop()
}

#[test]
fn places_a_full_diff_directory_fails_no_guest_write() -> Result<()> {
    let bench = Bench::new()?;
    let _mount = Mount::tmpfs(bench.path("diffs"), 24)?;
    let (disk, ledger) = bench.empty_disk("disk", 128 * MIB)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    protect.cut()?;
    let shape = Shape {
        longest: 400,
        zero_percent: 0,
        trim_percent: 0,
        ..Shape::mixed(0..image::sectors(128 * MIB))
    };
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed);
    load.wait_acked(1500)
        .context("the guest met the full diff directory")?;
    load.stop()?;
    let mut client = Client::connect(&protect.address, "disk")?;
    client.flush()?;
    let now = ledger.tick();
    ledger.check(
        &*fs::read(&disk)?,
        None,
        tests::Window {
            asked: now,
            answered: now,
        },
    )?;
    // A cut may be refused while there is no room for it, but a point that is made is exact.
    let said = standin::say(["cut", "g", "--state", &bench.state(), "--wait"])?;
    if said.status.success() {
        bench.compare("g@latest", None, &disk)?;
    }
    ensure!(!said.err.contains("panicked"), "{}", said.err);
    Ok(())
}

#[test]
fn places_two_protects_on_one_disk_or_group_or_target() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.empty_disk("disk", 8 * MIB)?;
    let (other, _) = bench.empty_disk("other", 8 * MIB)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    protect.cut()?;

    let elsewhere = Bench::new()?;
    let mut how = How::new(&elsewhere, &[&disk]);
    how.group = "another".into();
    refused(&elsewhere, &how, &["disk.raw", "in use"])?;
    // Another name for the same file is the same disk.
    std::os::unix::fs::symlink(&disk, elsewhere.path("alias.raw"))?;
    how.disks = vec![elsewhere.path("alias.raw")];
    refused(&elsewhere, &how, &["in use"])?;

    let mut how = How::new(&bench, &[&other]);
    how.listen = tests::nbd::Address::Unix(bench.path("second.sock"));
    refused(&bench, &how, &["g"])?;

    // A disk that QEMU has open, and the reverse.
    let open = "qemu-io -f raw -c 'write 0 4k' disk.raw";
    ensure!(
        process::sh(bench.dir(), open, LIMIT).is_err(),
        "QEMU wrote beside us"
    );
    protect.stop()?;
    process::sh(bench.dir(), open, LIMIT)?;
    let mut qemu = process::command("qemu-nbd");
    qemu.args(["-f", "raw", "-t", "-k"])
        .arg(bench.path("q.sock"))
        .arg(&disk);
    let _qemu = process::Beside::start(&mut qemu, &bench.path("qemu.log"))?;
    wait_for("qemu-nbd", LIMIT, || {
        Ok(bench.path("q.sock").exists().then_some(()))
    })?;
    refused(&bench, &How::new(&bench, &[&disk]), &["in use"]).map(drop)
}

/// `--diff-dir` names a block device that is not free: whatever is on it stays.
#[test]
fn places_diff_devices_that_are_not_free() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.empty_disk("disk", 1 << 20)?;
    let (other, _) = bench.empty_disk("other", 1 << 20)?;
    let image = bench.path("device");
    image::sparse(&image, 128 << 20)?;
    let format = format!("mkfs.ext4 -q -F '{}'", image.display());
    process::sh(bench.dir(), &format, LIMIT)?;
    let device = LoopDevice::attach(&image, 512)?;
    let how = How::new(&bench, &[&disk]).diff_dir(device.path());
    let before = std::fs::read(&image)?;
    refused(
        &bench,
        &how,
        &["not blank", "blkdiscard", "nothing was written"],
    )?;
    ensure!(std::fs::read(&image)? == before, "it was written to");

    // As the message says.
    process::run(
        process::command("blkdiscard").args(["--zeroout", device.path()]),
        LIMIT,
    )?;
    let running = Protect::start(&bench, &how)?;
    let mut second = How::new(&bench, &[&other]).diff_dir(device.path());
    second.group = "h".into();
    refused(&bench, &second, &["in use", device.path()])?;
    running.stop()?;
    refused(&bench, &second, &["holds the files of group g"])?;
    Protect::start(&bench, &how)?.stop()
}
