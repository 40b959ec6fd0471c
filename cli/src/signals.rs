//! Waiting to be told to end.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The signals that end a command in order. Made before anything that must be ended in order.
pub(crate) struct Ending(Signals);

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        Signals::new([SIGINT, SIGTERM, SIGHUP]).map(Self)
    }

    /// Returns at the next signal.
    pub(crate) fn wait(&mut self) {
        let _ = self.0.forever().next();
    }

    /// Calls `then` at the next signal, from another thread.
    pub(crate) fn on_next(mut self, then: impl FnOnce() + Send + 'static) {
        // Without the thread a second signal does nothing; the first one still ends all in order.
        let _ = std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                self.wait();
                then();
            });
    }
}
