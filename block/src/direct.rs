//! Reads and writes past the page cache (`O_DIRECT`), of any offset and length.
//!
//! The kernel takes whole blocks only (open(2), NOTES; statx(2), `STATX_DIOALIGN`). What covers a block in part is
//! read, changed and written whole:
//!
//! ```text
//!   block    |        |        |        |        |
//!   write        =======================
//!   done     |--------|========|--------|             -- read, changed, written; nobody else writes there meanwhile
//! ```
//!
//! Where the file does not end with a page, its end goes through the page cache: written whole it would grow the file.
//! No page that is written there has bytes of both kinds.
//!
//! Rule: who changes a block holds the lock of its place, shared if it changes all of it. Else two writes of disjoint
//! bytes of a block could undo each other.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::host_file::Done;
use crate::{ByteRange, PageBuf, index};

const PAGE: u64 = PageBuf::ALIGN as u64;
/// The largest page of the page cache that any Linux has (arm64).
const PAGE_MAX: u64 = 64 << 10;
/// Bytes that are copied at once, where they must be copied; a multiple of every block.
const PIECE_BYTES: u64 = 256 << 10;
/// Bytes that one lock stands for; a multiple of [`PIECE_BYTES`]. Larger than what guests write at once, so that a
/// write takes one lock or two.
const PLACE_BYTES: u64 = 32 << 20;
const LOCKS: usize = 64;

/// A file that is open past the page cache.
#[derive(Debug)]
pub(crate) struct Direct {
    file: fs::File,
    /// What offsets and lengths must be multiples of.
    block: u64,
    /// What addresses must be multiples of.
    memory: u64,
    /// Where the last whole block, which is also a whole page of the cache, ends.
    end: u64,
    locks: [RwLock<()>; LOCKS],
}

/// Who else may change a place meanwhile.
enum Held<'a> {
    /// Whoever changes whole blocks.
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'a, ()>),
    /// Nobody.
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'a, ()>),
}

impl Direct {
    /// Opens once more, past the page cache, what `cached` has open; `len` bytes of it are used.
    ///
    /// # Errors
    /// `Unsupported` where the file system or device cannot; the operating system's.
    pub(crate) fn open(cached: &fs::File, len: u64, writable: bool) -> io::Result<Self> {
        let flags = OFlags::DIRECT | OFlags::NONBLOCK;
        let file = fs::OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(flags.bits().cast_signed())
            .open(format!("/proc/self/fd/{}", cached.as_raw_fd()))
            .map_err(|error| match error.kind() {
                // EINVAL, says open(2).
                io::ErrorKind::InvalidInput => unsupported(),
                _ => error,
            })?;
        let (block, memory) = alignment(&file)?;
        Ok(Self {
            file,
            block,
            memory,
            end: len / block.max(PAGE_MAX) * block.max(PAGE_MAX),
            locks: std::array::from_fn(|_| RwLock::new(())),
        })
    }

    /// Fills `buf`; what lies past the last whole block comes from `cached`.
    pub(crate) fn read_exact_at(
        &self,
        cached: &fs::File,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        if self.takes(buf, offset) {
            return self.file.read_exact_at(buf, offset);
        }
        let range = ByteRange::of_buf(offset, buf);
        let (whole, tail) = self.split(range);
        for piece in pieces(whole, PIECE_BYTES) {
            let blocks = self.blocks_touched(piece);
            let mut copy = PageBuf::zeroed(index(blocks.len()));
            self.file.read_exact_at(&mut copy, blocks.start())?;
            part_mut(buf, range, piece).copy_from_slice(part(&copy, blocks, piece));
        }
        if tail.is_empty() {
            return Ok(());
        }
        cached.read_exact_at(part_mut(buf, range, tail), tail.start())
    }

    /// Writes all of `data`; what lies past the last whole block goes through `cached`.
    pub(crate) fn write_all_at(
        &self,
        cached: &fs::File,
        data: &[u8],
        offset: u64,
    ) -> io::Result<()> {
        let range = ByteRange::of_buf(offset, data);
        if self.takes(data, offset) {
            for piece in pieces(range, PLACE_BYTES) {
                let _held = self.lock(piece);
                self.file
                    .write_all_at(part(data, range, piece), piece.start())?;
            }
            return Ok(());
        }
        let (whole, tail) = self.split(range);
        for piece in pieces(whole, PIECE_BYTES) {
            self.write_copied(part(data, range, piece), piece)?;
        }
        if tail.is_empty() {
            return Ok(());
        }
        cached.write_all_at(part(data, range, tail), tail.start())
    }

    /// The blocks that lie wholly inside `range`; empty, at its end, if none does.
    pub(crate) fn blocks_covered(&self, range: ByteRange) -> ByteRange {
        let end = range.end().min(self.end) / self.block * self.block;
        let start = range.start().next_multiple_of(self.block);
        if start < end {
            ByteRange::new(start, end).expect("ordered")
        } else {
            ByteRange::new(range.end(), range.end()).expect("empty")
        }
    }

