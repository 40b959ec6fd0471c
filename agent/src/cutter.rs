//! The thread that cuts on schedule, and right after a seed.

use std::time::Duration;

use tracing::debug;

use crate::engine::{Engine, Stop};
use crate::schedule::{Every, next_tick};
use crate::trouble::Step;

/// Sealed generations that may wait for the target before two of them are merged at each cut.
const BACKLOG_MAX: usize = 32;
/// Until a first cut that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Cuts until the end.
pub(crate) fn run(engine: &Engine) {
    // After a crash, what was in flight is completed now rather than at the first cut.
    if let Err(error) = engine.heal() {
        engine.fails(Step::Cut, &error.into());
    }
    let start = engine.now();
    loop {
        let tick = match engine.every {
            Every::Manual => None,
            Every::Interval(interval) => Some(next_tick(start, interval, engine.now())),
        };
        let limit = tick.map(|tick| tick.saturating_sub(engine.now()));
        let shared = engine.wait(limit, Stop::No, |shared| shared.first_cut_due());
        let (stop, seeded, first) = (shared.stop, shared.seeded, shared.first_cut_due());
        drop(shared);
        if stop != Stop::No {
            return;
        }
        let backlog = engine.group.sealed().len();
        if !first && (!seeded || tick.is_none_or(|tick| engine.now() < tick)) {
            continue;
        }
        if backlog >= BACKLOG_MAX {
            // Blocks that several cuts hold then cost space once.
            match engine.coalesce() {
                Ok(true) => {}
                Ok(false) => {
                    debug!(group = %engine.name, backlog, "the target lags; this cut is left out");
                    continue;
                }
                Err(error) => {
                    engine.fails(Step::Cut, &error);
                    drop(engine.wait(Some(RETRY), Stop::No, |_| false));
                    continue;
                }
            }
        }
        if let Err(error) = engine.cut(Default::default()) {
            engine.fails(Step::Cut, &error);
            drop(engine.wait(Some(RETRY), Stop::No, |_| false));
        }
    }
}
