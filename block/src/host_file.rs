//! What the file backends share: an open file or block device of the host, read and written through the page cache
//! or past it, with holes, one sync at a time and a latch.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::direct::Direct;
use crate::group_sync::{GroupSync, Latch};
use crate::os_dir::file_error;
use crate::{ByteRange, Fua, index};

/// An open file of the host. Its locks, if any, go with it.
#[derive(Debug)]
pub(crate) struct HostFile {
    file: fs::File,
    /// What reads and writes, where they go past the page cache.
    direct: Option<Direct>,
    path: PathBuf,
    syncs: GroupSync,
}

/// Whether the host could do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Yes,
    /// The file system or device cannot; nothing changed.
    Unsupported,
}

/// Zeroes to write where the host has no faster way.
static ZEROES: Zeroes = Zeroes([0; ZEROES_BYTES]);
const ZEROES_BYTES: usize = 256 << 10;

/// At a page, so that they need not be copied to be written past the page cache.
#[repr(align(4096))]
struct Zeroes([u8; ZEROES_BYTES]);

/// Most bytes of one `pwrite`. The kernel takes folios as large as the write, and one of a mebibyte
/// comes from blocks of memory that nobody used lately. On a virtual machine that returns such blocks to
/// its host each page of it then faults in the host: 1 MiB pieces into a new file went at 0.45 GB/s,
/// 256 KiB pieces at 2.4, 64 KiB pieces at 2.0; into a file whose pages are there all are the same.
const PIECE_BYTES: usize = 256 << 10;

/// Writes all of `data` through the page cache.
#[inline]
pub(crate) fn write_in_pieces(file: &fs::File, data: &[u8], offset: u64) -> io::Result<()> {
    if data.len() <= PIECE_BYTES {
        return file.write_all_at(data, offset);
    }
    write_pieces(file, data, offset)
}

fn write_pieces(file: &fs::File, data: &[u8], offset: u64) -> io::Result<()> {
    let mut at = offset;
    for piece in data.chunks(PIECE_BYTES) {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

impl HostFile {
    /// `latch` is shared by all files of a device.
    pub(crate) fn new(file: fs::File, path: PathBuf, latch: Arc<Latch>) -> Self {
        let syncs = GroupSync::new(latch);
        Self {
            file,
            direct: None,
            path,
            syncs,
        }
    }

    /// From here on past the page cache.
    ///
    /// # Errors
    /// `Unsupported` where it cannot be; the operating system's.
    pub(crate) fn bypass_cache(&mut self, writable: bool) -> io::Result<()> {
        // The length of files and of block devices alike.
        let len = rustix::fs::seek(&self.file, SeekFrom::End(0))?;
        self.direct = Some(Direct::open(&self.file, len, writable)?);
        Ok(())
    }

    pub(crate) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = match &self.direct {
            None => self.file.read_exact_at(buf, offset),
            Some(direct) => direct.read_exact_at(&self.file, buf, offset),
        };
        self.named("read", read)
    }

    pub(crate) fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> io::Result<()> {
        self.syncs.latch().check()?;
        let written = match &self.direct {
            None => write_in_pieces(&self.file, data, offset),
            Some(direct) => direct.write_all_at(&self.file, data, offset),
        };
        self.named("write", written)?;
        self.sync_if(fua)
    }

    /// Makes `range` read as zeroes and frees its space.
    pub(crate) fn punch(&self, range: ByteRange) -> io::Result<Done> {
        self.zero(FallocateFlags::PUNCH_HOLE, range)
    }

    /// Makes `range` read as zeroes and keeps (or makes) it allocated.
    pub(crate) fn zero_range(&self, range: ByteRange) -> io::Result<Done> {
        self.zero(FallocateFlags::ZERO_RANGE, range)
    }

    /// Writes zeroes over `range`.
    pub(crate) fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let n = (range.end() - at).min(ZEROES_BYTES as u64);
            self.write_at(&ZEROES.0[..index(n)], at, Fua::No)?;
            at += n;
        }
        Ok(())
    }

    /// Makes everything durable that was written before.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.syncs.run(|| self.named("sync", self.file.sync_data()))
    }

    pub(crate) fn sync_if(&self, fua: Fua) -> io::Result<()> {
        match fua {
            Fua::Yes => self.sync(),
            Fua::No => Ok(()),
        }
    }

    /// Starts to read `range` into the page cache, if it is used. A hint: failure means nothing.
    pub(crate) fn will_need(&self, range: ByteRange) {
        if self.direct.is_some() {
            return;
        }
        if let Some(len) = NonZeroU64::new(range.len()) {
            let _ = rustix::fs::fadvise(&self.file, range.start(), Some(len), Advice::WillNeed);
        }
    }

    fn zero(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<Done> {
        let Some(direct) = &self.direct else {
            return self.fallocate(flags, range);
        };
        let blocks = direct.blocks_covered(range);
        let zeroed = direct.change_whole(blocks, |piece| self.fallocate(flags, piece))?;
        if zeroed == Done::Yes {
            self.write_edges(range, blocks)?;
        }
        Ok(zeroed)
    }

    /// Writes zeroes over what of `range` is not `middle`.
    pub(crate) fn write_edges(&self, range: ByteRange, middle: ByteRange) -> io::Result<()> {
        let before = ByteRange::new(range.start(), middle.start());
        let behind = ByteRange::new(middle.end(), range.end());
        for edge in [before, behind].into_iter().flatten() {
            self.write_zeroes(edge)?;
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<Done> {
        self.syncs.latch().check()?;
        if range.is_empty() {
            return Ok(Done::Yes);
        }
        let flags = flags | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, flags, range.start(), range.len()) {
                Ok(()) => return Ok(Done::Yes),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Done::Unsupported),
                Err(e) => return self.named("zero", Err(e)),
            }
        }
    }

    fn named<T>(
        &self,
        verb: &'static str,
        result: Result<T, impl Into<io::Error>>,
    ) -> io::Result<T> {
        result.map_err(|e| file_error(verb, &self.path, e))
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
