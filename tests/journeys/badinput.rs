//! What is broken, full, taken or lies ends in a clear message and never in a wrong point.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::loop_device::LoopDevice;
use tests::nbd::Client;
use tests::process::{self, Said};
use tests::protect::How;
use tests::served::Served;
use tests::time::wait_for;
use tests::{Bench, Load, Protect, Shape, image, standin};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const DAMAGED: i32 = 5;

/// A protect that must not come up; what it said, within its first seconds.
fn refused(bench: &Bench, how: &How, words: &[&str]) -> Result<Said> {
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

/// All files below `dir`, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => found.extend(files(&entry.path())?),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}

/// A target with one point of a disk of 24 MiB of data.
fn one_point() -> Result<(Bench, PathBuf, String)> {
    let bench = Bench::new()?;
    let disk = bench.path("disk.raw");
    image::sparse(&disk, 64 * MIB)?;
    image::scribble(&disk, 0, 24 * MIB, bench.seed)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    let point = protect.cut()?;
    protect.stop()?;
    Ok((bench, disk, point))
}

#[test]
fn badinput_corrupt_store_objects_are_named_and_never_restored() -> Result<()> {
    let (bench, disk, point) = one_point()?;
    let target = bench.target();
    let output = bench.text("out.raw");
    let restore = ["restore", &point, "--target", &target, "--output", &output];
    let objects: Vec<_> = files(&bench.path("target"))?
        .into_iter()
        .filter(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 0))
        .collect();
    ensure!(objects.len() > 3, "a store has objects: {objects:?}");
    let (mut noticed, mut harmless) = (0, 0);
    for object in &objects {
        let whole = fs::read(object)?;
        let middle = whole.len() / 2;
        let torn = whole[..middle].to_vec();
        let mut flipped = whole.clone();
        flipped[middle] ^= 0x10;
        for (kind, broken) in [("torn", torn), ("flipped", flipped)] {
            fs::write(object, &broken)?;
            let verify = standin::say(["point", "verify", "--all", "--target", &target])?;
            let restored = standin::say(restore)?;
            ensure!(!verify.err.contains("panicked") && !restored.err.contains("panicked"));
            if restored.status.success() {
                // What the point does not need may be broken: but then the restore is right.
                ensure!(
                    image::difference(Path::new(&output), &disk)?.is_none(),
                    "{object:?} {kind}: wrong"
                );
                fs::remove_file(&output)?;
                harmless += 1;
            } else {
                let code = (verify.code(), restored.code());
                ensure!(
                    code == (DAMAGED, DAMAGED),
                    "{object:?} {kind}: {code:?}\n{}",
                    restored.err
                );
                let name = object
                    .file_name()
                    .and_then(|name| name.to_str())
                    .context("a name")?;
                ensure!(
                    verify.err.contains(name) || verify.out.contains(name),
                    "{name}:\n{}",
                    verify.err
                );
                ensure!(
                    !Path::new(&output).exists(),
                    "a failed restore leaves no file"
                );
                noticed += 1;
            }
        }
        fs::write(object, &whole)?;
    }
    eprintln!(
        "{} objects: {noticed} breaks noticed, {harmless} harmless",
        objects.len()
    );
    ensure!(noticed >= 6, "most objects are needed");
    standin::run(restore)?;
    ensure!(image::difference(Path::new(&output), &disk)?.is_none());
    Ok(())
}

#[test]
fn badinput_corrupt_containers_give_errors_and_not_bytes_when_served() -> Result<()> {
    let (bench, _, point) = one_point()?;
    let sizes = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let biggest = files(&bench.path("target"))?
        .into_iter()
        .max_by_key(sizes)
        .context("objects")?;
    let file = File::options().write(true).open(&biggest)?;
    for at in (0..file.metadata()?.len()).step_by(20_000) {
        file.write_all_at(&[0xff; 64], at)?;
    }
    let production = fs::read(bench.path("disk.raw"))?;
    // Refusing to serve is right as well.
    if let Ok(served) = Served::start(&bench, &point, &[]) {
        let (mut right, mut errors) = (0, 0);
        for mib in 0..24_u64 {
            let mut client = Client::connect(&served.address, "disk")?;
            match client.read(mib * MIB, 1 << 20) {
                Ok(bytes) => {
                    let at = usize::try_from(mib * MIB)?;
                    ensure!(
                        bytes == production[at..at + (1 << 20)],
                        "wrong bytes at {mib} MiB"
                    );
                    right += 1;
                }
                Err(_) => errors += 1,
            }
        }
        eprintln!("{right} MiB read right, {errors} refused");
        ensure!(errors > 0, "the biggest object holds data");
    }
    Ok(())
}

