//! What is said of the ladder: which rung protection is on, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of protection is kept, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Every write is copied, and every cut becomes a point.
    #[default]
    EveryWrite,
    /// Every write is copied; at each cut, cuts that wait for the target are merged, and the earlier one
    /// will be no point.
    Coalescing,
    /// Writes are only marked. No cut is made until they are copied again.
    MapOnly,
    /// Writes could not be marked either: only their regions are known, from the intent log.
    Regions,
}

/// Why protection gave something up, or why there is no point of some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Diffs take more than they may, or their file system is full.
    DiffSpace,
    /// The file system of the dirty maps is full.
    StateSpace,
    /// The diff device fails.
    DiffError,
    /// The diff device keeps guests' writes for longer than it may.
    DiffLatency,
    /// Dirty maps and buffers take more memory than they may.
    Memory,
    /// The target lags.
    TargetBehind,
    /// Production fails.
    Production,
    /// A guest's write was in flight for longer than a cut waits.
    Busy,
    /// No process protected the group, or it was stopped, or not given time to run.
    NotRunning,
    /// Writes could not be marked one by one; the regions of the intent log were read again.
    MarksLost,
    /// Tracking began anew, and the disks were copied anew.
    CopiedAnew,
    /// The target lists a point of the history that this protection did not make.
    ForeignPoint,
    /// Cuts were made late; the machine was busy.
    Late,
}

/// Where a group stands on the ladder, and how it came there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LadderStatus {
    /// Why it is not on the highest rung; null if it is.
    pub cause: Option<Cause>,
    /// Since when, in nanoseconds since 1970 UTC; null if since the start of the process.
    pub since_unix_ns: Option<u64>,
    /// Steps down and up that this process took.
    pub steps_total: u64,
    /// The newest 50 of them, oldest first.
    pub steps: Vec<LadderStep>,
}

/// A step, and what followed until the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LadderStep {
    /// Where it led.
    pub rung: Rung,
    /// Why; null for a step up to the highest.
    pub cause: Option<Cause>,
    /// When, in nanoseconds since 1970 UTC.
    pub from_unix_ns: u64,
    /// When the next one was taken; null if none was.
    pub until_unix_ns: Option<u64>,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EveryWrite => "every-write",
            Self::Coalescing => "coalescing",
            Self::MapOnly => "map-only",
            Self::Regions => "regions",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiffSpace => "diff-space",
            Self::StateSpace => "state-space",
            Self::DiffError => "diff-error",
            Self::DiffLatency => "diff-latency",
            Self::Memory => "memory",
            Self::TargetBehind => "target-behind",
            Self::Production => "production",
            Self::Busy => "busy",
            Self::NotRunning => "not-running",
            Self::MarksLost => "marks-lost",
            Self::CopiedAnew => "copied-anew",
            Self::ForeignPoint => "foreign-point",
            Self::Late => "late",
        })
    }
}
