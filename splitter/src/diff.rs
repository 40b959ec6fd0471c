//! The open diff of one disk: the dirty map, and a sparse file that holds, at the disk's own
//! offsets, every granule written in this generation, whole.
//!
//! All methods that take granules expect their stripes to be held.

use std::io;
use std::sync::Arc;

use block::{BlockDevice, ByteRange, Dir, File, GRANULE, GranuleRange, Name, index};

use crate::files;
use crate::group::Surroundings;
use crate::held::{check_kept, is_held};
use crate::intent::DiskIntent;
use crate::live::Live;
use crate::map::{DirtyMap, MapIdentity, Settled};
use crate::runs::GranuleState;
use crate::{Generation, Lineage};

/// Most bytes that are read from production at once to complete a diff.
pub(crate) const HEAL_BYTES_MAX: u64 = 256 << 10;

pub(crate) struct OpenDiff {
    pub(crate) live: Arc<Live>,
    pub(crate) intent: DiskIntent,
    pub(crate) generation: Generation,
    pub(crate) map: Arc<DirtyMap>,
    pub(crate) data: Arc<dyn File>,
    size: u64,
}

/// Why a diff could not be completed from production.
#[derive(Debug)]
pub(crate) enum HealError {
    Production(block::Error),
    Diff(io::Error),
}

/// Whether the diff held the first and last granule of a write before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EdgesHeld {
    first: bool,
    last: bool,
}

impl OpenDiff {
    /// Makes the files of a generation that builds on the cut before it.
    pub(crate) fn create(
        around: &Surroundings,
        disk: &Name,
        size: u64,
        lineage: Lineage,
        generation: Generation,
        history: (&Arc<Live>, DiskIntent),
    ) -> io::Result<Self> {
        let create = |dir: &dyn Dir, name: String| {
            files::remove(dir, &name)?;
            dir.create(&name)
        };
        let map = create(&*around.maps, files::map(disk, generation, lineage));
        let data = create(&*around.diffs, files::diff(disk, generation, lineage))?;
        data.set_len(GranuleRange::of_size(size).end * GRANULE)?;
        let identity = MapIdentity {
            size,
            generation,
            lineage,
        };
        let map = Arc::new(DirtyMap::create(map?, identity, generation.previous())?);
        Ok(Self {
            live: Arc::clone(history.0),
            intent: history.1,
            generation,
            map,
            data,
            size,
        })
    }

    /// Opens what an earlier process left.
    pub(crate) fn open(
        around: &Surroundings,
        disk: &Name,
        size: u64,
        lineage: Lineage,
        generation: Generation,
        history: (&Arc<Live>, DiskIntent),
    ) -> io::Result<Self> {
        let map = around.maps.open(&files::map(disk, generation, lineage))?;
        let data = around.diffs.open(&files::diff(disk, generation, lineage))?;
        check_len(&*data, size)?;
        let map = Arc::new(DirtyMap::open(
            map,
            MapIdentity {
                size,
                generation,
                lineage,
            },
        )?);
        Ok(Self {
            live: Arc::clone(history.0),
            intent: history.1,
            generation,
            map,
            data,
            size,
        })
    }

    /// Asked before [`DirtyMap::mark`] makes every granule stale.
    pub(crate) fn edges_held(&self, touched: GranuleRange) -> EdgesHeld {
        let held = |granule| self.map.state(granule) == GranuleState::Data;
        EdgesHeld {
            first: held(touched.start),
            last: held(touched.end - 1),
        }
    }

    /// Copies a write that reached production. Edges that the diff does not hold are completed
    /// from production, so that a granule in the diff is always whole.
    pub(crate) fn copy_write(
        &self,
        production: &dyn BlockDevice,
        data: &[u8],
        offset: u64,
        held: EdgesHeld,
    ) -> Result<(), HealError> {
        let range = ByteRange::of_buf(offset, data);
        let touched = range.granules_touched();
        let whole = self.covered(range);
        // A write into the hole of what was lost would fill it, and hide the loss.
        let held = EdgesHeld {
            first: held.first && is_held(&*self.data, touched.start).map_err(HealError::Diff)?,
            last: held.last && is_held(&*self.data, touched.end - 1).map_err(HealError::Diff)?,
        };
        let complete_first = whole.start > touched.start && !held.first;
        // Also where the disk ends: what lies past its end is to be zero, and after a loss may not be.
        let in_part = !range.end().is_multiple_of(GRANULE);
        let complete_last = in_part && !held.last && !(complete_first && touched.count() == 1);
        if complete_first {
            self.complete(production, touched.start)?;
        }
        if complete_last {
            self.complete(production, touched.end - 1)?;
        }
        // What is complete by now is not written twice.
        let start = if complete_first {
            (touched.start + 1) * GRANULE
        } else {
            range.start()
        };
        let end = if complete_last {
            (touched.end - 1) * GRANULE
        } else {
            range.end()
        };
        if start < end {
            let direct = &data[index(start - offset)..index(end - offset)];
            self.data
                .write_all_at(direct, start)
                .map_err(HealError::Diff)?;
        }
        self.map.settle(touched, Settled::Data);
        Ok(())
    }