/// What a crash of the machine, or a careless hand, may do to the files of a protect.
#[test]
fn badinput_truncated_or_lost_state_and_diffs_never_make_a_wrong_point() -> Result<()> {
    let base = Bench::new()?;
    let mount = Mount::tmpfs(base.path("target"), 256)?;
    let (disk, ledger) = base.stamped_disk("disk", 16 * MIB)?;
    let how = How::new(&base, &[&disk]);
    let protect = Protect::start(&base, &how)?;
    protect.cut()?;
    // A sealed generation that cannot ship, since the target is full; and an open one.
    mount.remount(&format!("size={}", used(&mount)?))?;
    let shape = Shape::mixed(0..image::sectors(16 * MIB));
    let load = Load::start(&protect.address, "disk", &ledger, &shape, base.seed);
    load.wait_acked(300)?;
    let first = protect.cut_only()?;
    load.wait_acked(300)?;
    load.stop()?;
    protect.kill9()?;
    ensure!(
        first.status.success(),
        "a cut needs no target: {}",
        first.err
    );

    let mut victims: Vec<PathBuf> = files(&base.path("state"))?;
    victims.extend(files(&base.path("diffs"))?);
    let diffs = victims
        .iter()
        .filter(|path| path.extension().is_some_and(|kind| kind == "diff"));
    ensure!(
        diffs.count() >= 2,
        "a sealed diff and an open one: {victims:?}"
    );
    let mut outcomes = Vec::new();
    for victim in &victims {
        let name = victim.strip_prefix(base.dir())?.display().to_string();
        for harm in ["truncate -s %50", "truncate -s 0", "rm"] {
            let copy = Bench::new()?;
            process::sh(
                copy.dir(),
                &format!("cp -a --sparse=always {}/. .", base.dir().display()),
                LIMIT,
            )?;
            let line = match harm {
                "truncate -s %50" => {
                    format!("truncate -s $(( $(stat -c %s '{name}') / 2 )) '{name}'")
                }
                harm => format!("{harm} '{name}'"),
            };
            process::sh(copy.dir(), &line, LIMIT)?;
            let outcome = restart(&copy).with_context(|| format!("{harm} {name}"))?;
            outcomes.push(format!("{harm} {name}: {outcome}"));
        }
    }
    eprintln!("{}", outcomes.join("\n"));
    Ok(())
}

/// Bytes in use on a file system.
fn used(mount: &Mount) -> Result<u64> {
    let line = format!("df --output=used -B1 '{}' | tail -n 1", mount.0.display());
    Ok(process::sh(Path::new("/"), &line, LIMIT)?.trim().parse()?)
}

/// Comes up with an exact next point, or says what is wrong; and every listed point reads back.
fn restart(bench: &Bench) -> Result<&'static str> {
    let disk = bench.path("disk.raw");
    let how = How::new(bench, &[&disk]);
    let outcome = match Protect::start(bench, &how) {
        Ok(protect) => {
            let point = protect.cut()?;
            bench.compare(&point, None, &disk)?;
            protect.stop()?;
            "exact"
        }
        Err(error) => {
            let text = format!("{error:?}");
            ensure!(!text.contains("panicked"), "a panic is no message: {text}");
            ensure!(
                text.contains("it ended with"),
                "neither up nor refused: {text}"
            );
            "refused"
        }
    };
    let target = bench.target();
    standin::run(["point", "verify", "--all", "--target", &target])?;
    Ok(outcome)
}

