//! A clock that moves when it is told to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{Clock, UnixNanos};

/// A simulated clock. Each reading moves it by a microsecond, so that intervals are never zero.
#[derive(Debug)]
pub struct SimClock {
    monotonic_ns: AtomicU64,
    wall_offset_ns: AtomicU64,
}

impl SimClock {
    /// A clock at monotonic zero; its wall time starts in 2026.
    #[must_use]
    pub fn new() -> Self {
        Self {
            monotonic_ns: AtomicU64::new(0),
            wall_offset_ns: AtomicU64::new(1_780_000_000_000_000_000),
        }
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX / 2);
        self.monotonic_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Sets the wall time so that it reads `to` at this moment; it may go backwards.
    pub fn set_wall(&self, to: UnixNanos) {
        let mono = self.monotonic_ns.load(Ordering::Relaxed);
        self.wall_offset_ns
            .store(to.0.wrapping_sub(mono), Ordering::Relaxed);
    }

    fn tick_ns(&self) -> u64 {
        self.monotonic_ns.fetch_add(1_000, Ordering::Relaxed) + 1_000
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.tick_ns())
    }

    fn wall(&self) -> UnixNanos {
        UnixNanos(
            self.tick_ns()
                .wrapping_add(self.wall_offset_ns.load(Ordering::Relaxed)),
        )
    }
}
