//! The open diff of one disk: the dirty map, and a log that holds every granule written in this
//! generation, whole.
//!
//! All methods that take granules expect their stripes to be held.

use std::io;
use std::sync::Arc;

use block::{BlockDevice, ByteRange, Dir, GRANULE, GranuleRange, Name, PageBuf, index};

use crate::files;
use crate::group::Surroundings;
use crate::intent::DiskIntent;
use crate::live::Live;
use crate::log::{AppendError, DiffLog, For};
use crate::map::{DirtyMap, MapIdentity, Settled};
use crate::{Generation, Lineage};

/// Most bytes that are read from production at once to complete a diff.
pub(crate) const HEAL_BYTES_MAX: u64 = 256 << 10;

pub(crate) struct OpenDiff {
    pub(crate) live: Arc<Live>,
    pub(crate) intent: DiskIntent,
    pub(crate) generation: Generation,
    pub(crate) map: Arc<DirtyMap>,
    pub(crate) log: Arc<DiffLog>,
    size: u64,
}

/// Why a diff could not be completed from production.
#[derive(Debug)]
pub(crate) enum HealError {
    Production(block::Error),
    Diff(io::Error),
    /// No frame was free.
    NoFrame,
    /// What it should have held was written over since the cut.
    Overwritten,
}

impl From<AppendError> for HealError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NoFrame => Self::NoFrame,
            AppendError::Io(error) => Self::Diff(error),
        }
    }
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
        let identity = MapIdentity {
            size,
            generation,
            lineage,
        };
        let map = Arc::new(DirtyMap::create(map?, identity, generation.previous())?);
        let whose = (lineage, generation, disk);
        Ok(Self {
            live: Arc::clone(history.0),
            intent: history.1,
            generation,
            log: Arc::new(DiffLog::new(Arc::clone(&map), data, whose)),
            map,
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
        let map = Arc::new(DirtyMap::open(
            map,
            MapIdentity {
                size,
                generation,
                lineage,
            },
        )?);
        map.take_over()?;
        let log = DiffLog::new(Arc::clone(&map), data, (lineage, generation, disk));
        if !log.is_long_enough()? {
            tracing::warn!(%disk, "the open diff has lost its end; it is read again");
            log.begin_anew();
        }
        Ok(Self {
            live: Arc::clone(history.0),
            intent: history.1,
            generation,
            log: Arc::new(log),
            map,
            size,
        })
    }

    /// Copies a write that reached production. Edges are completed from production, so that a granule in
    /// the diff is always whole.
    pub(crate) fn copy_write(
        &self,
        production: &dyn BlockDevice,
        (data, offset): (&[u8], u64),
        whose: For<'_>,
    ) -> Result<(), HealError> {
        let range = ByteRange::of_buf(offset, data);
        let touched = range.granules_touched();
        let inside = range.granules_covered();
        if inside.is_empty() {
            return self.heal(production, touched, whose);
        }
        // Also where the disk ends: what lies past its end is zero.
        let edge = |start, end| self.read_production(production, GranuleRange { start, end });
        let first = edge(touched.start, inside.start)?;
        let last = edge(inside.end, touched.end)?;
        let bytes = inside.start * GRANULE - offset..inside.end * GRANULE - offset;
        let middle = &data[index(bytes.start)..index(bytes.end)];
        self.log.append(touched, &[&first, middle, &last], whose)?;
        Ok(())
    }

    /// Notes a range that production holds as zeroes; edges are completed from production.
    pub(crate) fn copy_zeroes(
        &self,
        production: &dyn BlockDevice,
        range: ByteRange,
        whose: For<'_>,
    ) -> Result<(), HealError> {
        let touched = range.granules_touched();
        let whole = self.covered(range);
        if whole.is_empty() {
            return self.heal(production, touched, whose);
        }
        self.map.settle(whole, Settled::Zero);
        self.heal(
            production,
            GranuleRange {
                start: touched.start,
                end: whole.start,
            },
            whose,
        )?;
        self.heal(
            production,
            GranuleRange {
                start: whole.end,
                end: touched.end,
            },
            whose,
        )
    }

    /// Reads granules from production into the diff, and settles them.
    pub(crate) fn heal(
        &self,
        production: &dyn BlockDevice,
        granules: GranuleRange,
        whose: For<'_>,
    ) -> Result<(), HealError> {
        let step = HEAL_BYTES_MAX / GRANULE;
        let mut start = granules.start;
        while start < granules.end {
            let piece = GranuleRange {
                start,
                end: (start + step).min(granules.end),
            };
            self.heal_piece(production, piece, whose)?;
            start = piece.end;
        }
        Ok(())
    }

    fn heal_piece(
        &self,
        production: &dyn BlockDevice,
        piece: GranuleRange,
        whose: For<'_>,
    ) -> Result<(), HealError> {
        let bytes = self.read_production(production, piece)?;
        if bytes.iter().all(|byte| *byte == 0) {
            self.map.settle(piece, Settled::Zero);
            return Ok(());
        }
        self.log.append(piece, &[&bytes], whose)?;
        Ok(())
    }

    /// Whole granules; what lies past a short last granule is zero.
    fn read_production(
        &self,
        production: &dyn BlockDevice,
        granules: GranuleRange,
    ) -> Result<PageBuf, HealError> {
        if granules.is_empty() {
            return Ok(PageBuf::default());
        }
        let range = granules.bytes(self.size);
        let mut bytes = PageBuf::zeroed(index(granules.count() * GRANULE));
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
        Ok(self.log.file().allocated()? + self.map.allocated()?)
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
        if let Err(error) = self.log.file().check_writeback() {
            tracing::warn!(%error, "a diff could not be written to its disk; it is read again");
            self.log.begin_anew();
            return Ok(true);
        }
        Ok(false)
    }

    /// Frees the space of a diff that no longer counts. Its map stays: it is mapped.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.log.file().set_len(0)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.log.write_all_staged()?;
        self.log.file().sync_data()?;
        self.map.sync()
    }
}
