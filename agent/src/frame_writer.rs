//! The thread that brings full frames of open diffs to their files. It may wait for the device of the diffs; only
//! the end of protection waits for it.

use std::time::Duration;

use crate::engine::{Engine, Stop};

/// How long the end of protection may go unnoticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Writes until the exports close; what guests write after that, they write themselves.
pub(crate) fn run(engine: &Engine) {
    while engine.stop() == Stop::No {
        engine.group.write_frames(LOOK_EVERY);
    }
}
