//! When to cut.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How often a group is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// At this interval.
    Interval(Duration),
    /// When told.
    Manual,
}

/// The shortest interval: below it, cuts would follow each other without a pause.
const SHORTEST: Duration = Duration::from_millis(20);

/// A text that is not an interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an interval: use `manual`, or a number with a unit as in 500ms, 5s, 1m, 1h (20ms at least)"
)]
pub struct InvalidEvery(String);

impl FromStr for Every {
    type Err = InvalidEvery;

    fn from_str(text: &str) -> Result<Self, InvalidEvery> {
        if text == "manual" {
            return Ok(Self::Manual);
        }
        match parse_duration(text) {
            Some(interval) if interval >= SHORTEST => Ok(Self::Interval(interval)),
            _ => Err(InvalidEvery(text.chars().take(40).collect())),
        }
    }
}

/// A number with a unit, as in `500ms`, `5s`, `1m`, `1h`, `7d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(millis).map(Duration::from_millis)
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => f.write_str("manual"),
            Self::Interval(interval) => {
                let millis = interval.as_millis();
                match millis {
                    _ if !millis.is_multiple_of(1_000) => write!(f, "{millis}ms"),
                    _ if !millis.is_multiple_of(60_000) => write!(f, "{}s", millis / 1_000),
                    _ => write!(f, "{}m", millis / 60_000),
                }
            }
        }
    }
}

/// The moments of a schedule: whole numbers of intervals after its start. Those that pass while a cut
/// takes longer are left out, not made up for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    start: Duration,
    interval: Duration,
    due: Duration,
}

impl Ticks {
    /// `None` where cuts are made when told.
    pub(crate) fn of(every: Every, start: Duration) -> Option<Self> {
        let Every::Interval(interval) = every else {
            return None;
        };
        let due = next_tick(start, interval, start);
        Some(Self {
            start,
            interval,
            due,
        })
    }

    /// The next moment.
    pub(crate) fn due(&self) -> Duration {
        self.due
    }

    /// Goes on to the first moment after `now`. Returns how many were left out in between.
    pub(crate) fn advance(&mut self, now: Duration) -> u64 {
        if now < self.due {
            return 0;
        }
        let passed = self.due;
        self.due = next_tick(self.start, self.interval, now);
        let ticks = (self.due - passed).as_nanos() / self.interval.as_nanos();
        u64::try_from(ticks).unwrap_or(u64::MAX) - 1
    }
}

/// The next moment after `now` that is a whole number of intervals after `start`.
fn next_tick(start: Duration, interval: Duration, now: Duration) -> Duration {
    let passed = now.saturating_sub(start).as_nanos() / interval.as_nanos();
    let next = u64::try_from((passed + 1).saturating_mul(interval.as_nanos()));
    start + Duration::from_nanos(next.unwrap_or(u64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_and_shown() {
        for (text, shown) in [
            ("5s", "5s"),
            ("500ms", "500ms"),
            ("60s", "1m"),
            ("1m", "1m"),
            ("2h", "120m"),
            ("manual", "manual"),
        ] {
            let every: Every = text.parse().expect(text);
            assert_eq!(every.to_string(), shown);
        }
        for bad in [
            "",
            "5",
            "s",
            "0s",
            "1ms",
            "-5s",
            "1.5s",
            "5 s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(bad.parse::<Every>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ticks_stay_aligned_and_are_not_made_up_for() {
        let s = Duration::from_secs;
        assert_eq!(next_tick(s(100), s(5), s(100)), s(105));
        assert_eq!(next_tick(s(100), s(5), s(104)), s(105));
        assert_eq!(next_tick(s(100), s(5), s(105)), s(110));
        assert_eq!(next_tick(s(100), s(5), s(123)), s(125));
        assert_eq!(next_tick(s(100), s(5), s(7)), s(105));
    }
    #[test]
    fn moments_that_pass_are_counted() {
        let ms = Duration::from_millis;
        assert!(Ticks::of(Every::Manual, ms(0)).is_none());
        let mut ticks = Ticks::of(Every::Interval(ms(20)), ms(1000)).expect("a schedule");
        assert_eq!(ticks.due(), ms(1020));
        assert_eq!((ticks.advance(ms(1019)), ticks.due()), (0, ms(1020)));
        assert_eq!((ticks.advance(ms(1020)), ticks.due()), (0, ms(1040)));
        assert_eq!((ticks.advance(ms(1059)), ticks.due()), (0, ms(1060)));
        assert_eq!((ticks.advance(ms(1121)), ticks.due()), (3, ms(1140)));
    }
}