/// A file system of its own, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: PathBuf, mib: u64) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let line = format!(
            "mount -t tmpfs -o size={mib}M standin-test '{}'",
            at.display()
        );
        process::sh(Path::new("/"), &line, LIMIT)?;
        Ok(Self(at))
    }

    fn remount(&self, options: &str) -> Result<()> {
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
fn badinput_a_full_target_stops_no_guest_and_lists_no_wrong_point() -> Result<()> {
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
fn badinput_a_read_only_target_stops_no_guest_and_is_taken_up_again() -> Result<()> {
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
fn badinput_a_target_that_vanished_is_waited_for_and_not_made_anew() -> Result<()> {
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
fn badinput_a_full_diff_directory_fails_no_guest_write() -> Result<()> {
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
fn badinput_two_protects_on_one_disk_or_group_or_target() -> Result<()> {
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

#[test]
fn badinput_disks_that_are_none() -> Result<()> {
    let bench = Bench::new()?;
    let disk = bench.path("disk.raw");
    let how = How::new(&bench, &[&disk]);
    refused(&bench, &how, &["disk.raw"])?;
    fs::write(&disk, vec![7; 1000])?;
    refused(&bench, &how, &["512"])?;
    fs::write(&disk, b"")?;
    refused(&bench, &how, &["disk.raw"])?;
    fs::remove_file(&disk)?;
    fs::create_dir(&disk)?;
    refused(&bench, &how, &["disk.raw"])?;
    // Two disks of one stem would be one export.
    fs::create_dir(bench.path("sub"))?;
    let (a, b) = (bench.path("a.raw"), bench.path("sub/a.raw"));
    image::sparse(&a, MIB)?;
    image::sparse(&b, MIB)?;
    refused(&bench, &How::new(&bench, &[&a, &b]), &["a"])?;
    ensure!(
        bench.points().is_err() || bench.points()?.is_empty(),
        "nobody made a point"
    );
    Ok(())
}

#[test]
fn badinput_vmdk_descriptors_that_lie() -> Result<()> {
    let bench = Bench::new()?;
    process::sh(
        bench.dir(),
        "qemu-img create -q -f vmdk -o subformat=monolithicFlat ok.vmdk 8M",
        LIMIT,
    )?;
    let good = fs::read_to_string(bench.path("ok.vmdk"))?;
    let good = good.trim_end_matches('\0').to_owned();
    fs::write(bench.path("secret.raw"), vec![9; 1 << 20])?;
    let extent = good
        .lines()
        .find(|line| line.starts_with("RW "))
        .context("an extent line")?;
    let lies = [
        (
            "outside",
            good.replace("\"ok-flat.vmdk\"", "\"../secret.raw\""),
        ),
        (
            "absolute",
            good.replace("\"ok-flat.vmdk\"", "\"/etc/passwd\""),
        ),
        ("missing", good.replace("ok-flat.vmdk", "gone-flat.vmdk")),
        ("larger", good.replace("RW 16384 ", "RW 99999999 ")),
        (
            "huge",
            good.replace("RW 16384 ", "RW 18446744073709551615 "),
        ),
        (
            "offset",
            good.replace("-flat.vmdk\" 0", "-flat.vmdk\" 4611686018427387904"),
        ),
        ("itself", good.replace("ok-flat.vmdk", "itself.vmdk")),
        (
            "many",
            good.replace(extent, &format!("{extent}\n").repeat(200_000)),
        ),
        ("none", good.replace(extent, "")),
        ("kind", good.replace(" FLAT ", " WARP ")),
        ("binary", format!("{}\u{1}\u{2}\u{3}", &good[..60])),
        ("sparse", "KDMV\u{1}\u{0}\u{0}\u{0}".repeat(64)),
    ];
    for (name, text) in lies {
        ensure!(text != good, "{name} is no lie: {good}");
        let disk = bench.path(&format!("{name}.vmdk"));
        fs::write(&disk, text)?;
        // The message names the descriptor, or the extent that is not there.
        let word = if name == "missing" { "gone-flat" } else { name };
        refused(&bench, &How::new(&bench, &[&disk]), &[word]).with_context(|| name.to_owned())?;
    }
    // The honest one is protected like any disk.
    let disk = bench.path("ok.vmdk");
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    Client::connect(&protect.address, "ok")?.write(MIB, &[5; 4096])?;
    let point = protect.cut()?;
    bench.compare(&point, None, &bench.path("ok-flat.vmdk"))?;
    protect.stop()?;
    process::sh(
        bench.dir(),
        "qemu-img compare -f vmdk -F raw ok.vmdk ok-flat.vmdk",
        LIMIT,
    )
    .map(drop)
}

#[test]
fn badinput_on_the_command_line() -> Result<()> {
    let (bench, disk, point) = one_point()?;
    let target = bench.target();
    let out = bench.text("out.raw");
    standin::refuse(["protect"], 2, &["usage"])?;
    standin::refuse(["frobnicate"], 2, &["usage"])?;
    let disk = disk.to_str().context("text")?;
    standin::refuse(["protect", disk, "--target", "gopher://x"], 2, &["gopher"])?;
    standin::refuse(
        ["protect", disk, "--target", &target, "--every", "soon"],
        2,
        &["soon"],
    )?;
    standin::refuse(["point", "show", "g@99", "--target", &target], 1, &["g@99"])?;
    standin::refuse(
        ["point", "show", "nobody@latest", "--target", &target],
        1,
        &["nobody"],
    )?;
    standin::refuse(
        ["point", "list", "--target", "dir:/nowhere/at/all"],
        1,
        &["/nowhere/at/all"],
    )?;
    standin::refuse(["cut", "nobody", "--state", &bench.state()], 1, &["nobody"])?;
    let restore = ["restore", &point, "--target", &target, "--output"];
    standin::refuse(
        [&restore[..], &["/nowhere/out.raw"]].concat(),
        1,
        &["/nowhere"],
    )?;
    standin::refuse(
        [&restore[..], &[&out, "--disk", "hda"]].concat(),
        2,
        &["hda", "disk"],
    )?;
    fs::write(&out, "precious")?;
    standin::refuse([&restore[..], &[&out]].concat(), 2, &["exists"])?;
    ensure!(
        fs::read(&out)? == b"precious",
        "an existing file is not touched"
    );
    ensure!(
        !Path::new("/nowhere").exists(),
        "reading verbs create nothing"
    );
    Ok(())
}

/// `--diff-dir` names a block device that is not free: whatever is on it stays.
#[test]
fn badinput_diff_devices_that_are_not_free() -> Result<()> {
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
