//! What was read of objects, by blocks: a store reads regions of some KiB, and each request of its own would cost the way
//! there and back.
//!
//! A read brings a block (and the one before, at an object's end: there lies what objects say of themselves). One that goes on
//! where the last one ended brings four times as many as that: who reads a little of an object gets little, who reads all of it
//! needs few requests. Who says before that he will read a good part of it needs one.

use std::any::Any;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::index;
use lru::LruCache;
use parking_lot::Mutex;

use crate::backend::wholes::Wholes;
use crate::cache::ByteCache;

/// Bytes of a block.
const BLOCK: u64 = 256 << 10;
/// What is read of an object of which nothing is known: all of a small one, and of others the end, where they say what is in them.
pub const TAIL: u64 = 2 * BLOCK;
/// Blocks that are read at once, at most.
const WINDOW_MAX: u64 = 16;
/// Blocks that are left out where reading still goes on: several threads read one object, each a little ahead of another.
const GAP_MAX: u64 = 2;
/// What is kept in memory.
const BYTES_MAX: usize = 40 << 20;
/// Objects of which the length is kept.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("is not zero");

/// Where blocks come from.
pub trait Ranges {
    /// The last bytes of an object, [`TAIL`] at most, and how long all of it is.
    ///
    /// # Errors
    /// `NotFound`, or what the way there gives.
    fn tail(&self, name: &str) -> io::Result<(Vec<u8>, u64)>;

    /// Bytes of an object.
    ///
    /// # Errors
    /// As [`tail`](Self::tail).
    fn range(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>>;

    /// All of an object, in `memory` if it fits.
    ///
    /// # Errors
    /// As [`tail`](Self::tail); `InvalidData` if it is longer than `len_max`.
    fn whole(&self, name: &str, len_max: u64, memory: Vec<u8>) -> io::Result<Vec<u8>>;
}

/// Blocks of objects, and how long those are.
pub struct Blocks {
    known: Mutex<LruCache<String, Arc<Known>>>,
    next: AtomicU64,
    blocks: ByteCache<(u64, u64), Vec<u8>>,
    wholes: Wholes,
}

/// An object that was seen.
struct Known {
    len: u64,
    /// Its own, and of nothing that had the name before.
    serial: u64,
    /// Held by the one that reads of it: others wait, and find what it brought.
    reading: Mutex<Reading>,
}

/// How an object is read.
#[derive(Default)]
struct Reading {
    /// The block after the last request.
    next: u64,
    /// Blocks of that request.
    window: u64,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            known: Mutex::new(LruCache::new(KNOWN_MAX)),
            next: AtomicU64::new(0),
            blocks: ByteCache::new(BYTES_MAX),
            wholes: Wholes::default(),
        }
    }
}

impl Blocks {
    /// How long an object is.
    ///
    /// # Errors
    /// Those of `from`.
    pub fn len(&self, name: &str, from: &impl Ranges) -> io::Result<u64> {
        self.known(name, from).map(|known| known.len)
    }

