//! How long the diff device keeps guests' writes, without a clock on their path: whoever watches makes
//! *turns* at even intervals, and what began some turns ago has taken as long.
//!
//! ```text
//!  turn     17      18      19      20      21      22
//!            a begins                                at least SLOW_TURNS whole ones: slow
//!            under way[17 % RING] +1 ......... -1 when it ends, or it hangs and is seen there
//! ```
//!
//! Rule: a guest's write pays two additions and two loads, and no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Group;

/// Whole turns after which a visit counts as slow.
pub(crate) const SLOW_TURNS: u64 = 4;
/// Whole turns after which one that has not ended hangs.
const HANGING_TURNS: u64 = 4 * SLOW_TURNS;
/// Turns that are told apart. What is under way for longer looks younger until it hangs again.
const RING: usize = 32;

/// Visits of guests' writes to a disk's diff.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    turn: AtomicU64,
    begun: [AtomicU64; RING],
    ended: [AtomicU64; RING],
    slow: AtomicU64,
    lost_writeback: AtomicU64,
}

/// A visit, until it is dropped.
pub(crate) struct Visit<'a> {
    pace: &'a Pace,
    turn: u64,
}

/// How guests' writes fared at the diff device. Counters go up from when the group was opened; those of
/// what is under way say how it is at this turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PaceFigures {
    /// Visits that ended; a write makes one to be copied.
    pub ended: u64,
    /// Those that took `Group::SLOW_TURNS` whole turns or more.
    pub slow: u64,
    /// Visits under way that have taken so long.
    pub slow_under_way: u64,
    /// Those that have taken four times as long.
    pub hanging: u64,
    /// Of the writer, cuts and heals: those that have been at the device for as long as a visit that is slow.
    pub device_slow: u64,
    /// Those that have been there for four times as long. No guest need be waiting.
    pub device_hanging: u64,
    /// Times that an open diff was found to have lost bytes on their way to its disk.
    pub lost_writeback: u64,
}

impl Pace {
    pub(crate) fn visit(&self) -> Visit<'_> {
        let turn = self.turn.load(Ordering::Relaxed);
        self.begun[slot(turn)].fetch_add(1, Ordering::Relaxed);
        Visit { pace: self, turn }
    }

    pub(crate) fn note_lost_writeback(&self) {
        self.lost_writeback.fetch_add(1, Ordering::Relaxed);
    }

    fn turn(&self) -> PaceFigures {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) + 1;
        // Ended first: what begins and ends in between is not taken for ended without having begun.
        let ended: u64 = sum(&self.ended);
        let since = |turns: u64| (turns + 1..RING as u64).map(|age| self.under_way(turn, age));
        PaceFigures {
            ended,
            slow: self.slow.load(Ordering::Relaxed),
            slow_under_way: since(SLOW_TURNS).sum(),
            hanging: since(HANGING_TURNS).sum(),
            device_slow: 0,
            device_hanging: 0,
            lost_writeback: self.lost_writeback.load(Ordering::Relaxed),
        }
    }

    /// Visits that began `age` turns before `turn` and have not ended.
    fn under_way(&self, turn: u64, age: u64) -> u64 {
        let Some(began) = turn.checked_sub(age) else {
            return 0;
        };
        let ended = self.ended[slot(began)].load(Ordering::Relaxed);
        let begun = self.begun[slot(began)].load(Ordering::Relaxed);
        begun.saturating_sub(ended)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let pace = self.pace;
        // The turn in which it began is not whole.
        if pace.turn.load(Ordering::Relaxed) - self.turn > SLOW_TURNS {
            pace.slow.fetch_add(1, Ordering::Relaxed);
        }
        pace.ended[slot(self.turn)].fetch_add(1, Ordering::Relaxed);
    }
}

fn slot(turn: u64) -> usize {
    block::index(turn % RING as u64)
}

fn sum(counters: &[AtomicU64]) -> u64 {
    counters.iter().map(|c| c.load(Ordering::Relaxed)).sum()
}

impl Group {
    /// A visit of a guest's write to the diff device that takes so many whole turns is slow.
    pub const SLOW_TURNS: u64 = SLOW_TURNS;

    /// Makes a turn, and says how guests' writes fare at the diff device. Called at even intervals, by one
    /// thread; while nobody calls it, nothing is slow. Takes no lock.
    pub fn turn(&self) -> PaceFigures {
        let device = self.writer.device.turn();
        let all = PaceFigures {
            device_slow: device.slow_under_way,
            device_hanging: device.hanging,
            ..PaceFigures::default()
        };
        let figures = self.disks.iter().map(|disk| disk.pace.turn());
        figures.fold(all, |all, disk| PaceFigures {
            ended: all.ended + disk.ended,
            slow: all.slow + disk.slow,
            slow_under_way: all.slow_under_way + disk.slow_under_way,
            hanging: all.hanging + disk.hanging,
            lost_writeback: all.lost_writeback + disk.lost_writeback,
            ..all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(pace: &Pace, count: u64) -> PaceFigures {
        (0..count).fold(PaceFigures::default(), |_, _| pace.turn())
    }

    #[test]
    fn what_ends_within_the_turns_is_not_slow() {
        let pace = Pace::default();
        turns(&pace, 7);
        let visit = pace.visit();
        let figures = turns(&pace, SLOW_TURNS);
        assert_eq!((figures.ended, figures.slow_under_way), (0, 0));
        drop(visit);
        let figures = pace.turn();
        assert_eq!((figures.ended, figures.slow), (1, 0));
    }

    #[test]
    fn what_hangs_is_seen_before_it_ends_and_counted_when_it_does() {
        let pace = Pace::default();
        let (hangs, quick) = (pace.visit(), pace.visit());
        drop(quick);
        assert_eq!(turns(&pace, SLOW_TURNS + 1).slow_under_way, 1);
        let figures = turns(&pace, HANGING_TURNS - SLOW_TURNS);
        assert_eq!((figures.slow_under_way, figures.hanging), (1, 1));
        drop(hangs);
        let figures = pace.turn();
        assert_eq!((figures.slow_under_way, figures.hanging), (0, 0));
        assert_eq!((figures.slow, figures.ended), (1, 2));
    }

    /// The ring is short: what is older than it must not be forgotten, nor make young ones look old.
    #[test]
    fn what_hangs_longer_than_the_ring_hangs_again() {
        let pace = Pace::default();
        let hangs = pace.visit();
        let seen: Vec<_> = (0..4 * RING).map(|_| pace.turn().hanging).collect();
        let often = seen.iter().filter(|hanging| **hanging == 1).count();
        assert!(often > RING, "{seen:?}");
        drop(hangs);
        assert_eq!(turns(&pace, RING as u64).hanging, 0);
    }
}
