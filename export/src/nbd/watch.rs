//! One thread per server that looks after leaders stuck in a request they thought quick.
//!
//! It looks every millisecond while any connection is busy, and sleeps when all are quiet; the
//! next request wakes it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::crew::Sight;

/// What is looked after.
pub(crate) trait Watched: Send + Sync {
    /// One look; takes the lead from a leader that is stuck.
    fn look(self: Arc<Self>) -> Sight;
}

#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
    woken: Condvar,
    asleep: AtomicBool,
}

#[derive(Default)]
struct State {
    watched: HashMap<u64, Weak<dyn Watched>>,
    stop: bool,
}

const TICK: Duration = Duration::from_millis(1);
/// Quiet looks before it sleeps: so that a client that pauses between requests does not wake it
/// for each.
const QUIET_TICKS: u32 = 50;

impl Watch {
    pub(crate) fn add(&self, id: u64, watched: Weak<dyn Watched>) {
        self.state.lock().watched.insert(id, watched);
    }

    pub(crate) fn remove(&self, id: u64) {
        self.state.lock().watched.remove(&id);
    }

    /// To be called after a turn begins.
    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            // With the lock the sleeper is either asleep or about to look once more.
            let _state = self.state.lock();
            self.woken.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.woken.notify_one();
    }

    /// The thread: until stopped.
    pub(crate) fn run(&self) {
        let mut quiet_ticks = 0;
        let mut state = self.state.lock();
        while !state.stop {
            quiet_ticks = if state.look() { 0 } else { quiet_ticks + 1 };
            if quiet_ticks <= QUIET_TICKS {
                self.woken.wait_for(&mut state, TICK);
                continue;
            }
            // Whoever begins a turn after this store sees it; the look finds those before.
            self.asleep.store(true, Ordering::SeqCst);
            if !state.look() && !state.stop {
                self.woken.wait(&mut state);
            }
            self.asleep.store(false, Ordering::SeqCst);
            quiet_ticks = 0;
        }
    }
}

impl State {
    /// Whether anybody is active.
    fn look(&self) -> bool {
        let alive = self.watched.values().filter_map(Weak::upgrade);
        // Every one of them is looked at, not only up to the first that is active.
        let active = alive.filter(|watched| Arc::clone(watched).look() != Sight::Quiet);
        active.count() > 0
    }
}
