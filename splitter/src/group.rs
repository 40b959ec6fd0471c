//! A consistency group: its disks are cut together.
//!
//! | while this runs | a guest's write | a cut | a ship | a heal |
//! |---|---|---|---|---|
//! | cut | goes to the next generation | waits | goes on | goes on |
//! | release, fold | goes on | waits | the diff read stays open | goes on |
//! | merge | goes on | goes on | what is claimed is not merged | goes on |
//! | restart of tracking | waits at the gate for the swap | waits | its diffs vanish | goes on |
//!
//! Crash: files of the next generation are made before the cut. Before the store of the open generation they are
//! debris. After it the old ones are sealed; once all writes that went to them have ended and what they had in
//! memory is written, before the cut is answered, they are complete.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use block::{BlockDevice, Clock, Dir, GRANULE, Name, Stamp, UnixNanos};
use parking_lot::Mutex;

use crate::diff::{HealError, OpenDiff};
use crate::gate::{Closed, Epoch};
use crate::intent::IntentLog;
use crate::lineage::{self, DiskRecord, LineageRecord};
use crate::live::{Live, STAMPS_MAX};
use crate::map::pages_of_each;
use crate::sealed::{SealedDiff, SealedGeneration};
use crate::tracked::TrackedDisk;
use crate::uses::Uses;
use crate::writer::WriterCall;
use crate::{CutError, Generation, Lineage, files};

/// Disks in a group.
pub(crate) const DISKS_MAX: usize = if STAMPS_MAX < 64 { STAMPS_MAX } else { 64 };
/// How long a cut waits for the writes that began before it; what else is asked of the group waits as well.
pub(crate) const END_MAX: Duration = Duration::from_millis(100);
/// How long a cut waits to see what writes in flight leave stale.
const HELD_MAX: Duration = Duration::from_millis(100);
/// How long a gate closes for a write in flight, where tracking goes back to the intent log. A production
/// device that hangs must not hold up guests, least of all those of the group's other disks.
const DRAIN_MAX: Duration = Duration::from_millis(100);

/// A disk to protect.
pub struct DiskSpec {
    /// Its name in the group.
    pub name: Name,
    /// Where its live data is.
    pub production: Arc<dyn BlockDevice>,
    /// What tells this disk from any other, however it is called.
    pub identity: String,
    /// How it looks from outside, where it is a file.
    pub stamp: Option<Stamp>,
}

/// The world around a group.
#[derive(Clone)]
pub struct Surroundings {
    /// Where the group's state is kept; nothing else may be in it.
    pub state: Arc<dyn Dir>,
    /// Where its dirty maps are kept: with the state rather than with the diffs, so that a diff device
    /// that fails costs copies, and not the knowledge of what was written.
    pub maps: Arc<dyn Dir>,
    /// Where its diffs are kept.
    pub diffs: Arc<dyn Dir>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Names the run of the machine: after another one, the page cache is not to be trusted.
    pub boot: String,
    /// When that run began: what changes a disk later, and is not us, comes from outside.
    pub booted_at: UnixNanos,
    /// Sixteen random bytes, different at every call.
    pub random: Arc<dyn Fn() -> [u8; 16] + Send + Sync>,
}

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

/// A group of disks that are tracked and cut together.
pub struct Group {
    pub(crate) name: Name,
    pub(crate) around: Surroundings,
    pub(crate) disks: Vec<Arc<TrackedDisk>>,
    pub(crate) identities: Vec<String>,
    pub(crate) tracking: Mutex<Tracking>,
    pub(crate) writer: Arc<WriterCall>,
    pub(crate) epoch: Arc<Epoch>,
    /// How many have asked that no log be begun anew.
    pub(crate) logs_kept: AtomicUsize,
    /// Held while a log is begun anew.
    pub(crate) renewing: Mutex<()>,
    /// Held through a merge of sealed generations: one at a time.
    pub(crate) merging: Mutex<()>,
    pub(crate) _lock: Box<dyn Any + Send + Sync>,
}

