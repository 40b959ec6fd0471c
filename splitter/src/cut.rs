//! The cut: seals the open generation of all disks at one instant, and lists it once its writes have ended.
//!
//! ```text
//!  heal -> files of the next generation -> store of its number -> flip      the cut: no write waits
//!                         writes that began before it end -> bytes that are missing -> listed
//! ```
//!
//! Crash: files of the next generation are made before the cut. Before the store of the open generation they are
//! debris. After it the old ones are sealed; once all writes that went to them have ended and what they had in
//! memory is written, before the cut is answered, they are complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use block::{BlockDevice, GRANULE, UnixNanos};

use crate::diff::OpenDiff;
use crate::gate::Closed;
use crate::group::{END_MAX, Group, heal_error, in_flight};
use crate::lineage;
use crate::map::pages_of_each;
use crate::sealed::{SealedDiff, SealedGeneration};
use crate::tracked::TrackedDisk;
use crate::turns::Tracking;
use crate::uses::Uses;
use crate::{CutError, Generation, Lineage};

/// How long a cut waits to see what writes in flight leave stale.
const HELD_MAX: Duration = Duration::from_millis(100);

/// In which state a cut caught the guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// As a power cut at that instant would have.
    #[default]
    Crash,
    /// Quiet: what runs in them had been asked to write down all that it held.
    Application,
}

/// What is said of a cut, and kept with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutNote {
    /// Labels of the point, the user's words; at most 64 are kept.
    pub labels: BTreeMap<String, String>,
    /// The state of the guests.
    pub consistency: Consistency,
}

/// A cut that was made.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The generation that it sealed.
    pub generation: Generation,
    /// When.
    pub at: UnixNanos,
    /// The same instant on the monotonic clock.
    pub began: Duration,
    /// How long the instant was: a write that began in it is in this generation or in the next. None waited for it.
    pub pause: Duration,
    /// Bytes written in the generation, in whole granules.
    pub dirty_bytes: u64,
    /// The state of the guests, as the note says.
    pub consistency: Consistency,
}

/// What to do about bytes that a cut lacks when all its writes have ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lacking {
    Complete,
    /// The diff device is not to be touched: the cut waits.
    LeaveAlone,
    /// The cut is lost.
    GiveUp,
}

/// A cut from the moment when writes began to go to the next generation, until those before have ended.
pub(crate) struct Ending {
    generation: Generation,
    at: UnixNanos,
    began: Duration,
    pause: Duration,
    note: CutNote,
}

impl Ending {
    fn cut(&self, dirty_bytes: u64) -> Cut {
        Cut {
            generation: self.generation,
            at: self.at,
            began: self.began,
            pause: self.pause,
            dirty_bytes,
            consistency: self.note.consistency,
        }
    }
}

impl Group {
    /// Seals the open generation of all disks at one instant, and opens the next.
    ///
    /// # Errors
    /// One that [waits](CutError::waits): it is made, and listed by [`Self::end_cut`]; until then there is no other. After
    /// every other error there is no new cut, and the open generation is complete again after a later heal. `MapOnly`
    /// while copies are paused.
    pub fn cut(&self, note: CutNote) -> Result<Cut, CutError> {
        if self.copies_are_paused() {
            return Err(CutError::MapOnly);
        }
        lineage::check_labels(&note.labels).map_err(CutError::Labels)?;
        let _kept = self.keep_logs();
        self.check_open(&self.tracking.lock())?;
        // After a recovery this is long: whoever asks for figures need not wait.
        self.heal()?;
        self.write_staged()?;
        let mut tracking = self.tracking.lock();
        if let Some(ending) = &tracking.ending {
            return Err(self.busy(ending, &self.disks[0]));
        }
        self.check_open(&tracking)?;
        let (lineage, sealing) = (tracking.lineage, tracking.live.open_generation());
        let opening = sealing.next();
        lineage::save_note(&*self.around.state, lineage, sealing, &note)
            .map_err(self.state_error("write the note of the cut"))?;
        if tracking.intent.allow(opening).is_err() {
            return Err(CutError::Distrusted);
        }
        let at_device = self.writer.device.visit();
        let next = self.create_diffs(lineage, opening, &tracking.live, &tracking.intent)?;
        drop(at_device);
        self.prepare_maps(&next)?;
        // All but what is being written just now: what is stale beyond that at the cut, and written again, costs it.
        let until = self.around.clock.monotonic() + HELD_MAX;
        for disk in &self.disks {
            let healed = disk.heal_until(until);
            healed.map_err(|error| heal_error(disk, error))?;
        }
        if self.copies_are_paused() {
            return Err(CutError::MapOnly);
        }
        self.turn_over(&mut tracking, next, note)?;
        let cut = self.end_in(&mut tracking, END_MAX)?;
        Ok(cut.expect("it was begun"))
    }

