//! Everything that goes wrong around the splitter: space, devices, targets, memory, clocks, and the
//! process itself being stopped. Alone, then together; under load.
//!
//! What is claimed of each: guests see production's own errors and no others, and do not wait for the
//! device that fails; afterwards the next point equals production and every listed one is an instant.
//!
//! `STANDIN_TROUBLE_S` is how long each fault lasts: seconds here, an hour where it must be shown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::faults::{Fault, FaultyDir, Frozen, MemoryLimit, RawFault, SmallDir, WriteBack};
use tests::load::{Load, Refusal};
use tests::loop_device::LoopDevice;
use tests::protect::How;
use tests::story::{Gap, Seen, Story};
use tests::time::{count_from_env, let_pass};
use tests::{Bench, Ledger, Shape, image};

const DISK: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// Far below the 5 s of the slow device, far above what two busy cores take.
const BOUNDED: Duration = Duration::from_secs(3);

/// A cut may still be made just after a fault begins.
const SLACK: Duration = Duration::from_secs(1);

fn lasting() -> Duration {
    Duration::from_secs(count_from_env("STANDIN_TROUBLE_S", 4))
}

fn shape() -> Shape {
    Shape {
        pace: Duration::from_millis(4),
        // Also one whose disk is gone while a fault lasts comes back.
        reconnect: Some(lasting() + Duration::from_secs(60)),
        ..Shape::mixed(0..image::sectors(DISK))
    }
}

struct Place {
    bench: Bench,
    disk: PathBuf,
    ledger: Arc<Ledger>,
}

impl Place {
    fn new() -> Result<Self> {
        let bench = Bench::new()?;
        let (disk, ledger) = bench.stamped_disk("disk", DISK)?;
        Ok(Self {
            bench,
            disk,
            ledger,
        })
    }

    fn how(&self) -> How {
        How::new(&self.bench, &[&self.disk]).every("500ms")
    }

    fn settle(&self) -> Result<Story> {
        Story::settle(&self.bench, self.how(), &self.ledger, shape())
    }

    /// A fault that begins, lasts and ends.
    fn endure(&self, name: &str, fault: &mut dyn Fault) -> Result<Seen> {
        let mut story = self.settle()?;
        fault.begin()?;
        story.hold(lasting())?;
        fault.end()?;
        story.recovered(PATIENCE)?;
        story.check(&self.bench, name)
    }
}

fn bounded(seen: &Seen) -> Result<()> {
    let waited = seen.latency_max;
    ensure!(waited < BOUNDED, "a guest waited {waited:?}");
    Ok(())
}

fn met_and_bounded(seen: &Seen) -> Result<()> {
    ensure!(seen.met(), "the fault was not met: {seen:?}");
    bounded(seen)
}

#[test]
fn trouble_diff_space_full() -> Result<()> {
    let place = Place::new()?;
    let mut small = SmallDir::mount(&place.bench, "diffs", 48 << 20)?;
    let seen = place.endure("diff space full", &mut small)?;
    met_and_bounded(&seen)?;
    seen.stepped("map-only", &["diff-space"])?;
    seen.missed("diff-space", lasting() - SLACK)
}

/// Diffs on a device without a file system: what it does not take is what any of them lacks.
#[test]
fn trouble_bare_diff_device_eio() -> Result<()> {
    let place = Place::new()?;
    let image = place.bench.path("device");
    image::sparse(&image, 256 << 20)?;
    let mut faulty = RawFault::start(&place.bench, "device-below", &image)?;
    let device = LoopDevice::attach(faulty.path(), 512)?;
    let how = place.how().diff_dir(device.path());
    let mut story = Story::settle(&place.bench, how, &place.ledger, shape())?;
    let written_back = WriteBack::of_device(device.path());
    faulty.begin()?;
    story.hold(lasting())?;
    faulty.end()?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "bare diff device EIO")?;
    ensure!(written_back.stop().failed, "the device never failed");
    bounded(&seen)?;
    seen.stepped("map-only", &["diff-error"])
}

