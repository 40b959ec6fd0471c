//! The ladder: what protection gives up, step by step, so that a guest never pays for its trouble.
//!
//! ```text
//!  every-write --the target lags, space or memory gets short--> coalescing
//!       ^  ^------------------ it is far enough off again -----------+
//!       |                                                            |
//!       +-- before a cut: room, and a probe succeeds -- map-only <---+-- the diff device is full, fails, is slow
//!                                                         regions <-- a mark failed; until tracking goes on from the log
//! ```
//!
//! While writes are only marked, no guest touches the diffs. What was not copied is read from
//! production before the next cut, so that is exact, and nothing is copied anew.
//!
//! Rule: the rung, and whether the splitter copies, change together, under one lock that no guest takes.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use block::UnixNanos;
use parking_lot::Mutex;
use splitter::{CutError, PaceFigures};
use tracing::{debug, info, warn};

use crate::api::{Cause, LadderStatus, LadderStep, Rung};
use crate::engine::{Engine, Stop};
use crate::limits::Limits;
use crate::memory;
use crate::pressure::Level;

/// A probe that takes longer is no good one: copies would be as slow.
const PROBE_MAX: Duration = Duration::from_secs(1);
/// Steps that are remembered.
const STEPS_MAX: usize = 50;
/// Cuts that may wait for the target before two of them are merged at each cut.
const BACKLOG_MAX: usize = 32;
/// Until so few wait, that goes on.
const BACKLOG_CALM: usize = BACKLOG_MAX / 2;

/// Where a group stands.
#[derive(Debug, Default)]
pub(crate) struct Ladder(Mutex<Standing>);

#[derive(Debug, Default)]
struct Standing {
    rung: Rung,
    cause: Option<Cause>,
    since: Option<UnixNanos>,
    steps_total: u64,
    steps: VecDeque<LadderStep>,
    hold: Hold,
    /// The newest turn of the watch.
    pace: PaceFigures,
    /// The diff device lost bytes, or failed: it is probed before the next cut.
    doubted: bool,
    /// A cut is being made that may take more than the limits.
    let_through: bool,
}

/// Keeps a device that is slow again and again from being tried at every cut: each try costs some
/// guest's write its time.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    until: Duration,
    length: Duration,
}

impl Hold {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    /// The device was slow.
    fn renew(&mut self, now: Duration) {
        // Long after the last one, it is another story.
        let again = now < self.until + Self::LONGEST;
        self.length = match again && !self.length.is_zero() {
            true => (self.length * 2).min(Self::LONGEST),
            false => Self::SHORTEST,
        };
        self.until = now + self.length;
    }
}

impl Ladder {
    pub(crate) fn rung(&self) -> Rung {
        self.0.lock().rung
    }

    /// Why it is not the highest rung.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.0.lock().cause
    }

    pub(crate) fn status(&self) -> (Rung, LadderStatus) {
        let standing = self.0.lock();
        let status = LadderStatus {
            cause: standing.cause,
            since_unix_ns: standing.since.map(|at| at.0),
            steps_total: standing.steps_total,
            steps: standing.steps.iter().cloned().collect(),
        };
        (standing.rung, status)
    }

    /// Remembers how guests' writes fare. Returns whether an open diff lost bytes since the last turn.
    pub(crate) fn note_pace(&self, pace: PaceFigures) -> bool {
        let mut standing = self.0.lock();
        let lost = pace.lost_writeback > standing.pace.lost_writeback;
        standing.pace = pace;
        standing.doubted |= lost;
        lost
    }

    /// The cut that was let through is made, or has failed.
    pub(crate) fn cut_ended(&self) {
        self.0.lock().let_through = false;
    }

    /// Has the diff device probed before the next cut.
    pub(crate) fn doubt(&self) {
        self.0.lock().doubted = true;
    }
}

