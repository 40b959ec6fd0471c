//! What the files of a group occupy, for whoever limits it: asked often, so it waits for nobody.

use std::io;

use block::{GRANULE, Space};

use crate::Group;
use crate::diff::OpenDiff;

/// What diffs and maps occupy, and what their file systems have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceFigures {
    /// Sealed generations that no target has.
    pub sealed_count: usize,
    /// Bytes that all diffs occupy.
    pub diff_bytes: u64,
    /// Bytes that all dirty maps occupy; they are mapped, so it is memory as well.
    pub map_bytes: u64,
    /// Bytes that a heal is still to write to diffs.
    pub stale_bytes: u64,
    /// Writes could not be marked: only the intent log knows them, by their regions.
    pub marks_lost: bool,
    /// Of the diffs' file system.
    pub diffs_on: Space,
    /// Of the maps' file system, which may be the same.
    pub maps_on: Space,
}

impl SpaceFigures {
    fn add(&mut self, diff: &OpenDiff) -> io::Result<()> {
        self.marks_lost |= diff.live.is_lost();
        self.map_bytes += diff.map.allocated()?;
        self.diff_bytes += diff.log.file().allocated()?;
        let stale = diff.map.stale_count().saturating_mul(GRANULE);
        self.stale_bytes = self.stale_bytes.saturating_add(stale);
        Ok(())
    }
}

impl Group {
    /// What is occupied at the moment; `None` while a cut, a release or a restart of tracking is under way.
    ///
    /// # Errors
    /// The operating system's.
    pub fn space(&self) -> io::Result<Option<SpaceFigures>> {
        let Some(sealed) = self
            .tracking
            .try_lock()
            .map(|tracking| tracking.sealed.clone())
        else {
            return Ok(None);
        };
        let mut figures = SpaceFigures {
            sealed_count: sealed.len(),
            diffs_on: self.around.diffs.space()?,
            maps_on: self.around.maps.space()?,
            ..SpaceFigures::default()
        };
        for diff in sealed.iter().flat_map(|sealed| sealed.all_disks()) {
            let [map, data] = diff.occupied();
            figures.map_bytes += map;
            figures.diff_bytes += data;
        }
        for disk in &self.disks {
            // By itself: who holds one side and waits for the other can meet somebody who does the reverse.
            if let Some(older) = disk.gate.try_older() {
                figures.add(&older)?;
            }
            let Some(diff) = disk.gate.try_enter() else {
                return Ok(None);
            };
            figures.add(&diff)?;
        }
        Ok(Some(figures))
    }
}
