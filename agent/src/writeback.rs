//! Makes what is written durable while writing goes on: what the page cache holds at the end would be waited for then.
//!
//! Rule: the kernel tells of a failed write once. Whoever heard of it is asked at the end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// After so many bytes more.
const STEP: u64 = 64 << 20;

/// A device that is flushed as it is written to.
pub(crate) struct Writeback {
    written: AtomicU64,
    given_up: Arc<AtomicBool>,
    /// Until the end.
    flusher: Mutex<Option<Flusher>>,
}

struct Flusher {
    wake: SyncSender<()>,
    thread: JoinHandle<block::Result<()>>,
}

impl Writeback {
    pub(crate) fn begin(
        flush: impl Fn() -> block::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let given_up = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&given_up);
        let thread = std::thread::Builder::new()
            .name("writeback".into())
            .spawn(move || {
                let mut wanted = woken.iter().take_while(|()| !seen.load(Ordering::Relaxed));
                wanted.try_for_each(|()| flush())
            })?;
        Ok(Self {
            given_up,
            written: AtomicU64::new(0),
            flusher: Mutex::new(Some(Flusher { wake, thread })),
        })
    }

    /// So many bytes more were written.
    pub(crate) fn wrote(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / STEP == (before + bytes) / STEP {
            return;
        }
        if let Some(flusher) = &*self.flusher.lock() {
            // Full, it is about to flush anyway; closed, it has failed, and `end` tells.
            let _ = flusher.wake.try_send(());
        }
    }

    /// Waits for it. What was written since the last flush is not durable yet.
    pub(crate) fn end(&self) -> block::Result<()> {
        let Some(Flusher { wake, thread }) = self.flusher.lock().take() else {
            return Ok(());
        };
        drop(wake);
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        // Nothing that is given up need be durable, and a disk that hangs is not waited for.
        self.given_up.store(true, Ordering::Relaxed);
        drop(self.flusher.lock().take());
    }
}

#[cfg(test)]
mod tests {
    use block::{ByteRange, Error, ErrorKind, Op};

    use super::*;

    #[test]
    fn it_is_flushed_as_it_grows_and_not_for_every_write() {
        let flushes = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&flushes);
        let writeback = Writeback::begin(move || {
            seen.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let writeback = writeback.expect("a thread");
        for _ in 0..8 * (STEP >> 20) {
            writeback.wrote(1 << 20);
        }
        writeback.end().expect("nothing failed");
        let flushes = flushes.load(Ordering::Relaxed);
        assert!((1..=8).contains(&flushes), "{flushes}");
    }

    /// The kernel tells of a failed write once, to whoever asks first: a restore whose last flush went well would be told that
    /// all is durable.
    #[test]
    fn a_flush_that_failed_on_the_way_is_told_at_the_end() {
        let flushes = AtomicU64::new(0);
        let fails_once = move || match flushes.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Error::io(
                Op::Flush,
                ByteRange::at(0, 1).expect("from zero"),
                io::ErrorKind::StorageFull.into(),
            )),
            _ => Ok(()),
        };
        let writeback = Writeback::begin(fails_once).expect("a thread");
        writeback.wrote(STEP);
        while writeback
            .flusher
            .lock()
            .as_ref()
            .is_some_and(|f| !f.thread.is_finished())
        {
            std::thread::yield_now();
        }
        writeback.wrote(2 * STEP);
        assert_eq!(writeback.end().map_err(|e| e.kind()), Err(ErrorKind::Full));
    }
}
