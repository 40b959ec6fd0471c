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
        let invalid = || InvalidEvery(text.chars().take(40).collect());
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let interval = number.checked_mul(millis).map(Duration::from_millis);
        match interval {
            Some(interval) if interval >= SHORTEST => Ok(Self::Interval(interval)),
            _ => Err(invalid()),
        }
    }
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

/// The next moment after `now` that is a whole number of intervals after `start`. Moments that
/// passed while a cut took longer are left out, not made up for.
pub(crate) fn next_tick(start: Duration, interval: Duration, now: Duration) -> Duration {
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
}
