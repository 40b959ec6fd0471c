//! Merging a sealed generation into the next one, so that blocks which both hold cost space once. Its
//! own point is lost; no byte that the later point needs is, and production is not read.
//!
//! ```text
//!   G   [a][b][ ][d]      a granule that H has not moves:   1 mark it in H (stale)
//!   H   [ ][B][c][ ]                                        2 append it to H, settle it
//!   H'  [a][B][c][d]                                        3 punch it out of G
//! ```
//!
//! | killed | then |
//! |---|---|
//! | before G's map says *absorbed into H* | both are as they were |
//! | while granules move | what H has not, or has stale, is still in G: the merge goes on |
//! | after H says that it builds on what G built on | G's files are debris |
//!
//! Rule: G says *absorbed* before anything moves, so nobody takes a G with holes for a point.
//!
//! Rule: H says that it builds on G's base after the last granule of the last disk moved, and then
//! G's files go.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{GRANULE, GranuleRange, UnixNanos, index};

use crate::error::damaged;
use crate::frame::STRIDE;
use crate::log::DiffLog;
use crate::map::{DirtyMap, STAGED_MAX, Settled};
use crate::runs::{GranuleState, StateRun};
use crate::sealed::{SealedDiff, SealedGeneration};
use crate::slots::Slots;
use crate::uses::Uses;
use crate::{CutError, Generation, Group};

/// Granules that move at once: 1 MiB of extra space.
const PIECE_GRANULES: u64 = 256;

/// Two cuts that became one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalesced {
    /// The generation that will not be a point.
    pub lost: Generation,
    /// When it was cut.
    pub lost_at: UnixNanos,
    /// The generation that holds what it held.
    pub into: Generation,
}

impl Group {
    /// Merges two sealed generations that nobody has claimed: of all such neighbours those where the
    /// least must move, and where the earlier one carries a label only if all do. An unfinished merge is
    /// finished first. `None` if there is nothing to merge.
    ///
    /// # Errors
    /// `Io`: the merge is unfinished, and goes on with the next call. The later generation cannot
    /// be read until then.
    pub fn coalesce(&self) -> Result<Option<Coalesced>, CutError> {
        let _one = self.merging.lock();
        let sealed = self.sealed();
        let goes_on = |s: &Arc<SealedGeneration>| s.is_unfinished() && !s.uses.is_broken();
        let begun = match sealed.into_iter().find(goes_on) {
            Some(unfinished) => unfinished,
            None => match self.begin_merge()? {
                Some(begun) => begun,
                None => return Ok(None),
            },
        };
        self.merge(&begun)?;
        Ok(begun.absorbing.as_ref().map(|older| Coalesced {
            lost: older.generation,
            lost_at: older.at,
            into: begun.generation,
        }))
    }

    /// Makes a sealed generation readable whose merge an error or a kill interrupted.
    ///
    /// # Errors
    /// `Io`: it cannot be read, and is to be folded if that stays so.
    pub fn finish_merge(&self, sealed: &SealedGeneration) -> Result<(), CutError> {
        let _one = self.merging.lock();
        match sealed.is_unfinished() {
            true => self.merge(sealed),
            false => Ok(()),
        }
    }

