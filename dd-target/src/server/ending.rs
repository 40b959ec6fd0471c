//! The end of a server: told once, seen by threads and by tasks.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use tracing::warn;

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

/// Does what may wait for a disk that hangs, and goes on without it after so long. Its thread is left.
pub(crate) fn within(time: Duration, what: &str, work: impl FnOnce() + Send + 'static) {
    let (told, ended) = mpsc::channel();
    let work = move || {
        work();
        // Nobody waits any more.
        let _ = told.send(());
    };
    let thread = thread::Builder::new().name("ending".into()).spawn(work);
    if thread.is_err() || ended.recv_timeout(time).is_err() {
        warn!("{what} did not end in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vault on a place that hung kept its keeper, and its keeper the server, from ending.
    #[test]
    fn what_hangs_is_not_waited_for() {
        let (hanging, hung) = mpsc::channel::<()>();
        let (told, done) = mpsc::channel();
        within(Duration::from_millis(10), "a test", move || {
            let _ = hung.recv();
        });
        within(Duration::from_mins(1), "a test", move || {
            told.send(()).unwrap()
        });
        assert!(done.try_recv().is_ok(), "what ends is waited for");
        drop(hanging);
    }
}
