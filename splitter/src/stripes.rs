//! Byte-range locks against overlapping writes in flight.
//!
//! A granule belongs to the stripe of its index modulo [`STRIPES`]; a write holds the stripes of
//! all granules it touches. Two writes that share a granule share a stripe, so they reach
//! production and diff in one order; neighbours in a sequential stream do not.
//!
//! Rule: stripes are taken in ascending order, so nobody waits in a circle.

use std::time::Duration;

use block::GranuleRange;
use parking_lot::{Mutex, MutexGuard};

/// Number of stripes: enough that random writes of 32 in flight rarely meet.
const STRIPES: u64 = 4096;

pub(crate) struct Stripes {
    locks: Box<[Mutex<()>]>,
}

/// Stripes that are held.
pub(crate) enum Held<'a> {
    One { _guard: MutexGuard<'a, ()> },
    Many { _guards: Vec<MutexGuard<'a, ()>> },
}

impl Stripes {
    pub(crate) fn new() -> Self {
        Self {
            locks: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        }
    }

    /// Waits until no other holder touches any of `granules`.
    pub(crate) fn lock(&self, granules: GranuleRange) -> Held<'_> {
        if granules.count() == 1 {
            return Held::One {
                _guard: self.lock_one(granules.start % STRIPES),
            };
        }
        Held::Many {
            _guards: ascending(granules)
                .map(|stripe| self.lock_one(stripe))
                .collect(),
        }
    }

    /// `None` if another holder touches any of `granules`, and goes on to for what is `left` of some time. While it
    /// waits it holds none: nobody waits for it.
    pub(crate) fn lock_while(
        &self,
        granules: GranuleRange,
        left: &dyn Fn() -> Duration,
    ) -> Option<Held<'_>> {
        loop {
            let mut guards = Vec::new();
            let held = ascending(granules).map(|stripe| &self.locks[block::index(stripe)]);
            let Some(busy) = held.into_iter().find(|lock| match lock.try_lock() {
                Some(guard) => {
                    guards.push(guard);
                    false
                }
                None => true,
            }) else {
                return Some(Held::Many { _guards: guards });
            };
            drop(guards);
            drop(busy.try_lock_for(left())?);
        }
    }

    fn lock_one(&self, stripe: u64) -> MutexGuard<'_, ()> {
        self.locks[block::index(stripe)].lock()
    }
}

/// The stripes of `granules`, each once, in ascending order.
fn ascending(granules: GranuleRange) -> impl Iterator<Item = u64> {
    let first = granules.start % STRIPES;
    let (wrapped, rest) = if granules.count() >= STRIPES {
        (0..0, 0..STRIPES)
    } else {
        let end = first + granules.count();
        (0..end.saturating_sub(STRIPES), first..end.min(STRIPES))
    };
    wrapped.chain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_ascend_and_appear_once() {
        for (start, count) in [
            (0, 1),
            (7, 300),
            (STRIPES - 2, 5),
            (3, STRIPES),
            (9, STRIPES * 3),
        ] {
            let stripes: Vec<u64> = ascending(GranuleRange {
                start,
                end: start + count,
            })
            .collect();
            assert!(stripes.is_sorted_by(|a, b| a < b), "{start}+{count}");
            assert_eq!(stripes.len() as u64, count.min(STRIPES));
            let touched = |s: &u64| (start..start + count).any(|g| g % STRIPES == *s);
            assert!(stripes.iter().all(touched));
        }
    }
}
