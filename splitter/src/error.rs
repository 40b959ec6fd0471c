//! Why tracking could not start, or a cut could not be made.

use std::io;
use std::time::Duration;

use block::Name;

use crate::Generation;

/// A group could not be opened. The guest cannot be served through the splitter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Too few or too many disks, or two of one name.
    #[error("a group has 1 to {max} disks of different names, not {count}")]
    Disks {
        /// How many were given.
        count: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// Another process tracks this group.
    #[error("group {group} is already protected by another process (its state is in {place})")]
    InUse {
        /// The group.
        group: Name,
        /// The state directory.
        place: String,
    },
    /// The state or diff directory does not work.
    #[error("cannot {what} in {place}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The directory.
        place: String,
        /// The cause.
        source: io::Error,
    },
}

/// A cut was not made, or [waits](Self::waits). The open generation goes on, and the guest noticed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// Stale granules could not be read again from production.
    #[error("disk {disk}: production cannot be read, so the diff cannot be completed")]
    Production {
        /// The disk.
        disk: Name,
        /// The cause.
        source: block::Error,
    },
    /// The diff directory does not take what it must hold.
    #[error("the diff of disk {disk} cannot be written")]
    Degraded {
        /// The disk.
        disk: Name,
        /// The cause.
        source: io::Error,
    },
    /// Files of the next generation could not be made.
    #[error("cannot {what} in {place}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The directory.
        place: String,
        /// The cause.
        source: io::Error,
    },
    /// A guest's write that began before the cut is still in flight. The cut is made, and listed by `Group::end_cut`
    /// once that has ended.
    #[error("a write to disk {disk} has not ended after {waited:?}; production is slow or hangs")]
    Busy {
        /// The disk.
        disk: Name,
        /// How long ago the cut was made.
        waited: Duration,
    },
    /// A guest's write does not end, and what was asked could not wait for it any longer.
    #[error("a write to disk {disk} did not end within {waited:?}; production is slow or hangs")]
    InFlight {
        /// The disk.
        disk: Name,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The cut is made, and lacks bytes that cannot be copied while copies are paused. Listed by `Group::end_cut`, or lost
    /// there, once they go on.
    #[error("a cut waits for bytes of disk {disk}, and nothing is copied at the moment")]
    Incomplete {
        /// The disk.
        disk: Name,
    },
    /// A write that began before the cut was not copied, and its blocks were written again before the cut was
    /// complete, or are being written for long: that cut is lost.
    #[error(
        "what a write to disk {disk} left uncopied could not be read before it was written over; the next cut is exact"
    )]
    Overwritten {
        /// The disk.
        disk: Name,
    },
    /// Copies are paused: what was written is marked, and nowhere but in production.
    #[error("writes are only marked, not copied, so there is nothing to cut")]
    MapOnly,
    /// The labels are too many or too long.
    #[error("{0}")]
    Labels(&'static str),
    /// Writes may have gone unmarked: see `Group::relearn`, and, if that does not help, `restart_tracking`.
    #[error("writes went untracked; what may have changed must be read again")]
    Distrusted,
}

impl CutError {
    /// Whether a cut is made, and waits to be listed by `Group::end_cut`.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Incomplete { .. })
    }
}

/// A sealed diff that cannot become a point.
#[derive(Debug, thiserror::Error)]
#[error("the diff of disk {disk}, generation {generation}, is damaged: {why}")]
pub struct DamagedDiff {
    /// The disk.
    pub disk: Name,
    /// Its generation.
    pub generation: Generation,
    /// What is wrong.
    pub why: String,
}

/// What a file of ours says cannot be, or is not what was written.
pub(crate) fn damaged(why: impl Into<String>) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why.into())
}
