//! Cuts are made when they are due, hooks run around them, and what a point says of itself is true.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::ledger::Window;
use tests::nbd::Client;
use tests::protect::How;
use tests::time::{elapsed, let_pass, wait_for};
use tests::{Bench, Load, Protect, Shape, standin};

const DISK: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn cuts_follow_a_schedule_of_20_ms_and_every_moment_is_accounted_for() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).every("20ms");
    let protect = Protect::start(&bench, &how.with(&["--audit-rate", "1GiB/s"]))?;
    protect.wait_point(PATIENCE)?;
    let shape = Shape::mixed(0..tests::image::sectors(DISK));
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed);
    let (before, began) = (protect.status()?, elapsed());
    load.wait_acked(4_000)?;
    let_pass(Duration::from_secs(2));
    // What is behind this process at most, and at least, between the two answers.
    let inner = elapsed() - began;
    let after = protect.status()?;
    let outer = elapsed() - began + Duration::from_secs(1);
    load.stop()?;
    let moments = |status: &Value| number(&status["cuts"]) + number(&status["ticks_skipped"]);
    let passed = moments(&after) - moments(&before);
    eprintln!(
        "{passed} moments in {inner:?}: {} cuts, {} left out; late by {}; paused for {}; audit {}",
        number(&after["cuts"]) - number(&before["cuts"]),
        after["ticks_skipped"],
        after["cut_lateness_us"],
        after["cut_pause_us"],
        after["audit"],
    );
    // A status takes a while itself, and the moment under way counts when it is over.
    assert!(u128::from(passed) * 20 <= outer.as_millis(), "{passed}");
    assert!(number(&after["cuts"]) > number(&before["cuts"]));
    for spread in [&after["cut_lateness_us"], &after["cut_pause_us"]] {
        let values = ["min", "p50", "p99", "max"].map(|field| number(&spread[field]));
        assert!(
            number(&spread["count"]) > 0 && values.is_sorted(),
            "{spread}"
        );
    }
    assert_eq!(after["audit"]["misses"], 0);
    let quiet = protect.cut_beside(&ledger)?;
    bench.compare(&quiet.0, None, &disk)?;
    bench.check_point(&quiet.0, &ledger, quiet.1)?;
    let points = bench.points()?;
    let generations = points.iter().map(|point| number(&point["generation"]));
    assert!(generations.is_sorted_by(|a, b| a < b), "{points:?}");
    for point in points.iter().step_by(points.len() / 8 + 1) {
        let id = point["id"].as_str().context("a point has an id")?;
        bench.check_point(id, &ledger, Window::ANY)?;
    }
    protect.stop()
}

/// A hook that enters in `log` what it is told.
fn hook(log: &Path, more: &str) -> String {
    let words =
        "$STANDIN_HOOK $STANDIN_GROUP $STANDIN_GENERATION $STANDIN_RESULT ${STANDIN_CUT_AT:+at}";
    format!("sh -c 'echo {words} >> {}; {more}'", log.display())
}

fn said(log: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(log)?;
    Ok(text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect())
}

fn consistency(bench: &Bench, point: &str) -> Result<String> {
    let target = bench.target();
    let shown = standin::json(["point", "show", point, "--target", &target])?;
    Ok(shown["consistency"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn hooks_run_around_each_cut_and_the_point_says_whether_guests_were_quiet() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let (log, broken) = (bench.path("log"), bench.path("broken"));
    let fails_then = format!("test ! -e {}", broken.display());
    let how = How::new(&bench, &[&disk]).with(&[
        "--before-cut",
        &hook(&log, &fails_then),
        "--after-cut",
        &hook(&log, "true"),
    ]);
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(PATIENCE)?;
    // The first cut follows the seed by itself.
    fs::write(&log, "")?;
    let quiet = protect.cut()?;
    let [before, after] = <[String; 2]>::try_from(said(&log)?)
        .map_err(|said| anyhow::anyhow!("not two hooks: {said:?}"))?;
    let generation = before.strip_prefix("before g ").context("before first")?;
    assert_eq!(after, format!("after g {generation} application at"));
    assert_eq!(consistency(&bench, &quiet)?, "application");
    assert_eq!(protect.status()?["trouble"], Value::Null);

    fs::write(&broken, "")?;
    let crashy = protect.cut()?;
    assert_eq!(consistency(&bench, &crashy)?, "crash");
    let last = said(&log)?.pop().context("it ran")?;
    assert!(last.ends_with("crash at"), "{last}");
    let status = protect.status()?;
    assert_eq!(status["trouble"]["step"], "hook");
    assert_eq!(status["state"], "protected");

    fs::remove_file(&broken)?;
    assert_eq!(consistency(&bench, &protect.cut()?)?, "application");
    assert_eq!(protect.status()?["trouble"], Value::Null);
    let before_the_end = said(&log)?.len();
    protect.stop()?;
    assert_eq!(
        said(&log)?.len(),
        before_the_end,
        "the last cut has no hooks"
    );
    assert_eq!(consistency(&bench, "g@latest")?, "crash");
    bench.compare("g@latest", None, &disk)
}

#[test]
fn what_a_hook_achieved_outlives_a_kill_before_the_cut_is_shipped() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let plain = How::new(&bench, &[&disk]);
    let slow = plain
        .clone()
        .with(&["--before-cut", "true", "--ship-rate", "16KiB/s"]);
    let protect = Protect::start(&bench, &slow)?;
    protect.wait_point(PATIENCE)?;
    let mut client = Client::connect(&protect.address, "disk")?;
    client.write(0, &[7; 4 << 20])?;
    drop(client);
    assert_eq!(protect.cut_only()?.code(), 0);
    let status = protect.status()?;
    // At 16 KiB/s it takes minutes.
    assert_eq!(
        (
            number(&status["sealed"]),
            number(&status["ship_bytes_per_s"])
        ),
        (1, 16 << 10)
    );
    let generation = number(&status["last_cut"]["generation"]);
    protect.kill9()?;
    fs::remove_file(bench.path("nbd.sock")).ok();
    let protect = Protect::start(&bench, &plain)?;
    let point = wait_for("the cut to be shipped", PATIENCE, || {
        let points = bench.points()?;
        let found = points
            .iter()
            .find(|point| number(&point["generation"]) == generation);
        Ok(found.cloned())
    })?;
    assert_eq!(point["consistency"], "application");
    bench.compare(point["id"].as_str().context("it has an id")?, None, &disk)?;
    protect.stop()
}

#[test]
fn guests_write_while_a_hook_hangs_and_a_hang_ends_in_a_crash_consistent_point() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let (log, hang) = (bench.path("log"), bench.path("hang"));
    let hangs = format!("test ! -e {} || sleep 1000", hang.display());
    let how = How::new(&bench, &[&disk]).with(&[
        "--before-cut",
        &hook(&log, &hangs),
        "--after-cut",
        &hook(&log, "true"),
        "--hook-timeout",
        "2s",
    ]);
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(PATIENCE)?;
    fs::write(&hang, "")?;
    let hooks = said(&log)?.len();
    let point = thread::scope(|scope| {
        let cut = scope.spawn(|| protect.cut());
        wait_for("the hook to begin", PATIENCE, || {
            Ok((said(&log)?.len() > hooks).then_some(()))
        })?;
        let mut client = Client::connect(&protect.address, "disk")?;
        client.write(4096, &[7; 8192])?;
        client.flush()?;
        assert!(!cut.is_finished(), "the write did not wait for the hook");
        cut.join().expect("no panic")
    })?;
    assert_eq!(consistency(&bench, &point)?, "crash");
    let why = protect.status()?["trouble"]["error"].to_string();
    assert!(why.contains("killed"), "{why}");
    let last = said(&log)?.pop().context("it ran")?;
    assert!(
        last.starts_with("after") && last.ends_with("crash at"),
        "{last}"
    );
    bench.compare(&point, None, &disk)?;
    protect.stop()
}

