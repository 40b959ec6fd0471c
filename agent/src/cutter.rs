//! The thread that cuts on schedule, and right after a seed.
//!
//! Rule: a cut is due at a moment of the schedule, however long the one before took; so an interval
//! holds over hours, and what a slow cut costs is counted.

use std::num::NonZeroU64;
use std::time::Duration;

use rustix::thread::set_current_timer_slack;
use splitter::{Cut, CutError, Generation};
use tracing::debug;

use crate::Error;
use crate::api::Cause;
use crate::engine::{Engine, SCHEDULED_TRIES, Shared, Stop};
use crate::ladder;
use crate::schedule::Ticks;
use crate::trouble::Step;

/// Merges at one cut, where space is short: they take time, and the cut is late by it.
const MERGES_MAX: usize = 4;
/// How often one is looked at that cannot be listed yet: a write that began before it is slow.
const END_EVERY: Duration = Duration::from_millis(50);
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
    let mut waiting = Waiting::default();
    loop {
        let due = ticks.map(|ticks| ticks.due());
        let mut limit = due.map(|due| due.saturating_sub(engine.now()));
        let waits = engine.shared.lock().cut_waits();
        if waits {
            limit = Some(limit.map_or(END_EVERY, |limit| limit.min(END_EVERY)));
        }
        let ready = |shared: &Shared| shared.first_cut_due() || shared.cut_waits() != waits;
        let shared = engine.wait(limit, Stop::No, ready);
        let (stop, seeded, first) = (shared.stop, shared.seeded, shared.first_cut_due());
        drop(shared);
        if stop != Stop::No {
            return;
        }
        if waits {
            waiting.look(engine);
        }
        let due = due.filter(|due| engine.now() >= *due);
        let wanted = first || (seeded && due.is_some());
        let failed = wanted && !cut(engine, due, &mut waiting) && due.is_some();
        let passed = ticks
            .as_mut()
            .map_or(0, |ticks| ticks.advance(engine.now()));
        if seeded {
            engine.note_skipped(passed + u64::from(failed));
        }
    }
}

/// A cut that is made and not listed, as a guest's write takes long.
#[derive(Default)]
struct Waiting {
    generation: Option<Generation>,
    /// When it was due, if the schedule asked for it.
    due: Option<Duration>,
    /// It was said that it takes long.
    told: bool,
}

impl Waiting {
    /// The one that waits now is another one than before.
    fn turns_to(&mut self, waiting: Option<Cut>, due: Option<Duration>) -> bool {
        let generation = waiting.map(|cut| cut.generation);
        let other = generation.is_some() && generation != self.generation;
        if other {
            *self = Self {
                generation,
                due,
                told: false,
            };
        }
        other
    }

    fn look(&mut self, engine: &Engine) {
        // A caller may have made it.
        self.turns_to(engine.group.ending(), None);
        match engine.end_cut() {
            Ok(Some(made)) => {
                if let Some(due) = self.due.take()
                    && self.generation == Some(made.cut.generation)
                {
                    engine.note_lateness(&made, due);
                }
            }
            Ok(None) => {}
            Err(Error::Cut(error)) if error.waits() => self.tell(engine, error),
            Err(error) => {
                if self.due.take().is_some() {
                    engine.note_skipped(1);
                }
                engine.fails(Step::Cut, &error);
            }
        }
    }

    /// Once.
    fn tell(&mut self, engine: &Engine, error: CutError) {
        if !self.told && engine.note_waiting(&error) {
            self.told = true;
            engine.cut_fails(&error.into());
        }
    }
}

/// One cut; a failure is waited out. `false` if none was made.
fn cut(engine: &Engine, due: Option<Duration>, waiting: &mut Waiting) -> bool {
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
        Err(Error::Cut(error)) if error.waits() => {
            let is_made = waiting.turns_to(engine.group.ending(), due);
            if !is_made {
                waiting.tell(engine, error);
            }
            is_made
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
