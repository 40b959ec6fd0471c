//! What a device says of its ranges (NBD `base:allocation`).

use crate::ByteRange;

/// How a range is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentState {
    /// Allocated; content unknown until read.
    Data,
    /// Not allocated; reads as zeroes.
    Hole,
    /// Allocated, and known to read as zeroes.
    Zero,
}

impl ExtentState {
    /// Whether the range is known to read as zeroes without reading it.
    #[must_use]
    pub fn reads_zero(self) -> bool {
        matches!(self, Self::Hole | Self::Zero)
    }
}

/// A range in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bytes.
    pub range: ByteRange,
    /// Their state.
    pub state: ExtentState,
}

impl Extent {
    /// Appends bytes `start..end` to `extents`, joined with the last if it ends there in the same
    /// state. `false`: it would be one more than `extents_max` (at least 1), and is left out.
    pub fn append(
        extents: &mut Vec<Self>,
        state: ExtentState,
        start: u64,
        end: u64,
        extents_max: usize,
    ) -> bool {
        let last = extents.last_mut();
        if let Some(last) = last.filter(|e| e.state == state && e.range.end() == start) {
            last.range = ByteRange::new(last.range.start(), end).expect("an extent grows");
            return true;
        }
        let room = extents.len() < extents_max.max(1);
        if room {
            let range = ByteRange::new(start, end).expect("an extent goes forward");
            extents.push(Self { range, state });
        }
        room
    }
}
