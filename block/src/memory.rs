//! A disk in memory, for tests and benchmarks. Nothing survives the process, so flush has nothing
//! to do. Memory is taken as it is written, in pages of 64 KiB.

use std::sync::{PoisonError, RwLock};

use crate::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, Fua, Hole, Op, Result,
    ZeroOptions, index,
};

/// A disk in memory.
pub struct MemoryDevice {
    size: u64,
    pages: Vec<RwLock<Page>>,
}

/// `None`: a hole.
type Page = Option<Box<[u8]>>;

const PAGE: u64 = 64 << 10;

impl MemoryDevice {
    /// A disk of `size` bytes, all a hole.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let pages = (0..size.div_ceil(PAGE))
            .map(|_| RwLock::new(None))
            .collect();
        Self { size, pages }
    }

    /// Calls `each` with every page that `range` touches: its lock, and the bytes in it.
    fn each_page(&self, range: ByteRange, mut each: impl FnMut(&RwLock<Page>, ByteRange)) {
        let mut at = range.start();
        while at < range.end() {
            let page = at / PAGE;
            let stop = ((page + 1) * PAGE).min(range.end());
            let within = ByteRange::at(at % PAGE, stop - at).expect("inside a page");
            each(&self.pages[index(page)], within);
            at = stop;
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features {
            writable: true,
            trim: true,
            fast_zero: true,
            rotational: false,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        Error::check_range(Op::Read, range, self.size)?;
        let mut rest = buf;
        self.each_page(range, |page, within| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(index(within.len()));
            rest = behind;
            let page = page.read().unwrap_or_else(PoisonError::into_inner);
            match page.as_deref() {
                Some(bytes) => part.copy_from_slice(&bytes[span(within)]),
                None => part.fill(0),
            }
        });
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        Error::check_range(Op::Write, range, self.size)?;
        let mut rest = data;
        self.each_page(range, |page, within| {
            let (part, behind) = rest.split_at(index(within.len()));
            rest = behind;
            let mut page = page.write().unwrap_or_else(PoisonError::into_inner);
            let bytes = page.get_or_insert_with(|| vec![0; index(PAGE)].into());
            bytes[span(within)].copy_from_slice(part);
        });
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        Error::check_range(Op::WriteZeroes, range, self.size)?;
        self.each_page(range, |page, within| {
            let mut page = page.write().unwrap_or_else(PoisonError::into_inner);
            if options.hole == Hole::Forbidden {
                page.get_or_insert_with(|| vec![0; index(PAGE)].into());
            } else if within.len() == PAGE {
                *page = None;
            }
            if let Some(bytes) = page.as_deref_mut() {
                bytes[span(within)].fill(0);
            }
        });
        Ok(())
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        Error::check_range(Op::Trim, range, self.size)?;
        let options = ZeroOptions {
            fua,
            ..ZeroOptions::RELAXED
        };
        self.write_zeroes(range, options)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let page = &self.pages[index(at / PAGE)];
            let stop = ((at / PAGE + 1) * PAGE).min(range.end());
            let is_hole = page
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .is_none();
            let state = if is_hole {
                ExtentState::Hole
            } else {
                ExtentState::Data
            };
            if !Extent::append(&mut extents, state, at, stop, extents_max) {
                break;
            }
            at = stop;
        }
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        Error::check_range(Op::Prefetch, range, self.size)
    }
}

fn span(within: ByteRange) -> std::ops::Range<usize> {
    index(within.start())..index(within.end())
}
