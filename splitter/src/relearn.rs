//! Going on, while guests write, when nobody knows any more which granules were written: from the intent log,
//! whose regions are all stale then. What [`recover`](crate::recover) does after a power cut, without the stop.
//!
//! Rule: until all gates have their new diff the lineage counts as lost: whoever is killed before recovers
//! from the log. While it does, writes are noted in the log alone, so the last look at the log is under all
//! gates.
//!
//! Rule: the regions are read before the cut that they build on: a round of the log may end meanwhile.

use std::sync::Arc;

use block::{GRANULE, GranuleRange};

use crate::diff::OpenDiff;
use crate::group::{END_MAX, in_flight};
use crate::tracked::TrackedDisk;
use crate::{CutError, Group};

impl Group {
    /// Makes all that the intent log names stale, in a new generation of the same lineage; returns how much
    /// that is, in bytes of whole granules. Cuts that no target has are lost.
    ///
    /// # Errors
    /// `Distrusted` if the log cannot be gone on from: only a new lineage helps. `Io` (the state directory may be
    /// full) and `InFlight` (a write does not end): to be tried again; until then nobody knows what was written.
    pub fn relearn(&self, why: &str) -> Result<u64, CutError> {
        let mut tracking = self.tracking.lock();
        let of_one_lineage = |disk: &Arc<TrackedDisk>| {
            let diff = disk.gate.enter();
            Arc::ptr_eq(&diff.live, &tracking.live)
        };
        if tracking.live.is_forsaken() || !self.disks.iter().all(of_one_lineage) {
            return Err(CutError::Distrusted);
        }
        tracing::warn!(group = %self.name, why, "the maps are given up; what the intent log names is read again");
        tracking.live.lose();
        self.discard_all(&mut tracking);
        // Also of an earlier attempt: the directory may be full.
        crate::recover::remove_debris(&self.around, tracking.lineage, &[])
            .map_err(self.state_error("remove the files of lost generations"))?;
        let log_error = self.state_error("write the intent log");
        let next = tracking.intent.skip().map_err(log_error)?;
        let diffs = self.create_diffs(tracking.lineage, next, &tracking.live, &tracking.intent)?;
        let marked: Vec<_> = diffs
            .iter()
            .map(|diff| mark_regions(diff, &[]))
            .collect::<Result<_, _>>()
            .map_err(self.map_error())?;
        self.drain_each()?;
        // Their files are closed after the gates are open.
        let mut old = Vec::new();
        let older = self.close_others(END_MAX);
        let mut older = older.map_err(|disk| in_flight(disk, END_MAX))?;
        let mut gates = self.close_gates()?;
        // Nothing is in flight: the log has the regions of all that was written.
        for ((gate, diff), marked) in gates.iter_mut().zip(diffs).zip(marked) {
            mark_regions(&diff, &marked).map_err(self.map_error())?;
            diff.map.lower_since(tracking.intent.trimmed_through());
            old.push(gate.replace(diff));
        }
        old.extend(older.iter_mut().map(|side| side.take()));
        if tracking.live.is_forsaken() {
            return Err(CutError::Distrusted);
        }
        tracking.live.set_open_generation(next);
        tracking.live.trust();
        drop((gates, older));
        crate::recover::remove_debris(&self.around, tracking.lineage, &[next])
            .map_err(self.state_error("remove the files of lost generations"))?;
        let stale = self.disks.iter().map(|disk| disk.stale_bytes());
        Ok(stale.sum())
    }

    /// Whether writes may have gone unmarked since tracking last went on.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.tracking.lock().live.is_lost()
    }

    fn map_error(&self) -> impl Fn(std::io::Error) -> CutError {
        let place = self.around.maps.describe();
        move |source| CutError::Io {
            what: "mark what the intent log names",
            place: place.clone(),
            source,
        }
    }
}

/// Marks the regions of the log that are not among `marked`, both in order; returns all of them.
fn mark_regions(diff: &OpenDiff, marked: &[GranuleRange]) -> std::io::Result<Vec<GranuleRange>> {
    let regions = diff.intent.regions();
    let new = |region: &&GranuleRange| {
        marked
            .binary_search_by_key(&region.start, |m| m.start)
            .map_or(true, |at| marked[at].end < region.end)
    };
    for region in regions.iter().filter(new) {
        diff.map.mark(*region)?;
    }
    tracing::debug!(
        regions = regions.len(),
        bytes = diff.map.stale_count() * GRANULE,
        "regions are stale"
    );
    Ok(regions)
}
