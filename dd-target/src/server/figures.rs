//! What the server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Since its start.
#[derive(Default)]
pub(crate) struct Figures {
    refused: AtomicU64,
    read_bytes: AtomicU64,
}

impl Figures {
    /// Somebody was refused.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of objects were sent.
    pub(crate) fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
