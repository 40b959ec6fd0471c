//! What a write holds from before its mark until after its copy. A gate has two sides: a cut opens the next generation
//! on the one, of all disks of a group by one store, while writes that began before it end on the other. No
//! guest waits for a cut.
//!
//! ```text
//!  epoch      6                  | 7
//!  side 0     writes of 6 ...... | ... end, none begins; then the diff is taken out
//!  side 1     next diff is put   | writes of 7 begin
//! ```
//!
//! Rule: who writes to production, or reads it for a diff, holds the stripes of its granules before it enters, and
//! until it leaves: so of two that meet, the one in the later generation is the later one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::diff::OpenDiff;

/// Counts the cuts of a group, for its gates.
#[derive(Default)]
pub(crate) struct Epoch(AtomicU64);

impl Epoch {
    /// Writes that enter from here on do so on the other side of all gates.
    pub(crate) fn flip(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) struct Gate {
    epoch: Arc<Epoch>,
    sides: [RwLock<Option<OpenDiff>>; 2],
}

/// Its diff stays the one of its writes while this lives.
pub(crate) type Entered<'a> = MappedRwLockReadGuard<'a, OpenDiff>;

/// Nobody is on that side.
pub(crate) type Closed<'a> = RwLockWriteGuard<'a, Option<OpenDiff>>;

impl Gate {
    pub(crate) fn new(epoch: Arc<Epoch>, diff: OpenDiff) -> Self {
        let gate = Self {
            epoch,
            sides: Default::default(),
        };
        *gate.side(gate.epoch.now()).write() = Some(diff);
        gate
    }

    fn side(&self, epoch: u64) -> &RwLock<Option<OpenDiff>> {
        &self.sides[usize::from(!epoch.is_multiple_of(2))]
    }

    /// Enters where writes begin now.
    pub(crate) fn enter(&self) -> Entered<'_> {
        loop {
            let epoch = self.epoch.now();
            let side = self.side(epoch);
            let guard = match side.try_read() {
                Some(guard) => guard,
                // Somebody waits until the other side is empty: not for us.
                None if self.epoch.now() != epoch => continue,
                // The side is closed for tracking to begin anew.
                None => side.read(),
            };
            // Only now it counts: who empties a side does so after the flip, so he sees us or we see that.
            if self.epoch.now() == epoch {
                return RwLockReadGuard::map(guard, |diff| {
                    diff.as_ref().expect("a diff is there before its epoch")
                });
            }
        }
    }

    /// The same; `None` if it would have to wait.
    pub(crate) fn try_enter(&self) -> Option<Entered<'_>> {
        let epoch = self.epoch.now();
        let guard = self.side(epoch).try_read()?;
        let is_open = self.epoch.now() == epoch;
        let diff = RwLockReadGuard::try_map(guard, Option::as_ref).ok();
        diff.filter(|_| is_open)
    }

    /// The diff whose writes end, if there is one.
    pub(crate) fn older(&self) -> Option<Entered<'_>> {
        let guard = self.side(self.epoch.now() + 1).read();
        RwLockReadGuard::try_map(guard, Option::as_ref).ok()
    }

    /// The same; `None` also if it would have to wait.
    pub(crate) fn try_older(&self) -> Option<Entered<'_>> {
        let guard = self.side(self.epoch.now() + 1).try_read()?;
        RwLockReadGuard::try_map(guard, Option::as_ref).ok()
    }

    /// The side where writes begin with the next epoch, once it is empty. `None`: it is not, within `patience`.
    pub(crate) fn close_other(&self, patience: Duration) -> Option<Closed<'_>> {
        self.side(self.epoch.now() + 1).try_write_for(patience)
    }

    /// The side where writes begin now: new ones wait meanwhile.
    pub(crate) fn close_open(&self, patience: Duration) -> Option<Closed<'_>> {
        self.side(self.epoch.now()).try_write_for(patience)
    }

    /// Puts `diff` where writes begin now, once those under way have ended on both sides, whatever that takes. Returns
    /// what was there.
    pub(crate) fn replace(&self, diff: OpenDiff) -> [Option<OpenDiff>; 2] {
        let now = self.epoch.now();
        // This one first: no write begins there, so none waits for us meanwhile.
        let mut other = self.side(now + 1).write();
        let mut open = self.side(now).write();
        [open.replace(diff), other.take()]
    }
}
