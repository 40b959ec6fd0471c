//! What an image in the making holds in memory, and how it holds less of it.
//!
//! ```text
//! chunks that wait to be hashed | the container that is being filled | changes | the tree object that is being filled
//! ```

use super::ImageWriter;
use crate::error::Result;
use crate::fingerprint::CHUNK;

/// Bytes of a run among the changes.
const RUN_BYTES: usize = 80;
/// Fewer are kept: a server's thousand drafts have some 20 MiB of them, and a tree costs more than it is worth.
const RUNS_KEPT: usize = 256;

impl ImageWriter {
    /// Bytes in memory that come with what is written, about. What the store's threads have at hand of it, and caches, do
    /// not count.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let changes = self.changes.count() * RUN_BYTES;
        let here = self.waiting.len() * CHUNK + changes + self.tree.held_bytes();
        here as u64 + self.packer.held_bytes()
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
            writer.tree.flush()
        })
    }
}
