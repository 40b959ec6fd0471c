//! The thread that cuts on schedule, and right after a seed.
//!
//! Rule: a cut is due at a moment of the schedule, however long the one before took; so an interval
//! holds over hours, and what a slow cut costs is counted.

use std::num::NonZeroU64;
use std::time::Duration;

use rustix::thread::set_current_timer_slack;
use tracing::debug;

use crate::api::Cause;
use crate::engine::{Engine, SCHEDULED_TRIES, Stop};
use crate::ladder;
use crate::schedule::Ticks;
use crate::trouble::Step;

/// Merges at one cut, where space is short: they take time, and the cut is late by it.
const MERGES_MAX: usize = 4;
/// Until a first cut that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The kernel may wake this thread so much too late; it would be 50 us otherwise.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::MIN;

/// Cuts until the end.
pub(crate) fn run(engine: &Engine) {
    // Where the kernel refuses, cuts are a little later.
    let _ = set_current_timer_slack(Some(TIMER_SLACK_NS));
    engine.settle_hooks();
    // After a crash, what was in flight is completed now rather than at the first cut.
    if let Err(error) = engine.heal() {
        engine.fails(Step::Cut, &error.into());
    }
    let mut ticks = Ticks::of(engine.every, engine.now());
    loop {
        let due = ticks.map(|ticks| ticks.due());
        let limit = due.map(|due| due.saturating_sub(engine.now()));
        let shared = engine.wait(limit, Stop::No, |shared| shared.first_cut_due());
        let (stop, seeded, first) = (shared.stop, shared.seeded, shared.first_cut_due());
        drop(shared);
        if stop != Stop::No {
            return;
        }
        let due = due.filter(|due| engine.now() >= *due);
        let wanted = first || (seeded && due.is_some());
        let failed = wanted && !cut(engine, due) && due.is_some();
        let passed = ticks
            .as_mut()
            .map_or(0, |ticks| ticks.advance(engine.now()));
        if seeded {
            engine.note_skipped(passed + u64::from(failed));
        }
    }
}

/// One cut; a failure is waited out. `false` if none was made.
fn cut(engine: &Engine, due: Option<Duration>) -> bool {
    let made = match make_room(engine) {
        Ok(true) => engine.cut(Default::default(), SCHEDULED_TRIES).map(Some),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    match made {
        Ok(made) => {
            if let (Some(made), Some(due)) = (made, due) {
                engine.note_lateness(&made, due);
            }
            made.is_some()
        }
        Err(error) => {
            engine.fails(Step::Cut, &error);
            drop(engine.wait(Some(RETRY), Stop::No, |_| false));
            false
        }
    }
}

/// Merges cuts that wait, where too many do or space is short: blocks that several hold then cost space
/// once. `false` if too many wait and none can be merged: this cut is left out.
fn make_room(engine: &Engine) -> crate::Result<bool> {
    let mut merges = 0;
    while ladder::look_at_backlog(engine) && merges < MERGES_MAX {
        let too_many = ladder::backlog_presses(engine);
        if !engine.coalesce()? {
            if too_many {
                engine.note_cause(Cause::TargetBehind);
                debug!(group = %engine.name, "the target lags; this cut is left out");
            }
            return Ok(!too_many);
        }
        merges += 1;
        // More than one only for space: each costs a point.
        if !ladder::room_presses(engine) {
            break;
        }
    }
    Ok(true)
}