#[test]
fn a_hook_after_the_cut_is_owed_to_the_next_start_when_the_process_is_killed_in_between()
-> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.stamped_disk("disk", DISK)?;
    let (log, hang) = (bench.path("log"), bench.path("hang"));
    let hangs = format!("test ! -e {} || sleep 30", hang.display());
    let (before, after) = (hook(&log, &hangs), hook(&log, "true"));
    let how = How::new(&bench, &[&disk]).with(&["--before-cut", &before, "--after-cut", &after]);
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(PATIENCE)?;
    fs::write(&hang, "")?;
    let hooks = said(&log)?.len();
    thread::scope(|scope| {
        let state = bench.state();
        scope.spawn(move || standin::say(["cut", "g", "--state", &state]));
        wait_for("the hook to begin", PATIENCE, || {
            Ok((said(&log)?.len() > hooks).then_some(()))
        })?;
        protect.kill9()
    })?;
    fs::remove_file(&hang)?;
    fs::remove_file(bench.path("nbd.sock")).ok();
    let protect = Protect::start(&bench, &how)?;
    wait_for("the hook that is owed", PATIENCE, || {
        Ok(said(&log)?
            .contains(&"after g unknown".to_owned())
            .then_some(()))
    })?;
    let point = protect.cut()?;
    bench.compare(&point, None, &disk)?;
    let unknown = said(&log)?
        .iter()
        .filter(|line| line.ends_with("unknown"))
        .count();
    assert_eq!(unknown, 1, "it runs once");
    protect.stop()
}

#[test]
fn a_change_behind_the_splitter_is_found_and_in_the_next_point() -> Result<()> {
    use std::os::unix::fs::FileExt;

    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
    let how = How::new(&bench, &[&disk]).every("200ms");
    let protect = Protect::start(&bench, &how.with(&["--audit-rate", "1GiB/s"]))?;
    protect.wait_point(PATIENCE)?;
    // The guest keeps to the first half.
    let shape = Shape::mixed(0..tests::image::sectors(DISK / 2));
    let load = Load::start(&protect.address, "disk", &ledger, &shape, bench.seed);
    let passes = |least: u64| {
        wait_for("the audit to go round", PATIENCE, || {
            let audit = protect.status()?["audit"].clone();
            Ok((number(&audit["passes"]) >= least).then_some(audit))
        })
    };
    let clean = passes(20)?;
    assert_eq!(clean["misses"], 0, "{clean}");
    let behind = fs::OpenOptions::new().write(true).open(&disk)?;
    behind.write_all_at(b"flipped", DISK - 5000)?;
    let found = wait_for("the audit to find it", PATIENCE, || {
        let audit = protect.status()?["audit"].clone();
        Ok((number(&audit["misses"]) > 0).then_some(audit))
    })?;
    assert_eq!(
        number(&found["last_miss"]["offset"]),
        (DISK - 5000) / 4096 * 4096
    );
    let healed = protect.cut()?;
    let after = passes(number(&found["passes"]) + 20)?;
    eprintln!("{after}");
    // It may be met again until the point that has it is there.
    let point = bench.restore(&healed, None)?;
    let mut bytes = [0; 7];
    fs::File::open(point)?.read_exact_at(&mut bytes, DISK - 5000)?;
    assert_eq!(&bytes, b"flipped");
    load.stop()?;
    let last = protect.cut()?;
    bench.compare(&last, None, &disk)?;
    let quiet = passes(number(&after["passes"]) + 20)?;
    assert_eq!(quiet["misses"], 1, "{quiet}");
    protect.stop()
}