/// A diff that is shipped before it is written back never meets the device: the fault is seen there.
#[test]
fn trouble_diff_device_eio() -> Result<()> {
    let place = Place::new()?;
    let mut faulty = FaultyDir::mount(&place.bench, "diffs", 128 << 20)?;
    let written_back = faulty.write_back();
    let seen = place.endure("diff device EIO", &mut faulty)?;
    ensure!(written_back.stop().failed, "the device never failed");
    bounded(&seen)?;
    seen.stepped("map-only", &["diff-error"])?;
    seen.missed("diff-error", Duration::from_secs(1))
}

/// What was written back in vain is clean in the page cache, and gone when that is reclaimed: a diff
/// read afterwards would be old bytes that look like a success.
#[test]
fn trouble_diff_device_eio_and_the_page_cache_forgets() -> Result<()> {
    let place = Place::new()?;
    let mut faulty = FaultyDir::mount(&place.bench, "diffs", 128 << 20)?;
    let mut frozen = Frozen(place.bench.path("target"));
    let mut story = place.settle()?;
    // Sealed generations must wait, or they would be shipped before the cache forgets them.
    frozen.begin()?;
    faulty.begin()?;
    let written_back = faulty.write_back();
    story.hold(lasting())?;
    drop(written_back);
    faulty.end()?;
    faulty.forget_cache()?;
    frozen.end()?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "diff device EIO, cache forgotten")?;
    met_and_bounded(&seen)?;
    seen.stepped("map-only", &["diff-error"])?;
    seen.missed("diff-error", lasting() - SLACK)
}

/// Guests who found no room in memory wrote to the diff themselves, and waited for the lock of its file: 4.7 s,
/// as the thread that writes past the page cache held it until the device had answered.
#[test]
fn trouble_diff_device_takes_5_s_per_write() -> Result<()> {
    let place = Place::new()?;
    let faulty = FaultyDir::mount(&place.bench, "diffs", 128 << 20)?;
    let mut story = place.settle()?;
    let stutter = faulty.stutter(Duration::from_secs(5));
    let written_back = faulty.write_back();
    story.hold(lasting().max(Duration::from_secs(11)))?;
    drop(stutter);
    let slowest = written_back.stop().slowest;
    ensure!(slowest > BOUNDED, "the device took only {slowest:?}");
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "diff device 5 s per write")?;
    bounded(&seen)?;
    // Memory keeps guests from it: they need not notice.
    seen.stepped_at_most(&["diff-latency"])
}

/// Without a page cache in between, guests soon wait for room in memory, until writes are only marked: none of
/// them waits for the device.
#[test]
fn trouble_diff_device_keeps_guests_waiting() -> Result<()> {
    let place = Place::new()?;
    let faulty = FaultyDir::mount_synchronous(&place.bench, "diffs", 128 << 20)?;
    let how = place.how().with(&["--diff-latency", "500ms"]);
    let middle = image::sectors(DISK) / 2;
    let [first, second] =
        [0..middle, middle..image::sectors(DISK)].map(|sectors| Shape { sectors, ..shape() });
    let mut story = Story::settle(&place.bench, how, &place.ledger, first)?;
    let stutter = faulty.stutter(Duration::from_secs(1));
    story.hold(lasting() / 2)?;
    let (address, seed) = (story.protect.address.clone(), place.bench.seed + 1);
    let others = Load::start(&address, "disk", &place.ledger, &second, seed);
    story.hold(lasting() / 2)?;
    let waited = others.take_latency_max();
    let beside = others.stop()?;
    drop(stutter);
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "diff device keeps guests waiting")?;
    seen.stepped("map-only", &["diff-latency"])?;
    seen.missed("diff-latency", lasting() - SLACK)?;
    bounded(&seen)?;
    ensure!(
        beside > 100 && waited < BOUNDED,
        "only {beside} requests went on, one after {waited:?}: {seen:?}"
    );
    Ok(())
}

/// Diffs take no more than they may: cuts are merged, then writes are only marked.
#[test]
fn trouble_diff_space_limit() -> Result<()> {
    let place = Place::new()?;
    let mut frozen = Frozen(place.bench.path("target"));
    let how = place.how().with(&["--diff-space", "6MiB"]);
    let mut story = Story::settle(&place.bench, how, &place.ledger, shape())?;
    frozen.begin()?;
    story.hold(lasting())?;
    frozen.end()?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "diff space limit")?;
    met_and_bounded(&seen)?;
    seen.stepped("map-only", &["diff-space"])
}

