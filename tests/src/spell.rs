//! A stretch of a production disk that fails for a while: which requests may fail then, and which must.
//!
//! ```text
//!            begin(fault)                                    end(fault)
//!   --------|-- may fail --|-- writes there must fail ------|-- may fail --|--------
//!        announced      in force                         announced      over
//! ```
//!
//! Rule: a request is judged by what held while it was in flight, so neither a late begin nor an early
//! end makes a right answer look wrong.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;

use crate::faults::Fault;
use crate::time::elapsed;

/// The stretch, and the newest spell of failure.
#[derive(Debug)]
pub struct Spell {
    sectors: Range<usize>,
    newest: Mutex<Newest>,
}

/// When it may have begun and ended (`None`: it lasts); since when it must be.
#[derive(Debug, Default)]
struct Newest {
    may: Option<(Duration, Option<Duration>)>,
    must: Option<Duration>,
}

impl Spell {
    /// Nothing fails yet.
    #[must_use]
    pub fn on(sectors: Range<usize>) -> Self {
        Self {
            sectors,
            newest: Mutex::default(),
        }
    }

    /// Begins `fault`, which makes the stretch fail.
    ///
    /// # Errors
    /// The fault's.
    pub fn begin(&self, fault: &mut dyn Fault) -> Result<()> {
        self.newest().may = Some((elapsed(), None));
        fault.begin()?;
        self.newest().must = Some(elapsed());
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// The fault's.
    pub fn end(&self, fault: &mut dyn Fault) -> Result<()> {
        self.newest().must = None;
        fault.end()?;
        if let Some((_, until)) = &mut self.newest().may {
            *until = Some(elapsed());
        }
        Ok(())
    }

    /// Whether a request that was sent at `sent` and is answered at this moment may have met it;
    /// `None` for one that concerns the whole disk.
    #[must_use]
    pub fn may_fail(&self, sent: Duration, sectors: Option<&Range<usize>>) -> bool {
        let met = self.newest().may;
        let in_time = met.is_some_and(|(_, until)| until.is_none_or(|until| until >= sent));
        in_time && sectors.is_none_or(|sectors| self.touches(sectors))
    }

    /// Whether a write that was sent at `sent` and is answered at this moment cannot have succeeded.
    #[must_use]
    pub fn must_fail(&self, sent: Duration, sectors: &Range<usize>) -> bool {
        let must = self.newest().must;
        self.touches(sectors) && must.is_some_and(|since| since <= sent)
    }

    fn touches(&self, sectors: &Range<usize>) -> bool {
        sectors.start < self.sectors.end && self.sectors.start < sectors.end
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Fault for Nothing {
        fn begin(&mut self) -> Result<()> {
            Ok(())
        }

        fn end(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_what_was_in_flight_during_the_spell_and_touches_it_may_fail() -> Result<()> {
        let spell = Spell::on(8..16);
        let (inside, outside) = (10..20, 16..24);
        assert!(!spell.may_fail(elapsed(), Some(&inside)));
        let early = elapsed();
        spell.begin(&mut Nothing)?;
        let during = elapsed();
        assert!(spell.may_fail(early, Some(&inside)) && spell.may_fail(early, None));
        assert!(!spell.may_fail(early, Some(&outside)));
        assert!(spell.must_fail(during, &inside));
        assert!(!spell.must_fail(during, &outside) && !spell.must_fail(early, &inside));
        spell.end(&mut Nothing)?;
        assert!(spell.may_fail(during, Some(&inside)) && !spell.must_fail(during, &inside));
        let late = elapsed() + Duration::from_nanos(1);
        assert!(!spell.may_fail(late, Some(&inside)));
        Ok(())
    }
}
