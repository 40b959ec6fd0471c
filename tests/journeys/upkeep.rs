//! Looking after a target: a full one is cleaned, damage is healed or named, points are kept as rules say.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::protect::How;
use tests::time::wait_for;
use tests::{Bench, Load, Protect, Shape, image, process, standin};

use crate::places::{LIMIT, MIB, Mount};

const DISK: u64 = 24 * MIB;

/// Points of random writes, each with its own content.
fn points(bench: &Bench, how: &How, count: u64) -> Result<()> {
    let protect = Protect::start(bench, how)?;
    let ledger = &bench.stamped_disk("ledger", DISK)?.1;
    for i in 0..count {
        let shape = Shape::mixed(0..image::sectors(DISK));
        let load = Load::start(&protect.address, "disk", ledger, &shape, bench.seed + i);
        load.wait_acked(300)?;
        load.stop()?;
        protect.cut_beside(ledger)?;
    }
    protect.stop()
}

fn store(args: &[&str], target: &str) -> Result<Value> {
    let mut all = vec!["store"];
    all.extend(args.iter().take(1));
    all.push(target);
    all.extend(args.iter().skip(1));
    standin::json(all)
}

fn first_container(bench: &Bench) -> Result<PathBuf> {
    let entries = fs::read_dir(bench.path("target/containers/000000"))?;
    let all: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    all.into_iter().min().context("there is no container")
}

fn free_bytes(at: &Path) -> Result<u64> {
    let line = format!("df --output=avail -B1 '{}' | tail -n 1", at.display());
    Ok(process::sh(Path::new("/"), &line, LIMIT)?.trim().parse()?)
}

/// Writes into the file system until nothing more fits.
fn fill(at: &Path) -> Result<PathBuf> {
    let filler = at.join("filler");
    let line = format!(
        "cat /dev/zero > '{0}' 2>/dev/null || true",
        filler.display()
    );
    process::sh(Path::new("/"), &line, LIMIT)?;
    ensure!(free_bytes(at)? == 0, "there is room left");
    Ok(filler)
}

/// Cuts reach the target until its disk is full to the last byte; then points are removed and garbage is collected in
/// the room that the store has kept for that, and cuts reach it again.
#[test]
fn upkeep_a_full_target_is_cleaned_and_used_again() -> Result<()> {
    let bench = Bench::new()?;
    let mount = Mount::tmpfs(bench.path("small"), 120)?;
    bench.place("target", &bench.path("small"))?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).with(&["--upkeep-every", "0"]);
    points(&bench, &how, 4)?;
    let (target, root) = (bench.target(), bench.path("small"));
    fs::create_dir(root.join("not-the-store"))?;
    let filler = fill(&root.join("not-the-store"))?;

    // Nothing more is shipped, and guests do not notice.
    let protect = Protect::start(&bench, &how)?;
    let (_, ledger) = bench.stamped_disk("ledger2", DISK)?;
    let shape = Shape::mixed(0..image::sectors(DISK));
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed + 99);
    load.wait_acked(300)?;
    load.stop()?;
    standin::run(["cut", "g", "--state", &bench.state()])?;
    wait_for("the target is full", LIMIT, || {
        let status = standin::json(["status", "g", "--state", &bench.state()])?;
        Ok(status["groups"][0]["trouble"]["error"]
            .to_string()
            .contains("space")
            .then_some(()))
    })?;

    // Through the protection that writes there.
    let state = bench.state();
    let before = bench.points()?.len();
    let oldest: Vec<String> = bench.points()?[..before - 1]
        .iter()
        .map(|point| point["id"].as_str().unwrap_or_default().to_owned())
        .collect();
    let mut delete = vec![
        "point", "delete", "--target", &target, "--delay", "0", "--state", &state,
    ];
    delete.extend(oldest.iter().map(String::as_str));
    standin::run(delete).context("delete points on a full disk")?;
    let gc = ["gc", "--quarantine", "0", "--thorough", "--state", &state];
    let collected = store(&gc, &target).context("collect on a full disk")?;
    ensure!(collected["removed_bytes"].as_u64() > Some(0), "{collected}");

    // The cut that waited is a point now.
    wait_for("the cut is shipped", LIMIT, || {
        Ok((bench.points()?.len() > 1).then_some(()))
    })?;
    protect.stop()?;
    standin::run(["point", "verify", "--all", "--target", &target])?;
    bench.compare("g@latest", None, &disk)?;
    ensure!(filler.exists(), "nobody made room from outside");
    drop(mount);
    Ok(())
}

