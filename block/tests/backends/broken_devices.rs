//! The suite has teeth: each of these devices breaks one sentence of the contract and is caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{
    BlockDevice, ByteRange, Extent, ExtentState, Features, Fua, GRANULE, MemoryDevice, Result,
    ZeroOptions, conformance,
};

/// How a device is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Loses the last byte of an unaligned write.
    ShortWrite,
    /// Writes one byte too many.
    LongWrite,
    /// Zeroes whole granules only.
    CoarseZero,
    /// Trimmed bytes read differently each time.
    UnstableTrim,
    /// Calls everything a hole.
    AllHoles,
    /// Leaves out the end.
    ShortStatus,
    /// Writes what fits of a request past the end.
    PartPastTheEnd,
    /// Completes granules without a lock.
    UnlockedEdges,
}

struct Broken {
    inner: MemoryDevice,
    fault: Fault,
    reads: AtomicU64,
    trimmed: AtomicU64,
}

impl BlockDevice for Broken {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)?;
        let trimmed = self.trimmed.load(Ordering::Relaxed);
        let place = trimmed
            .checked_sub(offset)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = place.and_then(|at| buf.get_mut(at)) {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed);
            *byte = reads.to_le_bytes()[0];
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        match self.fault {
            Fault::ShortWrite if !end.is_multiple_of(GRANULE) && !data.is_empty() => {
                self.inner.write_at(&data[..data.len() - 1], offset, fua)
            }
            Fault::LongWrite if end < self.size() => {
                let mut longer = data.to_vec();
                longer.push(0x77);
                self.inner.write_at(&longer, offset, fua)
            }
            Fault::PartPastTheEnd if end > self.size() && offset < self.size() => {
                let fits = usize::try_from(self.size() - offset).expect("small");
                let part = vec![0x66; fits];
                self.inner.write_at(&part, offset, fua)?;
                self.inner.write_at(data, offset, fua)
            }
            Fault::UnlockedEdges if !data.is_empty() && end <= self.size() => {
                let range = ByteRange::of_buf(offset, data);
                let whole = range.granules_touched().bytes(self.size());
                let mut bytes = vec![0; usize::try_from(whole.len()).expect("small")];
                self.inner.read_at(&mut bytes, whole.start())?;
                std::thread::yield_now();
                let at = usize::try_from(offset - whole.start()).expect("small");
                bytes[at..at + data.len()].copy_from_slice(data);
                self.inner.write_at(&bytes, whole.start(), fua)
            }
            _ => self.inner.write_at(data, offset, fua),
        }
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let range = match self.fault {
            Fault::CoarseZero if range.end() <= self.size() => {
                range.granules_covered().bytes(self.size())
            }
            _ => range,
        };
        self.inner.write_zeroes(range, options)
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        if self.fault == Fault::UnstableTrim && !range.is_empty() {
            self.trimmed.store(range.start(), Ordering::Relaxed);
        }
        self.inner.trim(range, fua)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        let mut extents = self.inner.block_status(range, extents_max)?;
        match self.fault {
            Fault::AllHoles => extents.iter_mut().for_each(|e| e.state = ExtentState::Hole),
            Fault::ShortStatus if extents.len() > 1 => drop(extents.pop()),
            _ => {}
        }
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.inner.prefetch(range)
    }
}

fn passes(fault: Fault) -> bool {
    let make = || {
        let broken = Broken {
            inner: MemoryDevice::new((1 << 20) + 512),
            fault,
            reads: AtomicU64::new(0),
            trimmed: AtomicU64::new(u64::MAX),
        };
        (Arc::new(broken) as Arc<dyn BlockDevice>, ())
    };
    catch_unwind(AssertUnwindSafe(|| conformance::check(make))).is_ok()
}

#[test]
fn the_suite_catches_every_broken_device() {
    assert!(passes(Fault::None), "the unbroken one passes");
    for fault in [
        Fault::ShortWrite,
        Fault::LongWrite,
        Fault::CoarseZero,
        Fault::UnstableTrim,
        Fault::AllHoles,
        Fault::ShortStatus,
        Fault::PartPastTheEnd,
        Fault::UnlockedEdges,
    ] {
        assert!(!passes(fault), "{fault:?} was not caught");
    }
}
