//! Feels whether time runs as it should: that this process was stopped, or that somebody moved the wall
//! clock. A second that nobody ran cannot be restored, and a moved clock makes seconds look like hours.

use std::time::Duration;

use block::{Clock, UnixNanos};

/// Beats come several times a second; who misses them for so long was stopped, or given no time.
const STILL_MIN: Duration = Duration::from_secs(2);
/// Wall clocks are corrected little by little, too: less is no jump.
const JUMP_MIN: Duration = Duration::from_secs(1);
/// Two readings of a clock, with another one in between, are one moment if they are so close.
const READING_MAX: Duration = Duration::from_millis(50);
const READINGS_MAX: u32 = 10;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) monotonic: Duration,
    pub(crate) wall: UnixNanos,
}

/// What the time since the last beat was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Felt {
    /// Nothing ran for so long.
    Still(Duration),
    /// The wall clock was moved by so many nanoseconds, back if negative.
    Moved(i64),
}

/// The last beat.
#[derive(Debug)]
pub(crate) struct Pulse(Beat);

impl Beat {
    /// A process may be stopped between two readings: then they are taken again.
    pub(crate) fn now(clock: &dyn Clock) -> Self {
        let mut readings = 0;
        loop {
            readings += 1;
            let (before, wall, monotonic) = (clock.monotonic(), clock.wall(), clock.monotonic());
            if monotonic.saturating_sub(before) <= READING_MAX || readings == READINGS_MAX {
                return Self { monotonic, wall };
            }
        }
    }
}

impl Pulse {
    pub(crate) fn new(beat: Beat) -> Self {
        Self(beat)
    }

    pub(crate) fn feel(&mut self, now: Beat) -> Vec<Felt> {
        let last = std::mem::replace(&mut self.0, now);
        let passed = now.monotonic.saturating_sub(last.monotonic);
        let moved = i128::from(now.wall.0)
            - i128::from(last.wall.0)
            - i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let moved = i64::try_from(moved).unwrap_or(i64::MAX);
        let mut felt = Vec::new();
        if passed >= STILL_MIN {
            felt.push(Felt::Still(passed));
        }
        if Duration::from_nanos(moved.unsigned_abs()) > JUMP_MIN {
            felt.push(Felt::Moved(moved));
        }
        felt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(monotonic_ms: u64, wall_ms: u64) -> Beat {
        Beat {
            monotonic: Duration::from_millis(monotonic_ms),
            wall: UnixNanos(wall_ms * 1_000_000),
        }
    }

    #[test]
    fn stops_and_jumps_are_told_apart() {
        let mut pulse = Pulse::new(beat(1_000, 500_000));
        assert_eq!(pulse.feel(beat(1_250, 500_250)), []);
        // Stopped for four seconds: both clocks went on.
        let stopped = Felt::Still(Duration::from_secs(4));
        assert_eq!(pulse.feel(beat(5_250, 504_250)), [stopped]);
        // Set forward by an hour, and back; and corrected a little.
        let hour = 3_600_000_000_000;
        assert_eq!(pulse.feel(beat(5_500, 4_104_500)), [Felt::Moved(hour)]);
        assert_eq!(pulse.feel(beat(5_750, 504_750)), [Felt::Moved(-hour)]);
        assert_eq!(pulse.feel(beat(6_000, 505_500)), []);
    }
}
