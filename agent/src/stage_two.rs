//! Stage two: one thread that brings what was sealed to the target, and makes the first copy.
//!
//! ```text
//!  open the target --> is there a base? --no--> seed --> first cut
//!        ^                   | yes                           |
//!        |                   v                               v
//!        +--- failed --- ship the oldest sealed generation, one by one <-- woken by a cut
//! ```
//!
//! Rule: whatever fails here is noted, shown and tried again, ever more slowly. Nobody waits for it
//! but who asked to.

use std::sync::Arc;
use std::time::Duration;

use store::Around;
use tracing::{debug, info, warn};

use crate::api::Cause;
use crate::engine::{Engine, Shared, Stop};
use crate::seed::Seeded;
use crate::ship::Shipped;
use crate::target::Missing;
use crate::target_writer::{TargetWriter, WriteError};
use crate::trouble::Step;
use crate::{Error, Kind, Result, base, seed, ship};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Failures in a row after which the end no longer waits for the target.
const LAST_ATTEMPTS: u32 = 4;

/// What one round did.
enum Round {
    /// Something; there may be more.
    Went,
    /// There is nothing to do until a cut.
    Idle,
}

/// Works until the end.
pub(crate) fn run(engine: &Engine, opened: Option<TargetWriter>) {
    work(engine, opened);
    engine.open_target.given_up();
}

fn work(engine: &Engine, opened: Option<TargetWriter>) {
    let mut store = opened;
    if let Some(store) = &store {
        engine.open_target.opened(store);
    }
    let mut failures = 0;
    loop {
        let stop = engine.stop();
        if stop == Stop::Now {
            return;
        }
        match round(engine, &mut store) {
            Ok(Round::Went) => failures = 0,
            Ok(Round::Idle) if stop == Stop::Draining => return,
            Ok(Round::Idle) => {
                failures = 0;
                let seen = engine.shared.lock().cuts;
                // A cut between the round and here is seen as sealed.
                if engine.group.sealed().is_empty() || !engine.shared.lock().seeded {
                    drop(engine.wait(None, stop, |shared| {
                        shared.cuts != seen || (stop == Stop::No && !shared.seeded)
                    }));
                }
            }
            Err(error) if error.kind() == Kind::Fenced && engine.target.has_locks() => {
                // Nothing will be shipped by this process; its writes would be refused anyhow. Where there are no locks a
                // writer is also fenced that was silent for a while: it comes back as soon as the other one ends.
                engine.open_target.given_up();
                drop(store.take());
                drop(engine.wait(None, Stop::No, |_| false));
                return;
            }
            Err(error) => {
                failures += 1;
                if needs_opening(engine, store.as_ref(), &error) {
                    engine.open_target.given_up();
                    drop(store.take());
                }
                if stop == Stop::Draining && failures >= LAST_ATTEMPTS {
                    return;
                }
                let wait = BACKOFF_MIN * 2_u32.saturating_pow(failures - 1).min(1_000);
                let seen = engine.shared.lock().hurries;
                let hurry = |shared: &Shared| shared.hurries != seen;
                drop(engine.wait(Some(wait.min(BACKOFF_MAX)), stop, hurry));
            }
        }
    }
}

/// Whether the store must be opened again before it is of use.
fn needs_opening(engine: &Engine, store: Option<&TargetWriter>, error: &Error) -> bool {
    if engine.target.has_locks() {
        // What a failed sync left is known only to who opens the store again. That there is no room is known;
        // and opening it takes some.
        return !error.is_full();
    }
    // Its token, or whom it trusts, may have been renewed since it was read.
    if store.is_some_and(|store| store.store().is_none()) {
        return true;
    }
    // A request that failed leaves nothing open; and opening a bucket reads much.
    let latched = store.is_some_and(TargetWriter::must_be_opened_again);
    latched || error.kind() == Kind::Fenced
}

fn round(engine: &Engine, store: &mut Option<TargetWriter>) -> Result<Round> {
    let store = match store {
        Some(open) => open,
        None => {
            let opened = store.insert(open(engine)?);
            engine.open_target.opened(opened);
            opened
        }
    };
    if !engine.shared.lock().seeded {
        return find_base(engine, store);
    }
    let Some(oldest) = engine.group.sealed().into_iter().next() else {
        return Ok(Round::Idle);
    };
    match ship::ship(engine, store, &oldest).inspect_err(|e| engine.fails(Step::Ship, e))? {
        Shipped::Point => {
            engine.works(Step::Ship);
            // What fails here costs a longer recovery from a power cut, no more.
            if let Err(error) = engine.group.tend_intent_log() {
                warn!(group = %engine.name, %error, "the intent log keeps all its regions");
            }
        }
        Shipped::Interrupted => {}
        Shipped::NoBase { lineage, why } => {
            info!(group = %engine.name, why, "the disks are copied anew");
            engine
                .restart_tracking(lineage, why)
                .inspect_err(|e| engine.fails(Step::Ship, e))?;
            // The gap ends with a point of the new history.
            if why == base::FOREIGN {
                engine.note_cause(Cause::ForeignPoint);
            }
        }
    }
    Ok(Round::Went)
}

/// Opens the target to write, and notes what is there.
fn open(engine: &Engine) -> Result<TargetWriter> {
    open_first(engine).inspect_err(|error| engine.fails(Step::OpenTarget, error))
}

/// The same, where whoever starts the protection is told of a failure.
pub(crate) fn open_first(engine: &Engine) -> Result<TargetWriter> {
    let missing = match engine.had_point() {
        true => Missing::Refuse,
        false => Missing::Create,
    };
    let around = Around {
        on_worker: engine.crew.on_worker(),
        ..Around::new(Arc::clone(&engine.world.clock))
    };
    let store = engine.target.writer(&around, missing)?;
    let store = store.accounted(&engine.made_here);
    engine.note_target(&store)?;
    engine.works(Step::OpenTarget);
    debug!(group = %engine.name, target = %engine.target, "target opened");
    Ok(store)
}

/// Nothing was cut yet that could be shipped: go on from what the target has, or copy the disks.
fn find_base(engine: &Engine, store: &TargetWriter) -> Result<Round> {
    let lineage = engine.group.lineage();
    let held = engine
        .held(store)
        .inspect_err(|error| engine.fails(Step::Seed, error))?;
    if engine.has_base(&held) {
        // A seed that is complete, without a point: its first cut is still to come.
        let first_cut = held.point.is_none() && engine.group.sealed().is_empty();
        engine.seeded(lineage, first_cut, held.point.is_none());
        return Ok(Round::Went);
    }
    if held.foreign || !engine.group.sealed().is_empty() {
        let why = match held.foreign {
            true => base::FOREIGN,
            false => "the target lacks what the sealed diffs build on",
        };
        engine
            .restart_tracking(lineage, why)
            .inspect_err(|e| engine.fails(Step::Seed, e))?;
        if held.foreign {
            engine.note_cause(Cause::ForeignPoint);
        }
        return Ok(Round::Went);
    }
    if engine.stop() != Stop::No {
        return Ok(Round::Idle);
    }
    match seed::seed(engine, store).inspect_err(|error| engine.fails(Step::Seed, error))? {
        Seeded::Complete(lineage) => {
            engine.works(Step::Seed);
            engine.seeded(lineage, true, true);
        }
        Seeded::Interrupted => {}
    }
    Ok(Round::Went)
}

/// Wraps a failure of the target.
pub(crate) fn target_error(engine: &Engine, doing: &'static str) -> impl Fn(WriteError) -> Error {
    engine.target.unwritten(doing)
}

#[cfg(test)]
mod tests;
