//! The end of a server: told once, seen by threads and by tasks.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

/// Whether the end has begun.
pub(crate) struct Ending {
    begun: Mutex<bool>,
    told: Condvar,
    tasks: watch::Sender<bool>,
}

impl Default for Ending {
    fn default() -> Self {
        Self {
            begun: Mutex::new(false),
            told: Condvar::new(),
            tasks: watch::Sender::new(false),
        }
    }
}

impl Ending {
    pub(crate) fn begin(&self) {
        *self.begun.lock() = true;
        self.told.notify_all();
        self.tasks.send_replace(true);
    }

    pub(crate) fn has_begun(&self) -> bool {
        *self.begun.lock()
    }

    /// Waits so long; `false` if the end has begun.
    pub(crate) fn rest(&self, time: Duration) -> bool {
        let mut begun = self.begun.lock();
        self.told.wait_while_for(&mut begun, |begun| !*begun, time);
        !*begun
    }

    /// Returns when the end begins.
    pub(crate) async fn begins(&self) {
        // The sender lives as long as this.
        let _ = self.tasks.subscribe().wait_for(|begun| *begun).await;
    }
}
