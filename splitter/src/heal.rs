//! Walks over a dirty map: what is stale, and what an export shows as dirty.

use std::fmt;

use block::{ByteRange, DirtyExtent, GranuleRange};

use crate::diff::HealError;
use crate::map::DirtyMap;
use crate::runs::GranuleState;

/// Granules that a walk takes at once.
const WALK_GRANULES: u64 = 64;

/// The next stale granules at or after `from`, `count_max` at most, and few.
pub(crate) fn next_stale(map: &DirtyMap, from: u64, count_max: u64) -> Option<GranuleRange> {
    if map.stale_count() == 0 {
        return None;
    }
    let mut at = from;
    loop {
        let run = map.next_run(at, WALK_GRANULES)?;
        if run.state == GranuleState::Stale {
            let GranuleRange { start, end } = run.granules;
            let end = end.min(start + count_max.min(WALK_GRANULES));
            return Some(GranuleRange { start, end });
        }
        at = run.granules.end;
    }
}

/// Extents of `range`, dirty and clean in turn, covering a prefix of it.
pub(crate) fn dirty_extents(
    map: &DirtyMap,
    range: ByteRange,
    size: u64,
    extents_max: usize,
) -> Vec<DirtyExtent> {
    let touched = range.granules_touched();
    let mut extents = Vec::new();
    let mut at = touched.start;
    while at < touched.end && extents.len() < extents_max.max(1) {
        let (end, dirty) = next_extent(
            map,
            GranuleRange {
                start: at,
                end: touched.end,
            },
        );
        let bytes = GranuleRange { start: at, end }.bytes(size);
        if let Some(range) = bytes.intersect(range) {
            extents.push(DirtyExtent { range, dirty });
        }
        at = end;
    }
    extents
}

/// Where the first extent of `granules` ends, and whether it is dirty.
fn next_extent(map: &DirtyMap, granules: GranuleRange) -> (u64, bool) {
    let first = map.next_run(granules.start, granules.count());
    match first.map(|run| run.granules) {
        Some(run) if run.start == granules.start => {
            let mut end = run.end;
            while end < granules.end
                && let Some(more) = map.next_run(end, granules.end - end)
                && more.granules.start == end
            {
                end = more.granules.end;
            }
            (end.min(granules.end), true)
        }
        Some(run) => (run.start.min(granules.end), false),
        None => (granules.end, false),
    }
}

impl fmt::Display for HealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealError::Production(error) => write!(f, "production cannot be read again: {error}"),
            HealError::Diff(error) => write!(f, "the diff cannot be written: {error}"),
            HealError::Overwritten => {
                write!(f, "what could not be copied was written over since the cut")
            }
            HealError::NoFrame => write!(f, "the device of the diff does not keep up"),
        }
    }
}
