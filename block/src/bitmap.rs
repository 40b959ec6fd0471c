//! A map of written ranges that an export can show (NBD `qemu:dirty-bitmap:NAME`).

use crate::{ByteRange, Result};

/// A range that was, or was not, written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyExtent {
    /// The bytes.
    pub range: ByteRange,
    /// Whether any of them may have been written.
    pub dirty: bool,
}

/// Which ranges of a device were written since some named moment.
pub trait DirtyBitmap: Send + Sync {
    /// Extents that start at `range.start()`, follow each other without a gap and together cover
    /// a prefix of `range`: all of it unless that takes more than `extents_max` (at least 1).
    ///
    /// # Errors
    /// As [`BlockDevice::read_at`](crate::BlockDevice::read_at).
    fn dirty_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<DirtyExtent>>;
}
