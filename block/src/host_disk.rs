//! A block device of the host (`/dev/sdb`, a loop device, a logical volume) as a disk.
//!
//! Zeroing goes to the device for whole pages and is written at the edges:
//!
//! ```text
//!   range            |..==============================....|
//!   written zeroes   |--|                             |---|
//!   fallocate           |-----------------------------|
//! ```
//!
//! Rule: trim zeroes. A discard may leave bytes that read differently each time, and then no copy
//! of the disk could be said to equal it.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::fs::SeekFrom;

use crate::host_file::{Done, HostFile};
use crate::raw::no_fast_zero;
use crate::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, Fua, Hole, Op, Result, Speed,
    ZeroOptions,
};

/// Zeroing by the device is asked for in whole pages of the page cache, which are also whole
/// sectors on every device.
const PAGE: u64 = 4096;

/// A block device of the host.
#[derive(Debug)]
pub(crate) struct HostDisk {
    host: HostFile,
    size: u64,
    /// Whether the device zeroes by itself, or the kernel would have to write zeroes.
    zeroes_itself: bool,
    features: Features,
}

impl HostDisk {
    pub(crate) fn new(host: HostFile, rdev: u64, writable: bool) -> io::Result<Self> {
        let size = rustix::fs::seek(&host, SeekFrom::End(0))?;
        let queue = Queue::of(rdev);
        let zeroes_itself = queue.number("write_zeroes_max_bytes").unwrap_or(0) > 0;
        let features = Features {
            writable,
            trim: writable && zeroes_itself,
            fast_zero: writable && zeroes_itself,
            rotational: queue.number("rotational") == Some(1),
        };
        Ok(Self {
            host,
            size,
            zeroes_itself,
            features,
        })
    }

    fn check_writable(&self, op: Op, range: ByteRange) -> Result<()> {
        Error::check_range(op, range, self.size)?;
        if self.features.writable {
            Ok(())
        } else {
            Err(Error::read_only(op, range))
        }
    }

    fn zero(&self, range: ByteRange, options: ZeroOptions) -> io::Result<Done> {
        if options.speed == Speed::FastOnly && !self.zeroes_itself {
            return Ok(Done::Unsupported);
        }
        let pages = whole_pages(range);
        let mut done = Done::Unsupported;
        if options.hole == Hole::Allowed {
            done = self.host.punch(pages)?;
        }
        if done == Done::Unsupported {
            // The kernel writes zeroes where the device cannot.
            done = self.host.zero_range(pages)?;
        }
        if done == Done::Unsupported {
            if options.speed == Speed::FastOnly {
                return Ok(Done::Unsupported);
            }
            self.host.write_zeroes(pages)?;
        }
        self.host.write_edges(range, pages)?;
        self.host.sync_if(options.fua)?;
        Ok(Done::Yes)
    }
}

impl BlockDevice for HostDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        self.features
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        Error::check_range(Op::Read, range, self.size)?;
        self.host
            .read_exact_at(buf, offset)
            .map_err(|e| Error::io(Op::Read, range, e))
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        self.check_writable(Op::Write, range)?;
        self.host
            .write_at(data, offset, fua)
            .map_err(|e| Error::io(Op::Write, range, e))
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let op = Op::WriteZeroes;
        self.check_writable(op, range)?;
        match self.zero(range, options) {
            Ok(Done::Yes) => Ok(()),
            Ok(Done::Unsupported) => Err(no_fast_zero(op, range)),
            Err(e) => Err(Error::io(op, range, e)),
        }
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        self.check_writable(Op::Trim, range)?;
        self.host
            .punch(whole_pages(range))
            .and_then(|_ignored_where_unsupported| self.host.sync_if(fua))
            .map_err(|e| Error::io(Op::Trim, range, e))
    }

    fn flush(&self) -> Result<()> {
        if !self.features.writable {
            return Ok(());
        }
        let all = ByteRange::at(0, self.size).expect("from zero");
        self.host.sync().map_err(|e| Error::io(Op::Flush, all, e))
    }

    fn block_status(&self, range: ByteRange, _extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let state = ExtentState::Data;
        let all = (!range.is_empty()).then_some(Extent { range, state });
        Ok(all.into_iter().collect())
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        Error::check_range(Op::Prefetch, range, self.size)?;
        self.host.will_need(range);
        Ok(())
    }
}

/// The pages that lie wholly inside `range`; empty, at its end, if none does.
fn whole_pages(range: ByteRange) -> ByteRange {
    let start = range.start().next_multiple_of(PAGE).min(range.end());
    let end = (range.end() / PAGE * PAGE).max(start);
    ByteRange::new(start, end).expect("ordered by max")
}

/// What the kernel says of a device's request queue.
struct Queue {
    dir: PathBuf,
}

impl Queue {
    fn of(rdev: u64) -> Self {
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let own = device.join("queue");
        // A partition shares its disk's queue.
        let dir = if own.is_dir() {
            own
        } else {
            device.join("../queue")
        };
        Self { dir }
    }

    fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_zeroed_by_the_device() {
        let pages = |start, end| {
            let pages = whole_pages(ByteRange::new(start, end).expect("ordered"));
            (pages.start(), pages.end())
        };
        assert_eq!(pages(0, 8192), (0, 8192));
        assert_eq!(pages(512, 8193), (4096, 8192));
        assert_eq!(pages(512, 4096), (4096, 4096));
        assert_eq!(
            pages(512, 1024),
            (1024, 1024),
            "the edge before is all of it"
        );
        assert_eq!(pages(4097, 8191), (8191, 8191));
    }
}
