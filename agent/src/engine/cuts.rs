//! The cut, as the schedule and callers ask for it, with its hooks; and waiting for its point.
//!
//! ```text
//!  hooks? --> heal -> before -> seal -> after        caller: --wait --> fate: a point, or lost: again
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;
use splitter::{Cut, CutError, CutNote, Lineage};
use tracing::{debug, info};

use super::{Engine, Fate, Shared, Stop, micros};
use crate::api::{CutFigures, CutReply, CutRequest};
use crate::hooks::Hooks;
use crate::ladder;
use crate::trouble::Step;
use crate::{Error, Result};

/// Cuts that are made for a caller who waits for a point, if one after the other is lost.
const WAITED_CUTS_MAX: u32 = 3;
/// Times that a cut of the schedule waits for writes that began before it: its thread has more to do.
pub(crate) const SCHEDULED_TRIES: u32 = 1;
/// The same, of a cut for a caller: about a second. A write that is slow once is no reason to send the caller away;
/// one that hangs is.
const ASKED_TRIES: u32 = 10;
/// How long each is.
pub(super) const TRY: Duration = Duration::from_millis(100);
/// Looks in that time, by whoever made the cut.
const LOOKS_A_TRY: u32 = 10;
/// Callers that wait at once, each on a thread.
const WAITERS_MAX: usize = 64;

/// A cut, and the history it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(super) lineage: Lineage,
    pub(crate) cut: Cut,
}

/// A cut that was not made or is not listed, and the history that it was tried in.
pub(super) struct Unmade {
    lineage: Lineage,
    error: CutError,
    /// It is made, and waits.
    waiting: Option<Box<Cut>>,
}

impl Engine {
    /// Seals the open generation, and tells stage two. Hooks run while the disks are served: a guest
    /// whose disks are gone cannot become quiet. They run once, however often it is tried.
    pub(crate) fn cut(&self, labels: BTreeMap<String, String>, tries: u32) -> Result<Made> {
        let note = CutNote {
            labels,
            ..CutNote::default()
        };
        self.beat();
        let made = self.try_cut(note, tries);
        let unmade = match made {
            Ok(made) => {
                self.ladder.cut_ended();
                self.announce(made);
                return Ok(made);
            }
            Err(unmade) => unmade,
        };
        if unmade.waiting.is_none() {
            self.ladder.cut_ended();
        }
        if !unmade.error.waits() {
            self.note_unmade(&unmade.error);
        }
        if matches!(unmade.error, CutError::Distrusted) {
            self.relearn(unmade.lineage, "writes went untracked")?;
        }
        Err(unmade.error.into())
    }

    fn try_cut(&self, note: CutNote, tries: u32) -> std::result::Result<Made, Unmade> {
        // First: what keeps a cut from being made must not keep guests quiet.
        ladder::before_cut(self).map_err(|error| self.unmade(error))?;
        self.end_earlier(tries)?;
        match &self.hooks {
            Some(hooks) if self.stop() == Stop::No => self.cut_quiet(hooks, note, tries),
            _ => self.seal(&note, tries),
        }
    }

    pub(super) fn unmade(&self, error: CutError) -> Unmade {
        Unmade {
            lineage: self.group.lineage(),
            error,
            waiting: None,
        }
    }

    pub(super) fn note_unmade(&self, error: &CutError) {
        ladder::after_failure(self, error);
        self.note_cut_failed(error);
    }

    /// A cut is listed: it is to be shipped.
    pub(super) fn announce(&self, made: Made) {
        let cut = made.cut;
        self.note_cut(made.lineage, &cut);
        debug!(group = %self.name, generation = %cut.generation, bytes = cut.dirty_bytes, pause_us = micros(cut.pause), "cut");
        let mut shared = self.shared.lock();
        shared.last_cut = Some(figures_of(cut));
        shared.pauses.note(micros(cut.pause));
        shared.troubles.clear(Step::Cut);
        shared.first_cut_due = false;
        shared.cuts += 1;
        drop(shared);
        self.changed.notify_all();
        self.adjust_priority();
    }

    /// A cut with its hooks.
    fn cut_quiet(
        &self,
        hooks: &Hooks,
        note: CutNote,
        tries: u32,
    ) -> std::result::Result<Made, Unmade> {
        let _kept = self.group.keep_logs();
        // First: what takes long must not keep guests quiet.
        self.heal().map_err(|error| self.unmade(error))?;
        let turn = hooks.turn();
        // One that was made by whoever had his turn before.
        self.end_earlier(tries)?;
        let quiet = turn.before(&*self.world.clock, self.group.open_generation());
        let note = CutNote {
            consistency: quiet.consistency,
            ..note
        };
        let made = self.seal(&note, tries);
        // One that waits is made: its instant is past.
        let cut = match &made {
            Ok(made) => Some(&made.cut),
            Err(unmade) => unmade.waiting.as_deref(),
        };
        match quiet.after(cut) {
            Ok(()) => self.works(Step::Hook),
            Err(error) => self.fails(Step::Hook, &error),
        }
        made
    }