    /// Lists a cut whose last writes had not ended when it was made, if they end within `patience`. `None` if there is
    /// none.
    ///
    /// # Errors
    /// One that [waits](CutError::waits): it still does. Others as those of a cut: it is lost, and the next one is exact.
    pub fn end_cut(&self, patience: Duration) -> Result<Option<Cut>, CutError> {
        self.end_in(&mut self.tracking.lock(), patience)
    }

    /// Loses a cut that waits until copies go on: where there is no room for what it lacks. The next one is exact. One
    /// that lacks nothing is listed.
    ///
    /// # Errors
    /// `Busy`: it waits for a guest's write, and goes on doing so. `MapOnly`: it is lost. Others as those of a cut.
    pub fn give_up_ending(&self) -> Result<Option<Cut>, CutError> {
        self.end_with(&mut self.tracking.lock(), Duration::ZERO, Lacking::GiveUp)
    }

    /// A cut that was made and is not listed, as far as it is known.
    #[must_use]
    pub fn ending(&self) -> Option<Cut> {
        let tracking = self.tracking.lock();
        let ending = tracking.ending.as_ref()?;
        Some(self.cut_of(ending))
    }

    pub(crate) fn cut_of(&self, ending: &Ending) -> Cut {
        let older = self.disks.iter().filter_map(|disk| disk.gate.older());
        let dirty_count: u64 = older.map(|older| older.map.dirty_count()).sum();
        ending.cut(dirty_count * GRANULE)
    }

    /// The cut: from here on writes go to `next`.
    fn turn_over(
        &self,
        tracking: &mut Tracking,
        next: Vec<OpenDiff>,
        note: CutNote,
    ) -> Result<(), CutError> {
        // All or none: what is there counts as the older diff until the flip.
        let sides = self.close_others(END_MAX);
        let sides = sides.map_err(|disk| in_flight(disk, END_MAX))?;
        for (mut side, diff) in sides.into_iter().zip(next) {
            *side = Some(diff);
        }
        let live = &tracking.live;
        let generation = live.open_generation();
        let began = self.around.clock.monotonic();
        let at = self.around.clock.wall();
        for disk in &self.disks {
            disk.gate.enter().map.seal(at);
        }
        // Crash: before this store the next generation is debris. After it the old one is sealed, and writes go to
        // it until the flip: killed in between it has them all, and lacks those that are stale.
        live.set_open_generation(generation.next());
        self.epoch.flip();
        let pause = self.around.clock.monotonic().saturating_sub(began);
        tracking.ending = Some(Arc::new(Ending {
            generation,
            at,
            began,
            pause,
            note,
        }));
        Ok(())
    }

    fn end_in(&self, tracking: &mut Tracking, patience: Duration) -> Result<Option<Cut>, CutError> {
        let lacking = match self.copies_are_paused() {
            true => Lacking::LeaveAlone,
            false => Lacking::Complete,
        };
        self.end_with(tracking, patience, lacking)
    }

    fn end_with(
        &self,
        tracking: &mut Tracking,
        patience: Duration,
        lacking: Lacking,
    ) -> Result<Option<Cut>, CutError> {
        let Some(ending) = &tracking.ending else {
            return Ok(None);
        };
        let mut sides = self
            .close_others(patience)
            .map_err(|disk| self.busy(ending, disk))?;
        let lacks = |side: &Closed<'_>| side.as_ref().is_some_and(|diff| !diff.map.is_complete());
        let incomplete = sides.iter().position(lacks);
        if let Some(at) = incomplete
            && lacking == Lacking::LeaveAlone
        {
            let disk = self.disks[at].name.clone();
            return Err(CutError::Incomplete { disk });
        }
        let old: Vec<_> = sides.iter_mut().filter_map(|side| side.take()).collect();
        drop(sides);
        let Some(ending) = tracking.ending.take() else {
            return Ok(None);
        };
        let mut failed = None;
        for (diff, disk) in old.iter().zip(&self.disks) {
            let completed = match lacking {
                _ if incomplete.is_none() => Ok(()),
                Lacking::Complete => self.complete(disk, diff),
                Lacking::LeaveAlone | Lacking::GiveUp => Err(CutError::MapOnly),
            };
            if let Err(error) = completed {
                failed = Some(error);
            }
        }
        // After the last look at production: where a write was not marked, what was read may be of later.
        if tracking.live.is_lost() {
            return Err(CutError::Distrusted);
        }
        let since = old.iter().map(|diff| diff.map.since()).min();
        let uses = match failed {
            None => Uses::free(),
            Some(_) => Uses::broken(),
        };
        let sealed = SealedGeneration {
            lineage: tracking.lineage,
            generation: ending.generation,
            since: since.unwrap_or_default(),
            at: ending.at,
            note: ending.note.clone(),
            disks: self.sealed_diffs(old, tracking.lineage, &uses),
            absorbing: None,
            uses,
        };
        let cut = ending.cut(sealed.dirty_bytes());
        tracking.sealed.push(Arc::new(sealed));
        if let Some(error) = failed {
            // It lacks what could not be written: the open generation takes it in.
            self.fold(tracking, ending.generation)?;
            return Err(error);
        }
        Ok(Some(cut))
    }

