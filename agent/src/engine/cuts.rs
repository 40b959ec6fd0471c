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
/// Times that a cut of the schedule is tried: the next one is near.
pub(crate) const SCHEDULED_TRIES: u32 = 1;
/// Times that a cut for a caller is tried while writes are slow: about a second. A write that is slow once is
/// no reason to send the caller away; one that hangs is.
const ASKED_TRIES: u32 = 10;
/// Callers that wait at once, each on a thread.
const WAITERS_MAX: usize = 64;

/// A cut, and the history it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    lineage: Lineage,
    pub(crate) cut: Cut,
}

/// A cut that was not made, and the history that it was tried in.
struct Unmade {
    lineage: Lineage,
    error: CutError,
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
        // First: what keeps a cut from being made must not keep guests quiet.
        let made = match (ladder::before_cut(self), &self.hooks) {
            (Err(error), _) => Err(Unmade {
                lineage: self.group.lineage(),
                error,
            }),
            (Ok(()), Some(hooks)) if self.stop() == Stop::No => self.cut_quiet(hooks, note, tries),
            (Ok(()), _) => self.seal(&note, tries),
        };
        self.ladder.cut_ended();
        let made = match made {
            Ok(made) => made,
            Err(unmade) => {
                ladder::after_failure(self, &unmade.error);
                self.note_cut_failed(&unmade.error);
                if matches!(unmade.error, CutError::Distrusted) {
                    self.relearn(unmade.lineage, "writes went untracked")?;
                }
                return Err(unmade.error.into());
            }
        };
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
        Ok(made)
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
        self.heal().map_err(|error| Unmade {
            lineage: self.group.lineage(),
            error,
        })?;
        let quiet = hooks.before(&*self.world.clock, self.group.open_generation());
        let note = CutNote {
            consistency: quiet.consistency,
            ..note
        };
        let made = self.seal(&note, tries);
        match quiet.after(made.as_ref().ok().map(|made| &made.cut)) {
            Ok(()) => self.works(Step::Hook),
            Err(error) => self.fails(Step::Hook, &error),
        }
        made
    }

    fn seal(&self, note: &CutNote, tries: u32) -> std::result::Result<Made, Unmade> {
        let mut made = self.seal_once(note);
        for _ in 1..tries {
            let Err(Unmade {
                error: CutError::Busy { disk, .. },
                ..
            }) = &made
            else {
                break;
            };
            debug!(group = %self.name, %disk, "a write did not end in time; cutting again");
            made = self.seal_once(note);
        }
        made
    }

    fn seal_once(&self, note: &CutNote) -> std::result::Result<Made, Unmade> {
        let _cutting = self.cutting.lock();
        let sealed = self.heal().and_then(|()| self.group.cut(note.clone()));
        let lineage = self.group.lineage();
        match sealed {
            Ok(cut) => Ok(Made { lineage, cut }),
            Err(error) => Err(Unmade { lineage, error }),
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
            .inspect_err(|error| self.fails(Step::Cut, error))
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
