//! The ladder: what protection gives up, step by step, so that a guest never pays for its trouble.
//!
//! ```text
//!  every write --many cuts wait for the target--> two of them become one at each cut   (cutter.rs)
//!  every write --the diff device fails--> marks only --a probe succeeds--> every write
//! ```
//!
//! While writes are only marked, no guest touches the diff device. What was not copied is read from
//! production before the next cut, so that is exact, and nothing is copied anew.

use std::time::Duration;

use splitter::CutError;
use tracing::{debug, info, warn};

use crate::engine::Engine;

/// A probe that takes longer is no good one: copies would be as slow.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// After a cut that failed: stops to copy if the diff device is to blame.
pub(crate) fn step_down(engine: &Engine, error: &CutError) {
    let CutError::Degraded { disk, source } = error else {
        return;
    };
    if !engine.group.copies_are_paused() {
        engine.group.pause_copies();
        warn!(group = %engine.name, %disk, %source, "the diffs cannot be written; writes are only marked");
    }
}

/// Before a cut: copies again if the diff device takes a probe.
///
/// # Errors
/// `MapOnly` if it does not.
pub(crate) fn step_up(engine: &Engine) -> Result<(), CutError> {
    if !engine.group.copies_are_paused() {
        return Ok(());
    }
    match engine.group.probe_diffs() {
        Ok(took) if took <= PROBE_MAX => {
            engine.group.resume_copies();
            info!(group = %engine.name, "the diffs can be written; writes are copied again");
            Ok(())
        }
        Ok(took) => {
            debug!(group = %engine.name, ?took, "the diff device is slow");
            Err(CutError::MapOnly)
        }
        Err(error) => {
            debug!(group = %engine.name, %error, "the diff device fails");
            Err(CutError::MapOnly)
        }
    }
}