    /// Fills `buf` from byte `offset` of an object on; asks for what is not in memory.
    ///
    /// # Errors
    /// Those of `from`; `UnexpectedEof` if the object ends before, or `from` brings less than was asked for.
    pub fn read(
        &self,
        name: &str,
        offset: u64,
        buf: &mut [u8],
        from: &impl Ranges,
    ) -> io::Result<()> {
        match self.read_known(name, offset, buf, from) {
            // What is known of its length may be of a list, or of before it was healed.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                self.forget(name);
                self.read_known(name, offset, buf, from)
            }
            other => other,
        }
    }

    /// Holds all of an object in memory until the returned value is dropped; one that is not there is brought if that is `worth` it. May wait
    /// until others are held no more: whoever holds one must not wait for somebody who wants one.
    pub fn hold(&self, name: &str, worth: bool, from: &impl Ranges) -> Option<Box<dyn Any + Send>> {
        let held = || {
            let known = self.known.lock().get(name).cloned();
            known.and_then(|known| self.wholes.held(known.serial))
        };
        if let Some(held) = held() {
            return Some(held);
        }
        // Two windows of an image meet in a container: the second finds what the first has brought.
        let _turn = self.wholes.turn(name);
        let held = held();
        if held.is_some() || !worth {
            return held;
        }
        let bring = |most, memory| {
            let bytes = from.whole(name, most, memory)?;
            Ok((self.learn(name, bytes.len() as u64).serial, bytes))
        };
        // Whoever reads it is told why it did not come.
        self.wholes.bring(bring).ok()
    }

    /// How long an object is, by a list: believed if nothing else is known.
    pub(crate) fn listed(&self, name: &str, len: u64) {
        if self.known.lock().get(name).is_none() {
            self.learn(name, len);
        }
    }

    /// Nothing that is known of the name is believed any more.
    pub fn forget(&self, name: &str) {
        self.known.lock().pop(name);
    }

    /// What is known of an object; its last blocks are read to find out.
    fn known(&self, name: &str, from: &impl Ranges) -> io::Result<Arc<Known>> {
        if let Some(known) = self.known.lock().get(name) {
            return Ok(Arc::clone(known));
        }
        let (tail, len) = from.tail(name)?;
        let known = self.learn(name, len);
        // Whole blocks, and the last one.
        let start = len.saturating_sub(tail.len() as u64);
        let first = start.next_multiple_of(BLOCK);
        if let Some(blocks) = tail.get(index(first - start)..) {
            self.keep(&known, first, blocks);
        }
        Ok(known)
    }

    /// Whoever learned the same before was first: what he has brought is found by it.
    fn learn(&self, name: &str, len: u64) -> Arc<Known> {
        let mut all = self.known.lock();
        if let Some(known) = all.get(name).filter(|known| known.len == len) {
            return Arc::clone(known);
        }
        let known = Arc::new(Known {
            len,
            serial: self.next.fetch_add(1, Ordering::Relaxed),
            reading: Mutex::default(),
        });
        all.put(name.to_owned(), Arc::clone(&known));
        known
    }

    /// Reads what lies in the object by what is known of it.
    fn read_known(
        &self,
        name: &str,
        offset: u64,
        buf: &mut [u8],
        from: &impl Ranges,
    ) -> io::Result<()> {
        let known = self.known(name, from)?;
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > known.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(whole) = self.wholes.get(known.serial) {
            buf.copy_from_slice(&whole[index(offset)..][..buf.len()]);
            return Ok(());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let number = at / BLOCK;
            let block = match self.blocks.get(&(known.serial, number)) {
                Some(block) => block,
                None => self.fetch(&known, number, |range| from.range(name, range))?,
            };
            let here = &block[index(at - number * BLOCK)..];
            let len = here.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&here[..len]);
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
        let mut reading = known.reading.lock();
        if let Some(block) = self.blocks.get(&(known.serial, number)) {
            return Ok(block);
        }
        let goes_on = (reading.next..=reading.next + GAP_MAX).contains(&number);
        let (first, count) = match () {
            () if goes_on && reading.window > 0 => (number, WINDOW_MAX.min(4 * reading.window)),
            () if (number + 1) * BLOCK >= known.len => (number.saturating_sub(1), 2),
            () => (number, 1),
        };
        // What an object says of itself is read between whiles.
        if (number + 1) * BLOCK < known.len {
            *reading = Reading {
                next: first + count,
                window: count,
            };
        }
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
    fn keep(&self, known: &Known, at: u64, bytes: &[u8]) {
        for (number, block) in (at / BLOCK..).zip(bytes.chunks(index(BLOCK))) {
            let key = (known.serial, number);
            self.blocks
                .put(key, Arc::new(block.to_vec()), block.len() + 64);
        }
    }
}
