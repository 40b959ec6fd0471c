//! What the threads of a group tell its gap ledger.
//!
//! Rule: a ledger that cannot be written is trouble that is shown, and holds up nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{Dir, OsDir, UnixNanos};
use splitter::{Cut, CutError, Generation, Group, How, Lineage};
use store::PointRecord;
use tracing::warn;

use super::Engine;
use crate::api::{Cause, Gap};
use crate::gaps::{GapLedger, Moment};
use crate::places::GroupPlace;
use crate::pulse::{Beat, Felt};
use crate::schedule::Every;
use crate::trouble::Step;
use crate::world::World;
use crate::{Error, Result};

/// Goes on with the ledger of a group.
pub(super) fn open(
    group: &Group,
    world: &World,
    every: Every,
    place: &GroupPlace,
) -> Result<GapLedger> {
    let failed = |error| Error::file("open the gap ledger in", place.dir())(error);
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(place.dir()).map_err(failed)?);
    let beat = Beat::now(&*world.clock);
    let at = (group.lineage(), group.open_generation());
    GapLedger::open(dir, every, beat, at, &group.sealed()).map_err(failed)
}

pub(super) fn moment_of(point: &PointRecord) -> Moment {
    Moment {
        lineage: Lineage(point.lineage),
        generation: Generation(point.generation),
        at: point.at,
        monotonic: None,
    }
}

impl Engine {
    /// Notes that this process begins.
    pub(crate) fn note_began(&self, how: &How, went_before: bool) {
        let went_before = went_before || !matches!(how, How::Fresh);
        self.noted(self.gaps.began(self.world.clock.wall(), went_before));
        if matches!(how, How::Distrusted { .. }) {
            self.note_cause(Cause::CopiedAnew);
        }
    }

    /// Feels whether the process was stopped, or the wall clock moved.
    pub(crate) fn beat(&self) {
        match self.gaps.beat(&*self.world.clock) {
            Ok(felt) => {
                for felt in felt {
                    match felt {
                        Felt::Still(time) => {
                            warn!(group = %self.name, ?time, "this process was stopped, or got no time to run; no cut was made meanwhile");
                        }
                        Felt::Moved(ns) => {
                            warn!(group = %self.name, seconds = ns as f64 / 1e9, "the wall clock was moved; the times of points follow it");
                        }
                    }
                }
                self.noted(Ok(()));
            }
            Err(error) => self.noted(Err(error)),
        }
    }

    /// Something happens that may leave a gap.
    pub(crate) fn note_cause(&self, cause: Cause) {
        self.noted(self.gaps.note(cause));
    }

    pub(super) fn note_cut(&self, lineage: Lineage, cut: &Cut) {
        self.gaps.cut(Moment {
            lineage,
            generation: cut.generation,
            at: cut.at,
            monotonic: Some(cut.began + cut.pause),
        });
    }

    /// A cut was made, and waits to be listed: what happens from now on is of the generation after it.
    pub(super) fn note_waits(&self, lineage: Lineage, cut: &Cut) {
        self.gaps.opens(lineage, cut.generation.next());
    }

    /// Why a cut failed.
    pub(super) fn note_cut_failed(&self, error: &CutError) {
        let cause = match error {
            CutError::MapOnly | CutError::Incomplete { .. } => self.ladder.cause(),
            CutError::Degraded { .. } | CutError::Io { .. } => {
                Some(self.ladder.cause().unwrap_or(Cause::DiffError))
            }
            // What was not copied: the diff device may be to blame as well.
            CutError::Overwritten { .. } => Some(self.ladder.cause().unwrap_or(Cause::Production)),
            CutError::Production { .. } => Some(Cause::Production),
            CutError::Busy { .. } | CutError::InFlight { .. } => Some(Cause::Busy),
            CutError::Distrusted => Some(Cause::MarksLost),
            _ => None,
        };
        if let Some(cause) = cause {
            self.note_cause(cause);
        }
    }

    /// The newest points that the target has of this group, whatever their history.
    pub(super) fn note_found(&self, found: &[Arc<PointRecord>]) {
        let mut of_group = found.iter();
        let (Some(newest), older) = (of_group.next(), of_group.next()) else {
            return;
        };
        let older = older.map(|point| moment_of(point));
        let id = newest.id.to_string();
        self.noted(self.gaps.found(moment_of(newest), older, &id));
    }

    /// The gap that goes on.
    pub(crate) fn open_gap(&self) -> Option<Gap> {
        self.gaps.open_gap(Beat::now(&*self.world.clock))
    }

    pub(super) fn noted(&self, noted: io::Result<()>) {
        match noted {
            Ok(()) => {
                if self.ledger_fails.swap(false, Ordering::Relaxed) {
                    self.works(Step::Ledger);
                }
            }
            Err(error) => {
                self.ledger_fails.store(true, Ordering::Relaxed);
                let error = Error::file("write the gap ledger in", self.place.dir())(error);
                self.fails(Step::Ledger, &error);
            }
        }
    }
}

/// Since when a group that nobody protects has no point, if that is longer than `every` owes.
pub(crate) fn gap_of_stopped(newest: UnixNanos, every: &str, now: UnixNanos) -> Option<Gap> {
    let every: Every = every.parse().ok()?;
    let lasted = now.since(newest);
    let owed = crate::gaps::owed(every)?;
    (lasted > owed).then(|| Gap {
        from_unix_ns: newest.0,
        until_unix_ns: None,
        seconds: lasted.as_secs_f64(),
        causes: vec![Cause::NotRunning],
        cuts_lost: 0,
        point: None,
    })
}
