//! Stage one: every guest write goes to production, and a copy of it to the thin diff of the open
//! generation. A cut seals the diffs of all disks of a group at one instant; no snapshot, no merge.
//!
//! ```text
//!  guest write -> TrackedDisk -- stripe locks -- gate -----------+
//!                                                                | 0 is the region in the intent log?
//!                                                                | 1 mark: dirty + stale   (map)
//!                                                                | 2 write production
//!                                                                | 3 write the diff
//!                                                                | 4 settle: stale off     (map)
//!                                                                +-> answer
//!  cut         -> next diffs behind all gates -> flip the epoch -> wait for the writes before it
//! ```
//!
//! Invariant: a granule that is dirty and not stale is, in the diff, what production holds. So a
//! crash at any instruction leaves stale exactly the granules whose copy may be wrong, and *healing*
//! (re-reading them from production) makes the next cut exact.
//!
//! Invariant: protection never fails a guest's write. A diff that cannot be written leaves its
//! granules stale; a map that cannot be written gives up the *lineage*, and the copy starts anew.
//!
//! Invariant: the region of a write is durable in the intent log before production has the write.
//! So after a power cut, which spares neither maps nor diffs, what the log names is read again.
//!
//! What is not here: the network, the target, time of its own, policy (when to cut, what to drop).

mod audit;
mod coalesce;
mod cut;
mod diff;
mod error;
mod figures;
mod files;
mod fold;
mod frame;
mod gate;
mod generation;
mod group;
mod heal;
mod held;
mod intent;
mod lineage;
mod live;
mod log;
mod map;
mod map_only;
mod pace;
mod recover;
mod relearn;
mod restart;
mod runs;
mod sealed;
mod slots;
mod space;
mod stripes;
mod tend;
mod tracked;
mod trouble;
mod turns;
mod uses;
mod writer;

pub use coalesce::Coalesced;
pub use cut::{Consistency, Cut, CutNote};
pub use error::{CutError, DamagedDiff, OpenError};
pub use figures::{DiskFigures, Figures};
pub use generation::{Generation, Lineage};
pub use group::{DiskSpec, Group, Surroundings};
pub use pace::PaceFigures;
pub use recover::{How, Opened};
pub use runs::{Run, RunContent};
pub use sealed::{DiffReader, SealedDiff, SealedGeneration};
pub use space::SpaceFigures;
pub use tend::LogsKept;
pub use tracked::TrackedDisk;
pub use uses::Claim;
pub use writer::FrameWriter;

/// Parsers of files that a crash or a stranger may have damaged, for fuzzing.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Reads arbitrary bytes as a lineage record.
    pub fn lineage_record(bytes: &[u8]) {
        let _ = crate::lineage::LineageRecord::decode(bytes);
    }

    /// Reads arbitrary bytes as the note of a cut.
    pub fn cut_note(bytes: &[u8]) {
        let _ = crate::lineage::decode_note(bytes);
    }

    /// Reads arbitrary bytes as an intent log.
    pub fn intent_log(bytes: &[u8]) {
        crate::intent::fuzz(bytes);
    }

    /// Reads arbitrary bytes as the header of a frame of a diff.
    pub fn diff_frame(bytes: &[u8]) {
        crate::frame::fuzz(bytes);
    }

    /// Reads arbitrary words as a dirty map of a disk of `size` bytes and walks its runs.
    pub fn dirty_map(size: u64, bytes: &[u8]) {
        crate::map::fuzz(size, bytes);
    }
}
