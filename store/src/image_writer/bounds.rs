//! Where an image ends.

use block::{GRANULE, GranuleRange};

use crate::error::{Result, StoreError};
use crate::tree::Shape;

/// The size of an image, and how many granules it has; the last one may be short.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    size: u64,
    granules: u64,
}

impl Bounds {
    pub(super) fn of(size: u64) -> Self {
        let granules = Shape::of(size).granules;
        Self { size, granules }
    }

    /// These granules, which are in the image.
    pub(super) fn granules(&self, start: u64, count: u64) -> Result<GranuleRange> {
        let end = start.checked_add(count);
        let end = end.filter(|end| *end <= self.granules);
        let past = StoreError::Invalid("a write reaches past the end of the image");
        end.map(|end| GranuleRange { start, end }).ok_or(past)
    }

    /// Whether the image ends within the last of them.
    pub(super) fn is_short(&self, granules: GranuleRange) -> bool {
        granules.bytes(self.size).len() < granules.count() * GRANULE
    }

    /// Past the end there are zeroes.
    pub(super) fn check_tail(&self, granules: GranuleRange, data: &[u8]) -> Result<()> {
        let inside = block::index(granules.bytes(self.size).len());
        if data[inside..].iter().any(|byte| *byte != 0) {
            let sentence = "the last granule is not zero past the end of the image";
            return Err(StoreError::Invalid(sentence));
        }
        Ok(())
    }
}
