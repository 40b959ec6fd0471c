//! The gap ledger: which seconds cannot be restored, and why.
//!
//! ```text
//!   point p                                        point q
//!   |   cut fails (production)   cut lost (merged)  |        later than the schedule owes after p?
//!   +---reasons of the generations p+1 ..= q--------+---->   then: a gap from p to q, with these causes
//! ```
//!
//! Rule: only points that are listed on the target bound a gap, and how long it is comes from the
//! monotonic clock where one process made both cuts: neither hope nor a moved clock makes it shorter.
//!
//! Rule: what happens is noted by the generation in which it happens, so that no clock decides what
//! caused what; in the file, so that a kill forgets no cause.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Dir, UnixNanos};
use parking_lot::Mutex;
use splitter::{Generation, Lineage, SealedGeneration};

use crate::api::{Cause, ClockMove, Gap};
use crate::gap_file::{Durable, GapFile, Line, Reason, Start};
use crate::pulse::{Beat, Felt, Pulse};
use crate::schedule::Every;

/// Points that follow each other at least so closely leave no gap, whatever the interval.
const OWED_MIN: Duration = Duration::from_secs(1);
/// Cuts that wait for their point, and reasons that wait for a gap, at most.
const WAITING_MAX: usize = 8_192;

/// The ledger of a group that is being protected.
pub(crate) struct GapLedger(Mutex<Tally>);

/// A cut, in the order of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) lineage: Lineage,
    pub(crate) generation: Generation,
    pub(crate) at: UnixNanos,
    /// `None` if an earlier process cut it.
    pub(crate) monotonic: Option<Duration>,
}

struct Tally {
    /// `None` where cuts are made when told: then only a cut that is lost leaves a gap.
    owed: Option<Duration>,
    /// The newest point.
    last: Option<Moment>,
    /// What will be points, oldest first.
    cuts: VecDeque<Moment>,
    /// The generation that is open.
    open: (Lineage, Generation),
    /// What happened since the newest point.
    reasons: Vec<Reason>,
    pulse: Pulse,
    /// The process before this one.
    went_before: Option<Start>,
    file: GapFile,
}