/// The lineage that counts. Locked through every cut, release and restart: they happen one by one.
pub(crate) struct Tracking {
    pub(crate) lineage: Lineage,
    pub(crate) live: Arc<Live>,
    pub(crate) intent: Arc<IntentLog>,
    pub(crate) sealed: Vec<Arc<SealedGeneration>>,
    /// What a target is known to have.
    pub(crate) released: Generation,
    /// A cut whose last writes have not ended.
    pub(crate) ending: Option<Ending>,
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
    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The history that the next point belongs to.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.tracking.lock().lineage
    }

    /// The generation that takes the guest's writes.
    #[must_use]
    pub fn open_generation(&self) -> Generation {
        self.tracking.lock().live.open_generation()
    }

    /// The cut that the open generation builds on: everything written since is in it or in a sealed
    /// one.
    #[must_use]
    pub fn since(&self) -> Generation {
        let tracking = self.tracking.lock();
        if let Some(oldest) = tracking.sealed.first() {
            return oldest.since;
        }
        self.since_of_open(&tracking)
    }

    /// The same, of the open generation and the one whose writes are ending.
    pub(crate) fn since_of_open(&self, _tracking: &Tracking) -> Generation {
        let since = self.disks.iter().map(|disk| {
            let older = disk.gate.older().map(|older| older.map.since());
            older.unwrap_or_else(|| disk.gate.enter().map.since())
        });
        since.min().unwrap_or_default()
    }

    /// The disks, in the order they were given.
    #[must_use]
    pub fn disks(&self) -> &[Arc<TrackedDisk>] {
        &self.disks
    }

    /// Sealed generations that were not released, oldest first.
    #[must_use]
    pub fn sealed(&self) -> Vec<Arc<SealedGeneration>> {
        self.tracking.lock().sealed.clone()
    }

    /// Re-reads from production what the open diffs lack, unless copies are paused. Returns the bytes
    /// re-read.
    ///
    /// # Errors
    /// `Production`, `Degraded`.
    pub fn heal(&self) -> Result<u64, CutError> {
        self.disks
            .iter()
            .map(|disk| disk.heal().map_err(|e| heal_error(disk, e)))
            .sum()
    }

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
        if tracking.ending.is_some() {
            return Err(busy(&self.disks[0], Duration::ZERO));
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
        let older = self.disks.iter().filter_map(|disk| disk.gate.older());
        let dirty_count: u64 = older.map(|older| older.map.dirty_count()).sum();
        Some(ending.cut(dirty_count * GRANULE))
    }

    /// The cut: from here on writes go to `next`.
    fn turn_over(
        &self,
        tracking: &mut Tracking,
        next: Vec<OpenDiff>,
        note: CutNote,
    ) -> Result<(), CutError> {
        // All or none: what is there counts as the older diff until the flip.
        for (mut side, diff) in self.close_others(END_MAX)?.into_iter().zip(next) {
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
        tracking.ending = Some(Ending {
            generation,
            at,
            began,
            pause,
            note,
        });
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
        let mut sides = self.close_others(patience).map_err(|error| match error {
            CutError::Busy { disk, .. } => {
                let waited = self.around.clock.monotonic().saturating_sub(ending.began);
                CutError::Busy { disk, waited }
            }
            other => other,
        })?;
        let lacks = |side: &Closed<'_>| side.as_ref().is_some_and(|diff| !diff.is_complete());
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
    fn end_if_it_can(&self, tracking: &mut Tracking) -> Result<(), CutError> {
        let mut ended = self.end_in(tracking, END_MAX);
        if let Err(CutError::Incomplete { .. }) = &ended {
            ended = self.end_with(tracking, END_MAX, Lacking::GiveUp);
        }
        match ended {
            Err(error @ (CutError::Busy { .. } | CutError::Distrusted)) => Err(error),
            _ => Ok(()),
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

    /// Drops a sealed generation and those before it: a target has committed it. One of an earlier
    /// lineage is gone already.
    ///
    /// # Errors
    /// The operating system's; what was not removed is still listed, and can be released again.
    pub fn release(&self, committed: &SealedGeneration) -> io::Result<()> {
        let mut tracking = self.tracking.lock();
        let lineage = tracking.lineage;
        if committed.lineage != lineage {
            return Ok(());
        }
        tracking.released = tracking.released.max(committed.generation);
        // Oldest first: a crash in between leaves the newest, which chain without a gap.
        while let Some(oldest) = tracking.sealed.first()
            && oldest.generation <= committed.generation
        {
            self.remove_files(oldest)?;
            tracking.sealed.remove(0);
        }
        Ok(())
    }

    /// Takes regions that have not been written for a while out of the intent log; now and then this
    /// flushes production. Call it after a release, from a thread that nobody waits for.
    ///
    /// # Errors
    /// `Production` if a flush failed, `Io`; the regions stay.
    pub fn tend_intent_log(&self) -> Result<(), CutError> {
        let (intent, released) = {
            let tracking = self.tracking.lock();
            let open = tracking.live.open_generation();
            if !tracking.live.is_lost() {
                tracking
                    .intent
                    .begin_round(open, self.around.clock.monotonic());
            }
            (Arc::clone(&tracking.intent), tracking.released)
        };
        let Some(round) = intent.due_round(released) else {
            return Ok(());
        };
        self.flush_production()?;
        let taken_back = intent.end_round(round);
        let taken_back = taken_back.map_err(self.state_error("write the intent log"))?;
        tracing::debug!(group = %self.name, taken_back, "regions left the intent log");
        Ok(())
    }

    fn flush_production(&self) -> Result<(), CutError> {
        self.disks.iter().try_for_each(|disk| {
            disk.flush_production()
                .map_err(|source| CutError::Production {
                    disk: disk.name.clone(),
                    source,
                })
        })
    }

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

    fn fold(&self, tracking: &mut Tracking, from: Generation) -> Result<(), CutError> {
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

    /// Begins a new lineage while guests write: nothing of the old one counts any more.
    ///
    /// # Errors
    /// `Io`; the old lineage is given up even then, and a later restart tries again.
    pub fn restart_tracking(&self, why: &str) -> Result<Lineage, CutError> {
        let mut tracking = self.tracking.lock();
        tracing::warn!(group = %self.name, why, "tracking restarts; the disks are copied anew");
        // Crash: from here on an open finds the old lineage lost, or the new record.
        tracking.live.lose();
        self.discard_all(&mut tracking);
        // Crash: the old log misses what is written from the first swap on; nobody must find it.
        files::remove(&*self.around.state, files::TRACKING)
            .and_then(|()| self.around.state.sync())
            .map_err(self.state_error("remove the record of the old lineage"))?;
        let lineage = Lineage((self.around.random)());
        let live = Live::create(&*self.around.state, lineage, self.around.clock.wall())
            .map(Arc::new)
            .map_err(self.state_error("create the state of a lineage"))?;
        let sizes: Vec<_> = self.disks.iter().map(|disk| disk.size()).collect();
        let intent = IntentLog::create(&self.around, &live, lineage, &sizes)
            .map_err(self.state_error("create the intent log"))?;
        let diffs = self.create_diffs(lineage, Generation::FIRST, &live, &intent)?;
        *tracking = Tracking {
            lineage,
            live,
            intent,
            sealed: Vec::new(),
            released: Generation::NONE,
            ending: None,
        };
        // One by one: this is no cut, and a disk that hangs must not hold up the others. What is
        // written to a disk before its turn is read by the seed.
        for (disk, diff) in self.disks.iter().zip(diffs) {
            // Their files are closed with the gate open.
            drop(disk.gate.replace(diff));
        }
        self.establish(lineage).inspect_err(|_| {
            // Nobody may cut what nobody would find again.
            tracking.live.lose();
        })?;
        crate::recover::remove_debris(&self.around, lineage, &[Generation::FIRST])
            .map_err(self.state_error("remove the files of the old lineage"))?;
        Ok(lineage)
    }

    /// Makes a new lineage, into which all writes go, the one that counts.
    fn establish(&self, lineage: Lineage) -> Result<(), CutError> {
        // What was written before is in no log: the seed must not read what a power cut takes back.
        self.flush_production()?;
        self.record(lineage)
            .save(&*self.around.state)
            .map_err(self.state_error("record the new lineage"))
    }

    /// Frees what a lost lineage occupies, so that a full directory cannot keep the next one from
    /// beginning. What fails here is removed as debris later.
    pub(crate) fn discard_all(&self, tracking: &mut Tracking) {
        for sealed in tracking.sealed.drain(..) {
            let _ = self.remove_files(&sealed);
        }
        tracking.ending = None;
        for disk in &self.disks {
            if let Some(older) = disk.gate.older() {
                older.live.lose();
                let _ = older.discard();
            }
            let diff = disk.gate.enter();
            // A gate may hold a lineage that an earlier restart made and could not record.
            diff.live.lose();
            let _ = diff.discard();
        }
    }

    /// Ends tracking cleanly: everything is synced, so that even another boot can go on from here.
    /// No request may be in flight. `stamps` say how the production files look now.
    ///
    /// # Errors
    /// The first that a sync met; the next open then recovers as from a crash.
    pub fn close(self, stamps: &[Option<Stamp>]) -> io::Result<()> {
        let mut tracking = self.tracking.lock();
        self.end_if_it_can(&mut tracking)
            .map_err(io::Error::other)?;
        for disk in &self.disks {
            disk.flush_production().map_err(io::Error::other)?;
            disk.gate.enter().sync()?;
        }
        for sealed in tracking.sealed.iter().flat_map(|sealed| sealed.all_disks()) {
            // One that is damaged is found by the ship, which then folds it.
            if let Ok((map, data)) = sealed.open() {
                data.sync_data()?;
                map.sync()?;
            }
        }
        self.around.diffs.sync()?;
        self.around.maps.sync()?;
        self.around.state.sync()?;
        tracking.live.set_clean(stamps)
    }

    pub(crate) fn record(&self, lineage: Lineage) -> LineageRecord {
        let disks = self
            .disks
            .iter()
            .zip(&self.identities)
            .map(|(disk, identity)| DiskRecord {
                name: disk.name.clone(),
                size: disk.size(),
                identity: identity.clone(),
            });
        LineageRecord {
            lineage,
            boot: self.around.boot.clone(),
            group: self.name.to_string(),
            disks: disks.collect(),
        }
    }

    pub(crate) fn create_diffs(
        &self,
        lineage: Lineage,
        generation: Generation,
        live: &Arc<Live>,
        intent: &Arc<IntentLog>,
    ) -> Result<Vec<OpenDiff>, CutError> {
        let around = &self.around;
        let create = |(at, disk): (usize, &Arc<TrackedDisk>)| {
            let history = (live, intent.disk(at));
            OpenDiff::create(
                around,
                &disk.name,
                disk.size(),
                lineage,
                generation,
                history,
            )
        };
        self.disks
            .iter()
            .enumerate()
            .map(create)
            .collect::<io::Result<_>>()
            .map_err(|source| CutError::Io {
                what: "create the files of a generation",
                place: format!("{} or {}", around.diffs.describe(), around.maps.describe()),
                source,
            })
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

    /// Sees each disk without writes once, with the other gates open: one that hangs is found here, where
    /// it holds up its own guest only.
    pub(crate) fn drain_each(&self) -> Result<(), CutError> {
        if let [_] = &self.disks[..] {
            return Ok(());
        }
        self.disks
            .iter()
            .try_for_each(|disk| close_open(disk).map(drop))
    }

    /// All gates, alone: their sides where writes begin.
    pub(crate) fn close_gates(&self) -> Result<Vec<Closed<'_>>, CutError> {
        self.disks.iter().map(|disk| close_open(disk)).collect()
    }

    /// Their other sides, all within `patience`.
    pub(crate) fn close_others(&self, patience: Duration) -> Result<Vec<Closed<'_>>, CutError> {
        let until = self.around.clock.monotonic() + patience;
        let mut closed = Vec::new();
        for disk in &self.disks {
            let left = until.saturating_sub(self.around.clock.monotonic());
            let side = disk.gate.close_other(left);
            closed.push(side.ok_or_else(|| busy(disk, patience))?);
        }
        Ok(closed)
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

    /// Removes the files of a generation and of the one that it absorbs.
    pub(crate) fn remove_files(&self, sealed: &SealedGeneration) -> io::Result<()> {
        if let Some(older) = &sealed.absorbing {
            self.remove_files(older)?;
        }
        sealed.disks.iter().try_for_each(SealedDiff::remove)?;
        files::remove(
            &*self.around.state,
            &files::note(sealed.lineage, sealed.generation),
        )
    }

    pub(crate) fn state_error(&self, what: &'static str) -> impl Fn(io::Error) -> CutError {
        let place = self.around.state.describe();
        move |source| CutError::Io {
            what,
            place: place.clone(),
            source,
        }
    }
}

fn close_open(disk: &TrackedDisk) -> Result<Closed<'_>, CutError> {
    let closed = disk.gate.close_open(DRAIN_MAX);
    closed.ok_or_else(|| busy(disk, DRAIN_MAX))
}

fn busy(disk: &TrackedDisk, waited: Duration) -> CutError {
    let disk = disk.name.clone();
    CutError::Busy { disk, waited }
}

/// Granules that are marked at once.
const ABSORB_GRANULES_MAX: u64 = 8192;

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

pub(crate) fn heal_error(disk: &TrackedDisk, error: HealError) -> CutError {
    let disk = disk.name.clone();
    match error {
        HealError::Production(source) => CutError::Production { disk, source },
        HealError::Diff(source) => CutError::Degraded { disk, source },
        HealError::Overwritten => CutError::Overwritten { disk },
        HealError::NoFrame => CutError::Degraded {
            disk,
            source: io::Error::other(error.to_string()),
        },
    }
}