    /// Calls `change` for the parts of `range`, which consists of whole blocks, while nobody changes a part of one there.
    ///
    /// # Errors
    /// Those of `change`.
    pub(crate) fn change_whole(
        &self,
        range: ByteRange,
        mut change: impl FnMut(ByteRange) -> io::Result<Done>,
    ) -> io::Result<Done> {
        for piece in pieces(range, PLACE_BYTES) {
            let _held = self.lock(piece);
            if change(piece)? == Done::Unsupported {
                return Ok(Done::Unsupported);
            }
        }
        Ok(Done::Yes)
    }

    /// Writes a piece that lies in the wrong place in memory, or covers blocks in part.
    fn write_copied(&self, data: &[u8], piece: ByteRange) -> io::Result<()> {
        let blocks = self.blocks_touched(piece);
        let mut copy = PageBuf::zeroed(index(blocks.len()));
        let _held = self.lock(piece);
        if blocks.start() < piece.start() {
            let first = &mut copy[..index(self.block)];
            self.file.read_exact_at(first, blocks.start())?;
        }
        let one = blocks.len() == self.block && blocks.start() < piece.start();
        if piece.end() < blocks.end() && !one {
            let at = blocks.end() - self.block;
            let last = &mut copy[index(at - blocks.start())..];
            self.file.read_exact_at(last, at)?;
        }
        part_mut(&mut copy, blocks, piece).copy_from_slice(data);
        self.file.write_all_at(&copy, blocks.start())
    }

    /// The lock of a piece that lies in one place.
    fn lock(&self, piece: ByteRange) -> Held<'_> {
        let lock = &self.locks[index(piece.start() / PLACE_BYTES) % LOCKS];
        if self.blocks_touched(piece) == piece {
            Held::Shared(lock.read())
        } else {
            Held::Alone(lock.write())
        }
    }

    /// Whether the kernel takes it as it is.
    fn takes(&self, buf: &[u8], offset: u64) -> bool {
        let len = buf.len() as u64;
        offset.is_multiple_of(self.block)
            && len.is_multiple_of(self.block)
            && (buf.as_ptr().addr() as u64).is_multiple_of(self.memory)
            && offset + len <= self.end
    }

    /// What lies in whole blocks of the file, and what in its end.
    fn split(&self, range: ByteRange) -> (ByteRange, ByteRange) {
        let at = self.end.clamp(range.start(), range.end());
        let part = |start, end| ByteRange::new(start, end).expect("ordered by clamp");
        (part(range.start(), at), part(at, range.end()))
    }

    fn blocks_touched(&self, range: ByteRange) -> ByteRange {
        let start = range.start() / self.block * self.block;
        let end = range.end().next_multiple_of(self.block);
        ByteRange::new(start, end).expect("grown")
    }
}

/// `range` cut where multiples of `step` are.
fn pieces(range: ByteRange, step: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let start = at;
        at = (start + 1).next_multiple_of(step).min(range.end());
        (start < range.end()).then(|| ByteRange::new(start, at).expect("goes forward"))
    })
}

/// The bytes `inner` of `bytes`, which are those of `outer`.
fn part(bytes: &[u8], outer: ByteRange, inner: ByteRange) -> &[u8] {
    &bytes[index(inner.start() - outer.start())..][..index(inner.len())]
}

fn part_mut(bytes: &mut [u8], outer: ByteRange, inner: ByteRange) -> &mut [u8] {
    &mut bytes[index(inner.start() - outer.start())..][..index(inner.len())]
}

/// What offsets, and what addresses, must be multiples of.
fn alignment(file: &fs::File) -> io::Result<(u64, u64)> {
    let wanted = StatxFlags::DIOALIGN;
    let known = match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted) {
        Ok(stat) if stat.stx_mask & wanted.bits() != 0 => {
            Some((stat.stx_dio_offset_align, stat.stx_dio_mem_align))
        }
        // Before Linux 6.1, or a file system that does not say.
        Ok(_) | Err(rustix::io::Errno::NOSYS) => None,
        Err(error) => return Err(error.into()),
    };
    match known {
        // No device has larger sectors.
        None => Ok((PAGE, PAGE)),
        // It says that it cannot, for this file.
        Some((0, _) | (_, 0)) => Err(unsupported()),
        Some((block, memory)) => {
            let (block, memory) = (u64::from(block), u64::from(memory));
            let powers = block.is_power_of_two() && memory.is_power_of_two();
            let handled = powers && block <= PIECE_BYTES && memory <= PAGE;
            handled.then_some((block, memory)).ok_or_else(unsupported)
        }
    }
}

fn unsupported() -> io::Error {
    let sentence = "its file system or device cannot read and write past the page cache (O_DIRECT)";
    io::Error::new(io::ErrorKind::Unsupported, sentence)
}
