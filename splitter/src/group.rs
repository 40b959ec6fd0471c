//! A consistency group: its disks are cut together.
//!
//! | while this runs | a guest's write | a cut | a ship | a heal |
//! |---|---|---|---|---|
//! | cut | goes to the next generation | waits | goes on | goes on |
//! | release, fold | goes on | waits | the diff read stays open | goes on |
//! | merge | goes on | goes on | what is claimed is not merged | goes on |
//! | restart of tracking | waits at the gate for the swap | waits | its diffs vanish | goes on |

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use block::{BlockDevice, Clock, Dir, Name, Stamp, UnixNanos};
use parking_lot::Mutex;

use crate::diff::{HealError, OpenDiff};
use crate::gate::{Closed, Epoch};
use crate::intent::IntentLog;
use crate::lineage::{DiskRecord, LineageRecord};
use crate::live::{Live, STAMPS_MAX};
use crate::sealed::{SealedDiff, SealedGeneration};
use crate::tracked::TrackedDisk;
use crate::turns::{Tracking, Turns};
use crate::writer::WriterCall;
use crate::{CutError, Generation, Lineage, files};

/// Disks in a group.
pub(crate) const DISKS_MAX: usize = if STAMPS_MAX < 64 { STAMPS_MAX } else { 64 };
/// How long a cut waits for the writes that began before it; what else is asked of the group waits as well.
pub(crate) const END_MAX: Duration = Duration::from_millis(100);
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

/// A group of disks that are tracked and cut together.
pub struct Group {
    pub(crate) name: Name,
    pub(crate) around: Surroundings,
    pub(crate) disks: Vec<Arc<TrackedDisk>>,
    pub(crate) identities: Vec<String>,
    pub(crate) tracking: Turns,
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

    /// The same, of the open generation and the one whose writes are ending. No cut is made while tracking is held.
    pub(crate) fn since_of_open(&self, _held: &Tracking) -> Generation {
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

    pub(crate) fn flush_production(&self) -> Result<(), CutError> {
        self.disks.iter().try_for_each(|disk| {
            disk.flush_production()
                .map_err(|source| CutError::Production {
                    disk: disk.name.clone(),
                    source,
                })
        })
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

    /// Their other sides, all within `patience`; or a disk whose side is not empty.
    pub(crate) fn close_others(
        &self,
        patience: Duration,
    ) -> Result<Vec<Closed<'_>>, &Arc<TrackedDisk>> {
        let until = self.around.clock.monotonic() + patience;
        let mut closed = Vec::new();
        for disk in &self.disks {
            let left = until.saturating_sub(self.around.clock.monotonic());
            closed.push(disk.gate.close_other(left).ok_or(disk)?);
        }
        Ok(closed)
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
    closed.ok_or_else(|| in_flight(disk, DRAIN_MAX))
}

pub(crate) fn in_flight(disk: &TrackedDisk, waited: Duration) -> CutError {
    let disk = disk.name.clone();
    CutError::InFlight { disk, waited }
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
