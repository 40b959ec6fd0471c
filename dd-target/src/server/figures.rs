//! What the server counts, and how it tells it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Since its start.
#[derive(Default)]
pub(crate) struct Figures {
    refused: AtomicU64,
    poisoned: AtomicU64,
    points: AtomicU64,
    read_bytes: AtomicU64,
    shipped_bytes: AtomicU64,
}

impl Figures {
    /// Somebody was refused.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Chunks were not what they were said to be.
    pub(crate) fn poisoned(&self) {
        self.poisoned.fetch_add(1, Ordering::Relaxed);
    }

    /// A point was listed.
    pub(crate) fn point(&self) {
        self.points.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of objects were sent.
    pub(crate) fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of regions were taken.
    pub(crate) fn shipped(&self, bytes: u64) {
        self.shipped_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// In the text format of Prometheus.
    pub(crate) fn tell(&self, out: &mut String) {
        for (name, what, counter) in [
            (
                "refused_requests",
                "Requests of callers that may not.",
                &self.refused,
            ),
            (
                "poisoned_regions",
                "Regions that were not what they were said to be.",
                &self.poisoned,
            ),
            ("points", "Points listed.", &self.points),
            (
                "read_bytes",
                "Bytes of objects sent to readers.",
                &self.read_bytes,
            ),
            (
                "shipped_bytes",
                "Bytes of regions taken from shippers.",
                &self.shipped_bytes,
            ),
        ] {
            let value = counter.load(Ordering::Relaxed);
            // Writing to a text does not fail.
            let _ = writeln!(
                out,
                "# HELP standin_target_{name}_total {what}\n# TYPE standin_target_{name}_total counter\nstandin_target_{name}_total {value}"
            );
        }
    }
}