#[test]
fn trouble_target_refuses_writes() -> Result<()> {
    let place = Place::new()?;
    let mut frozen = Frozen(place.bench.path("target"));
    let seen = place.endure("target refuses writes", &mut frozen)?;
    met_and_bounded(&seen)?;
    // Few cuts wait, and all of them become points.
    seen.stepped_at_most(&["target-behind"])?;
    let of_target = |gap: &Gap| gap.causes.iter().any(|cause| cause == "target-behind");
    ensure!(
        lasting() > Duration::from_secs(8) || !seen.gaps.iter().any(of_target),
        "{seen:?}"
    );
    Ok(())
}

/// Of many cuts that wait, two are merged at each further one.
#[test]
fn trouble_target_away_and_cuts_pile_up() -> Result<()> {
    let place = Place::new()?;
    let mut frozen = Frozen(place.bench.path("target"));
    let how = place.how().every("50ms");
    let mut story = Story::settle(&place.bench, how, &place.ledger, shape())?;
    frozen.begin()?;
    story.hold(lasting())?;
    frozen.end()?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "cuts pile up")?;
    met_and_bounded(&seen)?;
    seen.stepped("coalescing", &["target-behind"])
}

#[test]
fn trouble_target_slow_generations_pile_up() -> Result<()> {
    let place = Place::new()?;
    let faulty = FaultyDir::mount(&place.bench, "target", 1 << 30)?;
    let mut story = place.settle()?;
    let stutter = faulty.stutter(Duration::from_secs(2));
    story.hold(lasting().max(Duration::from_secs(8)))?;
    drop(stutter);
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "target slow")?;
    ensure!(seen.sealed_max >= 2, "nothing piled up: {seen:?}");
    bounded(&seen)?;
    seen.stepped_at_most(&["target-behind"])
}

#[test]
fn trouble_production_eio_reaches_the_guest_as_it_is() -> Result<()> {
    let mut place = Place::new()?;
    let mut raw = RawFault::start(&place.bench, "disk", &place.disk)?;
    place.disk = raw.path().to_owned();
    let shape = Shape {
        refusal: Refusal::Counted,
        ..shape()
    };
    let mut story = Story::settle(&place.bench, place.how(), &place.ledger, shape)?;
    raw.begin()?;
    story.hold(lasting())?;
    raw.end()?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "production EIO")?;
    ensure!(seen.refused > 0, "production's error did not reach a guest");
    bounded(&seen)?;
    seen.stepped_at_most(&[])?;
    seen.missed("production", lasting() - SLACK)
}

/// A cut is made at once, whatever hangs, and listed when the writes that began before it have ended; hooks do not
/// keep guests quiet for one that cannot be made yet.
#[test]
fn trouble_production_stands_still() -> Result<()> {
    let mut place = Place::new()?;
    let raw = RawFault::start(&place.bench, "disk", &place.disk)?;
    place.disk = raw.path().to_owned();
    let said = place.bench.path("hooks");
    let hook = |line: &str| format!("sh -c 'echo {line} >>{}'", said.display());
    let (before, after) = (hook("before"), hook("$STANDIN_RESULT"));
    let hooks = ["--before-cut", &before, "--after-cut", &after];
    let how = place.how().with(&hooks);
    let mut story = Story::settle(&place.bench, how, &place.ledger, shape())?;
    let stutter = raw.stutter(Duration::from_secs(2));
    story.hold(lasting().max(Duration::from_secs(7)))?;
    drop(stutter);
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "production stands still")?;
    seen.stepped_at_most(&[])?;
    seen.missed("busy", SLACK)?;
    let said = std::fs::read_to_string(said)?;
    let count = |word: &str| said.lines().filter(|line| *line == word).count();
    ensure!(
        count("before") == count("application") && count("failed") == 0,
        "hooks ran for cuts that were not made:\n{said}"
    );
    Ok(())
}