    /// Makes one entry of two neighbours. From then on they are released and folded as one.
    fn begin_merge(&self) -> Result<Option<Arc<SealedGeneration>>, CutError> {
        let mut tracking = self.tracking.lock();
        let pairs = tracking.sealed.windows(2).enumerate();
        // Of what was released, files may be gone that could not all be removed.
        let released = tracking.released;
        let is_free = |s: &Arc<SealedGeneration>| s.uses.is_free() && s.generation > released;
        let free = pairs.filter(|(_, pair)| pair.iter().all(is_free));
        // A cut with a label was asked for by somebody: it goes last.
        let cost = |pair: &[Arc<SealedGeneration>]| {
            (!pair[0].note.labels.is_empty(), pair[0].dirty_bytes())
        };
        let Some((at, _)) = free.min_by_key(|(_, pair)| cost(pair)) else {
            return Ok(None);
        };
        let [older, newer] = [at, at + 1].map(|at| Arc::clone(&tracking.sealed[at]));
        if !is_whole(&newer).map_err(self.diff_error("begin to merge diffs"))? {
            return Ok(None);
        }
        if !self
            .has_room_to_merge(&older)
            .map_err(self.diff_error("begin to merge diffs"))?
        {
            return Ok(None);
        }
        if !older.uses.take() {
            return Ok(None);
        }
        if !newer.uses.take() {
            older.uses.give_back();
            return Ok(None);
        }
        // Crash: words that were stored without the rest cost the older point, no more.
        if let Err(error) = note_absorbed(&older, newer.generation) {
            newer.uses.give_back();
            older.uses.give_back();
            return Err(self.diff_error("begin to merge diffs")(error));
        }
        let merged = Arc::new(joined(older, &newer));
        tracking.sealed.splice(at..=at + 1, [Arc::clone(&merged)]);
        Ok(Some(merged))
    }

    /// Whether the merge can end, where granules that are punched here and there give nothing back: then all of `older`
    /// is there twice until its file goes.
    fn has_room_to_merge(&self, older: &SealedGeneration) -> io::Result<bool> {
        let dir = &self.around.diffs;
        if dir.granularity() <= GRANULE {
            return Ok(true);
        }
        // Frames are not full, and end within a piece; guests go on meanwhile.
        let frames = older.dirty_bytes() + older.disks.len() as u64 * STRIDE;
        Ok(dir.space()?.free_bytes >= older.dirty_bytes() + frames)
    }

    /// Moves what is left to move. Cuts, releases and folds go on meanwhile: if they remove the
    /// files, the open ones are merged to no effect.
    fn merge(&self, merged: &SealedGeneration) -> Result<(), CutError> {
        let failed = self.diff_error("merge diffs");
        let (false, Some(older)) = (merged.uses.is_broken(), &merged.absorbing) else {
            let why = "bytes of the older diff were lost";
            return Err(failed(damaged(why)));
        };
        for (from, to) in older.disks.iter().zip(&merged.disks) {
            move_disk(from, to, &merged.uses).map_err(&failed)?;
        }
        for to in &merged.disks {
            to.open_map().map_err(&failed)?.lower_since(older.since);
        }
        self.remove_files(older).map_err(&failed)?;
        merged.uses.finish();
        Ok(())
    }

    fn diff_error(&self, what: &'static str) -> impl Fn(io::Error) -> CutError {
        let place = self.around.diffs.describe();
        move |source| CutError::Io {
            what,
            place: place.clone(),
            source,
        }
    }
}

