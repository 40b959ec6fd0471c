//! A memory device that can be told to misbehave: reads that wait, requests that fail or panic.

use std::sync::Arc;

use block::{
    BlockDevice, ByteRange, DirtyBitmap, DirtyExtent, Error, ErrorKind, Extent, Features, Fua, Op,
    Result, ZeroOptions,
};
use parking_lot::{Condvar, Mutex};

use super::memory::MemoryDevice;

/// Reads and writes that start here wait until the gate opens.
pub(crate) const GATED: u64 = 32 << 20;
/// Requests that start here fail.
pub(crate) const FAILING: u64 = 33 << 20;
/// Requests that start here panic.
pub(crate) const PANICKING: u64 = 34 << 20;
/// Writes that start here find no space.
pub(crate) const FULL: u64 = 35 << 20;

pub(crate) struct GatedDevice {
    pub(crate) memory: MemoryDevice,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    open: bool,
    waiting: usize,
    most: usize,
}

impl GatedDevice {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            memory: MemoryDevice::new(size),
            gate: Arc::default(),
        }
    }

    pub(crate) fn open_gate(&self) {
        self.gate.0.lock().open = true;
        self.gate.1.notify_all();
    }

    /// Returns when `count` requests wait at the gate.
    pub(crate) fn await_waiting(&self, count: usize) {
        let mut gate = self.gate.0.lock();
        while gate.waiting < count {
            let waited = self.gate.1.wait_for(&mut gate, super::client::PATIENCE);
            assert!(
                !waited.timed_out(),
                "{} of {count} requests wait",
                gate.waiting
            );
        }
    }

    /// The most requests that waited at once.
    pub(crate) fn most_waiting(&self) -> usize {
        self.gate.0.lock().most
    }

    fn pass(&self, op: Op, offset: u64) -> Result<()> {
        let range = ByteRange::at(offset, 0).expect("in range");
        let fail = |kind| Err(Error::because(op, range, kind, "told to"));
        match offset {
            GATED => self.wait(),
            FAILING => return fail(ErrorKind::Io),
            FULL if op == Op::Write => return fail(ErrorKind::Full),
            PANICKING => panic!("told to"),
            _ => {}
        }
        Ok(())
    }

    fn wait(&self) {
        let mut gate = self.gate.0.lock();
        gate.waiting += 1;
        gate.most = gate.most.max(gate.waiting);
        self.gate.1.notify_all();
        while !gate.open {
            self.gate.1.wait(&mut gate);
        }
        gate.waiting -= 1;
    }
}

impl BlockDevice for GatedDevice {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn features(&self) -> Features {
        self.memory.features()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.pass(Op::Read, offset)?;
        self.memory.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        self.pass(Op::Write, offset)?;
        self.memory.write_at(data, offset, fua)
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.memory.write_zeroes(range, options)
    }

    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        self.memory.trim(range, fua)
    }

    fn flush(&self) -> Result<()> {
        self.memory.flush()
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        self.memory.block_status(range, extents_max)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.memory.prefetch(range)
    }
}

impl DirtyBitmap for GatedDevice {
    fn dirty_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<DirtyExtent>> {
        self.memory.dirty_status(range, extents_max)
    }
}
