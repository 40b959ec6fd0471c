//! What a group holds, in figures.

use std::sync::Arc;

use block::{BlockDevice, Name};

use crate::sealed::SealedDiff;
use crate::tracked::TrackedDisk;
use crate::{Generation, Group, Lineage};

/// What a group holds at the moment.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The history that the next point belongs to.
    pub lineage: Lineage,
    /// The generation that takes the guest's writes.
    pub open_generation: Generation,
    /// Sealed generations that no target has.
    pub sealed_count: usize,
    /// Bytes written and not yet at a target: open, sealed, and of a cut that waits, in whole granules.
    pub dirty_bytes: u64,
    /// Bytes that all diffs and maps occupy.
    pub diff_bytes: u64,
    /// Each disk of the open generation.
    pub disks: Vec<DiskFigures>,
}

/// One disk of the open generation.
#[derive(Clone, Debug)]
pub struct DiskFigures {
    /// Its name.
    pub name: Name,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes written, in whole granules.
    pub dirty_bytes: u64,
    /// Bytes whose copy is missing or in the making.
    pub stale_bytes: u64,
    /// Why copies are missing, if they are.
    pub trouble: Option<String>,
}

impl Group {
    /// What the group holds: what it held when the cut, release or restart began that is under way. Asks the file
    /// system; not for every request.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let told = self.tracking.told();
        let open = |disk: &Arc<TrackedDisk>| {
            let older = disk.gate.try_older().map(|older| older.allocated());
            let open = disk.gate.enter().allocated();
            open.unwrap_or(0) + older.and_then(Result::ok).unwrap_or(0)
        };
        let waiting = told.ending.map(|ending| self.cut_of(&ending));
        let disks: Vec<_> = self.disks.iter().map(|disk| disk.figures()).collect();
        let sealed_dirty: u64 = told.sealed.iter().map(|s| s.dirty_bytes()).sum();
        let sealed_bytes: u64 = told
            .sealed
            .iter()
            .flat_map(|s| s.all_disks())
            .flat_map(SealedDiff::occupied)
            .sum();
        Figures {
            lineage: told.lineage,
            open_generation: told.live.open_generation(),
            sealed_count: told.sealed.len(),
            dirty_bytes: sealed_dirty
                + waiting.map_or(0, |cut| cut.dirty_bytes)
                + disks.iter().map(|d| d.dirty_bytes).sum::<u64>(),
            diff_bytes: sealed_bytes + self.disks.iter().map(open).sum::<u64>(),
            disks,
        }
    }
}

impl TrackedDisk {
    fn figures(&self) -> DiskFigures {
        DiskFigures {
            name: self.name.clone(),
            size: self.size(),
            dirty_bytes: self.dirty_bytes(),
            stale_bytes: self.stale_bytes(),
            trouble: self.trouble(),
        }
    }
}
