//! How fast something may go: a rate that a user gives, and the bucket that keeps to it.
//!
//! ```text
//!   tokens drip in at the rate, up to a tenth of a second's worth; who takes more than there are
//!   owes them, and waits until the debt is paid
//! ```

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use parking_lot::Mutex;

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

/// A rate, or none: `0` and `off` say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit(pub Option<Rate>);

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no rate: use off, or bytes per second as in 500KiB/s, 4MiB/s, 1GiB/s")]
pub struct InvalidRate(String);

impl Rate {
    /// `None` for 0.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Option<Self> {
        NonZeroU64::new(bytes_per_s).map(Self)
    }

    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_s(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for RateLimit {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        if text == "off" {
            return Ok(Self(None));
        }
        let invalid = || InvalidRate(text.chars().take(40).collect());
        let size = text.strip_suffix("/s").unwrap_or(text);
        let digits = size.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = size.split_at(digits.unwrap_or(size.len()));
        let shift = match unit {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(invalid)?;
        Ok(Self(Rate::new(bytes)))
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.0 else {
            return f.write_str("off");
        };
        let bytes = rate.bytes_per_s();
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let whole = units
            .iter()
            .find(|(shift, _)| bytes.is_multiple_of(1 << shift));
        match whole {
            Some((shift, unit)) => write!(f, "{}{unit}/s", bytes >> shift),
            None => write!(f, "{bytes}B/s"),
        }
    }
}

/// Keeps to a rate. Time comes from the caller.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Nanoseconds' worth of bytes that may be taken at once.
    credit: Duration,
    /// Nanoseconds' worth of bytes that were taken and are not paid for.
    debt: Duration,
    seen: Duration,
}

impl Bucket {
    /// So much may be taken at once after a rest.
    const BURST: Duration = Duration::from_millis(100);

    /// A bucket that is empty.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let state = Mutex::default();
        Self { rate, state }
    }

    /// Takes `bytes`. Returns how long the taker is to wait.
    pub fn take(&self, bytes: u64, now: Duration) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.bytes_per_s());
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut state = self.state.lock();
        let passed = now.saturating_sub(state.seen);
        state.seen = state.seen.max(now);
        let paid = passed.min(state.debt);
        state.debt -= paid;
        state.credit = (state.credit + (passed - paid)).min(Self::BURST);
        let at_hand = price.min(state.credit);
        state.credit -= at_hand;
        state.debt = state.debt.saturating_add(price - at_hand);
        state.debt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown() {
        for (text, shown) in [
            ("4MiB/s", "4MiB/s"),
            ("4M", "4MiB/s"),
            ("1024KiB/s", "1MiB/s"),
            ("1500", "1500B/s"),
            ("2GiB/s", "2GiB/s"),
            ("0", "off"),
            ("off", "off"),
        ] {
            let rate: RateLimit = text.parse().expect(text);
            assert_eq!(rate.to_string(), shown);
        }
        for bad in ["", "fast", "4MB/s", "-1", "4MiB/min", "99999999999GiB/s"] {
            assert!(bad.parse::<RateLimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn over_a_long_time_a_bucket_keeps_its_rate() {
        let bucket = Bucket::new(Rate::new(1 << 20).expect("a rate"));
        let mut now = Duration::from_secs(50);
        for _ in 0..64 {
            now += bucket.take(256 << 10, now);
        }
        // 16 MiB at 1 MiB/s, less the burst.
        let took = now - Duration::from_secs(50);
        assert_eq!(took, Duration::from_secs(16) - Bucket::BURST);
        // A rest earns the burst, no more.
        now += Duration::from_secs(1000);
        assert_eq!(bucket.take(104_857, now), Duration::ZERO);
        assert!(bucket.take(1 << 20, now) > Duration::from_millis(999));
    }
}