impl Standing {
    fn step(&mut self, rung: Rung, cause: Option<Cause>, at: UnixNanos) {
        if let Some(last) = self.steps.back_mut() {
            last.until_unix_ns = Some(at.0);
        }
        if self.steps.len() == STEPS_MAX {
            self.steps.pop_front();
        }
        self.steps.push_back(LadderStep {
            rung,
            cause,
            from_unix_ns: at.0,
            until_unix_ns: None,
        });
        (self.rung, self.cause, self.since) = (rung, cause, Some(at));
        self.steps_total += 1;
    }
}

/// Steps down to `rung`, unless it or a lower one is reached already. `why` says more than the cause.
pub(crate) fn step_down(engine: &Engine, rung: Rung, cause: Cause, why: &str) {
    let mut standing = engine.ladder.0.lock();
    if standing.rung >= rung {
        return;
    }
    // With only regions to go by, copies are left out anyhow.
    if rung == Rung::MapOnly {
        engine.group.pause_copies();
    }
    if cause == Cause::DiffLatency {
        standing.hold.renew(engine.now());
    }
    let from = standing.rung;
    standing.step(rung, Some(cause), engine.world.clock.wall());
    drop(standing);
    match rung {
        Rung::Regions => {
            engine.note_cause(cause);
            warn!(group = %engine.name, %from, to = %rung, %cause, why, "step down: only regions are noted")
        }
        Rung::MapOnly => {
            engine.note_cause(cause);
            warn!(group = %engine.name, %from, to = %rung, %cause, why, "step down: writes are only marked")
        }
        _ => {
            info!(group = %engine.name, %from, to = %rung, %cause, why, "step down: cuts are merged")
        }
    }
}

/// Steps up to `rung`, unless it or a higher one is reached already.
fn step_up(engine: &Engine, rung: Rung, cause: Option<Cause>, why: &str) {
    let mut standing = engine.ladder.0.lock();
    if standing.rung <= rung {
        return;
    }
    if rung < Rung::MapOnly && engine.group.copies_are_paused() {
        engine.group.resume_copies();
        standing.let_through = true;
    }
    let (from, ended) = (standing.rung, standing.cause.unwrap_or(Cause::Late));
    standing.step(rung, cause, engine.world.clock.wall());
    drop(standing);
    info!(group = %engine.name, %from, to = %rung, %ended, why, "step up");
}

/// After a cut that failed: writes are only marked if the diff device is to blame.
pub(crate) fn after_failure(engine: &Engine, error: &CutError) {
    match error {
        CutError::Degraded { source, .. } => {
            let cause = cause_of(engine, source);
            step_down(engine, Rung::MapOnly, cause, &source.to_string());
        }
        CutError::Io { .. } | CutError::Overwritten { .. } => engine.ladder.doubt(),
        _ => {}
    }
}

/// Before a cut: copies again if there is room and the diff device takes a probe; and no longer, if it
/// was found to lose bytes and takes none.
///
/// # Errors
/// `MapOnly` while writes are only marked.
pub(crate) fn before_cut(engine: &Engine) -> Result<(), CutError> {
    let (map_only, doubted) = {
        let mut standing = engine.ladder.0.lock();
        let doubted = std::mem::take(&mut standing.doubted);
        (engine.group.copies_are_paused(), doubted)
    };
    let ready = match (map_only, doubted) {
        (false, false) => return Ok(()),
        (true, _) => has_room_or_makes_it(engine)
            .and_then(|()| probe(engine))
            .and_then(|()| catch_up(engine)),
        (false, true) => probe(engine),
    };
    match ready {
        Ok(()) if map_only => {
            let (rung, cause) = match backlog_presses(engine) {
                true => (Rung::Coalescing, Some(Cause::TargetBehind)),
                false => (Rung::EveryWrite, None),
            };
            step_up(engine, rung, cause, "the diffs can be written");
            Ok(())
        }
        Ok(()) => Ok(()),
        Err((cause, why)) => {
            debug!(group = %engine.name, %cause, why, "writes stay uncopied");
            step_down(engine, Rung::MapOnly, cause, &why);
            Err(CutError::MapOnly)
        }
    }
}