/// A flipped byte is healed on the way of a restore and put right by a scrub; an object that is lost is named with the
/// points it costs, and the exit code says so.
#[test]
fn upkeep_scrub_heals_bit_rot_and_names_what_is_lost() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).with(&["--upkeep-every", "0"]);
    points(&bench, &how, 2)?;
    let target = bench.target();
    let container = first_container(&bench)?;
    let good = fs::read(&container)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle..middle + 300].fill(0x55);
    fs::write(&container, &bad)?;

    bench.compare("g@latest", None, &disk)?;
    ensure!(fs::read(&container)? == bad, "a restore changes nothing");
    let dry = store(&["scrub", "--dry-run"], &target)?;
    ensure!(dry["healed"].as_array().map(Vec::len) == Some(1), "{dry}");
    ensure!(fs::read(&container)? == bad, "a dry run changes nothing");
    let healed = store(&["scrub"], &target)?;
    ensure!(healed["whole"] == true, "{healed}");
    ensure!(fs::read(&container)? == good, "it is as it was");
    let status = store(&["status"], &target)?;
    ensure!(status["last_scrub"]["healed"] == 1, "{status}");

    fs::remove_file(&container)?;
    let said = standin::say(["store", "scrub", &target])?;
    ensure!(said.status.code() == Some(5), "{said:?}");
    let name = container
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    ensure!(
        said.out.contains(name) && said.out.contains("cannot be read"),
        "{said:?}"
    );
    Ok(())
}

/// A check reads everything beside the protection that writes there, and changes nothing. A commit that is gone keeps the
/// store from being opened; a check says so, and reads the points of all others.
#[test]
fn upkeep_check_reads_what_does_not_open_and_repair_opens_it() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).with(&["--upkeep-every", "0"]);
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(LIMIT)?;
    let (target, state) = (bench.target(), bench.state());
    for _ in 0..3 {
        standin::run(["cut", "g", "--state", &state, "--wait"])?;
    }
    let beside = store(&["check", "--deep"], &target)?;
    ensure!(beside["whole"] == true, "{beside}");
    protect.stop()?;

    let whole = store(&["check"], &target)?;
    let points = whole["points"].as_array().map_or(0, Vec::len);
    ensure!(points >= 4 && whole["catalog"]["opens"] == true, "{whole}");
    let newest = whole["catalog"]["newest"].as_u64().context("a number")?;
    let commit = format!("target/catalog/commit-{:016x}", newest - 1);
    fs::remove_file(bench.path(&commit))?;
    let verify = standin::say(["point", "verify", "--all", "--target", &target])?;
    ensure!(verify.status.code() == Some(5), "{verify:?}");
    let said = standin::say(["store", "check", &target])?;
    ensure!(said.status.code() == Some(5), "{said:?}");
    ensure!(
        said.out.contains("DOES NOT OPEN")
            && said.out.contains(&format!("{0} of {0} points", points - 1)),
        "{said:?}"
    );

    // A repair lets it go on: the other points read back, and the next protection builds on them.
    let planned = store(&["repair"], &target)?;
    ensure!(
        planned["applied"] == false && planned["steps"][0]["do"] == "begin-anew",
        "{planned}"
    );
    let still = standin::say(["point", "list", "--target", &target])?;
    ensure!(
        still.status.code() == Some(5),
        "a plan changes nothing: {still:?}"
    );
    let repaired = store(&["repair", "--apply"], &target)?;
    ensure!(repaired["applied"] == true, "{repaired}");
    standin::run(["point", "verify", "--all", "--target", &target])?;
    ensure!(bench.points()?.len() == points - 1, "{:?}", bench.points()?);
    let index = store(&["rebuild-index"], &target)?;
    ensure!(
        index["entries"].as_u64() > Some(0) && index["damaged"] == serde_json::json!([]),
        "{index}"
    );
    let protect = Protect::start(&bench, &how)?;
    standin::run(["cut", "g", "--state", &state, "--wait"])?;
    protect.stop()?;
    standin::run(["point", "verify", "--all", "--target", &target])?;
    bench.compare("g@latest", None, &disk)?;
    let again = store(&["repair"], &target)?;
    ensure!(again["changes"] == false, "{again}");
    Ok(())
}

