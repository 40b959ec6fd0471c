//! Half-open byte ranges and the granules they touch.

use std::fmt;

/// The unit of tracking and of deduplication, in bytes: one chunk, one bit of a dirty map.
pub const GRANULE: u64 = 4096;

/// The smallest unit a guest addresses, in bytes. Every device size is a multiple of it.
pub const SECTOR: u64 = 512;

/// A byte count or position as an index into memory. Lossless: only 64-bit machines are supported.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the assertion below is the check"
)]
pub const fn index(bytes: u64) -> usize {
    const { assert!(usize::BITS == u64::BITS) };
    bytes as usize
}

/// Bytes `start..end` of a device. Invariant: `start <= end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `None` if `start > end`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// The range a foreign protocol names by offset and length; `None` if its end passes `u64`.
    #[must_use]
    pub fn at(offset: u64, length: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        Some(Self { start: offset, end })
    }

    /// The bytes that `buf`, placed at `offset`, would cover.
    ///
    /// # Panics
    /// If the end passes `u64`: a buffer in memory at a valid device offset never does.
    #[must_use]
    pub fn of_buf(offset: u64, buf: &[u8]) -> Self {
        Self::at(offset, buf.len() as u64).expect("a buffer at a device offset ends below 2^64")
    }

    /// First byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes in both; `None` if there are none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    /// Every granule that holds at least one byte of the range.
    #[must_use]
    pub fn granules_touched(self) -> GranuleRange {
        if self.is_empty() {
            return GranuleRange {
                start: self.start / GRANULE,
                end: self.start / GRANULE,
            };
        }
        GranuleRange {
            start: self.start / GRANULE,
            end: self.end.div_ceil(GRANULE),
        }
    }

    /// Every granule that lies wholly inside the range.
    #[must_use]
    pub fn granules_covered(self) -> GranuleRange {
        let start = self.start.div_ceil(GRANULE);
        GranuleRange {
            start,
            end: (self.end / GRANULE).max(start),
        }
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Granules `start..end` of a device, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GranuleRange {
    /// First granule.
    pub start: u64,
    /// One past the last granule.
    pub end: u64,
}

impl GranuleRange {
    /// Number of granules.
    #[must_use]
    pub fn count(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no granule in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The bytes of these granules on a device of `size` bytes (whose last granule may be short).
    #[must_use]
    pub fn bytes(self, size: u64) -> ByteRange {
        let start = (self.start * GRANULE).min(size);
        ByteRange {
            start,
            end: (self.end * GRANULE).min(size).max(start),
        }
    }

    /// All granules of a device of `size` bytes.
    #[must_use]
    pub fn of_size(size: u64) -> Self {
        Self {
            start: 0,
            end: size.div_ceil(GRANULE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_wraps() {
        assert_eq!(ByteRange::at(u64::MAX - 1, 2), None);
        assert_eq!(
            ByteRange::at(u64::MAX - 1, 1).map(ByteRange::end),
            Some(u64::MAX)
        );
        assert_eq!(ByteRange::new(2, 1), None);
    }

    #[test]
    fn touched_and_covered_differ_at_the_edges() {
        let r = ByteRange::new(4000, 8200).expect("ordered");
        assert_eq!(r.granules_touched(), GranuleRange { start: 0, end: 3 });
        assert_eq!(r.granules_covered(), GranuleRange { start: 1, end: 2 });
        let inside = ByteRange::new(4100, 4200).expect("ordered");
        assert_eq!(inside.granules_touched(), GranuleRange { start: 1, end: 2 });
        assert!(inside.granules_covered().is_empty());
        let empty = ByteRange::new(4100, 4100).expect("ordered");
        assert!(empty.granules_touched().is_empty());
    }

    #[test]
    fn the_last_granule_may_be_short() {
        let all = GranuleRange::of_size(4096 + 512);
        assert_eq!(all.count(), 2);
        assert_eq!(
            all.bytes(4096 + 512),
            ByteRange::new(0, 4608).expect("ordered")
        );
    }
}
