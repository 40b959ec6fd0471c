//! What is broken or lies ends in a clear message and never in a wrong point.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::nbd::Client;
use tests::process;
use tests::protect::How;
use tests::served::Served;
use tests::{Bench, Load, Protect, Shape, image, standin};

use crate::places::{LIMIT, MIB, Mount, refused, used};

const DAMAGED: i32 = 5;

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
    let biggest = files(&bench.path("target/containers"))?
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

/// `restore --force` put another file in place of a disk that was being protected: guests wrote on to one without a name, and
/// all of that was gone when they stopped.
#[test]
fn badinput_restore_replaces_no_disk_that_is_in_use() -> Result<()> {
    let (bench, disk, point) = one_point()?;
    let (target, output) = (bench.target(), bench.text("disk.raw"));
    let restore = [
        "restore", &point, "--target", &target, "--output", &output, "--force",
    ];
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    standin::refuse(restore, 1, &["in use", "disk.raw"])?;
    Client::connect(&protect.address, "disk")?.write(0, &[7; 4096])?;
    protect.stop()?;
    ensure!(
        fs::read(&disk)?[..4096] == [7; 4096],
        "the disk was replaced"
    );
    // Once nobody uses it, it is, and whoever could read it still can.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o640))?;
    standin::run(restore)?;
    ensure!(
        fs::metadata(&disk)?.permissions().mode() & 0o777 == 0o640,
        "another mode"
    );
    ensure!(fs::read(&disk)?[..4096] != [7; 4096], "it was not replaced");
    Ok(())
}
