//! Sealed generations: immutable, kept until a target has committed their point.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Dir, File, GRANULE, GranuleRange, Name, UnixNanos, index};

use crate::files;
use crate::frame::FrameIdentity;
use crate::log::DiffLog;
use crate::map::{DirtyMap, MapIdentity};
use crate::runs::{GranuleState, Run, RunContent};
use crate::slots::Slots;
use crate::uses::{Claim, Uses};
use crate::{CutNote, DamagedDiff, Generation, Lineage};

/// Most granules in a run of data: 1 MiB.
const RUN_GRANULES_MAX: u64 = 256;

/// What the disks of a group wrote between two cuts.
pub struct SealedGeneration {
    /// The history it belongs to: numbers begin again with a new one.
    pub lineage: Lineage,
    /// The cut that sealed it.
    pub generation: Generation,
    /// Its diffs hold everything written after this cut: normally the one before, an earlier one
    /// where generations were folded. It may be shipped onto any base from here to before itself.
    pub since: Generation,
    /// When it was cut.
    pub at: UnixNanos,
    /// What was said of the cut.
    pub note: CutNote,
    /// Its diffs, in the order of the group's disks.
    pub disks: Vec<SealedDiff>,
    /// An older one whose granules move into this one; it counts as one with this.
    pub(crate) absorbing: Option<Arc<SealedGeneration>>,
    pub(crate) uses: Arc<Uses>,
}

impl SealedGeneration {
    /// Bytes written, in whole granules.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.disks.iter().map(SealedDiff::dirty_bytes).sum()
    }

    /// Keeps it from being merged into a later one for as long as the claim lives. `None` while a
    /// merge with an older one is unfinished, and for ever once it was merged into a later one.
    #[must_use]
    pub fn claim(&self) -> Option<Claim> {
        self.uses.share()
    }

    /// Whether its diffs lack granules that are still in an older one's: see `Group::finish_merge`.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.uses.is_unfinished()
    }

    /// The diffs of all that counts as this one.
    pub(crate) fn all_disks(&self) -> impl Iterator<Item = &SealedDiff> {
        let older = self.absorbing.iter().flat_map(|older| &older.disks);
        older.chain(&self.disks)
    }
}

/// One disk's sealed diff.
pub struct SealedDiff {
    /// The files, open since before they were written, where this process wrote them: only such
    /// handles are told for certain that words could not be brought to the disk.
    pub(crate) kept: Option<(Arc<DirtyMap>, Arc<dyn File>)>,
    pub(crate) maps: Arc<dyn Dir>,
    pub(crate) diffs: Arc<dyn Dir>,
    pub(crate) name: Name,
    pub(crate) size: u64,
    pub(crate) lineage: Lineage,
    pub(crate) generation: Generation,
    pub(crate) dirty_bytes: AtomicU64,
    pub(crate) uses: Arc<Uses>,
}

