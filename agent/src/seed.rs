//! The seed: the first copy of the disks, made while guests write.
//!
//! ```text
//!   disk       |---copied---|cursor ...................|      in the seed
//!   open diff     ##   #          ##      #      ###          everything written since it began
//!   first point = seed, overlaid with the diff that the first cut seals
//! ```
//!
//! A granule that is dirty in the open generation need not be read: the diff brings it. One that is
//! written while it is being read is torn in the seed, and whole in the diff. Holes cost nothing.
//!
//! Rule: no cut before the seed is complete, so everything written since it began is in one
//! generation; the ship checks that once more (`base.rs`).
//! Crash: progress is saved every [`SAVE_BYTES`] or [`SAVE_INTERVAL`]; a later process goes on from
//! there if the history of tracking is the same.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use block::{BlockDevice, ByteRange, DirtyBitmap, GRANULE, GranuleRange, index};
use splitter::{Generation, Lineage, TrackedDisk};
use store::{Base, SeedRecord};
use tracing::info;

use crate::engine::{Engine, Stop};
use crate::stage_two::target_error;
use crate::target_writer::{NewSeed, NewSeedDisk, TargetImage, TargetImageWriter, TargetWriter};
use crate::{Error, Result};

/// Bytes read between two saves of progress: the most that an interruption costs.
const SAVE_BYTES: u64 = 128 << 20;
/// Time between two saves of progress.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes read at once.
const PIECE: u64 = 1 << 20;
/// Extents asked for at once.
const EXTENTS_MAX: usize = 256;

/// How a seed ended.
pub(crate) enum Seeded {
    /// All disks of this history are copied.
    Complete(Lineage),
    /// The end has come, or tracking was restarted; progress is saved.
    Interrupted,
}

/// How far the seed is, for who asks.
pub(crate) struct SeedProgress {
    complete: AtomicBool,
    done: AtomicU64,
    read: AtomicU64,
    total: u64,
}

impl SeedProgress {
    pub(crate) fn new(total: u64) -> Self {
        Self {
            complete: AtomicBool::new(false),
            done: AtomicU64::new(0),
            read: AtomicU64::new(0),
            total,
        }
    }

    pub(crate) fn reset(&self) {
        self.complete.store(false, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
    }

    pub(crate) fn complete(&self) {
        self.done.store(self.total, Ordering::Relaxed);
        self.complete.store(true, Ordering::Relaxed);
    }

    pub(crate) fn percent(&self) -> u64 {
        let done = u128::from(self.done.load(Ordering::Relaxed));
        let percent = done * 100 / u128::from(self.total.max(1));
        u64::try_from(percent.min(100)).unwrap_or(100)
    }

    pub(crate) fn status(&self) -> crate::api::SeedStatus {
        crate::api::SeedStatus {
            complete: self.complete.load(Ordering::Relaxed),
            done_bytes: self.done.load(Ordering::Relaxed),
            total_bytes: self.total,
            read_bytes: self.read.load(Ordering::Relaxed),
        }
    }
}

/// A seed at work.
struct Seeder<'a> {
    engine: &'a Engine,
    store: &'a TargetWriter,
    lineage: Lineage,
    generation: Generation,
    disks: Vec<NewSeedDisk>,
    unsaved_bytes: u64,
    saved_at: Duration,
}

/// Copies the disks, or what an earlier seed of the same history left of them.
pub(crate) fn seed(engine: &Engine, store: &TargetWriter) -> Result<Seeded> {
    let lineage = engine.group.lineage();
    let since = engine.group.since();
    let newest = engine.group.open_generation().previous();
    let found = engine.held(store)?.seed;
    let found = found.filter(|seed| goes_on(seed, lineage, since..=newest, &engine.disk_sizes()));
    let began = found.as_ref().map(|seed| Generation(seed.generation));
    let generation = began.unwrap_or(newest);
    engine.adjust_priority();
    info!(group = %engine.name, resumed = found.is_some(), "seed begins");
    let disks = match &found {
        Some(found) => resume(engine, store, found)?,
        None => begin(engine, store)?,
    };
    let mut seeder = Seeder {
        engine,
        store,
        lineage,
        generation,
        disks,
        unsaved_bytes: 0,
        saved_at: engine.now(),
    };
    let complete = seeder.run()?;
    seeder.save()?;
    if !complete {
        return Ok(Seeded::Interrupted);
    }
    let read = engine.seed.status().read_bytes;
    info!(group = %engine.name, read_bytes = read, "seed is complete");
    Ok(Seeded::Complete(lineage))
}

/// Whether a saved seed can be gone on with: everything written since it began must be in the
/// generation that is open.
fn goes_on(
    seed: &SeedRecord,
    lineage: Lineage,
    cuts: RangeInclusive<Generation>,
    disks: &[(block::Name, u64)],
) -> bool {
    seed.lineage == lineage.0
        && cuts.contains(&Generation(seed.generation))
        && seed.disks.len() == disks.len()
        && seed
            .disks
            .iter()
            .zip(disks)
            .all(|(saved, (name, size))| saved.name == *name && saved.size == *size)
}

fn begin(engine: &Engine, store: &TargetWriter) -> Result<Vec<NewSeedDisk>> {
    let disk = |(name, size): (block::Name, u64)| {
        Ok(NewSeedDisk {
            name,
            cursor_granule: 0,
            image: finish_at_once(engine, store, Base::Empty { size })?,
        })
    };
    engine.disk_sizes().into_iter().map(disk).collect()
}

