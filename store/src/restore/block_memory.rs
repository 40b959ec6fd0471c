//! Memory for the mebibytes of an image that is restored, and the threads that write them.
//!
//! ```text
//! free -> being filled (assembly) -> full: waits for a writer -> written -> free
//! ```

use block::{ByteRange, PageBuf, index};
use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use super::{Alarm, RestoreSink, sink_error};
use crate::error::StoreError;

/// What is written at once, at most: a device that is written past the page cache takes it much faster than sixteen pieces of it.
pub(super) const BLOCK: u64 = 1 << 20;
/// A device needs some to be at work on, readers some to be ahead of it.
const BLOCKS_MAX: usize = 72;

/// A mebibyte of the image that lacks nothing.
pub(super) struct FullBlock {
    /// Of the image, in bytes: a multiple of [`BLOCK`].
    pub(super) start: u64,
    /// What of it holds something.
    pub(super) parts: Vec<ByteRange>,
    pub(super) buf: PageBuf,
}

/// At most 72 mebibytes, and what became of writing what was in them.
#[derive(Default)]
pub(super) struct BlockMemory {
    inner: Mutex<Inner>,
    freed: Condvar,
}

#[derive(Default)]
struct Inner {
    free: Vec<PageBuf>,
    /// Also those that are in use.
    made: usize,
    /// Nothing more is written, and nobody waits.
    stopped: bool,
    failed: Option<StoreError>,
}

impl BlockMemory {
    /// Memory for a block, as soon as there is some; `None` after a stop.
    pub(super) fn take(&self) -> Option<PageBuf> {
        let mut inner = self.inner.lock();
        while !inner.stopped {
            if let Some(buf) = inner.free.pop() {
                return Some(buf);
            }
            if inner.made < BLOCKS_MAX {
                inner.made += 1;
                return Some(PageBuf::zeroed(index(BLOCK)));
            }
            self.freed.wait(&mut inner);
        }
        None
    }

    fn give_back(&self, buf: PageBuf) {
        self.inner.lock().free.push(buf);
        self.freed.notify_one();
    }

    pub(super) fn stop(&self) {
        self.inner.lock().stopped = true;
        self.freed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.inner.lock().stopped
    }

    /// Writes blocks as they come, until no more can come.
    pub(super) fn write(&self, sink: &dyn RestoreSink, blocks: &Receiver<FullBlock>) {
        let _alarm = Alarm(|| self.stop());
        for FullBlock { start, parts, buf } in blocks {
            if !self.is_stopped() {
                let written = parts.iter().try_for_each(|part| {
                    let bytes = index(part.start() - start)..index(part.end() - start);
                    sink.write(part.start(), &buf[bytes])
                });
                if let Err(error) = written {
                    self.inner.lock().failed.get_or_insert(sink_error(error));
                    self.stop();
                }
            }
            self.give_back(buf);
        }
    }

    /// Why something was not written.
    pub(super) fn into_failure(self) -> Option<StoreError> {
        self.inner.into_inner().failed
    }
}