/// A flipped bit is within reach of its armor; with enough others in the same object it is not. So what bit rot does must
/// be put right before more of it comes, also where nobody ever runs a scrub by hand: the protection does.
#[test]
fn upkeep_a_protection_heals_bit_rot_by_itself() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).with(&["--upkeep-every", "0"]);
    points(&bench, &how, 1)?;
    let container = first_container(&bench)?;
    let good = fs::read(&container)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&container, &bad)?;

    // The next scrub will have healed nothing: a slow look must not come after it.
    let protect = Protect::start(&bench, &how.with(&["--scrub-every", "3s"]))?;
    let target = bench.target();
    wait_for("a scrub has healed it", LIMIT, || {
        let status = store(&["status"], &target)?;
        Ok((status["last_scrub"]["healed"] == 1).then_some(()))
    })?;
    ensure!(fs::read(&container)? == good, "it is as it was");
    protect.stop()?;
    bench.compare("g@latest", None, &disk)?;
    let after = store(&["scrub"], &target)?;
    ensure!(
        after["whole"] == true && after["healed"].as_array().is_some_and(Vec::is_empty),
        "{after}"
    );
    Ok(())
}

/// The rules of `protect` are kept while it runs; what is held stays; what was removed comes back.
#[test]
fn upkeep_points_are_kept_as_rules_say() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let keep = ["--keep-last", "2", "--upkeep-every", "1s"];
    let how = How::new(&bench, &[&disk]).with(&keep);
    let protect = Protect::start(&bench, &how)?;
    let (target, state) = (bench.target(), bench.state());
    let cut = || standin::run(["cut", "g", "--state", &state, "--wait"]);
    let ids = || -> Result<Vec<String>> {
        let points = bench.points()?;
        let id = |point: &Value| point["id"].as_str().unwrap_or_default().to_owned();
        Ok(points.iter().map(id).collect())
    };
    protect.wait_point(LIMIT)?;
    cut()?;
    standin::run([
        "point", "hold", "g@1", "--target", &target, "--state", &state, "--reason", "audit",
    ])?;
    for _ in 0..4 {
        cut()?;
    }
    wait_for("old points go", LIMIT, || {
        Ok((ids()?.len() == 3).then_some(()))
    })?;
    ensure!(ids()? == ["g@1", "g@5", "g@6"], "{:?}", ids()?);
    standin::run([
        "point", "undelete", "g@3", "--target", &target, "--state", &state,
    ])?;
    let refused = standin::say([
        "point", "delete", "g@1", "--target", &target, "--state", &state,
    ])?;
    ensure!(
        !refused.status.success() && refused.err.contains("audit"),
        "{refused:?}"
    );
    protect.stop()?;
    standin::run(["point", "verify", "g@1", "--target", &target])?;
    let preview = standin::json([
        "retention",
        "preview",
        "--target",
        &target,
        "--keep-last",
        "1",
    ])?;
    let held = preview["points"].as_array().into_iter().flatten();
    let held = held.filter(|point| point["keep"].to_string().contains("held"));
    ensure!(held.count() == 1, "{preview}");
    let applied = standin::json([
        "retention",
        "apply",
        "--target",
        &target,
        "--keep-last",
        "1",
        "--delay",
        "0",
    ])?;
    ensure!(
        applied["removed"]
            .as_array()
            .is_some_and(|removed| !removed.is_empty()),
        "{applied}"
    );
    ensure!(ids()?.len() == 2, "{:?}", ids()?);
    standin::run(["point", "verify", "--all", "--target", &target])?;
    Ok(())
}
