//! Where the bytes of a file lie: positions of 128 KiB, each with a segment somewhere on the device, and a bit for each
//! page of it that was written.

use std::collections::BTreeMap;

use super::layout::{Layout, PAGE, SEGMENT};
use crate::ByteRange;

/// What a file has.
#[derive(Default)]
pub(super) struct Extents {
    pub(super) len: u64,
    pub(super) pieces: BTreeMap<u32, Piece>,
}

/// A segment of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) segment: u32,
    pub(super) pages: u32,
    /// Its record could not be written, in whole or in part: the device may say this, or what it said before.
    pub(super) doubtful: bool,
}

/// A part of a file that lies in one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// In the file.
    pub(super) range: ByteRange,
    /// On the device; `None` where nothing was written: zeroes.
    pub(super) at: Option<u64>,
}

impl Extents {
    /// `range` in parts that lie in sequence on the device, or were not written.
    pub(super) fn runs(&self, layout: Layout, range: ByteRange) -> impl Iterator<Item = Run> {
        let place = move |at: u64| {
            let piece = self.pieces.get(&position_of(at))?;
            let bit = 1_u32 << (at / PAGE % 32);
            (piece.pages & bit != 0).then(|| layout.segment_at(piece.segment) + at % SEGMENT)
        };
        joined(range, place)
    }

    /// The same for what is about to be written.
    pub(super) fn places(&self, layout: Layout, range: ByteRange) -> Vec<Run> {
        let place = |at: u64| {
            let piece = self.pieces.get(&position_of(at))?;
            Some(layout.segment_at(piece.segment) + at % SEGMENT)
        };
        joined(range, place).collect()
    }
}

/// Page by page, and joined where one follows the other.
fn joined<'a>(
    range: ByteRange,
    place: impl Fn(u64) -> Option<u64> + 'a,
) -> impl Iterator<Item = Run> + 'a {
    let mut at = range.start();
    std::iter::from_fn(move || {
        if at >= range.end() {
            return None;
        }
        let (start, first) = (at, place(at));
        loop {
            at = (at / PAGE + 1).saturating_mul(PAGE).min(range.end());
            let follows = at < range.end() && place(at) == first.map(|first| first + (at - start));
            if !follows {
                break;
            }
        }
        let range = ByteRange::new(start, at).expect("goes forward");
        Some(Run { range, at: first })
    })
}

fn position_of(at: u64) -> u32 {
    u32::try_from(at / SEGMENT).expect("files are shorter")
}

/// The positions that `range` touches.
pub(super) fn positions(range: ByteRange) -> impl Iterator<Item = u32> {
    positions_around(range)
        .into_iter()
        .flat_map(|(first, last)| first..=last)
}

/// First and last; none of an empty range.
pub(super) fn positions_around(range: ByteRange) -> Option<(u32, u32)> {
    if range.is_empty() {
        return None;
    }
    let last = u32::try_from((range.end() - 1) / SEGMENT).unwrap_or(u32::MAX);
    let first = u32::try_from(range.start() / SEGMENT).ok()?;
    Some((first, last))
}

/// The pages of a position that lie in `range`.
pub(super) fn pages_within(position: u32, range: ByteRange) -> u32 {
    let start = u64::from(position) * SEGMENT;
    let page = |at: u64| (at.clamp(start, start + SEGMENT) - start) / PAGE;
    let below = |page: u64| (1_u64 << page) - 1;
    let bits = below(page(range.end())) & !below(page(range.start()));
    u32::try_from(bits).expect("32 pages")
}