#[test]
fn trouble_memory_of_256_mib() -> Result<()> {
    let place = Place::new()?;
    let mut story = place.settle()?;
    let limit = MemoryLimit::around(story.protect.process.pid(), 256 << 20)?;
    story.hold(lasting())?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "memory 256 MiB")?;
    eprintln!("memory: {}", limit.report());
    bounded(&seen)?;
    seen.stepped_at_most(&[])
}

/// A limit below what the process needs at all: there are points all the same, only fewer.
#[test]
fn trouble_memory_limit() -> Result<()> {
    let place = Place::new()?;
    let how = place.how().with(&["--memory", "1MiB"]);
    let mut story = Story::settle(&place.bench, how, &place.ledger, shape())?;
    story.hold(lasting())?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "memory limit")?;
    met_and_bounded(&seen)?;
    let for_memory = |(_, cause): &(String, String)| cause == "memory" || cause == "-";
    ensure!(seen.steps.iter().all(for_memory), "{seen:?}");
    ensure!(
        seen.steps.iter().any(|(rung, _)| rung == "map-only"),
        "{seen:?}"
    );
    Ok(())
}

/// Real time through libfaketime, below the C library; monotonic time stays what it is.
#[test]
fn trouble_clock_jumps() -> Result<()> {
    let place = Place::new()?;
    let offset = place.bench.path("clock");
    std::fs::write(&offset, "+0\n")?;
    let env = [
        ("LD_PRELOAD", libfaketime()?),
        ("FAKETIME_TIMESTAMP_FILE", offset.clone()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let mut how = place.how();
    how.env = env
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.display().to_string()))
        .collect();
    let mut story = Story::settle(&place.bench, how, &place.ledger, shape())?;
    for jump in ["+3600\n", "-7200\n", "+0\n"] {
        std::fs::write(&offset, jump)?;
        story.hold(lasting() / 2)?;
        story.recovered(PATIENCE)?;
    }
    let seen = story.check(&place.bench, "clock jumps")?;
    bounded(&seen)?;
    seen.stepped_at_most(&[])?;
    let expected = [3_600.0, -10_800.0, 7_200.0];
    let near = |(moved, expected): (&f64, f64)| (moved - expected).abs() < 2.0;
    ensure!(
        seen.moves.len() == 3 && seen.moves.iter().zip(expected).all(near),
        "the ledger lacks a jump: {seen:?}"
    );
    // No second was lost, whatever the clock says.
    let long = |gap: &Gap| gap.seconds > 60.0;
    ensure!(!seen.gaps.iter().any(long), "{seen:?}");
    Ok(())
}

fn libfaketime() -> Result<PathBuf> {
    let found = ["x86_64", "aarch64"]
        .into_iter()
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1").into());
    let mut found = found.filter(|path: &PathBuf| path.exists());
    found.next().context("setup.sh installs libfaketime")
}

#[test]
fn trouble_process_stopped() -> Result<()> {
    let place = Place::new()?;
    let mut story = place.settle()?;
    story.protect.process.signal(Signal::STOP)?;
    let_pass(lasting());
    story.protect.process.signal(Signal::CONT)?;
    story.recovered(PATIENCE)?;
    // Nobody answers while nobody runs: no claim about latency.
    let seen = story.check(&place.bench, "process stopped")?;
    seen.stepped_at_most(&[])?;
    seen.missed("not-running", lasting())
}

#[test]
fn trouble_process_killed_and_away() -> Result<()> {
    let place = Place::new()?;
    let mut story = place.settle()?;
    story.protect.process.kill9()?;
    let_pass(lasting());
    story.kill9_and_restart(&place.bench)?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "process killed and away")?;
    seen.stepped_at_most(&[])?;
    seen.missed("not-running", lasting())
}