    /// The same, where it does not matter whether it is listed or lost: afterwards no cut waits.
    pub(crate) fn end_if_it_can(&self, tracking: &mut Tracking) -> Result<(), CutError> {
        let mut ended = self.end_in(tracking, END_MAX);
        if let Err(CutError::Incomplete { .. }) = &ended {
            ended = self.end_with(tracking, END_MAX, Lacking::GiveUp);
        }
        match ended {
            Err(error @ (CutError::Busy { .. } | CutError::Distrusted)) => Err(error),
            _ => Ok(()),
        }
    }

    fn busy(&self, ending: &Ending, disk: &TrackedDisk) -> CutError {
        CutError::Busy {
            disk: disk.name.clone(),
            waited: self.around.clock.monotonic().saturating_sub(ending.began),
        }
    }

    /// Brings all that a diff must hold to its file. Nobody writes to it any more, and nobody waits.
    fn complete(&self, disk: &TrackedDisk, diff: &OpenDiff) -> Result<(), CutError> {
        disk.heal_older(diff)
            .map_err(|error| heal_error(disk, error))?;
        let _at_device = self.writer.device.visit();
        diff.log.end().map_err(|source| CutError::Degraded {
            disk: disk.name.clone(),
            source,
        })
    }

    /// Whether the open generation can still be trusted, disk by disk.
    fn check_open(&self, tracking: &Tracking) -> Result<(), CutError> {
        for disk in &self.disks {
            let diff = disk.gate.enter();
            let lost = diff
                .distrust_lost_writeback()
                .map_err(|source| CutError::Degraded {
                    disk: disk.name.clone(),
                    source,
                })?;
            if lost {
                disk.pace.note_lost_writeback();
            }
            // A restart of tracking that failed half way leaves gates of several lineages.
            if diff.live.is_lost() || !Arc::ptr_eq(&diff.live, &tracking.live) {
                if tracking.live.is_forsaken() {
                    // The state directory may take it by now.
                    tracking.intent.revoke();
                }
                return Err(CutError::Distrusted);
            }
        }
        Ok(())
    }

    fn prepare_maps(&self, next: &[OpenDiff]) -> Result<(), CutError> {
        let mut both = self.disks.iter().zip(next);
        let pages = pages_of_each(self.disks.len());
        both.try_for_each(|(disk, diff)| diff.map.prepare_like(&disk.gate.enter().map, pages))
            .map_err(|source| CutError::Io {
                what: "reserve the maps of a generation",
                place: self.around.maps.describe(),
                source,
            })
    }

    /// Brings most of what the open diffs have in memory to their files, before anybody waits.
    fn write_staged(&self) -> Result<(), CutError> {
        self.disks.iter().try_for_each(|disk| {
            // Outside the gate: it waits for the device.
            let log = Arc::clone(&disk.gate.enter().log);
            let _at_device = self.writer.device.visit();
            let written = log.write_all_staged();
            written.map_err(|source| CutError::Degraded {
                disk: disk.name.clone(),
                source,
            })
        })
    }

    fn sealed_diffs(
        &self,
        diffs: Vec<OpenDiff>,
        lineage: Lineage,
        uses: &Arc<Uses>,
    ) -> Vec<SealedDiff> {
        let seal = |(disk, diff): (&Arc<TrackedDisk>, OpenDiff)| SealedDiff {
            maps: Arc::clone(&self.around.maps),
            diffs: Arc::clone(&self.around.diffs),
            name: disk.name.clone(),
            size: disk.size(),
            lineage,
            generation: diff.generation,
            dirty_bytes: AtomicU64::new(diff.map.dirty_count() * GRANULE),
            kept: Some((diff.map, Arc::clone(diff.log.file()))),
            uses: Arc::clone(uses),
        };
        self.disks.iter().zip(diffs).map(seal).collect()
    }
}
