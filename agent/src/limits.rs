//! What protection may take from a machine, as a user says it.

use std::str::FromStr;
use std::time::Duration;

/// What protection may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that all diffs of the group may occupy.
    pub diff_bytes: Option<ByteLimit>,
    /// What the diff device may add to a guest's write.
    pub diff_latency: Option<LatencyLimit>,
    /// Bytes of memory that dirty maps and buffers may take.
    pub memory_bytes: Option<ByteLimit>,
}

/// A number of bytes, at least 1 MiB: less holds no diff that is worth its cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteLimit(u64);

/// A text that is no limit in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no limit: use a number of bytes as in 512MiB, 20GiB, 1TiB (1MiB at least)")]
pub struct InvalidByteLimit(String);

impl ByteLimit {
    const LEAST: u64 = 1 << 20;

    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteLimit {
    type Err = InvalidByteLimit;

    fn from_str(text: &str) -> Result<Self, InvalidByteLimit> {
        let invalid = || InvalidByteLimit(text.chars().take(40).collect());
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let shift = match unit {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(invalid()),
        };
        let bytes = number
            .parse()
            .ok()
            .and_then(|n: u64| n.checked_mul(1 << shift));
        bytes
            .filter(|b| *b >= Self::LEAST)
            .map(Self)
            .ok_or_else(invalid)
    }
}

/// A time, 20 ms to 1 min: what a busy machine adds by itself is no fault of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyLimit(Duration);

/// A limit of latency, or none: `off` says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyChoice(pub Option<LatencyLimit>);

/// A text that is no limit of latency.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no limit of latency: use off, or a time as in 100ms, 2s (20ms to 1m)")]
pub struct InvalidLatency(String);

impl LatencyLimit {
    /// The time.
    #[must_use]
    pub fn time(self) -> Duration {
        self.0
    }
}

impl FromStr for LatencyChoice {
    type Err = InvalidLatency;

    fn from_str(text: &str) -> Result<Self, InvalidLatency> {
        const LEGAL: std::ops::RangeInclusive<Duration> =
            Duration::from_millis(20)..=Duration::from_secs(60);
        if text == "off" {
            return Ok(Self(None));
        }
        let time = crate::schedule::parse_duration(text).filter(|time| LEGAL.contains(time));
        let limit = time.map(|time| Self(Some(LatencyLimit(time))));
        limit.ok_or_else(|| InvalidLatency(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let bytes = |text: &str| text.parse::<ByteLimit>().ok().map(ByteLimit::bytes);
        assert_eq!(bytes("20GiB"), Some(20 << 30));
        assert_eq!(bytes("1048576"), Some(1 << 20));
        for bad in ["", "1", "1KiB", "GiB", "-1GiB", "1.5GiB", "99999999999TiB"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        let time = |text: &str| text.parse::<LatencyChoice>().ok().map(|c| c.0.map(|l| l.0));
        assert_eq!(time("off"), Some(None));
        assert_eq!(time("100ms"), Some(Some(Duration::from_millis(100))));
        assert_eq!([time("1ms"), time("2m"), time("5")], [None; 3]);
    }
}
