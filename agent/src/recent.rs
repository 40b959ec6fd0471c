//! How a figure was spread over the newest cuts: a worst case that is long past says nothing.

use std::collections::VecDeque;

use crate::api::Spread;

/// Values that are kept: 17 minutes of a cut each second.
const KEPT: usize = 1024;

/// The newest values of a figure.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<u64>);

impl Recent {
    pub(crate) fn note(&mut self, value: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// `None` if there is no value yet.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        // The smallest value that is at least as large as so many in a hundred.
        let percentile = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
        Some(Spread {
            count: sorted.len() as u64,
            min,
            p50: percentile(50),
            p99: percentile(99),
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_values_count() {
        let mut recent = Recent::default();
        assert_eq!(recent.spread(), None);
        recent.note(7);
        let one = recent.spread().expect("a value");
        assert_eq!([one.min, one.p50, one.p99, one.max], [7; 4]);
        (1..=2000).for_each(|value| recent.note(value));
        let spread = recent.spread().expect("values");
        assert_eq!((spread.count, spread.min, spread.max), (1024, 977, 2000));
        assert_eq!((spread.p50, spread.p99), (1488, 1990));
    }
}
