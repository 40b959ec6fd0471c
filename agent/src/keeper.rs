//! The thread that looks after the target while this protection writes to it: removes the points that the user's
//! rules do not keep, collects garbage, scrubs.
//!
//! Rule: it takes no more of the disk than its rate, and nobody waits for it: a chore ends early when the
//! protection ends, or when stage two has to open the target again.

use std::time::Duration;

use tracing::{info, warn};

use crate::engine::{Engine, Stop};
use crate::upkeep::{Chore, Context, Done, Rules, perform};
use crate::{Error, Result};

/// How a target is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepOptions {
    /// Which points of the group are kept; nobody removes any if there are no rules.
    pub rules: Rules,
    /// How long removed points can be brought back.
    pub delay: Duration,
    /// How often points are removed and garbage is collected; never if there is none.
    pub every: Option<Duration>,
    /// How long an object that nothing needs is kept.
    pub quarantine: Duration,
    /// How often everything is read and checked; never if there is none.
    pub scrub_every: Option<Duration>,
    /// Bytes per second that this may read and write.
    pub rate: u64,
}

impl Default for KeepOptions {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            delay: Duration::from_hours(24),
            every: Some(Duration::from_hours(1)),
            quarantine: Duration::from_hours(24),
            scrub_every: Some(Duration::from_hours(7 * 24)),
            rate: 32 << 20,
        }
    }
}

/// A chore that could not be done is tried again after this.
const AGAIN: Duration = Duration::from_mins(1);

/// Looks after the target until the exports close.
pub(crate) fn run(engine: &Engine) {
    let keep = engine.keep;
    let Some(every) = keep.every else { return };
    let mut wait = every;
    loop {
        if engine.wait(Some(wait), Stop::No, |_| false).stop != Stop::No {
            return;
        }
        wait = match round(engine) {
            Ok(()) => every,
            Err(error) => {
                // Shown when whoever ships meets it, too.
                warn!(group = %engine.name, error = crate::chain(&error), "the target could not be looked after");
                every.min(AGAIN)
            }
        };
    }
}

fn round(engine: &Engine) -> Result<()> {
    let keep = engine.keep;
    if !keep.rules.is_none() {
        let apply = Chore::Apply {
            group: Some(engine.name.to_string()),
            rules: keep.rules,
            delay_s: keep.delay.as_secs(),
        };
        if let Done::Points { points } = engine.do_chore(&apply)?
            && !points.is_empty()
        {
            info!(group = %engine.name, count = points.len(), "points that no rule keeps were removed");
        }
    }
    let collect = Chore::Collect {
        dry_run: false,
        quarantine_s: keep.quarantine.as_secs(),
        compact_below: 0.7,
        rate: Some(keep.rate),
    };
    if let Done::Collected(figures) = engine.do_chore(&collect)?
        && figures.freed_bytes + figures.removed_bytes > 0
    {
        info!(group = %engine.name, freed_bytes = figures.freed_bytes, removed_bytes = figures.removed_bytes, "garbage was collected");
    }
    if engine.is_scrub_due() {
        let scrub = Chore::Scrub {
            deep: true,
            heal: true,
            rate: Some(keep.rate),
        };
        if let Done::Scrubbed(figures) = engine.do_chore(&scrub)? {
            match figures.whole {
                true => {
                    info!(group = %engine.name, objects = figures.objects, healed = figures.healed.len(), "the target was scrubbed");
                }
                false => {
                    warn!(group = %engine.name, lost = figures.lost.len(), points_hit = figures.hits.len(), "the target has lost data; `standin store scrub` names it");
                }
            }
        }
    }
    Ok(())
}

impl Engine {
    /// Does a chore on the target that stage two has open.
    pub(crate) fn do_chore(&self, chore: &Chore) -> Result<Done> {
        let Some(used) = self.open_target.use_it() else {
            let target = self.target.to_string();
            return Err(Error::NotOpen { target });
        };
        let stop = || self.stop() != Stop::No || used.is_over();
        let context = Context {
            clock: &*self.world.clock,
            progress: &|_, _| (),
            stop: &stop,
        };
        perform(&used.store, chore, &context).map_err(self.target.failed("look after the store"))
    }

    fn is_scrub_due(&self) -> bool {
        let (Some(every), Some(used)) = (self.keep.scrub_every, self.open_target.use_it()) else {
            return false;
        };
        let last = used.store.last_scrub().map(|scrub| scrub.ended_at);
        let now = used.store.now();
        // A new store has its first when it is as old as that.
        let since = last.or_else(|| used.store.points().first().map(|point| point.at));
        since.is_some_and(|since| now.since(since) >= every)
    }
}
