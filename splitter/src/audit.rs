//! What an audit asks of the splitter: which granules nobody has written since a cut, so that production
//! must still be as the cut's point has it; and what happens with one that is not.
//!
//! ```text
//!   ask -> read production -> ask again -> compare what is untouched in both answers
//! ```
//!
//! A write marks its granules before it reaches production. So a granule that is untouched in the
//! answer *after* the read held, while it was read, what it held at the cut.
//!
//! Rule: where it is not certain what was written, nothing is untouched and nothing is a finding.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use block::{GranuleRange, index};

use crate::map::DirtyMap;
use crate::tracked::TrackedDisk;
use crate::{Generation, Group, Lineage};

impl Group {
    /// Which of `granules` of a disk nobody has written since `cut`, in order. `None` if that is not
    /// known: the history is another one, it was lost, or what was written since is with the target.
    #[must_use]
    pub fn untouched_since(
        &self,
        (lineage, cut): (Lineage, Generation),
        disk: usize,
        granules: GranuleRange,
    ) -> Option<Vec<GranuleRange>> {
        // What the caller has read of production was written by writes that are marked by here.
        fence(Ordering::SeqCst);
        let mut touched = vec![false; index(granules.count())];
        let tracking = self.tracking.lock();
        let open = self.disks[disk].gate.enter();
        let known = tracking.lineage == lineage
            && Arc::ptr_eq(&open.live, &tracking.live)
            && cut < open.generation;
        let since = match tracking.sealed.first() {
            Some(oldest) => oldest.since,
            None => self.since_of_open(&tracking),
        };
        if !known || since > cut {
            return None;
        }
        note_touched(&open.map, granules, &mut touched);
        if let Some(older) = self.disks[disk].gate.older() {
            note_touched(&older.map, granules, &mut touched);
        }
        // After the map: who cannot mark says so before the write.
        fence(Ordering::SeqCst);
        if tracking.live.is_lost() {
            return None;
        }
        drop(open);
        for sealed in tracking.sealed.iter().filter(|s| s.generation > cut) {
            let older = sealed.absorbing.iter().filter(|_| sealed.is_unfinished());
            let older = older.flat_map(|older| older.disks.get(disk));
            for diff in older.chain(sealed.disks.get(disk)) {
                note_touched(&*diff.open_map().ok()?, granules, &mut touched);
            }
        }
        Some(untouched(granules, &touched))
    }

    /// Production is not what the newest point says, though nobody wrote it: `granules` of a disk are
    /// read into the next point, as if a write had just changed them.
    pub fn distrust(&self, disk: usize, granules: GranuleRange) {
        self.disks[disk].mark_stale(granules);
    }
}

fn note_touched(map: &DirtyMap, granules: GranuleRange, touched: &mut [bool]) {
    let mut at = granules.start;
    while at < granules.end
        && let Some(run) = map.next_run(at, granules.end - at)
        && run.granules.start < granules.end
    {
        let end = run.granules.end.min(granules.end);
        let inside = index(run.granules.start - granules.start)..index(end - granules.start);
        touched[inside].fill(true);
        at = end;
    }
}

fn untouched(granules: GranuleRange, touched: &[bool]) -> Vec<GranuleRange> {
    let mut runs: Vec<GranuleRange> = Vec::new();
    for (granule, touched) in (granules.start..).zip(touched) {
        match runs.last_mut() {
            _ if *touched => {}
            Some(run) if run.end == granule => run.end += 1,
            _ => runs.push(GranuleRange {
                start: granule,
                end: granule + 1,
            }),
        }
    }
    runs
}

impl TrackedDisk {
    fn mark_stale(&self, granules: GranuleRange) {
        let (_held, diff) = self.admit(granules);
        if diff.live.is_lost() {
            // All that the intent log names is read again anyhow, or the disks are copied anew.
            return;
        }
        if let Err(error) = diff.map.mark(granules) {
            diff.live.lose();
            self.note_trouble(&format!("the dirty map cannot be written: {error}"));
        }
    }
}
