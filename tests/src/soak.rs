//! A long run with everything at once: guests that write, cuts each second, and one random kill or fault
//! after the other. Nothing may be wrong, and nothing may grow.
//!
//! ```text
//! Schedule (seed) --> event --> perform (faults, kills) --> prove: a new point is listed, and exact
//!                       ^                                     |
//!                       +------------- calm <-----------------+      Watch: figures, all the time
//! ```
//!
//! Rule: the first thing that is wrong ends the run; its seed, its event and its place are kept.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::story::longest_gap;
use crate::time::{elapsed, let_pass};

mod act;
mod growth;
mod place;
mod prove;
mod report;
mod schedule;

pub use growth::Growth;
pub use report::{OfKind, Report};
pub use schedule::{Event, Kind, Schedule, Tempo};

use act::Done;
use growth::Watch;
use place::Place;

/// How to soak.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides the events.
    pub seed: u64,
    /// How long guests write, about: the last event is brought to its end.
    pub lasting: Duration,
    /// How long things take.
    pub tempo: Tempo,
    /// Between two bursts of a guest's connection.
    pub pace: Duration,
    /// Sizes of the three disks of the mortal group, in bytes.
    pub disks: [u64; 3],
    /// Size of the file system with the diffs.
    pub diff_space: u64,
    /// Size of the file system with the targets.
    pub target_space: u64,
    /// Between two looks at what must not grow.
    pub look_every: Duration,
    /// After every so many events all disks are restored; one of them after the others.
    pub whole_every: u64,
    /// How many older points of each group are restored at the end.
    pub older: usize,
}

impl Options {
    /// For hours. The target takes about 5 GiB in each, since nothing is ever removed from it.
    #[must_use]
    pub fn long(seed: u64, lasting: Duration) -> Self {
        let seconds = |from, to| [Duration::from_secs(from), Duration::from_secs(to)];
        Self {
            seed,
            lasting,
            tempo: Tempo {
                calm: seconds(4, 20),
                fault: seconds(3, 12),
            },
            pace: Duration::from_millis(400),
            disks: [64 << 20, 256 << 20, 1 << 30],
            diff_space: 1 << 30,
            target_space: (4 << 30) + (8 << 30) * (lasting.as_secs() / 3600 + 1),
            look_every: Duration::from_secs(10).min(lasting / 40),
            whole_every: 4,
            older: 8,
        }
    }

    /// For less than a minute, on small disks.
    #[must_use]
    pub fn short(seed: u64, lasting: Duration) -> Self {
        let millis = |from, to| [Duration::from_millis(from), Duration::from_millis(to)];
        Self {
            tempo: Tempo {
                calm: millis(300, 1500),
                fault: millis(1000, 3000),
            },
            pace: Duration::from_millis(100),
            disks: [8 << 20, 16 << 20, 64 << 20],
            diff_space: 256 << 20,
            target_space: 4 << 30,
            look_every: Duration::from_millis(500),
            whole_every: 3,
            older: 3,
            ..Self::long(seed, lasting)
        }
    }
}

/// Soaks until the time is over or `stop` is set, and reports; `tell` gets a line for every event.
///
/// # Errors
/// If it could not begin: what goes wrong later is in the report.
pub fn soak(options: &Options, stop: &AtomicBool, mut tell: impl FnMut(&str)) -> Result<Report> {
    let mut place = Place::new(options).context("set up the soak")?;
    let mut report = Report {
        seed: options.seed,
        ..Report::default()
    };
    place.let_guests_write(options.pace);
    let watch = Watch::start(place.watched(), options.look_every);
    let began = elapsed();
    let mut run = || -> Result<()> {
        let mut known = BTreeSet::new();
        for event in Schedule::new(options.seed, options.tempo.clone()) {
            rest(&mut place, &watch, event.calm, &mut report)?;
            if elapsed() - began >= options.lasting || stop.load(Ordering::Relaxed) {
                break;
            }
            tell(&event.to_string());
            let met = meet(&mut place, &event, options, &mut report);
            met.with_context(|| format!("event {event}"))?;
            prove::still_listed(&place.mortal, &mut known)?;
            tell(report.events.last().map_or("", String::as_str));
        }
        report.lasted = elapsed() - began;
        end(&mut place, options, &mut report)
    };
    let outcome = run();
    report.growth = watch.growth();
    drop(watch);
    if report.lasted.is_zero() {
        report.lasted = elapsed() - began;
    }
    if let Err(error) = outcome {
        report.failure = Some(format!("{error:#}\n{}", place.keep()));
    }
    Ok(report)
}

/// Nothing happens for a while.
fn rest(place: &mut Place, watch: &Watch, calm: Duration, report: &mut Report) -> Result<()> {
    let _ = place.take_latency_max();
    watch.set_calm(true);
    let_pass(calm);
    watch.set_calm(false);
    for group in place.groups() {
        act::look(group, &mut Done::default())?;
    }
    report.calm_latency = report.calm_latency.max(place.take_latency_max());
    prove::guests_go_on(place)
}

/// One event and its proof.
fn meet(place: &mut Place, event: &Event, options: &Options, report: &mut Report) -> Result<()> {
    let mut done = act::perform(place, event)?;
    let ended = elapsed();
    let (point, window) = prove::next_point(&place.mortal)?;
    let steady = prove::next_point(&place.steady)?;
    let recovery = elapsed() - ended;
    let latency = place.take_latency_max();
    if event.number.is_multiple_of(options.whole_every) {
        done.restored += prove::whole(&place.mortal, &point, window)?;
        done.restored += prove::whole(&place.steady, &steady.0, steady.1)?;
    } else {
        let disks = &place.mortal.disks;
        let at = usize::try_from(event.choice % disks.len() as u64)?;
        prove::one(&place.mortal, &point, &disks[at], window)?;
        done.restored += 1;
    }
    report.enter(event, &done, latency, recovery);
    prove::guests_go_on(place)
}

/// Guests stop; everything is held against everything.
fn end(place: &mut Place, options: &Options, report: &mut Report) -> Result<()> {
    for group in [&mut place.mortal, &mut place.steady] {
        for disk in &mut group.disks {
            let load = disk.load.take().context("guests write until the end")?;
            report.refused += load.refused();
            let stopped = load.stop();
            report.acked += stopped.with_context(|| format!("a guest of disk {}", disk.name))?;
        }
    }
    for group in place.groups() {
        let (restored, verified) = prove::at_the_end(group, options.older)?;
        report.restored += restored;
        report.verified += verified;
        let points = group.bench.points()?;
        report.points += points.len() as u64;
        // The steady one is the last: it has no restarts to blame.
        report.gap = longest_gap(&points);
        let log = group.protect.process.log();
        ensure!(
            !log.contains("panicked"),
            "the log of {} has a panic",
            group.how.group
        );
    }
    for group in [&mut place.mortal, &mut place.steady] {
        group.stop_for_good()?;
    }
    Ok(())
}