impl SealedDiff {
    fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Ordering::Relaxed)
    }

    /// The same files, as part of another generation.
    pub(crate) fn shared_by(&self, uses: &Arc<Uses>) -> Self {
        Self {
            kept: self.kept.clone(),
            maps: Arc::clone(&self.maps),
            diffs: Arc::clone(&self.diffs),
            name: self.name.clone(),
            size: self.size,
            lineage: self.lineage,
            generation: self.generation,
            dirty_bytes: AtomicU64::new(self.dirty_bytes()),
            uses: Arc::clone(uses),
        }
    }

    /// The disk's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens the diff and checks that it is whole.
    ///
    /// # Errors
    /// [`DamagedDiff`]: it cannot become a point.
    pub fn reader(&self) -> Result<DiffReader, DamagedDiff> {
        let claim = self
            .uses
            .share()
            .ok_or_else(|| self.damaged("it is merged with another one".into()))?;
        let (map, data) = self
            .open()
            .map_err(|error| self.damaged(error.to_string()))?;
        if map.sealed_at().is_none() || map.stale_count() != 0 {
            let stale = map.stale_count();
            return Err(self.damaged(format!("it was not sealed ({stale} granules are stale)")));
        }
        if map.lacks_staged() {
            let why = "the process that wrote it was killed before it was complete";
            return Err(self.damaged(why.into()));
        }
        let slots = self.slots(&map, data);
        slots
            .check()
            .map_err(|error| self.damaged(error.to_string()))?;
        let (disk, generation) = (self.name.clone(), self.generation);
        Ok(DiffReader {
            disk,
            generation,
            slots,
            map,
            _claim: claim,
        })
    }

    pub(crate) fn open(&self) -> io::Result<(Arc<DirtyMap>, Arc<dyn File>)> {
        let data = match &self.kept {
            Some((_, data)) => Arc::clone(data),
            None => self.diffs.open(&self.diff_name())?,
        };
        Ok((self.open_map()?, data))
    }

    /// Where its file holds what.
    pub(crate) fn slots(&self, map: &Arc<DirtyMap>, data: Arc<dyn File>) -> Slots {
        let identity = FrameIdentity::new(self.lineage, self.generation, &self.name);
        Slots::new(Arc::clone(map), data, identity)
    }

    pub(crate) fn open_map(&self) -> io::Result<Arc<DirtyMap>> {
        if let Some((map, _)) = &self.kept {
            return Ok(Arc::clone(map));
        }
        let identity = MapIdentity {
            size: self.size,
            generation: self.generation,
            lineage: self.lineage,
        };
        DirtyMap::open(self.maps.open(&self.map_name())?, identity).map(Arc::new)
    }

    /// Its file, to append to.
    pub(crate) fn log(&self, map: &Arc<DirtyMap>, data: Arc<dyn File>) -> DiffLog {
        DiffLog::new(
            Arc::clone(map),
            data,
            (self.lineage, self.generation, &self.name),
        )
    }

    fn damaged(&self, why: String) -> DamagedDiff {
        DamagedDiff {
            disk: self.name.clone(),
            generation: self.generation,
            why,
        }
    }

    /// Bytes of its map and of its diff. Nothing where they cannot be asked: they may be released by now.
    pub(crate) fn occupied(&self) -> [u64; 2] {
        let asked = match &self.kept {
            Some((map, data)) => [map.allocated(), data.allocated()],
            None => [
                (&self.maps, self.map_name()),
                (&self.diffs, self.diff_name()),
            ]
            .map(|(dir, name)| dir.open(&name).and_then(|file| file.allocated())),
        };
        asked.map(|bytes| bytes.unwrap_or(0))
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        files::remove(&*self.maps, &self.map_name())?;
        files::remove(&*self.diffs, &self.diff_name())
    }

    fn map_name(&self) -> String {
        files::map(&self.name, self.generation, self.lineage)
    }

    fn diff_name(&self) -> String {
        files::diff(&self.name, self.generation, self.lineage)
    }
}

/// An open sealed diff.
pub struct DiffReader {
    disk: Name,
    generation: Generation,
    map: Arc<DirtyMap>,
    slots: Slots,
    _claim: Claim,
}

impl DiffReader {
    /// Everything written, in ascending order. A run of data is at most 1 MiB, of zeroes any length.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let mut next = self.map.next_run(at, u64::MAX - at)?;
            let content = match next.state {
                GranuleState::Zero => RunContent::Zero,
                GranuleState::Data | GranuleState::Stale | GranuleState::Clean => {
                    let end = next.granules.start + RUN_GRANULES_MAX;
                    next.granules.end = next.granules.end.min(end);
                    RunContent::Data
                }
            };
            at = next.granules.end;
            Some(Run {
                granules: next.granules,
                content,
            })
        })
    }

    /// Ends the reading. What was read may be used only if this succeeds: it says that no word of
    /// the map was lost on its way to the disk before it was read.
    ///
    /// # Errors
    /// [`DamagedDiff`].
    pub fn finish(self) -> Result<(), DamagedDiff> {
        self.map.check().map_err(|error| DamagedDiff {
            disk: self.disk,
            generation: self.generation,
            why: format!("it could not be written to its disk: {error}"),
        })
    }

    /// Number of granules written.
    #[must_use]
    pub fn dirty_count(&self) -> u64 {
        self.map.dirty_count()
    }

    /// Fills `buf` with granules of a data run; past the end of a short disk it is zero.
    ///
    /// # Errors
    /// The operating system's; `InvalidData` if the diff has lost them: every granule is checked.
    ///
    /// # Panics
    /// If `buf` is not as long as the granules.
    pub fn read(&self, granules: GranuleRange, buf: &mut [u8]) -> io::Result<()> {
        assert_eq!(
            buf.len(),
            index(granules.count() * GRANULE),
            "one granule is 4 KiB"
        );
        self.slots.read(granules, buf)
    }
}