    /// Cuts, and waits `tries` times until the cut can be listed.
    fn seal(&self, note: &CutNote, tries: u32) -> std::result::Result<Made, Unmade> {
        // Until the end: whose cut it is that is listed must not be a question.
        let _cutting = self.cutting.lock();
        let lineage = self.group.lineage();
        // One that somebody else made just now.
        match self.end_waiting(Duration::ZERO) {
            Err(error) if error.waits() || matches!(error, CutError::Distrusted) => {
                return Err(self.unmade(error));
            }
            // Also if it was lost: the next one is exact.
            _ => {}
        }
        let mut made = self.heal().and_then(|()| self.group.cut(note.clone()));
        for _ in 0..LOOKS_A_TRY * (tries - 1) {
            match &made {
                Err(error) if error.waits() => {}
                _ => break,
            }
            // Without a lock of the group: who asks for its space would wait as well.
            drop(self.wait(Some(TRY / LOOKS_A_TRY), Stop::Closing, |_| false));
            made = match self.group.end_cut(Duration::ZERO) {
                Ok(None) => break,
                Ok(Some(cut)) => Ok(cut),
                Err(error) => Err(error),
            };
        }
        self.note_whether_one_waits();
        let waiting = self.group.ending().map(Box::new);
        if let Some(waiting) = &waiting {
            self.note_waits(lineage, waiting);
        }
        match made {
            Ok(cut) => Ok(Made { lineage, cut }),
            Err(error) => Err(Unmade {
                lineage,
                error,
                waiting,
            }),
        }
    }

    /// Runs the hook that an earlier process owes.
    pub(crate) fn settle_hooks(&self) {
        if let Some(hooks) = &self.hooks
            && let Err(error) = hooks.settle_owed(&*self.world.clock)
        {
            self.fails(Step::Hook, &error);
        }
    }

    /// Notes how late a cut was that was due at `due`.
    pub(crate) fn note_lateness(&self, made: &Made, due: Duration) {
        let late = made.cut.began.saturating_sub(due);
        self.shared.lock().lateness.note(micros(late));
    }

    /// Notes moments of the schedule that passed without a cut.
    pub(crate) fn note_skipped(&self, ticks: u64) {
        self.shared.lock().ticks_skipped += ticks;
    }

    /// Completes the open diffs from production, and counts what that read.
    pub(crate) fn heal(&self) -> std::result::Result<(), CutError> {
        let bytes = self.group.heal()?;
        self.note_reread(bytes);
        Ok(())
    }

    pub(crate) fn note_reread(&self, bytes: u64) {
        self.reread.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 {
            info!(group = %self.name, bytes, "re-read from production what the diffs lacked");
        }
    }

    /// A cut as a caller asks for it. Who waits for a point that is lost gets a later one, which
    /// holds all that the lost one would have held.
    pub(crate) fn cut_for(&self, request: &CutRequest) -> Result<CutReply> {
        if !request.wait {
            self.check_seeded()?;
            return Ok(self.reply(self.cut_noted(request)?, None));
        }
        let mut tried = 0;
        loop {
            tried += 1;
            self.wait_until_seeded()?;
            let made = self.cut_noted(request)?;
            match self.wait_for_point(made) {
                Err(error @ Error::PointLost { .. }) if tried < WAITED_CUTS_MAX => {
                    info!(group = %self.name, error = error.chain(), "cutting again for who waits");
                }
                waited => return waited.map(|point| self.reply(made, Some(point))),
            }
        }
    }

    fn cut_noted(&self, request: &CutRequest) -> Result<Made> {
        self.cut(request.labels.clone(), ASKED_TRIES)
            .inspect_err(|error| self.cut_fails(error))
    }

    fn reply(&self, made: Made, point: Option<String>) -> CutReply {
        CutReply {
            group: self.name.to_string(),
            cut: figures_of(made.cut),
            point,
        }
    }

    fn check_seeded(&self) -> Result<()> {
        let shared = self.shared.lock();
        match &*shared {
            Shared { stop, .. } if *stop != Stop::No => Err(self.stopping()),
            Shared { seeded: true, .. } => Ok(()),
            _ => Err(Error::Seeding {
                group: self.name.clone(),
                percent: self.seed.percent(),
            }),
        }
    }

    fn wait_until_seeded(&self) -> Result<()> {
        let mut shared = self.shared.lock();
        self.enter(&mut shared)?;
        shared.waiting_to_cut += 1;
        while !shared.seeded && shared.stop == Stop::No {
            self.changed.wait(&mut shared);
        }
        shared.waiting_to_cut -= 1;
        shared.waiters -= 1;
        match shared.stop {
            Stop::No => Ok(()),
            _ => Err(self.stopping()),
        }
    }

    /// Waits until the target has the point of a cut; its id.
    fn wait_for_point(&self, made: Made) -> Result<String> {
        let mut shared = self.shared.lock();
        self.enter(&mut shared)?;
        shared.hurries += 1;
        self.changed.notify_all();
        MutexGuard::unlocked(&mut shared, || self.adjust_priority());
        let generation = made.cut.generation;
        let fate = loop {
            if let Some(fate) = shared.fate(made.lineage, generation) {
                break fate;
            }
            if shared.lineage != made.lineage {
                break Fate::Lost("tracking was restarted, and the disks are copied anew".into());
            }
            if shared.fenced {
                shared.waiters -= 1;
                let target = self.target.to_string();
                return Err(Error::Fenced { target });
            }
            if shared.stop == Stop::Now {
                shared.waiters -= 1;
                return Err(self.stopping());
            }
            self.changed.wait(&mut shared);
        };
        shared.waiters -= 1;
        match fate {
            Fate::Point(id) => Ok(id),
            Fate::Lost(why) => Err(Error::PointLost { generation, why }),
        }
    }

    fn enter(&self, shared: &mut Shared) -> Result<()> {
        if shared.waiters >= WAITERS_MAX {
            return Err(Error::Crowded);
        }
        shared.waiters += 1;
        Ok(())
    }

    fn stopping(&self) -> Error {
        let group = self.name.clone();
        Error::Stopping { group }
    }
}

fn figures_of(cut: Cut) -> CutFigures {
    CutFigures {
        generation: cut.generation.0,
        at_unix_ns: cut.at.0,
        pause_us: micros(cut.pause),
        dirty_bytes: cut.dirty_bytes,
        consistency: cut.consistency.into(),
    }
}
