//! A disk that a test watches.

use std::sync::Arc;

use block::{BlockDevice, ByteRange, Extent, Features, Fua, Result, ZeroOptions};

type OnWrite = Box<dyn Fn(ByteRange) -> Result<()> + Send + Sync>;

/// Calls what is set; an error of `after_write` is the write's, which is done all the same.
pub struct Watched {
    pub disk: Arc<dyn BlockDevice>,
    pub after_write: OnWrite,
    pub before_flush: Box<dyn Fn() + Send + Sync>,
}

impl Watched {
    pub fn new(disk: Arc<dyn BlockDevice>) -> Self {
        Self {
            disk,
            after_write: Box::new(|_| Ok(())),
            before_flush: Box::new(|| ()),
        }
    }
}

impl BlockDevice for Watched {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn features(&self) -> Features {
        self.disk.features()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        self.disk.write_at(data, offset, fua)?;
        (self.after_write)(ByteRange::of_buf(offset, data))
    }
    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.disk.write_zeroes(range, options)
    }
    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        self.disk.trim(range, fua)
    }
    fn flush(&self) -> Result<()> {
        (self.before_flush)();
        self.disk.flush()
    }
    fn block_status(&self, range: ByteRange, max: usize) -> Result<Vec<Extent>> {
        self.disk.block_status(range, max)
    }
    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.disk.prefetch(range)
    }
}
