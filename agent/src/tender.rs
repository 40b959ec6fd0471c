//! The thread that keeps open diffs short and their pages few. It may wait for the device of the diffs; only
//! the end of protection waits for it.

use std::time::Duration;

use tracing::debug;

use crate::engine::{Engine, Stop};

/// What a guest writes in two turns is in the page cache, beside what is kept there in any case.
const TEND_EVERY: Duration = Duration::from_millis(50);

/// Tends until the exports close.
pub(crate) fn run(engine: &Engine) {
    loop {
        let stop = engine.wait(Some(TEND_EVERY), Stop::No, |_| false).stop;
        if stop != Stop::No {
            return;
        }
        if let Err(error) = engine.group.tend_logs() {
            // Whoever writes there next is told the same.
            debug!(group = %engine.name, %error, "the logs of open diffs cannot be tended");
        }
    }
}
