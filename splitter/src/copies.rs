//! Whether guests' writes are copied to the diff, and how that goes. Whoever decides on it measures
//! here; nothing is decided here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use block::Clock;

/// One disk's copies.
#[derive(Default)]
pub(crate) struct Copies {
    paused: AtomicBool,
    begun: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
}

/// What the copies of guests' writes cost, counted since the group was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyFigures {
    /// Writes whose copy began.
    pub begun: u64,
    /// Writes whose copy ended, well or not.
    pub ended: u64,
    /// Writes whose copy failed.
    pub failed: u64,
    /// What all that ended took together.
    pub took: Duration,
}

impl Copies {
    /// Makes a copy, and measures it.
    pub(crate) fn make<E>(
        &self,
        clock: &dyn Clock,
        copy: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let start = clock.monotonic();
        self.begun.fetch_add(1, Ordering::Relaxed);
        let copied = copy();
        let took = clock.monotonic().saturating_sub(start);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.failed
            .fetch_add(u64::from(copied.is_err()), Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
        copied
    }

    pub(crate) fn are_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    pub(crate) fn figures(&self) -> CopyFigures {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        // In this order: what ended has begun.
        let ended = read(&self.ended);
        CopyFigures {
            begun: read(&self.begun),
            ended,
            failed: read(&self.failed),
            took: Duration::from_nanos(read(&self.nanos)),
        }
    }
}

impl std::iter::Sum for CopyFigures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            begun: sum.begun + one.begun,
            ended: sum.ended + one.ended,
            failed: sum.failed + one.failed,
            took: sum.took + one.took,
        })
    }
}
