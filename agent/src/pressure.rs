//! How hard resources press, by the limits that the user set; without a clock, a thread or a file.
//!
//! | of the limit is used | then |
//! |---|---|
//! | all | writes are only marked |
//! | three quarters | cuts that wait are merged at each cut |
//! | half to three quarters | as before: a step up that is taken back at once is none |
//! | less | every write, every cut |
//!
//! Room that the file systems of diffs and of maps must keep counts as a limit, too: a map that cannot
//! grow costs more than any diff.

use std::collections::VecDeque;

use block::Space;
use splitter::{PaceFigures, SpaceFigures};

use crate::api::Cause;
use crate::limits::Limits;

/// Room that is kept free on the file system of the diffs, at most.
const RESERVE_BYTES_MAX: u64 = 256 << 20;
/// The part of a file system that is kept free if that is less.
const RESERVE_PART: u64 = 64;
/// Of so many visits to the diff device one may be slow.
const VISITS_PER_SLOW: u64 = 100;

/// How hard a resource presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Calm,
    /// As before.
    Fair,
    Coalesce,
    MapOnly,
}

/// The resource that presses hardest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) level: Level,
    pub(crate) cause: Cause,
}

impl Limits {
    /// How hard space and memory press, with `private_bytes` of memory beside the maps.
    pub(crate) fn pressure(&self, space: &SpaceFigures, private_bytes: u64) -> Pressure {
        let diffs = self
            .diff_bytes
            .map(|limit| level(space.diff_bytes, limit.bytes()));
        let memory = space.map_bytes.saturating_add(private_bytes);
        let memory = self.memory_bytes.map(|limit| level(memory, limit.bytes()));
        let of = |level, cause| Pressure { level, cause };
        let resources = [
            of(diffs.unwrap_or(Level::Calm), Cause::DiffSpace),
            of(room(space.diffs_on), Cause::DiffSpace),
            of(room(space.maps_on), Cause::StateSpace),
            of(memory.unwrap_or(Level::Calm), Cause::Memory),
        ];
        let hardest = resources
            .into_iter()
            .reduce(|a, b| if b.level > a.level { b } else { a });
        hardest.expect("there are resources")
    }

    /// The same, once what is stale is in the diffs. A single generation that takes more than a limit is
    /// let through where nothing else waits and the file system holds it: there would never be a point
    /// again.
    pub(crate) fn pressure_after_heal(&self, space: &SpaceFigures, private_bytes: u64) -> Pressure {
        let healed = SpaceFigures {
            diff_bytes: space.diff_bytes.saturating_add(space.stale_bytes),
            stale_bytes: 0,
            diffs_on: Space {
                free_bytes: space.diffs_on.free_bytes.saturating_sub(space.stale_bytes),
                ..space.diffs_on
            },
            ..*space
        };
        let pressure = self.pressure(&healed, private_bytes);
        let fits = room(healed.diffs_on).max(room(healed.maps_on)) < Level::MapOnly;
        if space.sealed_count == 0 && fits {
            return Pressure {
                level: pressure.level.min(Level::Coalesce),
                ..pressure
            };
        }
        pressure
    }
}

fn level(used: u64, limit: u64) -> Level {
    match () {
        () if used >= limit => Level::MapOnly,
        () if used >= limit / 4 * 3 => Level::Coalesce,
        () if used >= limit / 2 => Level::Fair,
        () => Level::Calm,
    }
}

/// A file system that says nothing of its size has no end.
fn room(of: Space) -> Level {
    let reserve = (of.total_bytes / RESERVE_PART).min(RESERVE_BYTES_MAX);
    match of.free_bytes {
        _ if of.total_bytes == 0 => Level::Calm,
        free if free <= reserve => Level::MapOnly,
        free if free <= 2 * reserve => Level::Coalesce,
        free if free <= 3 * reserve => Level::Fair,
        _ => Level::Calm,
    }
}

/// Turns over which visits are judged: two limits' worth.
const WINDOW_TURNS: usize = 8;

/// Judges how long the diff device keeps guests' writes.
#[derive(Debug, Default)]
pub(crate) struct LatencyJudge {
    /// The newest turns, oldest first.
    turns: VecDeque<PaceFigures>,
}

impl LatencyJudge {
    /// Whether the device is too slow: one visit of a hundred within the window took longer than the
    /// limit, or one has been hanging for four times as long.
    pub(crate) fn is_too_slow(&mut self, now: PaceFigures) -> bool {
        if self.turns.len() == WINDOW_TURNS {
            self.turns.pop_front();
        }
        self.turns.push_back(now);
        let first = self.turns[0];
        let slow = now.slow - first.slow + now.slow_under_way;
        let all = now.ended - first.ended + now.slow_under_way;
        now.hanging > 0 || (slow > 0 && slow * VISITS_PER_SLOW >= all)
    }

