//! Chunks that wait until there are enough of them to be hashed at once: random writes come one by one.

use block::GranuleRange;

use crate::fingerprint::{AT_ONCE, CHUNK};

/// Fewer than [`AT_ONCE`] chunks, in the order in which they came.
#[derive(Default)]
pub(super) struct Waiting {
    granules: Vec<u64>,
    bytes: Vec<u8>,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.granules.len()
    }

    /// Whether one of `granules` waits: what is written there later must come later.
    pub(super) fn touches(&self, granules: GranuleRange) -> bool {
        let inside = |granule: &u64| (granules.start..granules.end).contains(granule);
        self.granules.iter().any(inside)
    }

    pub(super) fn push(&mut self, granule: u64, chunk: &[u8; CHUNK]) {
        debug_assert!(self.len() < AT_ONCE, "they are hashed before");
        self.granules.push(granule);
        self.bytes.extend_from_slice(chunk);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[u8; CHUNK])> {
        let (chunks, _) = self.bytes.as_chunks();
        self.granules.iter().copied().zip(chunks)
    }

    /// Keeps its memory.
    pub(super) fn clear(&mut self) {
        self.granules.clear();
        self.bytes.clear();
    }
}
