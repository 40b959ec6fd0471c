//! One trouble from beginning to end: a protected disk under load, a fault that begins and ends, and
//! what must be so afterwards.
//!
//! ```text
//! settle -- load, points --> fault begins -- hold: watch status --> fault ends -- recovered --> quiet
//!                                                                                          cut, compare
//! ```
//!
//! The harness keeps its own record: what the guests waited and were refused, which states and rungs
//! the status showed when, at which instants the points on the target were cut.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ledger::{Ledger, Window};
use crate::load::{Load, Refusal, Shape};
use crate::protect::{BUSY_MACHINE, How, Protect};
use crate::time::{elapsed, let_pass, wait_for};
use crate::{Bench, standin};

/// How often the status is looked at: often enough to see each rung, and a process each time.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the last cut may be put off.
const LAST_CUT_MAX: Duration = Duration::from_secs(120);
/// How much later than a point its gap may be noted.
const LEDGER_LATE_MAX: Duration = Duration::from_secs(10);
/// Restored and checked of the points that a story leaves; the newest ones.
const CHECKED_POINTS: usize = 6;

/// A protected disk under load.
#[derive(Debug)]
pub struct Story {
    /// The running process.
    pub protect: Protect,
    /// The writers.
    pub load: Load,
    /// How it is protected.
    pub how: How,
    ledger: Arc<Ledger>,
    shape: Shape,
    production: PathBuf,
    seen: Seen,
}

/// What the harness saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Looks at the status, by `state/rung`.
    pub looks: BTreeMap<String, u64>,
    /// What the status called trouble, by step.
    pub troubles: BTreeMap<String, String>,
    /// The longest that a guest's request waited while the fault lasted.
    pub latency_max: Duration,
    /// Guests' requests answered with an error.
    pub refused: u64,
    /// Most cuts that waited for the target.
    pub sealed_max: u64,
    /// Bytes read again from production because their copy could not be trusted.
    pub reread_max: u64,
    /// From the end of the fault to `protected`.
    pub recovery: Duration,
    /// Steps on the ladder: rung and cause, oldest first; a new process begins anew.
    pub steps: Vec<(String, String)>,
    /// Gaps of the ledger.
    pub gaps: Vec<Gap>,
    /// Seconds by which the wall clock was moved, by the ledger.
    pub moves: Vec<f64>,
}

/// A gap of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    /// How long.
    pub seconds: f64,
    /// Why.
    pub causes: Vec<String>,
}

impl Seen {
    /// Whether Standin met the fault at all: a claim that was never tried proves nothing.
    #[must_use]
    pub fn met(&self) -> bool {
        let other = |look: &String| !look.starts_with("protected");
        self.reread_max > 0 || self.looks.keys().any(other)
    }
}

impl Seen {
    /// Whether a step led to `rung` for one of `causes`, none was taken for another, and the last one led
    /// up again.
    ///
    /// # Errors
    /// If not.
    pub fn stepped(&self, rung: &str, causes: &[&str]) -> Result<()> {
        let is_it = |(to, cause): &(String, String)| to == rung && causes.contains(&cause.as_str());
        ensure!(
            self.steps.iter().any(is_it),
            "expected steps to {rung} for {causes:?}: {self:?}"
        );
        self.stepped_at_most(causes)
    }

    /// Whether no step was taken but for one of `causes`, and the last one, if any was, led up again. What
    /// a machine that is busy with other tests does to a page cache is excused.
    ///
    /// # Errors
    /// If one was.
    pub fn stepped_at_most(&self, causes: &[&str]) -> Result<()> {
        let expected = |(to, cause): &(String, String)| {
            (to == "every-write" && cause == "-")
                || cause == BUSY_MACHINE
                || causes.contains(&cause.as_str())
        };
        ensure!(
            self.steps.iter().all(expected),
            "expected no steps but for {causes:?}: {self:?}"
        );
        let last = self.steps.last().map(|(to, _)| to.as_str());
        ensure!(
            matches!(last, None | Some("every-write")),
            "it did not step up: {self:?}"
        );
        Ok(())
    }

    /// Whether the ledger has a gap with `cause` that is at least so long.
    ///
    /// # Errors
    /// If not.
    pub fn missed(&self, cause: &str, at_least: Duration) -> Result<()> {
        let is_it = |gap: &Gap| {
            gap.seconds >= at_least.as_secs_f64() && gap.causes.iter().any(|c| c == cause)
        };
        ensure!(
            self.gaps.iter().any(is_it),
            "the ledger lacks a gap of {at_least:?} for {cause}: {self:?}"
        );
        Ok(())
    }
}

impl Story {
    /// Protects the disk at `how`, waits for its first point, and lets guests write.
    ///
    /// # Errors
    /// If it is not protected in time.
    pub fn settle(bench: &Bench, how: How, ledger: &Arc<Ledger>, shape: Shape) -> Result<Self> {
        let protect = Protect::start(bench, &how)?;
        protect.wait_point(Duration::from_secs(120))?;
        let production = how.disks[0].clone();
        let load = Load::start(&protect.address, "disk", ledger, &shape, bench.seed);
        load.wait_acked(200)?;
        // Settling is not part of the trouble.
        let _ = load.take_latency_max();
        Ok(Self {
            protect,
            load,
            how,
            ledger: Arc::clone(ledger),
            shape,
            production,
            seen: Seen::default(),
        })
    }