impl GapLedger {
    /// Goes on with the ledger in `dir`. `open` is the open generation, `sealed` what waits already.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn open(
        dir: Arc<dyn Dir>,
        every: Every,
        beat: Beat,
        open: (Lineage, Generation),
        sealed: &[Arc<SealedGeneration>],
    ) -> io::Result<Self> {
        let file = GapFile::open(dir)?;
        let of_sealed = |sealed: &Arc<SealedGeneration>| Moment {
            lineage: sealed.lineage,
            generation: sealed.generation,
            at: sealed.at,
            monotonic: None,
        };
        Ok(Self(Mutex::new(Tally {
            owed: owed(every),
            last: None,
            cuts: sealed.iter().map(of_sealed).collect(),
            open,
            reasons: file.contents().reasons.clone(),
            pulse: Pulse::new(beat),
            went_before: file.contents().start,
            file,
        })))
    }

    /// A process begins; if another one was before it, nobody protected the group in between.
    pub(crate) fn began(&self, at: UnixNanos, went_before: bool) -> io::Result<()> {
        let mut tally = self.0.lock();
        if went_before {
            tally.note(Cause::NotRunning)?;
        }
        let start = Start {
            at_unix_ns: at.0,
            owed_s: tally.owed.map(|owed| owed.as_secs_f64()),
        };
        tally.append(Line::Start(start), Durable::No)
    }

    /// Feels whether the process was stopped, or the wall clock moved. Called several times a second, and
    /// before a cut.
    pub(crate) fn beat(&self, clock: &dyn Clock) -> io::Result<Vec<Felt>> {
        let mut tally = self.0.lock();
        // Under the lock: beats in order.
        let now = Beat::now(clock);
        let felt = tally.pulse.feel(now);
        for felt in &felt {
            match *felt {
                Felt::Still(_) => tally.note(Cause::NotRunning)?,
                Felt::Moved(ns) => {
                    let moved = ClockMove {
                        at_unix_ns: now.wall.0,
                        moved_s: ns as f64 / 1e9,
                    };
                    tally.append(Line::Clock(moved), Durable::Yes)?;
                }
            }
        }
        Ok(felt)
    }

    /// Something happens that may keep the open generation from becoming a point in time.
    pub(crate) fn note(&self, cause: Cause) -> io::Result<()> {
        self.0.lock().note(cause)
    }

    /// A cut was made that will be a point.
    pub(crate) fn cut(&self, moment: Moment) {
        let mut tally = self.0.lock();
        if tally.cuts.len() == WAITING_MAX {
            tally.cuts.pop_front();
        }
        tally.cuts.push_back(moment);
        tally.open = (moment.lineage, moment.generation.next());
    }

    /// The guests write in that generation now, though the cut before it may not be listed yet.
    pub(crate) fn opens(&self, lineage: Lineage, generation: Generation) {
        self.0.lock().open = (lineage, generation);
    }

    /// A cut that was made will be no point.
    pub(crate) fn lost(
        &self,
        lineage: Lineage,
        generation: Generation,
        cause: Cause,
    ) -> io::Result<()> {
        let mut tally = self.0.lock();
        let is_it = |m: &Moment| m.lineage == lineage && m.generation == generation;
        tally.cuts.retain(|moment| !is_it(moment));
        tally.note_in(Reason {
            lineage: lineage.to_string(),
            generation: generation.0,
            cause,
            lost: true,
        })
    }

    /// A new history begins, or the old one goes on from its intent log: no cut of before will be a point any
    /// more. `open` is the generation that is open now.
    pub(crate) fn began_anew(&self, open: (Lineage, Generation), cause: Cause) -> io::Result<()> {
        let mut tally = self.0.lock();
        let gone: Vec<_> = tally.cuts.drain(..).collect();
        for moment in gone {
            tally.note_in(Reason {
                lineage: moment.lineage.to_string(),
                generation: moment.generation.0,
                cause,
                lost: true,
            })?;
        }
        tally.open = open;
        tally.note(cause)
    }

    /// The target holds this as its newest point, from before. `older` is the point before it.
    pub(crate) fn found(&self, newest: Moment, older: Option<Moment>, id: &str) -> io::Result<()> {
        let mut tally = self.0.lock();
        let same = |m: &Moment| (m.lineage, m.generation) == (newest.lineage, newest.generation);
        if tally.last.as_ref().is_some_and(same) {
            return Ok(());
        }
        if tally.last.is_none()
            && let Some(older) = older
            && tally.was_left_unnoted(&older, &newest)
        {
            tally.last = Some(older);
            return tally.point(newest, id);
        }
        tally.last = Some(newest);
        tally.drop_explained();
        Ok(())
    }

    /// A point is listed.
    pub(crate) fn point(&self, of: Moment, id: &str) -> io::Result<()> {
        self.0.lock().point(of, id)
    }

    /// The gap that goes on, if there is one: since the newest cut that is or will be a point.
    pub(crate) fn open_gap(&self, now: Beat) -> Option<Gap> {
        let tally = self.0.lock();
        let from = tally.cuts.back().or(tally.last.as_ref())?;
        let next = Moment {
            lineage: tally.open.0,
            generation: tally.open.1,
            at: now.wall,
            monotonic: Some(now.monotonic),
        };
        tally.gap(from, &next, None)
    }
}

impl Tally {
    fn note(&mut self, cause: Cause) -> io::Result<()> {
        let (lineage, generation) = self.open;
        self.note_in(Reason {
            lineage: lineage.to_string(),
            generation: generation.0,
            cause,
            lost: false,
        })
    }

    fn note_in(&mut self, reason: Reason) -> io::Result<()> {
        if self.reasons.contains(&reason) {
            return Ok(());
        }
        if self.reasons.len() == WAITING_MAX {
            self.reasons.remove(0);
        }
        self.reasons.push(reason.clone());
        self.append(Line::Reason(reason), Durable::No)
    }

