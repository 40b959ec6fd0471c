//! Puts an image together in memory, some mebibytes at a time: the disk gets it in large pieces and nearly in its order, however its
//! chunks lie in the store.
//!
//! ```text
//! a window of the image -> a block for each mebibyte that holds something
//!   chunks, in the store's order -> copied to their blocks;  a block that lacks nothing -> a writer
//! ```
//!
//! The forward assembly area of Lillibridge, Eshghi, Bhagwat: Improving Restore Speed for Backup Systems that Use Inline Chunk-Based
//! Deduplication, FAST 2013: what it reads of the store it reads once for each window, and no cache has to guess.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use block::{ByteRange, PageBuf, index};
use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::block_memory::{BLOCK, BlockMemory, FullBlock};
use super::{RestoreSink, Sweep, sink_error};
use crate::error::{Result, StoreError};
use crate::fingerprint::CHUNK;
use crate::tree::LEAF_CHUNKS;

/// Of a window. There is memory for three of them: one that is read, one that is written, one for who is faster.
const WINDOW_BLOCKS: usize = 24;

// A window ends between two leaves, and no block may be in two windows.
const _: () = assert!(LEAF_CHUNKS * CHUNK as u64 == BLOCK);

/// Where chunks go until their blocks are full.
pub(super) struct Assembly<'a> {
    sink: &'a dyn RestoreSink,
    memory: &'a BlockMemory,
    full: Sender<FullBlock>,
    /// Blocks that lack something, by their number in the image.
    open: Mutex<HashMap<u64, Arc<Mutex<Filling>>>>,
}

struct Filling {
    parts: Vec<ByteRange>,
    buf: PageBuf,
    /// Bytes.
    missing: u64,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(
        sink: &'a dyn RestoreSink,
        memory: &'a BlockMemory,
        full: Sender<FullBlock>,
    ) -> Self {
        Self {
            sink,
            memory,
            full,
            open: Mutex::default(),
        }
    }

    /// All chunks have come.
    pub(super) fn end(&self) {
        let missing = self.open.lock().len();
        assert_eq!(
            missing, 0,
            "every chunk that is expected comes, or the sweep fails"
        );
    }

    fn open(&self, number: u64, parts: Vec<ByteRange>) -> Result<()> {
        let buf = self.memory.take().ok_or_else(given_up)?;
        let missing = parts.iter().map(|part| part.len()).sum();
        let filling = Filling {
            parts,
            buf,
            missing,
        };
        let old = self
            .open
            .lock()
            .insert(number, Arc::new(Mutex::new(filling)));
        assert!(old.is_none(), "a block is in one window");
        Ok(())
    }

    fn fill(&self, number: u64, offset: u64, data: &[u8]) -> Result<()> {
        let open = self.open.lock().get(&number).map(Arc::clone);
        let block = open.expect("nothing comes that was not expected");
        let mut block = block.lock();
        block.buf[index(offset % BLOCK)..][..data.len()].copy_from_slice(data);
        block.missing -= data.len() as u64;
        if block.missing > 0 {
            return Ok(());
        }
        self.open.lock().remove(&number);
        if self.memory.is_stopped() {
            return Err(given_up());
        }
        let full = FullBlock {
            start: number * BLOCK,
            parts: std::mem::take(&mut block.parts),
            buf: std::mem::take(&mut block.buf),
        };
        self.full.send(full).expect("writers stay until the end");
        Ok(())
    }
}

/// Another error says why.
fn given_up() -> StoreError {
    sink_error(io::Error::other("the restore was given up"))
}

impl Sweep for Assembly<'_> {
    fn window_leaves(&self) -> Option<usize> {
        Some(WINDOW_BLOCKS)
    }

    fn expect(&self, parts: &mut dyn Iterator<Item = ByteRange>) -> Result<()> {
        let mut block: Option<(u64, Vec<ByteRange>)> = None;
        for part in parts {
            for (number, part) in by_block(part) {
                match &mut block {
                    Some((known, parts)) if *known == number => push(parts, part),
                    _ => {
                        let before = block.replace((number, vec![part]));
                        before.map_or(Ok(()), |(number, parts)| self.open(number, parts))?;
                    }
                }
            }
        }
        block.map_or(Ok(()), |(number, parts)| self.open(number, parts))
    }

    fn data(&self, mut offset: u64, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let here = index(BLOCK - offset % BLOCK).min(data.len());
            let (now, later) = data.split_at(here);
            self.fill(offset / BLOCK, offset, now)?;
            offset += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        self.sink.zero(range).map_err(sink_error)
    }

    fn damaged(&self, ranges: Vec<ByteRange>, error: StoreError) -> Result<()> {
        Err(ranges.into_iter().fold(error, StoreError::hitting))
    }

    fn stop(&self) {
        self.memory.stop();
    }
}

/// `part`, cut where blocks meet, with their numbers.
fn by_block(part: ByteRange) -> impl Iterator<Item = (u64, ByteRange)> {
    let numbers = part.start() / BLOCK..part.end().div_ceil(BLOCK);
    numbers.filter_map(move |number| {
        let block = ByteRange::at(number * BLOCK, BLOCK)?;
        Some((number, block.intersect(part)?))
    })
}

/// Appends a part, joined with the last one where it goes on there.
fn push(parts: &mut Vec<ByteRange>, part: ByteRange) {
    match parts.last_mut() {
        Some(last) if last.end() == part.start() => {
            *last = ByteRange::new(last.start(), part.end()).expect("grows only");
        }
        _ => parts.push(part),
    }
}
