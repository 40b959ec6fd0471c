//! A production disk on a simulated file.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, File, Fua, Op, Result, Speed,
    ZeroOptions,
};

/// A disk whose bytes are a simulated file: it is killed, torn and cut with its world. After a failed
/// sync it takes no write and no flush until it is opened again, as production backends do.
pub struct SimDisk {
    file: Arc<dyn File>,
    size: u64,
    latched: AtomicBool,
}

impl SimDisk {
    /// A disk of the file's length.
    ///
    /// # Errors
    /// If the world has ended.
    pub fn new(file: Arc<dyn File>) -> std::io::Result<Self> {
        let size = file.len()?;
        let latched = AtomicBool::new(false);
        Ok(Self {
            file,
            size,
            latched,
        })
    }

    fn settle(&self, op: Op, range: ByteRange, fua: Fua) -> Result<()> {
        match fua {
            Fua::Yes => self.sync(op, range),
            Fua::No => Ok(()),
        }
    }

    fn sync(&self, op: Op, range: ByteRange) -> Result<()> {
        self.check(op, range)?;
        self.file.sync_data().map_err(|e| {
            self.latched.store(true, Ordering::Release);
            Error::io(op, range, e)
        })
    }

    fn check(&self, op: Op, range: ByteRange) -> Result<()> {
        match self.latched.load(Ordering::Acquire) {
            true => Err(Error::io(
                op,
                range,
                io::Error::other("an earlier sync failed"),
            )),
            false => Ok(()),
        }
    }
}

impl BlockDevice for SimDisk {
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
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| Error::io(Op::Read, range, e))
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        Error::check_range(Op::Write, range, self.size)?;
        self.check(Op::Write, range)?;
        self.file
            .write_all_at(data, offset)
            .map_err(|e| Error::io(Op::Write, range, e))?;
        self.settle(Op::Write, range, fua)
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        Error::check_range(Op::WriteZeroes, range, self.size)?;
        self.check(Op::WriteZeroes, range)?;
        let ZeroOptions {
            fua,
            hole: _,
            speed: Speed::Any | Speed::FastOnly,
        } = options;
        self.file
            .punch_hole(range)
            .map_err(|e| Error::io(Op::WriteZeroes, range, e))?;
        self.settle(Op::WriteZeroes, range, fua)
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        Error::check_range(Op::Trim, range, self.size)?;
        self.check(Op::Trim, range)?;
        self.file
            .punch_hole(range)
            .map_err(|e| Error::io(Op::Trim, range, e))?;
        self.settle(Op::Trim, range, fua)
    }

    fn flush(&self) -> Result<()> {
        let all = ByteRange::at(0, self.size).expect("starts at zero");
        self.sync(Op::Flush, all)
    }

    fn block_status(&self, range: ByteRange, _extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let data = Extent {
            range,
            state: ExtentState::Data,
        };
        Ok(if range.is_empty() {
            Vec::new()
        } else {
            vec![data]
        })
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        Error::check_range(Op::Prefetch, range, self.size)
    }
}