    fn append(&mut self, line: Line, durable: Durable) -> io::Result<()> {
        self.file.append(line, durable, &self.reasons)
    }

    fn point(&mut self, of: Moment, id: &str) -> io::Result<()> {
        let known = self
            .cuts
            .iter()
            .position(|m| is_at(m, of.lineage, of.generation));
        let of = known
            .and_then(|at| self.cuts.drain(..=at).next_back())
            .unwrap_or(of);
        let gap = self.last.and_then(|last| self.gap(&last, &of, Some(id)));
        self.last = Some(of);
        self.drop_explained();
        match gap {
            Some(gap) => self.append(Line::Gap(gap), Durable::Yes),
            None => Ok(()),
        }
    }

    /// Whether the process before this one listed `newest`, and was killed before it noted the gap that
    /// ends there.
    fn was_left_unnoted(&self, older: &Moment, newest: &Moment) -> bool {
        let Some(before) = self.went_before else {
            return false;
        };
        let contents = self.file.contents();
        let mut ends = contents.gaps.iter().map(|gap| gap.until_unix_ns);
        let noted = ends.any(|end| end == Some(newest.at.0));
        let lasted = newest.at.since(older.at).as_secs_f64();
        let was_gap = before.owed_s.is_some_and(|owed| lasted > owed);
        // Another clock would make it any length.
        let moved = contents
            .clock
            .iter()
            .any(|moved| moved.at_unix_ns >= older.at.0);
        !noted && was_gap && !moved && before.at_unix_ns <= newest.at.0
    }

    /// What lies between two points, or a point and now, if it is a gap.
    fn gap(&self, from: &Moment, until: &Moment, id: Option<&str>) -> Option<Gap> {
        let lasted = match (from.monotonic, until.monotonic) {
            (Some(from), Some(until)) => until.saturating_sub(from),
            _ => until.at.since(from.at),
        };
        let reasons: Vec<_> = self
            .reasons
            .iter()
            .filter(|reason| lies_between(reason, from, until))
            .collect();
        let cuts_lost = reasons.iter().filter(|reason| reason.lost).count() as u64;
        let is_gap = match self.owed {
            Some(owed) => lasted > owed,
            None => cuts_lost > 0,
        };
        let mut causes = Vec::new();
        for reason in reasons {
            if !causes.contains(&reason.cause) {
                causes.push(reason.cause);
            }
        }
        if causes.is_empty() {
            causes.push(Cause::Late);
        }
        is_gap.then(|| Gap {
            from_unix_ns: from.at.0,
            until_unix_ns: id.map(|_| until.at.0),
            seconds: lasted.as_secs_f64(),
            causes,
            cuts_lost,
            point: id.map(str::to_owned),
        })
    }

    /// Forgets what happened before the newest point.
    fn drop_explained(&mut self) {
        let Some(last) = self.last else { return };
        let (lineage, open) = (last.lineage.to_string(), self.open.0.to_string());
        self.reasons
            .retain(|reason| match reason.lineage == lineage {
                true => reason.generation > last.generation.0,
                // One that is long over, or one that began after that point's.
                false => reason.lineage == open,
            });
    }
}

fn is_at(moment: &Moment, lineage: Lineage, generation: Generation) -> bool {
    moment.lineage == lineage && moment.generation == generation
}

/// Whether it happened after the cut of `from` and no later than that of `until`.
fn lies_between(reason: &Reason, from: &Moment, until: &Moment) -> bool {
    let after = reason.lineage != from.lineage.to_string() || reason.generation > from.generation.0;
    let before =
        reason.lineage != until.lineage.to_string() || reason.generation <= until.generation.0;
    after && before
}

/// The longest time between two points that is as it should be: a moment of the schedule may be missed.
pub(crate) fn owed(every: Every) -> Option<Duration> {
    match every {
        Every::Interval(interval) => Some((interval * 2).max(OWED_MIN)),
        Every::Manual => None,
    }
}

#[cfg(test)]
mod tests;