/// Whether it holds all that it names: what is stale would be taken for what a merge has not brought yet. Whoever
/// ships such a diff gives it up.
fn is_whole(sealed: &SealedGeneration) -> io::Result<bool> {
    for disk in &sealed.disks {
        if !disk.open_map()?.is_complete() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn note_absorbed(older: &SealedGeneration, into: Generation) -> io::Result<()> {
    let maps: Vec<_> = older
        .disks
        .iter()
        .map(SealedDiff::open_map)
        .collect::<io::Result<_>>()?;
    maps.iter().for_each(|map| map.absorb_into(into));
    Ok(())
}

/// `newer`, which is to hold all of `older`.
pub(crate) fn joined(older: Arc<SealedGeneration>, newer: &SealedGeneration) -> SealedGeneration {
    let uses = Uses::unfinished();
    SealedGeneration {
        lineage: newer.lineage,
        generation: newer.generation,
        since: newer.since.min(older.since),
        at: newer.at,
        note: newer.note.clone(),
        disks: newer.disks.iter().map(|d| d.shared_by(&uses)).collect(),
        absorbing: Some(older),
        uses,
    }
}

/// One disk's part of a merge.
struct Move<'a> {
    from: (Arc<DirtyMap>, Slots),
    to: (Arc<DirtyMap>, DiffLog),
    uses: &'a Uses,
    /// Granules that go into one frame, and their bytes.
    granules: Vec<u64>,
    bytes: Vec<u8>,
    /// What the older diff need not hold once they are there.
    done: Vec<GranuleRange>,
}

fn move_disk(from: &SealedDiff, to: &SealedDiff, uses: &Uses) -> io::Result<()> {
    let (from_map, from_data) = from.open()?;
    let (to_map, to_data) = to.open()?;
    let mut moving = Move {
        from: (Arc::clone(&from_map), from.slots(&from_map, from_data)),
        to: (Arc::clone(&to_map), to.log(&to_map, to_data)),
        uses,
        granules: Vec::new(),
        bytes: Vec::new(),
        done: Vec::new(),
    };
    let mut at = 0;
    while let Some(run) = from_map.next_run(at, PIECE_GRANULES) {
        moving.piece(run)?;
        at = run.granules.end;
    }
    moving.put()?;
    from_map.check().inspect_err(|_| uses.spoil())?;
    to.dirty_bytes
        .store(to_map.dirty_count() * GRANULE, Ordering::Relaxed);
    Ok(())
}

impl Move<'_> {
    fn piece(&mut self, run: StateRun) -> io::Result<()> {
        let mut at = run.granules.start;
        while let Some(missing) = self.next_missing(at, run.granules.end) {
            at = missing.end;
            match run.state {
                GranuleState::Zero => {
                    self.to.0.mark(missing)?;
                    self.to.0.settle(missing, Settled::Zero);
                }
                GranuleState::Data => self.take(missing)?,
                GranuleState::Stale | GranuleState::Clean => {
                    let why = "the older diff was not sealed";
                    return Err(damaged(why));
                }
            }
        }
        if run.state == GranuleState::Data {
            self.done.push(run.granules);
        }
        let done: u64 = self.done.iter().map(|granules| granules.count()).sum();
        if done >= PIECE_GRANULES {
            self.put()?;
        }
        Ok(())
    }

    /// The next granules that the later diff has not, or has half; few enough for a frame.
    fn next_missing(&self, from: u64, end: u64) -> Option<GranuleRange> {
        let lacks = |granule: &u64| {
            let state = self.to.0.state(*granule);
            matches!(state, GranuleState::Clean | GranuleState::Stale)
        };
        let start = (from..end).find(lacks)?;
        let end = (start..end.min(start + STAGED_MAX as u64))
            .find(|g| !lacks(g))
            .unwrap_or(end.min(start + STAGED_MAX as u64));
        Some(GranuleRange { start, end })
    }

    fn take(&mut self, granules: GranuleRange) -> io::Result<()> {
        if self.granules.len() as u64 + granules.count() > STAGED_MAX as u64 {
            self.put_granules()?;
        }
        let old_len = self.bytes.len();
        self.bytes
            .resize(old_len + index(granules.count() * GRANULE), 0);
        let read = self.from.1.read(granules, &mut self.bytes[old_len..]);
        read.inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                self.uses.spoil();
            }
        })?;
        self.granules.extend(granules.start..granules.end);
        Ok(())
    }

    /// Brings what was taken to the later diff, then frees its space at once: the file system may be full.
    fn put(&mut self) -> io::Result<()> {
        self.put_granules()?;
        self.done
            .drain(..)
            .try_for_each(|granules| self.from.1.punch(granules))
    }

    fn put_granules(&mut self) -> io::Result<()> {
        if self.granules.is_empty() {
            return Ok(());
        }
        for granule in &self.granules {
            self.to.0.mark(GranuleRange {
                start: *granule,
                end: granule + 1,
            })?;
        }
        self.to.1.append_frame(&self.granules, &self.bytes)?;
        self.granules.clear();
        self.bytes.clear();
        Ok(())
    }
}