/// Where no room can be had for the words that say what was written, the intent log still says it, coarsely.
/// The disks were copied anew.
#[test]
fn trouble_state_full() -> Result<()> {
    const WIDE: u64 = 192 << 20;
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("disk", WIDE)?;
    let mut small = SmallDir::mount(&bench, "state", 8 << 20)?;
    let how = How::new(&bench, &[&disk]).every("500ms");
    let mut story = Story::settle(&bench, how, &ledger, shape())?;
    let before = story.protect.status()?["lineage"].clone();
    small.begin()?;
    // Where nothing was written since the last cut, the map has no room yet.
    let elsewhere = Shape {
        sectors: image::sectors(WIDE / 2)..image::sectors(WIDE),
        ..shape()
    };
    let address = &story.protect.address;
    let further = Load::start(address, "disk", &ledger, &elsewhere, bench.seed + 1);
    story.hold(lasting())?;
    further.stop()?;
    small.end()?;
    story.recovered(PATIENCE)?;
    let after = story.protect.status()?["lineage"].clone();
    ensure!(before == after, "the disks were copied anew");
    let seen = story.check(&bench, "state full")?;
    met_and_bounded(&seen)?;
    seen.stepped_at_most(&["state-space", "marks-lost"])?;
    seen.stepped("regions", &["state-space", "marks-lost"])
}

/// The process that wrote is told what its diff device lost, the next one is not: it believed the diffs, and
/// now and then a point had zeroes that nobody wrote. The splitter's model finds that in most of its runs.
#[test]
fn trouble_killed_while_the_diff_device_fails() -> Result<()> {
    let place = Place::new()?;
    let mut faulty = FaultyDir::mount(&place.bench, "diffs", 128 << 20)?;
    let mut frozen = Frozen(place.bench.path("target"));
    let mut story = place.settle()?;
    frozen.begin()?;
    story.hold(Duration::from_secs(1))?;
    faulty.begin()?;
    let written_back = faulty.write_back();
    story.hold(Duration::from_secs(1))?;
    story.kill9_and_restart(&place.bench)?;
    story.hold(lasting() / 2)?;
    ensure!(written_back.stop().failed, "the device never failed");
    faulty.end()?;
    frozen.end()?;
    story.recovered(PATIENCE)?;
    story
        .check(&place.bench, "killed while the diff device fails")
        .map(drop)
}

/// Then the kernel does not know either.
#[test]
fn trouble_killed_while_the_diff_device_fails_and_the_kernel_forgets() -> Result<()> {
    let place = Place::new()?;
    let mut faulty = FaultyDir::mount(&place.bench, "diffs", 128 << 20)?;
    let mut frozen = Frozen(place.bench.path("target"));
    let mut story = place.settle()?;
    frozen.begin()?;
    story.hold(Duration::from_secs(1))?;
    faulty.begin()?;
    let written_back = faulty.write_back();
    // Shorter than the distance of two cuts: the process that is killed has not been told.
    story.hold(Duration::from_millis(400))?;
    story.kill9()?;
    let_pass(Duration::from_millis(500));
    ensure!(written_back.stop().failed, "the device never failed");
    faulty.end()?;
    faulty.forget_files()?;
    frozen.end()?;
    story.restart(&place.bench)?;
    story.recovered(PATIENCE)?;
    let seen = story.check(&place.bench, "killed, and the kernel forgets")?;
    ensure!(seen.reread_max > 0, "nothing was read again: {seen:?}");
    Ok(())
}

#[test]
fn trouble_all_together() -> Result<()> {
    let place = Place::new()?;
    let mut faulty = FaultyDir::mount(&place.bench, "diffs", 128 << 20)?;
    let mut frozen = Frozen(place.bench.path("target"));
    let mut story = place.settle()?;
    let limit = MemoryLimit::around(story.protect.process.pid(), 256 << 20)?;
    frozen.begin()?;
    story.hold(lasting() / 2)?;
    let stutter = faulty.stutter(Duration::from_secs(1));
    story.hold(lasting() / 2)?;
    drop(stutter);
    faulty.begin()?;
    let written_back = faulty.write_back();
    story.hold(lasting() / 2)?;
    story.kill9_and_restart(&place.bench)?;
    story.hold(lasting() / 2)?;
    drop(written_back);
    faulty.end()?;
    frozen.end()?;
    story.recovered(PATIENCE)?;
    drop(limit);
    story.check(&place.bench, "all together").map(drop)
}
