//! What `standin gaps` says.

use serde::{Deserialize, Serialize};

use super::Cause;

/// A time between two points that follow each other, longer than the schedule owes: of no moment in
/// between is there a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The moment of the point before it, in nanoseconds since 1970 UTC.
    pub from_unix_ns: u64,
    /// The moment of the point after it; null if there is none yet.
    pub until_unix_ns: Option<u64>,
    /// How long it was. Not the difference of the two where the wall clock was moved in between.
    pub seconds: f64,
    /// Why, in the order in which it happened as far as that is known.
    pub causes: Vec<Cause>,
    /// Cuts that were made in between and are no points.
    pub cuts_lost: u64,
    /// The point after it; null if there is none yet.
    pub point: Option<String>,
}

/// The wall clock was moved: the times of points on either side do not belong to one clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockMove {
    /// When, by the clock as it was after that, in nanoseconds since 1970 UTC.
    pub at_unix_ns: u64,
    /// By how many seconds; back if negative.
    pub moved_s: f64,
}

/// Gaps that are so long past that only their sum is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OlderGaps {
    /// How many.
    pub gaps: u64,
    /// How long all of them were.
    pub seconds: f64,
    /// When the last of them ended, in nanoseconds since 1970 UTC.
    pub until_unix_ns: u64,
}

impl OlderGaps {
    pub(crate) fn add(&mut self, gap: &Gap) {
        self.gaps = self.gaps.saturating_add(1);
        // What a damaged ledger says may be any number.
        self.seconds = (self.seconds + gap.seconds).clamp(0.0, f64::MAX);
        self.until_unix_ns = gap.until_unix_ns.unwrap_or(self.until_unix_ns);
    }
}

/// The gap ledger of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gaps {
    /// The group.
    pub group: String,
    /// Gaps, oldest first. The last one has no end if it goes on.
    pub gaps: Vec<Gap>,
    /// Moves of the wall clock, oldest first.
    pub clock: Vec<ClockMove>,
    /// What was before.
    pub older: OlderGaps,
    /// Lines of the ledger that were damaged: what they said is not known.
    pub damaged_lines: u64,
}