/// Tracking goes on from the intent log, or began anew: writes are marked again.
pub(crate) fn marks_again(engine: &Engine) {
    engine.ladder.cut_ended();
    let (rung, cause) = match engine.group.copies_are_paused() {
        true => (Rung::MapOnly, Some(Cause::StateSpace)),
        false => (Rung::EveryWrite, None),
    };
    if engine.ladder.rung() == Rung::Regions {
        step_up(engine, rung, cause, "writes are marked again");
    }
}

/// Before a cut that the schedule asks for, and now and then: how many cuts wait for the target.
pub(crate) fn look_at_backlog(engine: &Engine) -> bool {
    let presses = backlog_presses(engine);
    if presses {
        step_down(
            engine,
            Rung::Coalescing,
            Cause::TargetBehind,
            "cuts pile up",
        );
    }
    engine.ladder.rung() == Rung::Coalescing
}

/// Whether so many cuts wait that no further one may be made.
pub(crate) fn backlog_presses(engine: &Engine) -> bool {
    engine.group.sealed().len() >= BACKLOG_MAX
}

/// Whether space or memory is short: merging one pair of cuts is not enough.
pub(crate) fn room_presses(engine: &Engine) -> bool {
    let space = engine.group.space().ok().flatten();
    let pressure = space.map(|space| engine.limits.pressure(&space, memory::private_bytes()));
    pressure.is_some_and(|pressure| pressure.level >= Level::Coalesce)
}

/// Looks at space and memory, and steps down as far as they ask; up as far as a cut is not needed for it.
pub(crate) fn look_at_room(engine: &Engine) {
    let space = match engine.group.space() {
        Ok(Some(space)) => space,
        // A cut is under way; the next look is not far.
        Ok(None) => return,
        Err(error) => {
            return debug!(group = %engine.name, %error, "the space of diffs is not known");
        }
    };
    if space.marks_lost {
        let why = "writes could not be marked";
        return step_down(engine, Rung::Regions, Cause::MarksLost, why);
    }
    let limits = match engine.ladder.0.lock().let_through {
        true => Limits::default(),
        false => engine.limits,
    };
    let pressure = limits.pressure(&space, memory::private_bytes());
    let why = format!(
        "diffs take {} bytes, maps {}; {} are free",
        space.diff_bytes, space.map_bytes, space.diffs_on.free_bytes
    );
    match pressure.level {
        Level::MapOnly => step_down(engine, Rung::MapOnly, pressure.cause, &why),
        Level::Coalesce => step_down(engine, Rung::Coalescing, pressure.cause, &why),
        Level::Calm
            if space.sealed_count <= BACKLOG_CALM && engine.ladder.rung() == Rung::Coalescing =>
        {
            step_up(engine, Rung::EveryWrite, None, &why);
        }
        Level::Calm | Level::Fair => {}
    }
}

/// Whether a heal fits; where it does not, a cut that waits is given up for it, and where the device is full what
/// old logs of open diffs occupy is freed.
fn has_room_or_makes_it(engine: &Engine) -> Result<(), (Cause, String)> {
    let Err((cause, why)) = has_room(engine) else {
        return Ok(());
    };
    // Nothing else would free what a cut takes that waits until copies go on.
    let freed = match cause {
        Cause::DiffSpace | Cause::StateSpace | Cause::Memory => engine.give_up_waiting(),
        _ => false,
    };
    if cause == Cause::DiffSpace {
        if let Err(CutError::Degraded { source, .. }) = engine.group.renew_logs() {
            return Err((cause_of(engine, &source), source.to_string()));
        }
    } else if !freed {
        return Err((cause, why));
    }
    has_room(engine)
}

