//! What was read of objects, by blocks: a store reads regions of some KiB, and each request of its own would cost the way
//! there and back.
//!
//! The first read of an object brings a block (and the one before, at its end: there lies what objects say of themselves),
//! every further one sixteen: who reads a little of an object gets little, who reads all of it needs few requests.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::index;
use lru::LruCache;
use parking_lot::Mutex;

use crate::cache::ByteCache;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 256 << 10;
/// Blocks that are read at once of an object that is read much of.
const WINDOW: u64 = 16;
/// What is kept in memory.
const BYTES_MAX: usize = 48 << 20;
/// Objects of which the length is kept.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("is not zero");

/// Blocks of objects, and how long those are.
pub(super) struct Blocks {
    known: Mutex<LruCache<String, Arc<Known>>>,
    next: AtomicU64,
    blocks: ByteCache<(u64, u64), Vec<u8>>,
}

/// An object that was seen.
pub(super) struct Known {
    pub(super) len: u64,
    /// Its own, and of nothing that had the name before.
    serial: u64,
    /// Requests that read of it. Held by the one that does: others wait, and find what it brought.
    reads: Mutex<u64>,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            known: Mutex::new(LruCache::new(KNOWN_MAX)),
            next: AtomicU64::new(0),
            blocks: ByteCache::new(BYTES_MAX),
        }
    }
}

impl Blocks {
    pub(super) fn known(&self, name: &str) -> Option<Arc<Known>> {
        self.known.lock().get(name).map(Arc::clone)
    }

    /// Remembers an object of so many bytes.
    pub(super) fn learn(&self, name: &str, len: u64) -> Arc<Known> {
        let known = Arc::new(Known {
            len,
            serial: self.next.fetch_add(1, Ordering::Relaxed),
            reads: Mutex::new(0),
        });
        self.known.lock().put(name.to_owned(), Arc::clone(&known));
        known
    }

    /// Nothing that is known of the name is believed any more.
    pub(super) fn forget(&self, name: &str) {
        self.known.lock().pop(name);
    }

    /// Fills `buf` from byte `offset` on, which is in the object; `get` asks for what is not in memory.
    pub(super) fn read(
        &self,
        known: &Known,
        offset: u64,
        buf: &mut [u8],
        get: impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let number = at / BLOCK;
            let block = match self.blocks.get(&(known.serial, number)) {
                Some(block) => block,
                None => self.fetch(known, number, &get)?,
            };
            let from = &block[index(at - number * BLOCK)..];
            let len = from.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&from[..len]);
            done += len;
        }
        Ok(())
    }

    fn fetch(
        &self,
        known: &Known,
        number: u64,
        get: impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
    ) -> io::Result<Arc<Vec<u8>>> {
        let mut reads = known.reads.lock();
        if let Some(block) = self.blocks.get(&(known.serial, number)) {
            return Ok(block);
        }
        let (first, count) = match *reads {
            0 if (number + 1) * BLOCK >= known.len => (number.saturating_sub(1), 2),
            0 => (number, 1),
            _ => (number, WINDOW),
        };
        *reads += 1;
        let start = first * BLOCK;
        let end = known.len.min((first + count) * BLOCK);
        let bytes = get(start..end)?;
        if bytes.len() as u64 != end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.keep(known, start, &bytes);
        let block = &bytes[index((number - first) * BLOCK)..];
        Ok(Arc::new(block[..block.len().min(index(BLOCK))].to_vec()))
    }

    /// Keeps what was read from the beginning of a block on: whole blocks, and the last one.
    pub(super) fn keep(&self, known: &Known, at: u64, bytes: &[u8]) {
        for (number, block) in (at / BLOCK..).zip(bytes.chunks(index(BLOCK))) {
            let key = (known.serial, number);
            self.blocks
                .put(key, Arc::new(block.to_vec()), block.len() + 64);
        }
    }
}
