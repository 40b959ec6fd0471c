//! A disk whose bytes are the bytes of a file: a raw image, or one flat extent of a VMDK.
//!
//! ```text
//!   file   |......|========= the disk =========|....|
//!          0      start                  start + size
//! ```
//!
//! Holes of the file are holes of the disk. Zeroing punches them, so trim reads as zeroes.

use std::io;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::host_file::{Done, HostFile};
use crate::{
    BlockDevice, ByteRange, Error, ErrorKind, Extent, ExtentState, Features, Fua, Hole, Op, Result,
    Speed, ZeroOptions,
};

/// A window of a file of the host, as a disk.
#[derive(Debug)]
pub(crate) struct RawDevice {
    host: Arc<HostFile>,
    start: u64,
    size: u64,
    features: Features,
}

impl RawDevice {
    /// Bytes `window` of `host`. The caller has checked that the file holds them.
    pub(crate) fn new(host: Arc<HostFile>, window: ByteRange, writable: bool) -> Self {
        // Not probed: a probe would change the file's times, by which outside changes are told.
        // Where the file system cannot punch, trim does nothing and zeroing writes zeroes.
        let features = Features {
            writable,
            trim: writable,
            fast_zero: writable,
            rotational: false,
        };
        Self {
            host,
            start: window.start(),
            size: window.len(),
            features,
        }
    }

    /// The place of a range of the disk in the file; `Err` past the end of the disk.
    fn place(&self, op: Op, range: ByteRange) -> Result<ByteRange> {
        Error::check_range(op, range, self.size)?;
        Ok(ByteRange::at(self.start + range.start(), range.len())
            .expect("the window ends below 2^63"))
    }

    fn place_for_writing(&self, op: Op, range: ByteRange) -> Result<ByteRange> {
        let place = self.place(op, range)?;
        if self.features.writable {
            Ok(place)
        } else {
            Err(Error::read_only(op, range))
        }
    }

    /// `Unsupported` if only a fast way is wanted and there is none.
    fn zero(&self, place: ByteRange, options: ZeroOptions) -> io::Result<Done> {
        let mut done = Done::Unsupported;
        if options.hole == Hole::Allowed {
            done = self.host.punch(place)?;
        }
        if done == Done::Unsupported {
            done = self.host.zero_range(place)?;
        }
        if done == Done::Unsupported && options.speed == Speed::Any {
            self.host.write_zeroes(place)?;
            done = Done::Yes;
        }
        if done == Done::Yes {
            self.host.sync_if(options.fua)?;
        }
        Ok(done)
    }

    /// The extent at `at`, an offset in the file, that ends at `end` at the latest.
    fn extent_at(&self, at: u64, end: u64) -> io::Result<(u64, ExtentState)> {
        let data = match rustix::fs::seek(&self.host, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok((end, ExtentState::Hole)),
            // The file system does not say.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((end, ExtentState::Data)),
            Err(e) => return Err(e.into()),
        };
        if data > at {
            return Ok((data.min(end), ExtentState::Hole));
        }
        let hole = match rustix::fs::seek(&self.host, SeekFrom::Hole(at)) {
            Ok(hole) => hole,
            Err(Errno::NXIO) => end,
            Err(e) => return Err(e.into()),
        };
        // A hole punched in between: data is always a truthful answer.
        let stop = if hole > at { hole.min(end) } else { end };
        Ok((stop, ExtentState::Data))
    }
}

impl BlockDevice for RawDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        self.features
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        let place = self.place(Op::Read, range)?;
        self.host
            .read_exact_at(buf, place.start())
            .map_err(|e| Error::io(Op::Read, range, e))
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        let place = self.place_for_writing(Op::Write, range)?;
        self.host
            .write_at(data, place.start(), fua)
            .map_err(|e| Error::io(Op::Write, range, e))
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let op = Op::WriteZeroes;
        let place = self.place_for_writing(op, range)?;
        match self.zero(place, options) {
            Ok(Done::Yes) => Ok(()),
            Ok(Done::Unsupported) => Err(no_fast_zero(op, range)),
            Err(e) => Err(Error::io(op, range, e)),
        }
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        let place = self.place_for_writing(Op::Trim, range)?;
        self.host
            .punch(place)
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

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        let place = self.place(Op::BlockStatus, range)?;
        let mut extents = Vec::new();
        let mut at = place.start();
        while at < place.end() && extents.len() < extents_max.max(1) {
            let (stop, state) = self
                .extent_at(at, place.end())
                .map_err(|e| Error::io(Op::BlockStatus, range, e))?;
            let range =
                ByteRange::new(at - self.start, stop - self.start).expect("extents go forward");
            extents.push(Extent { range, state });
            at = stop;
        }
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        let place = self.place(Op::Prefetch, range)?;
        self.host.will_need(place);
        Ok(())
    }
}

/// The answer to [`Speed::FastOnly`] where there is no fast way.
pub(crate) fn no_fast_zero(op: Op, range: ByteRange) -> Error {
    let sentence = "the device has no faster way to zero than to write";
    Error::because(op, range, ErrorKind::Unsupported, sentence)
}