/// Whether what a heal will write fits the limits, and the device has been left alone for long enough.
fn has_room(engine: &Engine) -> Result<(), (Cause, String)> {
    let (hold, pace) = {
        let standing = engine.ladder.0.lock();
        (standing.hold, standing.pace)
    };
    if engine.now() < hold.until {
        return Err((
            Cause::DiffLatency,
            "the diff device was slow a moment ago".into(),
        ));
    }
    if pace.slow_under_way + pace.device_slow > 0 {
        return Err((
            Cause::DiffLatency,
            "a write to the diff device hangs".into(),
        ));
    }
    let space = engine.group.space();
    let Some(space) = space.map_err(|error| (Cause::DiffError, error.to_string()))? else {
        return Ok(());
    };
    let pressure = engine
        .limits
        .pressure_after_heal(&space, memory::private_bytes());
    match pressure.level {
        Level::MapOnly => Err((pressure.cause, "there is no room yet".into())),
        _ => Ok(()),
    }
}

fn probe(engine: &Engine) -> Result<(), (Cause, String)> {
    match engine.group.probe_diffs() {
        Ok(took) if took <= PROBE_MAX => Ok(()),
        Ok(took) => Err((Cause::DiffLatency, format!("a probe took {took:?}"))),
        Err(error) => Err((cause_of(engine, &error), error.to_string())),
    }
}

/// Reads most of what went uncopied before guests touch the diff device again. That it takes this is a
/// better proof than any probe.
fn catch_up(engine: &Engine) -> Result<(), (Cause, String)> {
    let limit = engine
        .limits
        .diff_latency
        .map_or(PROBE_MAX, |limit| limit.time());
    let (asked, slow) = (Cell::new(engine.now()), Cell::new(false));
    let go_on = || {
        let now = engine.now();
        slow.set(now.saturating_sub(asked.replace(now)) > limit);
        !slow.get() && engine.stop() < Stop::Now
    };
    let caught_up = engine.group.catch_up(&go_on).map_err(|error| match error {
        CutError::Degraded { source, .. } => (cause_of(engine, &source), source.to_string()),
        other => (Cause::Production, other.to_string()),
    })?;
    engine.note_reread(caught_up);
    if slow.get() {
        engine.ladder.0.lock().hold.renew(engine.now());
        return Err((
            Cause::DiffLatency,
            format!("256 KiB took more than {limit:?}"),
        ));
    }
    Ok(())
}

/// Whether the diff device is full, or fails.
fn cause_of(engine: &Engine, error: &io::Error) -> Cause {
    let full = |kind| {
        matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    };
    if full(error.kind()) {
        return Cause::DiffSpace;
    }
    // The splitter sums up what several writes met.
    let space = engine.group.space().ok().flatten();
    let pressure = space.map(|space| engine.limits.pressure(&space, 0));
    match pressure.is_some_and(|pressure| pressure.level == Level::MapOnly) {
        true => Cause::DiffSpace,
        false => Cause::DiffError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spans_and_the_newest_are_kept() {
        let mut standing = Standing::default();
        for at in 1..=60 {
            let (rung, cause) = match at % 2 {
                1 => (Rung::MapOnly, Some(Cause::DiffError)),
                _ => (Rung::EveryWrite, None),
            };
            standing.step(rung, cause, UnixNanos(at));
        }
        assert_eq!(
            (standing.steps_total, standing.steps.len()),
            (60, STEPS_MAX)
        );
        let spans: Vec<_> = standing
            .steps
            .iter()
            .map(|s| (s.from_unix_ns, s.until_unix_ns))
            .collect();
        assert_eq!(spans[0], (11, Some(12)));
        assert_eq!(spans[49], (60, None));
    }

    #[test]
    fn a_device_that_is_slow_again_is_left_alone_for_longer() {
        let s = Duration::from_secs;
        let mut hold = Hold::default();
        let mut lengths = Vec::new();
        for _ in 0..8 {
            hold.renew(hold.until);
            lengths.push(hold.length.as_secs());
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 60, 60]);
        hold.renew(hold.until + s(60));
        assert_eq!(hold.length, s(1));
    }
}