    /// Lets `duration` pass under the fault, and looks.
    ///
    /// # Errors
    /// If the process ended.
    pub fn hold(&mut self, duration: Duration) -> Result<()> {
        let end = elapsed() + duration;
        while elapsed() < end {
            self.look()?;
            let_pass(LOOK_EVERY);
        }
        self.seen.latency_max = self.seen.latency_max.max(self.load.take_latency_max());
        Ok(())
    }

    fn look(&mut self) -> Result<Value> {
        let status = self.protect.status().with_context(|| {
            format!(
                "no status under trouble; {} requests answered, the slowest after {:?}; log:\n{}",
                self.load.acked(),
                self.load.take_latency_max(),
                tail(&self.protect.process.log())
            )
        })?;
        let word = |key: &str| status[key].as_str().unwrap_or("-").to_owned();
        let key = format!("{}/{}", word("state"), word("rung"));
        *self.seen.looks.entry(key).or_default() += 1;
        if let Some(step) = status["trouble"]["step"].as_str() {
            let error = status["trouble"]["error"].to_string();
            self.seen.troubles.insert(step.to_owned(), error);
        }
        let sealed = status["sealed"].as_u64().unwrap_or(0);
        self.seen.sealed_max = self.seen.sealed_max.max(sealed);
        let reread = status["reread_bytes"].as_u64().unwrap_or(0);
        self.seen.reread_max = self.seen.reread_max.max(reread);
        Ok(status)
    }

    /// Waits until every cut reaches the target again; the writers go on.
    ///
    /// # Errors
    /// If that takes longer than `limit`, with the last status and the log.
    pub fn recovered(&mut self, limit: Duration) -> Result<()> {
        let since = elapsed();
        // A point cut after the fault ended: the newest one may still be of the time before.
        let before = self.look()?;
        let count = |status: &Value| status["generation"].as_u64().unwrap_or(0);
        wait_for("protection to be whole again", limit, || {
            let status = self.look()?;
            // A new lineage counts from one.
            let anew = status["lineage"] != before["lineage"] && count(&status) > 2;
            let newer = anew || count(&status) > count(&before) + 1;
            // The ladder is looked at a few times a second: with cuts each 50 ms all may be at the target before.
            let whole = status["state"] == "protected"
                && status["trouble"].is_null()
                && status["rung"] == "every-write";
            Ok((whole && newer).then_some(()))
        })
        .with_context(|| {
            format!(
                "{:?}, log:\n{}",
                self.seen,
                tail(&self.protect.process.log())
            )
        })?;
        self.seen.recovery = elapsed() - since;
        Ok(())
    }

    /// Kills the process and starts it again; the writers reconnect if their shape says so.
    ///
    /// # Errors
    /// If it does not serve again.
    pub fn kill9_and_restart(&mut self, bench: &Bench) -> Result<()> {
        self.kill9()?;
        self.restart(bench)
    }

    /// Kills the process; the guests are without a disk until [`Self::restart`].
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill9(&mut self) -> Result<()> {
        self.protect.process.kill9()
    }

    /// Starts it again after [`Self::kill9`].
    ///
    /// # Errors
    /// If it does not serve again.
    pub fn restart(&mut self, bench: &Bench) -> Result<()> {
        self.protect = Protect::start(bench, &self.how)?;
        Ok(())
    }

    /// Stops the writers and checks: a last point equals production; the newest points are each one
    /// instant; everything on the target is whole. Prints a line.
    ///
    /// # Errors
    /// If any of it is not so, or a writer met an error that its shape does not expect.
    #[expect(clippy::print_stderr, reason = "figures for who reads a test's output")]
    pub fn check(mut self, bench: &Bench, name: &str) -> Result<Seen> {
        self.seen.refused = self.load.refused();
        let acked = self.load.stop().with_context(|| {
            let log = self.protect.process.log();
            format!("{name}: {:?}, log:\n{}", self.seen, tail(&log))
        })?;
        // A device that was slow a moment ago is left alone for a while: then the cut says to try again.
        let (point, window) = wait_for("the last cut", LAST_CUT_MAX, || {
            Ok(self.protect.cut_beside(&self.ledger).ok())
        })
        .with_context(|| format!("log:\n{}", tail(&self.protect.process.log())))?;
        let points = bench.points()?;
        let gap = longest_gap(&points);
        self.seen
            .ask_ladder_and_ledger(&self.protect, &self.how.every, &points)?;
        eprintln!(
            "trouble {name}: {acked} requests, {} refused, {} points, longest distance {gap:?}; {:?}",
            self.seen.refused,
            points.len(),
            self.seen
        );
        bench.compare(&point, None, &self.production)?;
        bench.check_point(&point, &self.ledger, window)?;
        for id in points.iter().rev().skip(1).take(CHECKED_POINTS) {
            let id = id["id"].as_str().context("a point has an id")?;
            bench.check_point(id, &self.ledger, Window::ANY)?;
        }
        standin::run(["point", "verify", "--all", "--target", &bench.target()])?;
        ensure!(
            matches!(self.shape.refusal, Refusal::Counted) || self.seen.refused == 0,
            "{name}: guests were refused"
        );
        self.protect.stop()?;
        Ok(self.seen)
    }
}

