//! Disks one behind the other as one disk: the extents of a split VMDK.
//!
//! Zero-length requests touch no part. A request over a boundary is split; if a later piece fails,
//! the earlier ones stay, which the contract of [`BlockDevice`] allows.

use crate::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, Fua, Op, Result, ZeroOptions,
    index,
};

/// Parts, each at its start.
pub(crate) struct Concat {
    parts: Vec<(u64, Box<dyn BlockDevice>)>,
    size: u64,
    features: Features,
}

impl Concat {
    /// `None` if the sum of the sizes passes `i64`, or if there is no part.
    pub(crate) fn new(devices: Vec<Box<dyn BlockDevice>>) -> Option<Self> {
        let features = devices
            .iter()
            .map(|device| device.features())
            .reduce(|a, b| Features {
                writable: a.writable && b.writable,
                trim: a.trim || b.trim,
                fast_zero: a.fast_zero && b.fast_zero,
                rotational: a.rotational || b.rotational,
            })?;
        let mut size = 0_u64;
        let mut parts = Vec::with_capacity(devices.len());
        for device in devices {
            let start = size;
            size = size.checked_add(device.size())?;
            i64::try_from(size).ok()?;
            parts.push((start, device));
        }
        Some(Self {
            parts,
            size,
            features,
        })
    }

    /// Calls `each` with every part that `range` touches, and the piece in the part's own bytes.
    fn split(
        &self,
        op: Op,
        range: ByteRange,
        mut each: impl FnMut(&dyn BlockDevice, ByteRange) -> Result<()>,
    ) -> Result<()> {
        Error::check_range(op, range, self.size)?;
        let first = self
            .parts
            .partition_point(|(start, _)| *start <= range.start());
        for (start, device) in &self.parts[first.saturating_sub(1)..] {
            if *start >= range.end() {
                break;
            }
            let whole = ByteRange::at(*start, device.size()).expect("checked by new");
            let Some(piece) = whole.intersect(range) else {
                continue;
            };
            let own = ByteRange::at(piece.start() - start, piece.len()).expect("inside the part");
            each(device.as_ref(), own).map_err(|e| e.of_part(*start))?;
        }
        Ok(())
    }

    fn check_writable(&self, op: Op, range: ByteRange) -> Result<()> {
        Error::check_range(op, range, self.size)?;
        if self.features.writable {
            Ok(())
        } else {
            Err(Error::read_only(op, range))
        }
    }
}

impl BlockDevice for Concat {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        self.features
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        let mut rest = buf;
        self.split(Op::Read, range, |device, piece| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(index(piece.len()));
            rest = behind;
            device.read_at(part, piece.start())
        })
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        self.check_writable(Op::Write, range)?;
        let mut rest = data;
        self.split(Op::Write, range, |device, piece| {
            let (part, behind) = rest.split_at(index(piece.len()));
            rest = behind;
            device.write_at(part, piece.start(), fua)
        })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let op = Op::WriteZeroes;
        self.check_writable(op, range)?;
        // All parts lie on one file system, so the first that refuses a fast way is the first of all.
        self.split(op, range, |device, piece| {
            device.write_zeroes(piece, options)
        })
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        self.check_writable(Op::Trim, range)?;
        self.split(Op::Trim, range, |device, piece| device.trim(piece, fua))
    }

    fn flush(&self) -> Result<()> {
        let mut parts = self.parts.iter();
        parts.try_for_each(|(start, device)| device.flush().map_err(|e| e.of_part(*start)))
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        let extents_max = extents_max.max(1);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start();
        self.split(Op::BlockStatus, range, |device, piece| {
            let room = extents_max - extents.len();
            if room == 0 {
                return Ok(());
            }
            for extent in device.block_status(piece, room)? {
                let range = ByteRange::at(at, extent.range.len()).expect("inside the device");
                let state = extent.state;
                at = range.end();
                extents.push(Extent { range, state });
            }
            Ok(())
        })?;
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.split(Op::Prefetch, range, |device, piece| device.prefetch(piece))
    }
}

/// A part that has no bytes of its own and reads as zeroes.
pub(crate) struct ZeroDevice {
    size: u64,
}

impl ZeroDevice {
    pub(crate) fn new(size: u64) -> Self {
        Self { size }
    }

    fn refuse(&self, op: Op, range: ByteRange) -> Result<()> {
        Error::check_range(op, range, self.size)?;
        Err(Error::read_only(op, range))
    }
}

impl BlockDevice for ZeroDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features::READ_ONLY
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Error::check_range(Op::Read, ByteRange::of_buf(offset, buf), self.size)?;
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        self.refuse(Op::Write, ByteRange::of_buf(offset, data))
    }

    fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> Result<()> {
        self.refuse(Op::WriteZeroes, range)
    }

    fn trim(&self, range: ByteRange, _fua: Fua) -> Result<()> {
        self.refuse(Op::Trim, range)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn block_status(&self, range: ByteRange, _extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let state = ExtentState::Hole;
        let all = (!range.is_empty()).then_some(Extent { range, state });
        Ok(all.into_iter().collect())
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        Error::check_range(Op::Prefetch, range, self.size)
    }
}
