//! One sync at a time, shared by all who wait for it; and the latch that a failed one trips.
//!
//! The kernel reports a failed writeback once per open file: of two concurrent syncs one hears of
//! it and the other succeeds although its bytes are lost. So syncs of a file never run side by
//! side. Who arrives while one runs waits for the next, which serves all that wait:
//!
//! ```text
//!   A  [--- sync 1 ---]
//!   B        waits     [--- sync 2 ---]
//!   C           waits  [   shares it  ]
//! ```
//!
//! Rule: after a failed sync every write and sync of the device fails until it is opened again,
//! since nobody can say which bytes were lost.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// The first failed sync of a device, which may consist of several files.
#[derive(Debug, Default)]
pub(crate) struct Latch(OnceLock<String>);

/// What every write and sync says once the latch has tripped.
#[derive(Debug, thiserror::Error)]
#[error("an earlier sync failed, so earlier writes may be lost ({first}); open the disk again")]
struct Latched {
    first: String,
}

impl Latch {
    /// `Err` once a sync has failed.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(first) => {
                let first = first.clone();
                Err(io::Error::other(Latched { first }))
            }
        }
    }

    fn trip(&self, error: &io::Error) {
        // The first failure stays.
        let _ = self.0.set(error.to_string());
    }
}

/// Lets one sync run at a time and shares it.
#[derive(Debug, Default)]
pub(crate) struct GroupSync {
    latch: Arc<Latch>,
    turns: Mutex<Turns>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Turns {
    /// Syncs begun so far; the last one may still run.
    begun: u64,
    /// Whether one runs.
    running: bool,
}

impl GroupSync {
    pub(crate) fn new(latch: Arc<Latch>) -> Self {
        Self {
            latch,
            ..Self::default()
        }
    }

    pub(crate) fn latch(&self) -> &Latch {
        &self.latch
    }

    /// Returns after a run of `sync` that began after this call, by whichever thread.
    ///
    /// # Errors
    /// That run's error to the thread that ran it; to all others, and ever after, the latch's.
    pub(crate) fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut turns = self.turns();
        let mine = turns.begun + 1;
        while turns.running {
            turns = self
                .ended
                .wait(turns)
                .unwrap_or_else(PoisonError::into_inner);
            let ended = turns.begun - u64::from(turns.running);
            if ended >= mine {
                return self.latch.check();
            }
        }
        self.latch.check()?;
        turns.begun += 1;
        turns.running = true;
        drop(turns);

        let running = Running(self);
        let result = sync();
        if let Err(error) = &result {
            self.latch.trip(error);
        }
        drop(running);
        result
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the turn, also when the sync panics.
struct Running<'a>(&'a GroupSync);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .latch
                .trip(&io::Error::other("a sync ended in a panic"));
        }
        self.0.turns().running = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Two flushes ran side by side on one file whose writeback had failed: the kernel told one of
    /// them, and the other was acknowledged although its bytes were gone.
    #[test]
    fn a_failed_sync_fails_everyone_who_shares_it_and_everyone_after() {
        let group = GroupSync::default();
        let arrived = AtomicU64::new(0);
        let failures = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    let result = group.run(|| {
                        while arrived.load(Ordering::SeqCst) < 8 {
                            std::hint::spin_loop();
                        }
                        Err(io::Error::other("medium error"))
                    });
                    failures.fetch_add(u64::from(result.is_err()), Ordering::SeqCst);
                });
            }
        });
        assert_eq!(failures.into_inner(), 8);
        let late = group.run(|| Ok(())).expect_err("latched").to_string();
        assert!(late.contains("medium error"), "{late}");
    }

    #[test]
    fn a_sync_covers_everything_that_happened_before_it_was_asked_for() {
        let group = GroupSync::default();
        let written = AtomicU64::new(0);
        let durable = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let sync = || {
                            let seen = written.load(Ordering::SeqCst);
                            std::thread::yield_now();
                            durable.fetch_max(seen, Ordering::SeqCst);
                            Ok(())
                        };
                        group.run(sync).expect("it succeeds");
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
    }
}
