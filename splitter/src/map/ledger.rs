//! What the map knows of the frames of its diff file: which count, and what is staged in memory for frames
//! that are not written yet.
//!
//! A lane fills one frame at a time, at a position that is its own until the frame is written. What a killed
//! process had staged is gone; the words here say which granules that were.
//!
//! Rule: an entry is stored before its granule is settled, and the position before the first entry; the
//! position is taken back after the frame is written, and before the entries.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{GranuleRange, index};

use super::{DirtyMap, word};
use crate::error::damaged;

/// Frames that are filled at once.
pub(crate) const LANES: usize = 4;
/// Granules that a lane stages before it writes its frame.
pub(crate) const STAGED_MAX: usize = 32;

/// Frames of a diff, in 512 PiB: no file is so large.
const FRAMES_MAX: u64 = 1 << 40;

/// Words of a lane: its position + 1, or 0; how many entries count; granules.
const LANE_WORDS: usize = 64;
const POSITION: usize = 0;
const COUNT: usize = 1;
const ENTRIES: usize = 2;

const _: () = assert!(ENTRIES + STAGED_MAX <= LANE_WORDS);
const _: () = assert!((word::LANES + LANES * LANE_WORDS) as u64 <= super::PAGE_WORDS);

impl DirtyMap {
    /// When it is opened: counts positions that lanes hold; fails if there are more than a file can have.
    pub(super) fn check_frames(&self) -> io::Result<()> {
        let held = (0..LANES).filter_map(|lane| self.position(lane));
        let end = held.map(|position| position + 1).max().unwrap_or(0);
        let end = end.max(self.frames().end);
        match Some(end).filter(|end| *end > FRAMES_MAX) {
            None => {
                self.words.words()[word::END_FRAME].store(end, Ordering::Release);
                Ok(())
            }
            Some(at) => Err(damaged(format!("the diff cannot have a frame {at}"))),
        }
    }

    /// Numbers for so many entries: the first of them. They rise, also after a kill.
    pub(crate) fn next_orders(&self, count: u64) -> u64 {
        self.words.words()[word::ORDER].fetch_add(count, Ordering::AcqRel)
    }

    /// Positions of the frames that count. Those that a lane holds are not written.
    pub(crate) fn frames(&self) -> Range<u64> {
        let at = |word: usize| self.words.words()[word].load(Ordering::Acquire);
        at(word::FIRST_FRAME)..at(word::END_FRAME)
    }

    /// The position that a lane holds.
    pub(crate) fn position(&self, lane: usize) -> Option<u64> {
        self.lane_word(lane, POSITION)
            .load(Ordering::Acquire)
            .checked_sub(1)
    }

    /// Gives a lane the next position. One at a time.
    /// Crash: a position that a lane holds is counted when the map is opened.
    pub(crate) fn take_position(&self, lane: usize) -> u64 {
        let position = self.frames().end;
        self.unstage(lane);
        self.lane_word(lane, POSITION)
            .store(position + 1, Ordering::Release);
        self.words.words()[word::END_FRAME].store(position + 1, Ordering::Release);
        position
    }

    /// Notes that a lane has a granule in memory only, as its entry number `at`.
    pub(crate) fn stage(&self, lane: usize, at: usize, granule: u64) {
        self.lane_word(lane, ENTRIES + at)
            .store(granule, Ordering::Release);
        self.lane_word(lane, COUNT)
            .store(at as u64 + 1, Ordering::Release);
    }

    /// Notes that the frame of a lane is written.
    pub(crate) fn note_written(&self, lane: usize) {
        self.lane_word(lane, POSITION).store(0, Ordering::Release);
        self.unstage(lane);
    }

    /// Notes that a lane has nothing in memory; its position stays.
    pub(crate) fn unstage(&self, lane: usize) {
        self.lane_word(lane, COUNT).store(0, Ordering::Release);
    }

    /// The granules that a lane has in memory only.
    pub(crate) fn staged(&self, lane: usize) -> Vec<u64> {
        if self.position(lane).is_none() {
            return Vec::new();
        }
        let count = self.lane_word(lane, COUNT).load(Ordering::Acquire);
        let count = index(count.min(STAGED_MAX as u64));
        let entry = |at| self.lane_word(lane, ENTRIES + at).load(Ordering::Acquire);
        (0..count)
            .map(entry)
            .filter(|granule| *granule < self.shape.granule_count)
            .collect()
    }

    /// Whether granules were in memory only when the process that had them ended.
    pub(crate) fn lacks_staged(&self) -> bool {
        (0..LANES).any(|lane| !self.staged(lane).is_empty())
    }

    /// After a kill: what was staged is stale.
    pub(crate) fn take_over(&self) -> io::Result<()> {
        for lane in 0..LANES {
            for granule in self.staged(lane) {
                self.mark(GranuleRange {
                    start: granule,
                    end: granule + 1,
                })?;
            }
            self.unstage(lane);
        }
        Ok(())
    }

    /// From here on only later frames count. No granule may be settled as data, and no lane may be in use.
    pub(crate) fn forget_frames(&self) {
        let end = self.frames().end;
        self.words.words()[word::FIRST_FRAME].store(end, Ordering::Release);
        for lane in 0..LANES {
            self.note_written(lane);
        }
    }

    fn lane_word(&self, lane: usize, at: usize) -> &AtomicU64 {
        &self.words.words()[word::LANES + lane * LANE_WORDS + at]
    }
}
