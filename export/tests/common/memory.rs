//! A sparse disk in memory that remembers what was written: the exports' test device.

use std::sync::atomic::{AtomicU64, Ordering};

use block::{
    BlockDevice, ByteRange, DirtyBitmap, DirtyExtent, Error, ErrorKind, Extent, ExtentState,
    Features, Fua, Op, Result, Speed, ZeroOptions, index,
};
use parking_lot::RwLock;

const PAGE: u64 = 64 << 10;

struct Page {
    bytes: Option<Box<[u8]>>,
    dirty: bool,
}

/// A disk in memory. Holes are pages of 64 KiB that were never written, or zeroed or trimmed whole.
pub(crate) struct MemoryDevice {
    pages: Vec<RwLock<Page>>,
    size: u64,
    writable: bool,
    flushes: AtomicU64,
}

impl MemoryDevice {
    pub(crate) fn new(size: u64) -> Self {
        let page = || {
            RwLock::new(Page {
                bytes: None,
                dirty: false,
            })
        };
        Self {
            pages: (0..size.div_ceil(PAGE)).map(|_| page()).collect(),
            size,
            writable: true,
            flushes: AtomicU64::new(0),
        }
    }

    #[allow(dead_code, reason = "not every test wants one")]
    pub(crate) fn read_only(size: u64) -> Self {
        Self {
            writable: false,
            ..Self::new(size)
        }
    }

    #[allow(dead_code, reason = "not every test counts")]
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    /// The page, and the part of it, of every page that `range` touches.
    fn parts(range: ByteRange) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut at = range.start();
        std::iter::from_fn(move || {
            (at < range.end()).then(|| {
                let page = at / PAGE;
                let end = range.end().min((page + 1) * PAGE);
                let part = (index(page), index(at % PAGE), index(end - page * PAGE));
                at = end;
                part
            })
        })
    }

    fn check_write(&self, op: Op, range: ByteRange) -> Result<()> {
        if !self.writable {
            return Err(Error::read_only(op, range));
        }
        Error::check_range(op, range, self.size)
    }

    fn runs(
        &self,
        range: ByteRange,
        max: usize,
        is: impl Fn(&Page) -> bool,
    ) -> Vec<(ByteRange, bool)> {
        let mut runs: Vec<(ByteRange, bool)> = Vec::new();
        for (page, from, to) in Self::parts(range) {
            let full = runs.len() == max;
            let start = page as u64 * PAGE + from as u64;
            let end = page as u64 * PAGE + to as u64;
            let state = is(&self.pages[page].read());
            match runs.last_mut() {
                Some((run, same)) if *same == state => {
                    *run = ByteRange::new(run.start(), end).expect("ordered");
                }
                _ if full => break,
                _ => runs.push((ByteRange::new(start, end).expect("ordered"), state)),
            }
        }
        runs
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features {
            writable: self.writable,
            trim: self.writable,
            fast_zero: self.writable,
            rotational: false,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        Error::check_range(Op::Read, range, self.size)?;
        let mut rest = buf;
        for (page, from, to) in Self::parts(range) {
            let (part, behind) = rest.split_at_mut(to - from);
            rest = behind;
            match &self.pages[page].read().bytes {
                Some(bytes) => part.copy_from_slice(&bytes[from..to]),
                None => part.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        self.check_write(Op::Write, range)?;
        let mut rest = data;
        for (page, from, to) in Self::parts(range) {
            let (part, behind) = rest.split_at(to - from);
            rest = behind;
            let mut page = self.pages[page].write();
            page.dirty = true;
            let bytes = (page.bytes).get_or_insert_with(|| vec![0; index(PAGE)].into());
            bytes[from..to].copy_from_slice(part);
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.check_write(Op::WriteZeroes, range)?;
        let whole = range.start().is_multiple_of(PAGE) && range.end().is_multiple_of(PAGE);
        if options.speed == Speed::FastOnly && !whole {
            let sentence = "only whole pages are zeroed fast";
            let kind = ErrorKind::Unsupported;
            return Err(Error::because(Op::WriteZeroes, range, kind, sentence));
        }
        for (page, from, to) in Self::parts(range) {
            let mut page = self.pages[page].write();
            page.dirty = true;
            let keep = options.hole == block::Hole::Forbidden;
            if to - from == index(PAGE) && !keep {
                page.bytes = None;
            } else {
                let bytes = (page.bytes).get_or_insert_with(|| vec![0; index(PAGE)].into());
                bytes[from..to].fill(0);
            }
        }
        Ok(())
    }

    fn trim(&self, range: ByteRange, _fua: Fua) -> Result<()> {
        self.check_write(Op::Trim, range)?;
        for (page, from, to) in Self::parts(range) {
            if to - from == index(PAGE) {
                let mut page = self.pages[page].write();
                page.dirty = true;
                page.bytes = None;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let runs = self.runs(range, extents_max, |page| page.bytes.is_some());
        let extent = |(range, data)| Extent {
            range,
            state: if data {
                ExtentState::Data
            } else {
                ExtentState::Hole
            },
        };
        Ok(runs.into_iter().map(extent).collect())
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        Error::check_range(Op::Prefetch, range, self.size)
    }
}

impl DirtyBitmap for MemoryDevice {
    fn dirty_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<DirtyExtent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let runs = self.runs(range, extents_max, |page| page.dirty);
        let extent = |(range, dirty)| DirtyExtent { range, dirty };
        Ok(runs.into_iter().map(extent).collect())
    }
}
