//! Runs: which chunks of an image lie where, as ranges; and their bytes, which are a leaf of the
//! tree (relative to it) as well as a change list (of a whole image).
//!
//! ```text
//! count varint | per run: gap to the end of the run before varint | length << 2 | kind varint
//!   kind 0: zeroes   1: the slots after the data run before   2: + container (difference, zigzag), slot
//! ```
//!
//! Rule: a list of runs ascends, does not overlap, and no run leaves its container.

use std::collections::BTreeMap;

use block::GranuleRange;

use crate::codec::{Decoded, Decoder, Encode};
use crate::place::{ObjectId, Place, SLOTS_MAX};

/// Chunks `start..start + count` of an image: at `place` and the slots after it, or zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) count: u64,
    pub(crate) place: Option<Place>,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.count
    }

    /// The part inside `range`; `None` if there is none.
    pub(crate) fn clip(&self, range: GranuleRange) -> Option<Self> {
        let (start, end) = (self.start.max(range.start), self.end().min(range.end));
        (start < end).then(|| Self {
            start,
            count: end - start,
            place: self.place.map(|place| {
                let inside = place.after(start - self.start);
                inside.expect("a run stays in its container")
            }),
        })
    }

    /// Takes `next` in if it continues this run.
    pub(crate) fn join(&mut self, next: &Self) -> bool {
        let continues = self.end() == next.start
            && match (self.place, next.place) {
                (None, None) => true,
                (Some(place), Some(next)) => place.after(self.count) == Some(next),
                _ => false,
            };
        if continues {
            self.count += next.count;
        }
        continues
    }
}

/// Appends `run`, joined with the last one where it continues it.
pub(crate) fn push(runs: &mut Vec<Run>, run: Run) {
    if !runs.last_mut().is_some_and(|last| last.join(&run)) {
        runs.push(run);
    }
}

/// `newer` laid over `older`.
pub(crate) fn overlay(older: &[Run], newer: &[Run]) -> Vec<Run> {
    let mut out = Vec::with_capacity(older.len() + newer.len());
    let mut older = older.iter().peekable();
    // Where the part of the next older run begins that is not decided yet.
    let mut from = 0;
    let mut older_until = |until: u64, skip_to: u64, out: &mut Vec<Run>| {
        while let Some(run) = older.peek() {
            let open = GranuleRange {
                start: from,
                end: until,
            };
            if let Some(part) = run.clip(open) {
                push(out, part);
            }
            if run.end() > skip_to {
                break;
            }
            older.next();
        }
        from = skip_to;
    };
    for run in newer {
        older_until(run.start, run.end(), &mut out);
        push(&mut out, *run);
    }
    older_until(u64::MAX, u64::MAX, &mut out);
    out
}

/// The runs that touch `range` (some may reach out of it).
pub(crate) fn touching(runs: &[Run], range: GranuleRange) -> &[Run] {
    let from = runs.partition_point(|run| run.end() <= range.start);
    let to = from + runs[from..].partition_point(|run| run.start < range.end);
    &runs[from..to]
}

/// The bytes of `runs`, which start at `base` or later.
pub(crate) fn encode(runs: &[Run], base: u64, out: &mut Vec<u8>) {
    out.put_varint(runs.len() as u64);
    let (mut end, mut next, mut container) = (base, None, 0);
    for run in runs {
        out.put_varint(run.start - end);
        end = run.end();
        let kind = match run.place {
            None => 0,
            place if place == next => 1,
            Some(_) => 2,
        };
        out.put_varint(run.count << 2 | kind);
        let Some(place) = run.place else { continue };
        if kind == 2 {
            let id = place.container().0;
            out.put_signed(id.wrapping_sub(container).cast_signed());
            out.put_varint(place.slot() as u64);
        }
        container = place.container().0;
        next = place.after(run.count);
    }
}

/// Reads what [`encode`] wrote; every run lies in `bounds`.
pub(crate) fn decode(d: &mut Decoder<'_>, bounds: GranuleRange) -> Decoded<Vec<Run>> {
    let count = d.varint()?;
    // A run takes two bytes at least.
    d.check(
        count <= d.remaining() as u64 / 2,
        "it counts more runs than it holds",
    )?;
    let mut runs = Vec::with_capacity(block::index(count));
    let (mut end, mut next, mut container) = (bounds.start, None, 0_u64);
    for _ in 0..count {
        let start = end.checked_add(d.varint()?);
        let tag = d.varint()?;
        let length = tag >> 2;
        let place = match tag & 3 {
            0 => None,
            1 => Some(next.ok_or_else(|| d.error("a run continues nothing"))?),
            2 => {
                let id = container.wrapping_add(d.signed()?.cast_unsigned());
                let place = Place::new(ObjectId(id), d.varint()?);
                Some(place.ok_or_else(|| d.error("a run has an impossible place"))?)
            }
            _ => return Err(d.error("a run is of an unknown kind")),
        };
        let run_end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(run_end)) = (start, run_end) else {
            return Err(d.error("a run is too long"));
        };
        d.check(
            length > 0 && run_end <= bounds.end,
            "a run leaves the image",
        )?;
        if let Some(place) = place {
            let stays = place.slot() as u64 + length <= SLOTS_MAX as u64;
            d.check(stays, "a run leaves its container")?;
            container = place.container().0;
            next = place.after(length);
        }
        end = run_end;
        runs.push(Run {
            start,
            count: length,
            place,
        });
    }
    Ok(runs)
}

/// The changes of an image that is being written: the last change of a chunk wins.
#[derive(Default)]
pub(crate) struct Changes {
    /// By start; they do not overlap.
    runs: BTreeMap<u64, Run>,
    /// The newest run, still growing; it is not in `runs`.
    growing: Option<Run>,
}

impl Changes {
    pub(crate) fn set(&mut self, run: Run) {
        if self.growing.as_mut().is_some_and(|last| last.join(&run)) {
            return;
        }
        if let Some(done) = self.growing.replace(run) {
            self.insert(done);
        }
    }

    /// Runs held.
    pub(crate) fn count(&self) -> usize {
        self.runs.len() + usize::from(self.growing.is_some())
    }

    /// Gives up all runs, in order.
    pub(crate) fn take(&mut self) -> Vec<Run> {
        if let Some(done) = self.growing.take() {
            self.insert(done);
        }
        let mut out = Vec::with_capacity(self.runs.len());
        let runs = std::mem::take(&mut self.runs);
        runs.into_values().for_each(|run| push(&mut out, run));
        out
    }

    fn insert(&mut self, run: Run) {
        let range = GranuleRange {
            start: run.start,
            end: run.end(),
        };
        let before = self.runs.range(..run.start).next_back();
        let first = before.map_or(run.start, |(_, run)| run.start);
        let old: Vec<Run> = self.runs.range(first..run.end()).map(|(_, r)| *r).collect();
        for old in old.into_iter().filter(|old| old.end() > run.start) {
            self.runs.remove(&old.start);
            let left = GranuleRange {
                start: 0,
                end: range.start,
            };
            let right = GranuleRange {
                start: range.end,
                end: u64::MAX,
            };
            for part in [old.clip(left), old.clip(right)].into_iter().flatten() {
                self.runs.insert(part.start, part);
            }
        }
        self.runs.insert(run.start, run);
    }
}

#[cfg(test)]
mod tests;
