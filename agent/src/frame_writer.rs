//! The thread that brings full frames of open diffs to their files. It may wait for the device of the diffs; guests
//! wait for it where they fill frames faster, until copies are paused.

use std::time::Duration;

use crate::engine::{Engine, Stop};

/// How long the end of protection may go unnoticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Writes until the exports are closed.
pub(crate) fn run(engine: &Engine) {
    let writer = engine.group.frame_writer();
    while engine.stop() <= Stop::Closing {
        writer.write(LOOK_EVERY);
    }
}
