//! Giving up sealed generations that cannot become points: what they say was written is stale in the open one.

use std::io;

use crate::group::Group;
use crate::sealed::{SealedDiff, SealedGeneration};
use crate::tracked::TrackedDisk;
use crate::turns::Tracking;
use crate::{CutError, Generation};

/// Granules that are marked at once.
const ABSORB_GRANULES_MAX: u64 = 8192;

impl Group {
    /// Gives up a sealed generation and those after it: what they say was written becomes stale in
    /// the open generation, so the next cut is exact. Their points are lost.
    ///
    /// # Errors
    /// `Distrusted` if a map cannot be read or written: then nobody knows what was written.
    pub fn fold_from(&self, damaged: &SealedGeneration) -> Result<(), CutError> {
        let mut tracking = self.tracking.lock();
        if damaged.lineage != tracking.lineage {
            return Ok(());
        }
        self.fold(&mut tracking, damaged.generation)
    }

    pub(crate) fn fold(&self, tracking: &mut Tracking, from: Generation) -> Result<(), CutError> {
        // It builds on what is given up.
        self.end_if_it_can(tracking)?;
        let first = tracking.sealed.partition_point(|s| s.generation < from);
        let Some(since) = tracking.sealed.get(first).map(|s| s.since) else {
            return Ok(());
        };
        for sealed in &tracking.sealed[first..] {
            for (disk, diff) in self.disks.iter().cycle().zip(sealed.all_disks()) {
                if let Err(error) = disk.absorb(diff) {
                    tracing::error!(disk = %disk.name, %error, "a sealed map cannot be folded");
                    tracking.live.lose();
                    return Err(CutError::Distrusted);
                }
            }
        }
        for disk in &self.disks {
            disk.gate.enter().map.lower_since(since);
        }
        let folded: Vec<_> = tracking.sealed.drain(first..).collect();
        folded
            .iter()
            .try_for_each(|sealed| self.remove_files(sealed))
            .map_err(self.state_error("remove a folded diff"))
    }
}

impl TrackedDisk {
    /// Marks in the open map all that a sealed one marks.
    fn absorb(&self, sealed: &SealedDiff) -> io::Result<()> {
        // The diff file may be the damaged part: only the map is needed. And no stripes: whatever a write that is
        // in flight settles is what production has.
        let map = sealed.open_map()?;
        let mut at = 0;
        map.check()?;
        while let Some(run) = map.next_run(at, ABSORB_GRANULES_MAX) {
            self.gate.enter().map.mark(run.granules)?;
            at = run.granules.end;
        }
        Ok(())
    }
}
