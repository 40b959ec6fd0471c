//! An open file of a device.

use std::io;
use std::sync::Arc;

use super::disk::Disk;
use super::extents::Run;
use super::inode::{Alone, Inode};
use super::layout::{LEN_MAX, PAGE};
use super::unsupported;
use crate::{ByteRange, File, PageBuf, SharedWords, index};

/// A handle of a file. All go through one of the device.
pub(super) struct DeviceFile {
    disk: Arc<Disk>,
    inode: Arc<Inode>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Through,
    Past,
}

impl DeviceFile {
    pub(super) fn new(disk: Arc<Disk>, inode: Arc<Inode>) -> Self {
        Self { disk, inode }
    }

    fn write(&self, data: &[u8], offset: u64, cache: Cache) -> io::Result<()> {
        let range = ByteRange::at(offset, data.len() as u64);
        let range = range.filter(|range| range.end() <= LEN_MAX);
        let range = range.ok_or(io::ErrorKind::FileTooLarge)?;
        if range.is_empty() {
            return Ok(());
        }
        self.write_alone(&mut self.inode.alone(), data, range, cache)
    }

    fn write_alone(
        &self,
        alone: &mut Alone<'_>,
        data: &[u8],
        range: ByteRange,
        cache: Cache,
    ) -> io::Result<()> {
        let pages = whole_pages_around(range);
        let around;
        let bytes = if pages == range {
            data
        } else {
            around = self.with_edges(data, range, pages)?;
            &around[..]
        };
        self.inode.write(alone, pages, range.end(), |run| {
            let bytes =
                &bytes[index(run.range.start() - pages.start())..][..index(run.range.len())];
            let at = run.at.expect("it was reserved");
            match cache {
                Cache::Through => self.disk.device.write_all_at(bytes, at),
                Cache::Past => self.disk.device.write_past_cache(bytes, at),
            }
        })
    }

    /// Whole pages: what is written, and around it what was there.
    fn with_edges(&self, data: &[u8], range: ByteRange, pages: ByteRange) -> io::Result<PageBuf> {
        let mut bytes = PageBuf::zeroed(index(pages.len()));
        let known = ByteRange::new(pages.start(), pages.end().min(self.inode.len()));
        if let Some(known) = known {
            self.read(&mut bytes[..index(known.len())], known)?;
        }
        bytes[index(range.start() - pages.start())..][..data.len()].copy_from_slice(data);
        Ok(bytes)
    }

    /// Makes `range` read as zeroes; the length stays.
    fn forget(&self, alone: &mut Alone<'_>, range: ByteRange) -> io::Result<()> {
        let len = self.inode.len();
        let end = range.end().min(len);
        if range.start() >= end {
            return Ok(());
        }
        let start = range.start().next_multiple_of(PAGE);
        // The last page of the file may end past it.
        let stop = if end == len {
            end.next_multiple_of(PAGE)
        } else {
            end / PAGE * PAGE
        };
        let Some(pages) = ByteRange::new(start, stop) else {
            // Inside one page.
            return self.zero(alone, range.start(), end);
        };
        self.zero(alone, range.start(), start.min(end))?;
        self.inode.forget(alone, pages)?;
        self.zero(alone, stop, end)
    }

    /// Writes zeroes over a part of a page, if it has anything else.
    fn zero(&self, alone: &mut Alone<'_>, start: u64, end: u64) -> io::Result<()> {
        match ByteRange::new(start, end) {
            Some(part) if !self.inode.written(part).is_empty() => {
                let zeroes = vec![0; index(part.len())];
                self.write_alone(alone, &zeroes, part, Cache::Through)
            }
            _ => Ok(()),
        }
    }

    fn read(&self, buf: &mut [u8], range: ByteRange) -> io::Result<()> {
        self.inode.read(range, |Run { range: part, at }| {
            let buf = &mut buf[index(part.start() - range.start())..][..index(part.len())];
            match at {
                None => {
                    buf.fill(0);
                    Ok(())
                }
                Some(at) => self.disk.device.read_exact_at(buf, at),
            }
        })
    }

    fn each_place(
        &self,
        range: ByteRange,
        each: impl Fn(ByteRange) -> io::Result<()>,
    ) -> io::Result<()> {
        self.inode.written(range).into_iter().try_for_each(each)
    }
}

impl File for DeviceFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inode.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > LEN_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut alone = self.inode.alone();
        if let Some(past) = ByteRange::new(len, self.inode.len()) {
            self.forget(&mut alone, past)?;
        }
        self.inode.set_len(&mut alone, len)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = ByteRange::at(offset, buf.len() as u64);
        self.read(buf, range.ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write(data, offset, Cache::Through)
    }

    fn write_past_cache(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write(data, offset, Cache::Past)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<()> {
        self.forget(&mut self.inode.alone(), range)
    }

    fn is_cached(&self, range: ByteRange) -> io::Result<bool> {
        for place in self.inode.written(range) {
            if self.disk.device.is_cached(place)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn sync_data(&self) -> io::Result<()> {
        // One device: bytes and records alike.
        self.inode.sync()
    }

    fn start_writeback(&self, range: ByteRange) -> io::Result<()> {
        self.each_place(range, |place| self.disk.device.start_writeback(place))
    }

    fn fetch(&self, range: ByteRange) -> io::Result<()> {
        self.each_place(range, |place| self.disk.device.fetch(place))
    }

    fn let_go(&self, range: ByteRange) -> io::Result<()> {
        self.each_place(range, |place| self.disk.device.let_go(place))
    }

    fn check_writeback(&self) -> io::Result<()> {
        self.inode.check_writeback()
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.inode.allocated())
    }

    fn allocate(&self, _range: ByteRange) -> io::Result<()> {
        Err(unsupported("a file on a device reserves no space"))
    }

    fn map(&self, _len: u64) -> io::Result<Arc<dyn SharedWords>> {
        Err(unsupported("a file on a device cannot be mapped"))
    }
}

fn whole_pages_around(range: ByteRange) -> ByteRange {
    let start = range.start() / PAGE * PAGE;
    ByteRange::new(start, range.end().next_multiple_of(PAGE)).expect("grown")
}