    /// Notes a range that production holds as zeroes; edges are completed from production.
    pub(crate) fn copy_zeroes(
        &self,
        production: &dyn BlockDevice,
        range: ByteRange,
    ) -> Result<(), HealError> {
        let touched = range.granules_touched();
        let whole = self.covered(range);
        if whole.is_empty() {
            return self.heal(production, touched);
        }
        self.map.settle(whole, Settled::Zero);
        self.heal(
            production,
            GranuleRange {
                start: touched.start,
                end: whole.start,
            },
        )?;
        self.heal(
            production,
            GranuleRange {
                start: whole.end,
                end: touched.end,
            },
        )
    }

    /// Reads granules from production into the diff, and settles them.
    pub(crate) fn heal(
        &self,
        production: &dyn BlockDevice,
        granules: GranuleRange,
    ) -> Result<(), HealError> {
        let step = HEAL_BYTES_MAX / GRANULE;
        let mut start = granules.start;
        while start < granules.end {
            let piece = GranuleRange {
                start,
                end: (start + step).min(granules.end),
            };
            self.heal_piece(production, piece)?;
            start = piece.end;
        }
        Ok(())
    }

    fn heal_piece(
        &self,
        production: &dyn BlockDevice,
        piece: GranuleRange,
    ) -> Result<(), HealError> {
        let bytes = self.read_production(production, piece)?;
        if bytes.iter().all(|byte| *byte == 0) {
            self.map.settle(piece, Settled::Zero);
            return Ok(());
        }
        self.data
            .write_all_at(&bytes, piece.start * GRANULE)
            .map_err(HealError::Diff)?;
        self.map.settle(piece, Settled::Data);
        Ok(())
    }

    /// Makes one granule of the diff file whole, without settling it.
    fn complete(&self, production: &dyn BlockDevice, granule: u64) -> Result<(), HealError> {
        let one = GranuleRange {
            start: granule,
            end: granule + 1,
        };
        let bytes = self.read_production(production, one)?;
        self.data
            .write_all_at(&bytes, granule * GRANULE)
            .map_err(HealError::Diff)
    }

    /// Whole granules; what lies past a short last granule is zero.
    fn read_production(
        &self,
        production: &dyn BlockDevice,
        granules: GranuleRange,
    ) -> Result<Vec<u8>, HealError> {
        let range = granules.bytes(self.size);
        let mut bytes = vec![0; index(granules.count() * GRANULE)];
        production
            .read_at(&mut bytes[..index(range.len())], range.start())
            .map_err(HealError::Production)?;
        Ok(bytes)
    }

    /// The granules that a range covers; one that ends with the disk is covered.
    fn covered(&self, range: ByteRange) -> GranuleRange {
        let (covered, touched) = (range.granules_covered(), range.granules_touched());
        let to_the_end = range.end() == self.size && covered.start < touched.end;
        GranuleRange {
            end: if to_the_end { touched.end } else { covered.end },
            ..covered
        }
    }

    /// Bytes that diff and map occupy.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        Ok(self.data.allocated()? + self.map.allocated()?)
    }

    /// Before a cut: what could not be brought to the disk is not trusted. Granules of the diff
    /// become stale, to be healed; a map that may have lost words is given up: the
    /// intent log still says, coarsely, what was written. Returns whether anything was lost.
    pub(crate) fn distrust_lost_writeback(&self) -> io::Result<bool> {
        if let Err(error) = self.map.check() {
            tracing::error!(%error, "the dirty map is not reliable");
            self.live.lose();
            return Ok(true);
        }
        if let Err(error) = self.map.check_data(&*self.data) {
            tracing::warn!(%error, "a diff could not be written to its disk; it is read again");
            self.mark_all_stale()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// After an earlier process was killed: what it wrote and may be lost is not trusted. Before any read or
    /// write of the diff: a read brings pages in, and a write to a part of a granule fills the hole that tells.
    pub(crate) fn distrust_what_was_lost(&self) -> io::Result<()> {
        if let Err(error) = check_kept(&self.map, &*self.data) {
            tracing::warn!(%error, "a diff of an earlier process is not trusted; it is read again");
            self.mark_all_stale()?;
        }
        Ok(())
    }

    fn mark_all_stale(&self) -> io::Result<()> {
        let mut at = 0;
        while let Some(run) = self.map.next_run(at, u64::MAX - at) {
            self.map.mark(run.granules)?;
            at = run.granules.end;
        }
        self.map.trust_data();
        Ok(())
    }

    /// Frees the space of a diff that no longer counts. Its map stays: it is mapped.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.data.set_len(0)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.map.sync_data(&*self.data)?;
        self.map.sync()
    }
}

/// A diff file is as long as its disk, in whole granules: a shorter one lost its end.
pub(crate) fn check_len(data: &dyn File, size: u64) -> io::Result<()> {
    let (len, expected) = (data.len()?, GranuleRange::of_size(size).end * GRANULE);
    if len == expected {
        return Ok(());
    }
    let why = format!("the diff has {len} bytes, not {expected}");
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}