fn resume(engine: &Engine, store: &TargetWriter, found: &SeedRecord) -> Result<Vec<NewSeedDisk>> {
    let disk = |saved: &store::SeedDiskRecord| {
        Ok(NewSeedDisk {
            name: saved.name.clone(),
            cursor_granule: saved.cursor_granule,
            image: finish_at_once(engine, store, Base::Image(saved.image.clone()))?,
        })
    };
    found.disks.iter().map(disk).collect()
}

fn finish_at_once(engine: &Engine, store: &TargetWriter, base: Base) -> Result<TargetImage> {
    let writer = store.image_writer(base);
    writer
        .and_then(TargetImageWriter::finish)
        .map_err(target_error(engine, "begin the first copy"))
}

impl Seeder<'_> {
    /// Whether all disks are copied.
    fn run(&mut self) -> Result<bool> {
        for number in 0..self.disks.len() {
            let disk = Arc::clone(&self.engine.group.disks()[number]);
            while self.disks[number].cursor_granule < GranuleRange::of_size(disk.size()).end {
                if !self.stretch(number, &disk)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Copies on until it is time to save. `false` if the end has come.
    fn stretch(&mut self, number: usize, disk: &TrackedDisk) -> Result<bool> {
        let failed = target_error(self.engine, "write the first copy");
        let base = Base::Image(self.disks[number].image.image().clone());
        let mut writer = self.store.image_writer(base).map_err(&failed)?;
        let mut goes_on = true;
        let mut at = self.disks[number].cursor_granule * GRANULE;
        while at < disk.size() && !self.is_save_due() {
            goes_on = self.engine.stop() == Stop::No && self.engine.group.lineage() == self.lineage;
            if !goes_on {
                break;
            }
            at = self.advance(disk, at, &mut writer)?;
            self.note_progress(number, at);
        }
        let seeded = &mut self.disks[number];
        seeded.image = writer.finish().map_err(&failed)?;
        seeded.cursor_granule = at.div_ceil(GRANULE);
        if self.is_save_due() {
            self.save()?;
        }
        Ok(goes_on)
    }

    /// Copies the data of the next extents, one piece at most; where it came to, in bytes.
    fn advance(
        &mut self,
        disk: &TrackedDisk,
        at: u64,
        writer: &mut TargetImageWriter,
    ) -> Result<u64> {
        let rest = ByteRange::new(at, disk.size()).expect("the caller checked");
        let read_failed = |source| Error::Device {
            doing: "read production for the first copy",
            source,
        };
        let extents = disk.block_status(rest, EXTENTS_MAX).map_err(read_failed)?;
        let data = extents.iter().find(|extent| !extent.state.reads_zero());
        let data = match (data, extents.last()) {
            (Some(data), _) => data.range,
            (None, Some(last)) if last.range.end() == disk.size() => return Ok(disk.size()),
            (None, Some(last)) if last.range.end() >= at + GRANULE => {
                return Ok(last.range.end() / GRANULE * GRANULE);
            }
            // Less than a granule is known: read it.
            _ => rest,
        };
        let start = (data.start() / GRANULE * GRANULE).max(at);
        let end = data.end().next_multiple_of(GRANULE);
        let end = end.min(start + PIECE).min(disk.size());
        let piece = ByteRange::new(start, end).expect("an extent is not empty");
        for extent in disk.dirty_status(piece, usize::MAX).map_err(read_failed)? {
            if !extent.dirty {
                self.copy(disk, extent.range, writer)?;
            }
        }
        Ok(end)
    }

    fn copy(
        &mut self,
        disk: &TrackedDisk,
        range: ByteRange,
        writer: &mut TargetImageWriter,
    ) -> Result<()> {
        let granules = range.granules_touched();
        // Zero past the end of a disk whose last granule is short.
        let mut bytes = vec![0; index(granules.count() * GRANULE)];
        let inside = &mut bytes[..index(granules.bytes(disk.size()).len())];
        disk.read_at(inside, granules.start * GRANULE)
            .map_err(|source| Error::Device {
                doing: "read production for the first copy",
                source,
            })?;
        self.unsaved_bytes += range.len();
        self.engine
            .seed
            .read
            .fetch_add(range.len(), Ordering::Relaxed);
        let _stepped_back = self.engine.crew.step_back();
        writer
            .put(granules.start, &bytes)
            .map_err(target_error(self.engine, "write the first copy"))
    }

    fn note_progress(&self, number: usize, at: u64) {
        let sizes = self.engine.group.disks()[..number]
            .iter()
            .map(|disk| disk.size());
        let done = sizes.sum::<u64>() + at;
        self.engine.seed.done.store(done, Ordering::Relaxed);
    }

    fn is_save_due(&self) -> bool {
        let since = self.engine.now().saturating_sub(self.saved_at);
        self.unsaved_bytes >= SAVE_BYTES || (self.unsaved_bytes > 0 && since >= SAVE_INTERVAL)
    }

    fn save(&mut self) -> Result<()> {
        let seed = NewSeed {
            group: &self.engine.name,
            lineage: self.lineage.0,
            generation: self.generation.0,
            disks: &self.disks,
        };
        let failed = target_error(self.engine, "save the progress of the first copy");
        self.store.save_seed(&seed).map_err(failed)?;
        self.unsaved_bytes = 0;
        self.saved_at = self.engine.now();
        Ok(())
    }
}
