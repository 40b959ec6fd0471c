//! Holes in reads: a client that is told of a hole need not be sent zeroes, but asking has a price.
//!
//! A file system may look through much more than the range for its answer (tmpfs goes on to the
//! next hole of the file, page by page), so what asking cost and found decides when to ask again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use block::{BlockDevice, ByteRange, Extent};

use crate::limits::READ_EXTENTS_MAX;

/// When to look for holes, per connection.
#[derive(Default)]
pub(crate) struct HolePace {
    skip: AtomicU32,
}

/// Reads that are not looked at after one that had no hole: disks are sparse in long stretches.
const SKIP_AFTER_DATA: u32 = 3;
/// Reads that are not looked at after a look that took longer than reading itself would.
const SKIP_AFTER_SLOW: u32 = 1000;
const SLOW: Duration = Duration::from_micros(500);

impl HolePace {
    /// Whether to look at the next read.
    pub(crate) fn is_worth_it(&self) -> bool {
        // Two threads that count one read twice do no harm.
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
        }
        skip == 0
    }

    /// What a look cost and brought.
    pub(crate) fn looked(&self, took: Duration, found: bool) {
        let skip = if took > SLOW {
            SKIP_AFTER_SLOW
        } else if found {
            0
        } else {
            SKIP_AFTER_DATA
        };
        self.skip.store(skip, Ordering::Relaxed);
    }
}

/// The range's extents if some of it is a hole and they cover it all; else reading it as one piece
/// costs less.
pub(crate) fn holes_of(
    device: &dyn BlockDevice,
    range: ByteRange,
) -> block::Result<Option<Vec<Extent>>> {
    let extents = device.block_status(range, READ_EXTENTS_MAX)?;
    let mut at = range.start();
    for extent in &extents {
        if extent.range.start() != at || extent.range.is_empty() {
            return Ok(None);
        }
        at = extent.range.end();
    }
    let sparse = extents.iter().any(|extent| extent.state.reads_zero());
    Ok((sparse && at == range.end()).then_some(extents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_much_or_finds_nothing_is_asked_less() {
        let pace = HolePace::default();
        let skipped = || {
            let reads = std::iter::repeat_with(|| pace.is_worth_it());
            reads.take_while(|worth| !worth).count()
        };
        let quick = Duration::from_micros(5);
        assert_eq!(skipped(), 0);
        pace.looked(quick, true);
        assert_eq!(skipped(), 0);
        pace.looked(quick, false);
        assert_eq!(skipped(), 3);
        pace.looked(Duration::from_millis(14), true);
        assert_eq!(skipped(), 1000);
    }
}
