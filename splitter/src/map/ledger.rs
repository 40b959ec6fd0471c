//! What the map knows of the frames of its diff file: which count, and what is staged in memory for frames
//! that are not written yet.
//!
//! A slot is a frame in memory, at a position that is its own until the frame is written. What a killed process
//! had staged is gone; the words here say which granules that were.
//!
//! Rule: an entry is stored before its granule is settled, and the position before the first entry; the
//! position is taken back after the frame is written, and before the entries.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{GranuleRange, index};

use super::{DirtyMap, word};
use crate::error::damaged;

/// Frames that are in memory: filled, waiting, or being written.
pub(crate) const SLOTS: usize = 5;
/// Granules that are staged for a frame.
pub(crate) const STAGED_MAX: usize = 84;

/// Frames of a diff, in 512 PiB: no file is so large.
const FRAMES_MAX: u64 = 1 << 40;

/// Words of a slot: its position + 1, or 0; how many entries count; granules.
const SLOT_WORDS: usize = 86;
const POSITION: usize = 0;
const COUNT: usize = 1;
const ENTRIES: usize = 2;

const _: () = assert!(ENTRIES + STAGED_MAX <= SLOT_WORDS);
const _: () = assert!((word::SLOTS + SLOTS * SLOT_WORDS) as u64 <= super::PAGE_WORDS);

impl DirtyMap {
    /// When it is opened: counts positions that slots hold; fails if there are more than a file can have.
    pub(super) fn check_frames(&self) -> io::Result<()> {
        let held = (0..SLOTS).filter_map(|slot| self.position(slot));
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

    /// Positions of the frames that count. Those that a slot holds are not written.
    pub(crate) fn frames(&self) -> Range<u64> {
        let at = |word: usize| self.words.words()[word].load(Ordering::Acquire);
        at(word::FIRST_FRAME)..at(word::END_FRAME)
    }

    /// The position that a slot holds.
    pub(crate) fn position(&self, slot: usize) -> Option<u64> {
        self.slot_word(slot, POSITION)
            .load(Ordering::Acquire)
            .checked_sub(1)
    }

    /// Gives a slot the next position. One at a time.
    /// Crash: a position that a slot holds is counted when the map is opened.
    pub(crate) fn take_position(&self, slot: usize) -> u64 {
        let position = self.frames().end;
        self.unstage(slot);
        self.slot_word(slot, POSITION)
            .store(position + 1, Ordering::Release);
        self.words.words()[word::END_FRAME].store(position + 1, Ordering::Release);
        position
    }

    /// Notes that a slot has a granule in memory only, as its entry number `at`.
    pub(crate) fn stage(&self, slot: usize, at: usize, granule: u64) {
        self.slot_word(slot, ENTRIES + at)
            .store(granule, Ordering::Release);
        self.slot_word(slot, COUNT)
            .store(at as u64 + 1, Ordering::Release);
    }

    /// Notes that the frame of a slot is written.
    pub(crate) fn note_written(&self, slot: usize) {
        self.slot_word(slot, POSITION).store(0, Ordering::Release);
        self.unstage(slot);
    }

    /// Notes that a slot has nothing in memory; its position stays.
    pub(crate) fn unstage(&self, slot: usize) {
        self.slot_word(slot, COUNT).store(0, Ordering::Release);
    }

    /// The granules that a slot has in memory only.
    pub(crate) fn staged(&self, slot: usize) -> Vec<u64> {
        if self.position(slot).is_none() {
            return Vec::new();
        }
        let count = self.slot_word(slot, COUNT).load(Ordering::Acquire);
        let count = index(count.min(STAGED_MAX as u64));
        let entry = |at| self.slot_word(slot, ENTRIES + at).load(Ordering::Acquire);
        (0..count)
            .map(entry)
            .filter(|granule| *granule < self.shape.granule_count)
            .collect()
    }

    /// Whether all that it names is in the diff's file. No guest may be writing to that.
    pub(crate) fn is_complete(&self) -> bool {
        // In this order: a frame that fails just now makes stale what it had, and only then it has nothing any more.
        !self.lacks_staged() && self.stale_count() == 0
    }

    /// Whether granules were in memory only when the process that had them ended.
    pub(crate) fn lacks_staged(&self) -> bool {
        (0..SLOTS).any(|slot| !self.staged(slot).is_empty())
    }

    /// After a kill: what was staged is stale.
    pub(crate) fn take_over(&self) -> io::Result<()> {
        for slot in 0..SLOTS {
            for granule in self.staged(slot) {
                self.mark(GranuleRange {
                    start: granule,
                    end: granule + 1,
                })?;
            }
            self.unstage(slot);
        }
        Ok(())
    }

    /// From here on only later frames count. No granule may be settled as data, and what slots have does not count.
    pub(crate) fn forget_frames(&self) {
        let end = self.frames().end;
        self.words.words()[word::FIRST_FRAME].store(end, Ordering::Release);
        for slot in 0..SLOTS {
            self.note_written(slot);
        }
    }

    fn slot_word(&self, slot: usize, at: usize) -> &AtomicU64 {
        &self.words.words()[word::SLOTS + slot * SLOT_WORDS + at]
    }
}
