//! What is asked for of an object, as the header `Range` says it: `bytes=FIRST-LAST`, or `bytes=-COUNT` for the last bytes.

use std::fmt;
use std::ops::Range;

/// A part of an object, as far as that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// These bytes; never none.
    Range(Range<u64>),
    /// So many, or all of it.
    Last(u64),
}

impl Part {
    /// The part that a header names; `None` where it names none, or several.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
        let last: u64 = last.parse().ok()?;
        if first.is_empty() {
            return Some(Self::Last(last));
        }
        let first: u64 = first.parse().ok()?;
        let end = last.checked_add(1)?;
        (first < end).then_some(Self::Range(first..end))
    }

    /// Bytes that it can have.
    pub(crate) fn bytes_max(&self) -> u64 {
        match self {
            Self::Range(range) => range.end - range.start,
            Self::Last(bytes) => *bytes,
        }
    }

    /// Which bytes of an object of that length it is; none where that ends before.
    pub(crate) fn of(&self, len: u64) -> Range<u64> {
        match self {
            Self::Range(range) => range.start..range.end.min(len),
            Self::Last(bytes) => len.saturating_sub(*bytes)..len,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => write!(f, "bytes={}-{}", range.start, range.end - 1),
            Self::Last(bytes) => write!(f, "bytes=-{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_what_their_header_says_and_nothing_else_is_one() {
        for (header, part, of_ten) in [
            ("bytes=0-4", Part::Range(0..5), 0..5),
            ("bytes=7-20", Part::Range(7..21), 7..10),
            ("bytes=-3", Part::Last(3), 7..10),
            ("bytes=-30", Part::Last(30), 0..10),
        ] {
            assert_eq!(Part::parse(header), Some(part.clone()), "{header}");
            assert_eq!(part.to_string(), header);
            assert_eq!(part.of(10), of_ten, "{header}");
        }
        assert!(Part::Range(12..14).of(10).is_empty());
        for wrong in [
            "bytes=5-4",
            "bytes=0-",
            "bytes=-",
            "bytes=--5",
            "bytes=0-1,3-4",
            "bytes=0-18446744073709551615",
            "lines=0-1",
            "",
        ] {
            assert_eq!(Part::parse(wrong), None, "{wrong}");
        }
    }
}