    /// What was is no measure of what comes.
    pub(crate) fn forget(&mut self) {
        self.turns.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ByteLimit;

    const MIB: u64 = 1 << 20;

    fn limits(diff: &str, memory: &str) -> Limits {
        let bytes = |text: &str| text.parse::<ByteLimit>().ok();
        Limits {
            diff_bytes: bytes(diff),
            diff_latency: None,
            memory_bytes: bytes(memory),
        }
    }

    fn space(diff_mib: u64, map_mib: u64, free_mib: u64) -> SpaceFigures {
        SpaceFigures {
            sealed_count: 1,
            diff_bytes: diff_mib * MIB,
            map_bytes: map_mib * MIB,
            stale_bytes: 0,
            marks_lost: false,
            diffs_on: Space {
                free_bytes: free_mib * MIB,
                total_bytes: 10_240 * MIB,
            },
            maps_on: Space::default(),
        }
    }

    #[test]
    fn the_hardest_pressure_counts() {
        let limits = limits("100MiB", "100MiB");
        for (diff, map, private, free, level, cause) in [
            (49, 1, 10, 9000, Level::Calm, Cause::DiffSpace),
            (50, 1, 10, 9000, Level::Fair, Cause::DiffSpace),
            (75, 1, 10, 9000, Level::Coalesce, Cause::DiffSpace),
            (100, 1, 10, 9000, Level::MapOnly, Cause::DiffSpace),
            (1, 60, 20, 9000, Level::Coalesce, Cause::Memory),
            (80, 60, 40, 9000, Level::MapOnly, Cause::Memory),
            (1, 1, 1, 400, Level::Fair, Cause::DiffSpace),
            (1, 1, 1, 320, Level::Coalesce, Cause::DiffSpace),
            (1, 1, 1, 160, Level::MapOnly, Cause::DiffSpace),
        ] {
            let pressure = limits.pressure(&space(diff, map, free), private * MIB);
            assert_eq!(
                pressure,
                Pressure { level, cause },
                "{diff} {map} {private} {free}"
            );
        }
        let unlimited = Limits::default().pressure(&space(5_000, 5_000, 9_000), 1 << 40);
        assert_eq!(unlimited.level, Level::Calm);
    }

    /// Else a guest that writes more in an interval than the limit would never have a point again.
    #[test]
    fn a_generation_larger_than_the_limit_is_let_through_alone() {
        let limits = limits("100MiB", "");
        let mut held = SpaceFigures {
            stale_bytes: 200 * MIB,
            ..space(0, 1, 9000)
        };
        assert_eq!(limits.pressure_after_heal(&held, 0).level, Level::MapOnly);
        held.sealed_count = 0;
        assert_eq!(limits.pressure_after_heal(&held, 0).level, Level::Coalesce);
        held.diffs_on.free_bytes = 300 * MIB;
        assert_eq!(limits.pressure_after_heal(&held, 0).level, Level::MapOnly);
        // Maps lie elsewhere, and a heal writes none.
        held.diffs_on.free_bytes = 9_000 * MIB;
        held.maps_on = Space {
            free_bytes: 20 * MIB,
            total_bytes: 1_000 * MIB,
        };
        assert_eq!(limits.pressure_after_heal(&held, 0).level, Level::Coalesce);
        held.maps_on.free_bytes = 15 * MIB;
        let pressure = limits.pressure_after_heal(&held, 0);
        assert_eq!(
            (pressure.level, pressure.cause),
            (Level::MapOnly, Cause::DiffSpace)
        );
    }

    #[test]
    fn a_device_is_slow_by_share_or_by_one_that_hangs() {
        let mut judge = LatencyJudge::default();
        let figures = |ended, slow, slow_under_way, hanging| PaceFigures {
            ended,
            slow,
            slow_under_way,
            hanging,
            ..PaceFigures::default()
        };
        assert!(!judge.is_too_slow(figures(1_000, 0, 0, 0)));
        assert!(!judge.is_too_slow(figures(2_000, 9, 0, 0)), "9 of 1000");
        assert!(judge.is_too_slow(figures(2_100, 11, 1, 0)), "12 of 1101");
        judge.forget();
        assert!(!judge.is_too_slow(figures(2_100, 11, 0, 0)), "long past");
        assert!(!judge.is_too_slow(figures(9_000, 11, 1, 0)), "one of many");
        assert!(judge.is_too_slow(figures(20_000, 11, 1, 1)), "it hangs");
    }
}
