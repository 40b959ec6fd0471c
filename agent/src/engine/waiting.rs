//! A cut that was made, and waits to be listed: a guest's write that began before it has not ended, or copies are
//! paused. There is no other until then.
//!
//! ```text
//!  seal --waits--> looked at, by the cutter or whoever would cut --> listed: announced, as any other
//!                      |                                         --> lost: the next one is exact
//!                      +-- no room while copies are paused: given up
//! ```
//!
//! Rule: whoever ends one holds `cutting`; so nobody takes another's cut for his own.

use std::time::Duration;

use splitter::{Cut, CutError};

use super::cuts::{Made, TRY, Unmade};
use super::{Engine, Stop};
use crate::trouble::Step;
use crate::{Error, Result};

/// A cut that waits for longer is trouble.
const WAITS_MAX: Duration = Duration::from_secs(1);

impl Engine {
    /// Looks `tries` times for the end of a cut that could not be listed when it was made. An error: there can be no
    /// other yet.
    pub(super) fn end_earlier(&self, tries: u32) -> std::result::Result<(), Unmade> {
        for left in (0..tries).rev() {
            let cutting = self.cutting.lock();
            let ended = self.end_waiting(Duration::ZERO);
            drop(cutting);
            match ended {
                Err(error) if error.waits() && left > 0 => {
                    drop(self.wait(Some(TRY), Stop::Closing, |shared| !shared.cut_waits));
                }
                Err(error) if error.waits() || matches!(error, CutError::Distrusted) => {
                    return Err(self.unmade(error));
                }
                // Also if it was lost: the next one is exact.
                _ => break,
            }
        }
        Ok(())
    }

    /// Lists a cut that waits, if it can be listed by now. Whoever cuts at the moment does that himself.
    pub(crate) fn end_cut(&self) -> Result<Option<Made>> {
        let Some(cutting) = self.cutting.try_lock() else {
            return Ok(None);
        };
        let lineage = self.group.lineage();
        let ended = self.end_waiting(Duration::ZERO);
        drop(cutting);
        match &ended {
            Ok(None) => {}
            Err(error) if error.waits() => {}
            _ => self.ladder.cut_ended(),
        }
        if matches!(ended, Err(CutError::Distrusted)) {
            self.relearn(lineage, "writes went untracked")?;
            return Ok(None);
        }
        Ok(ended?)
    }

    /// Notes why a cut still waits, if it has for long. Returns whether it has.
    pub(crate) fn note_waiting(&self, error: &CutError) -> bool {
        let began = self.group.ending().map(|cut| cut.began);
        let long = began.is_some_and(|began| self.now().saturating_sub(began) > WAITS_MAX);
        if long {
            // The limits hold for the other disks.
            self.ladder.cut_ended();
            self.note_unmade(error);
        }
        long
    }

    /// A cut failed, or waits and has for long.
    pub(crate) fn cut_fails(&self, error: &Error) {
        match error {
            // It may be listed by now, and all is well.
            Error::Cut(waits) if waits.waits() => {
                self.fails_while(Step::Cut, error, |shared| shared.cut_waits);
            }
            _ => self.fails(Step::Cut, error),
        }
    }

    /// Gives up a cut that waits and lacks bytes, where there is no room for them. `false` if there is none, or it waits
    /// for a guest's write.
    pub(crate) fn give_up_waiting(&self) -> bool {
        let Some(_cutting) = self.cutting.try_lock() else {
            return false;
        };
        let waits = self.group.ending().is_some();
        // What became of it is noted.
        let _ = self.ended(self.group.give_up_ending());
        waits && self.group.ending().is_none()
    }

    /// The same as [`Self::end_cut`], while nobody else cuts.
    pub(super) fn end_waiting(
        &self,
        patience: Duration,
    ) -> std::result::Result<Option<Made>, CutError> {
        self.ended(self.group.end_cut(patience))
    }

    /// What became of a cut that waited.
    fn ended(
        &self,
        ended: std::result::Result<Option<Cut>, CutError>,
    ) -> std::result::Result<Option<Made>, CutError> {
        self.note_whether_one_waits();
        match ended {
            Ok(Some(cut)) => {
                let lineage = self.group.lineage();
                let made = Made { lineage, cut };
                self.announce(made);
                Ok(Some(made))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                if !error.waits() {
                    self.note_unmade(&error);
                }
                Err(error)
            }
        }
    }

    pub(super) fn note_whether_one_waits(&self) {
        let waits = self.group.ending().is_some();
        self.shared.lock().cut_waits = waits;
        self.changed.notify_all();
    }
}
