//! Words of a map's body: the states of 32 granules, a group, in one number that is read and changed at once.
//!
//! ```text
//!   bit 63 .. 32   zero bits of granules 31 .. 0
//!   bit 31 ..  0   data bits of granules 31 .. 0
//! ```

use block::GranuleRange;

use crate::runs::GranuleState;

/// Granules that one word speaks of.
pub(super) const GROUP_GRANULES: u64 = 32;

/// A word of the body: the states of one group, read at once.
#[derive(Clone, Copy)]
pub(super) struct States(pub(super) u64);

impl States {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    fn halves(self) -> (u32, u32) {
        (self.0 as u32, (self.0 >> GROUP_GRANULES) as u32)
    }

    pub(super) fn dirty(self) -> u32 {
        let (data, zero) = self.halves();
        data | zero
    }

    pub(super) fn data(self) -> u32 {
        self.halves().0
    }

    pub(super) fn stale(self) -> u32 {
        let (data, zero) = self.halves();
        data & zero
    }

    pub(super) fn at(self, bit: u64) -> GranuleState {
        let (data, zero) = self.halves();
        match (data >> bit & 1, zero >> bit & 1) {
            (0, 0) => GranuleState::Clean,
            (0, _) => GranuleState::Zero,
            (_, 0) => GranuleState::Data,
            _ => GranuleState::Stale,
        }
    }

    /// How many granules from `bit` to the end of the group are in `state` without a gap.
    pub(super) fn run_at(self, bit: u64, state: GranuleState) -> u64 {
        let (data, zero) = self.halves();
        let mask = match state {
            GranuleState::Clean => !data & !zero,
            GranuleState::Stale => data & zero,
            GranuleState::Zero => !data & zero,
            GranuleState::Data => data & !zero,
        };
        u64::from((mask >> bit).trailing_ones())
    }
}

/// The data bits of the granules in `mask`.
pub(super) fn data(mask: u32) -> u64 {
    u64::from(mask)
}

/// Their zero bits.
pub(super) fn zero(mask: u32) -> u64 {
    u64::from(mask) << GROUP_GRANULES
}

/// The groups that `granules` touch, each with the mask of its bits.
pub(super) fn groups(granules: GranuleRange) -> impl Iterator<Item = (u64, u32)> {
    let mut at = granules.start;
    std::iter::from_fn(move || {
        if at >= granules.end {
            return None;
        }
        let (group, bit) = (at / GROUP_GRANULES, at % GROUP_GRANULES);
        let count = (GROUP_GRANULES - bit).min(granules.end - at);
        at += count;
        let mask = if count == GROUP_GRANULES {
            !0
        } else {
            ((1 << count) - 1) << bit
        };
        Some((group, mask))
    })
}