impl Seen {
    /// What the ledger says must be what the target's own list of points says.
    fn ask_ladder_and_ledger(
        &mut self,
        protect: &Protect,
        every: &str,
        points: &[Value],
    ) -> Result<()> {
        let status = protect.status()?;
        let steps = status["ladder"]["steps"].as_array().context("no steps")?;
        self.steps = steps
            .iter()
            .map(|step| {
                let word = |key: &str| step[key].as_str().unwrap_or("-").to_owned();
                (word("rung"), word("cause"))
            })
            .collect();
        // A point is listed a moment before its gap is noted.
        wait_for(
            "the ledger to agree with the points",
            LEDGER_LATE_MAX,
            || {
                let ledger = protect.gaps()?;
                let noted = noted_gaps(&ledger, points)?;
                self.gaps = noted.iter().map(|(_, gap)| gap.clone()).collect();
                let moves = ledger["clock"].as_array().context("no clock")?;
                self.moves = moves.iter().filter_map(|m| m["moved_s"].as_f64()).collect();
                let owed = owed(every)?;
                let agreed = agree(&noted, points, owed, &ledger);
                Ok(agreed.then_some(()))
            },
        )
        .with_context(|| {
            let ledger = protect.gaps();
            let times = points.iter().map(|point| point["at_unix_ns"].clone());
            let times: Vec<_> = times.collect();
            format!("{:?}\n{ledger:?}\npoints at {times:?}", self)
        })
    }
}

/// From when until when, by the points on either side, and what is said of it.
type Noted = ((u64, u64), Gap);

fn noted_gaps(ledger: &Value, points: &[Value]) -> Result<Vec<Noted>> {
    let newest = points.last().and_then(|point| point["at_unix_ns"].as_u64());
    let gaps = ledger["gaps"].as_array().context("no gaps")?;
    let ended = gaps.iter().filter_map(|gap| {
        let until = gap["until_unix_ns"].as_u64()?;
        let gap = (
            (gap["from_unix_ns"].as_u64()?, until),
            Gap {
                seconds: gap["seconds"].as_f64()?,
                causes: gap["causes"]
                    .as_array()?
                    .iter()
                    .filter_map(|cause| Some(cause.as_str()?.to_owned()))
                    .collect(),
            },
        );
        // Points go on being made.
        (Some(until) <= newest).then_some(gap)
    });
    Ok(ended.collect())
}

/// Every two points that follow each other too late are a gap of the ledger, and no others are.
fn agree(noted: &[Noted], points: &[Value], owed: Duration, ledger: &Value) -> bool {
    let at = |point: &Value| point["at_unix_ns"].as_u64().unwrap_or(0);
    let moves: Vec<u64> = ledger["clock"]
        .as_array()
        .iter()
        .flat_map(|moves| moves.iter().filter_map(|m| m["at_unix_ns"].as_u64()))
        .collect();
    if !moves.is_empty() {
        // Times of different clocks do not make a length.
        return true;
    }
    let pairs = points.windows(2).map(|pair| (at(&pair[0]), at(&pair[1])));
    let late = pairs.filter(|(from, until)| u128::from(until - from) > owed.as_nanos());
    let late: Vec<_> = late.collect();
    let lengths_hold = noted.iter().all(|((from, until), gap)| {
        let between = Duration::from_nanos(until - from).as_secs_f64();
        (between - gap.seconds).abs() < 1.0
    });
    let spans: Vec<_> = noted.iter().map(|(span, _)| *span).collect();
    lengths_hold && spans == late
}

/// Two intervals, and a second at least.
fn owed(every: &str) -> Result<Duration> {
    let millis = every.strip_suffix("ms").map(str::parse::<u64>);
    let interval = match millis {
        Some(millis) => Duration::from_millis(millis?),
        None => Duration::from_secs(every.trim_end_matches('s').parse()?),
    };
    Ok((interval * 2).max(Duration::from_secs(1)))
}

/// The longest time between two neighbouring points, by the target's own list.
#[must_use]
pub fn longest_gap(points: &[Value]) -> Duration {
    let instants: Vec<u64> = points
        .iter()
        .filter_map(|point| point["at_unix_ns"].as_u64())
        .collect();
    let longest = instants
        .windows(2)
        .map(|pair| pair[1].saturating_sub(pair[0]));
    Duration::from_nanos(longest.max().unwrap_or(0))
}

/// The end of what a process said.
#[must_use]
pub fn tail(log: &str) -> &str {
    let from = log.len().saturating_sub(4000);
    log.get(from..).unwrap_or(log)
}
