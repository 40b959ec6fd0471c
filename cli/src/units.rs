//! Sizes, durations and times as people read them.

use std::time::Duration;

use block::UnixNanos;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `1.4 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // What would be shown as 1024 of one unit is 1 of the next.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// `85 us`, `1.2 ms`, `3.4 s`, `5 min 6 s`, `2 h 3 min`, `4 d 5 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let micros = duration.as_micros();
    match seconds {
        0 if micros < 1_000 => format!("{micros} us"),
        0 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Seconds as a duration; nonsense is zero.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// `312 MB/s`.
pub(crate) fn rate(count: u64, took: Duration) -> String {
    match took.as_secs_f64() {
        0.0 => "-".to_owned(),
        seconds => format!("{:.0} MB/s", count as f64 / 1e6 / seconds),
    }
}

/// `2026-11-21 10:55:03`, in the local time zone.
pub(crate) fn local_time(at: UnixNanos) -> String {
    timestamp(at)
        .to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// `2026-11-21T10:55:03.123456789Z`.
pub(crate) fn rfc3339(at: UnixNanos) -> String {
    timestamp(at).to_string()
}

fn timestamp(at: UnixNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (8 << 30, "8.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn durations_are_short() {
        for (micros, shown) in [
            (85, "85 us"),
            (1_250, "1.2 ms"),
            (3_400_000, "3.4 s"),
            (306_000_000, "5 min 6 s"),
            (7_380_000_000, "2 h 3 min"),
            (363_600_000_000, "4 d 5 h"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), shown);
        }
    }

    #[test]
    fn times_are_utc_for_programs() {
        assert_eq!(rfc3339(UnixNanos(1_500_000_000)), "1970-01-01T00:00:01.5Z");
    }
}
