//! What an image in the making holds in memory, and how it holds less of it.
//!
//! ```text
//! comes with what is written:   chunks that wait to be hashed | the container and the tree object that are being filled | changes
//! is found on the way:          manifests of what the last chunks were found in
//! comes with what it builds on: change lists                                   kept until the image is finished or folded
//! ```

use super::{Base, ImageWriter};
use crate::error::Result;
use crate::fingerprint::CHUNK;
use crate::index::Neighbours;
use crate::runs::Run;

/// Bytes of a run among the changes.
const RUN_BYTES: usize = 80;
/// Fewer are kept: a server's thousand drafts have some 20 MiB of them, and a tree costs more than it is worth.
const RUNS_KEPT: usize = 256;

impl Base {
    /// Bytes in memory that an image on it goes on holding however often it is told to [hold less](ImageWriter::hold_less), at most.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        let lists = match self {
            Self::Empty { .. } => 0,
            Self::Image(image) => image.list_runs(),
        };
        (lists * size_of::<Run>() + RUNS_KEPT * RUN_BYTES) as u64
    }
}

impl ImageWriter {
    /// Bytes in memory, about. What the store's threads have at hand of it, and caches, do not count.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let changes = self.changes.count() * RUN_BYTES;
        let written = self.waiting.len() * CHUNK + changes + self.tree.held_bytes();
        let manifest = self.expected.as_ref().map(|(_, manifest, _)| manifest);
        let found = manifest.map_or(0, |manifest| manifest.held_bytes());
        let found = found + self.neighbours.held_bytes();
        (written + found + self.locator.held_bytes()) as u64 + self.packer.held_bytes()
    }

    /// Puts what has gathered into objects, however small: little is held then. The image is the same.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn hold_less(&mut self) -> Result<()> {
        self.guarded(|writer| {
            writer.place_waiting(&mut Vec::new())?;
            writer.packer.flush()?;
            if writer.changes.count() > RUNS_KEPT {
                writer.fold_all()?;
            }
            writer.neighbours = Neighbours::default();
            writer.expected = None;
            writer.tree.flush()
        })
    }
}
