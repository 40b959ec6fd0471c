//! The lineage that counts: changed by one at a time, and told meanwhile to whoever only asks.
//!
//! A turn may last: a cut makes files, a release removes them, and a device for diffs that hangs holds up
//! both. Whoever wants figures is told what was so when the last turn ended.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::cut::Ending;
use crate::intent::IntentLog;
use crate::live::Live;
use crate::sealed::SealedGeneration;
use crate::{Generation, Lineage};

/// The lineage that counts.
pub(crate) struct Tracking {
    pub(crate) lineage: Lineage,
    pub(crate) live: Arc<Live>,
    pub(crate) intent: Arc<IntentLog>,
    pub(crate) sealed: Vec<Arc<SealedGeneration>>,
    /// What a target is known to have.
    pub(crate) released: Generation,
    /// A cut whose last writes have not ended.
    pub(crate) ending: Option<Arc<Ending>>,
}

/// What is told of it.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) lineage: Lineage,
    pub(crate) live: Arc<Live>,
    pub(crate) sealed: Vec<Arc<SealedGeneration>>,
    pub(crate) ending: Option<Arc<Ending>>,
}

impl From<&Tracking> for Told {
    fn from(tracking: &Tracking) -> Self {
        Self {
            lineage: tracking.lineage,
            live: Arc::clone(&tracking.live),
            sealed: tracking.sealed.clone(),
            ending: tracking.ending.clone(),
        }
    }
}

/// Locked through every cut, release and restart: they happen one by one.
pub(crate) struct Turns {
    tracking: Mutex<Tracking>,
    told: Mutex<Told>,
}

impl Turns {
    pub(crate) fn new(tracking: Tracking) -> Self {
        Self {
            told: Mutex::new(Told::from(&tracking)),
            tracking: Mutex::new(tracking),
        }
    }

    pub(crate) fn lock(&self) -> Turn<'_> {
        self.turn(self.tracking.lock())
    }

    /// `None` while somebody else has his turn.
    pub(crate) fn try_lock(&self) -> Option<Turn<'_>> {
        self.tracking.try_lock().map(|held| self.turn(held))
    }

    /// What was so when the last turn ended that changed something. Waits for nobody's turn.
    pub(crate) fn told(&self) -> Told {
        self.told.lock().clone()
    }

    fn turn<'a>(&'a self, tracking: MutexGuard<'a, Tracking>) -> Turn<'a> {
        Turn {
            tracking,
            told: &self.told,
            changed: false,
        }
    }
}

/// Somebody's turn. What he changed is told when it ends.
pub(crate) struct Turn<'a> {
    tracking: MutexGuard<'a, Tracking>,
    told: &'a Mutex<Told>,
    changed: bool,
}

impl Deref for Turn<'_> {
    type Target = Tracking;

    fn deref(&self) -> &Tracking {
        &self.tracking
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Tracking {
        self.changed = true;
        &mut self.tracking
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.changed {
            // Its guard goes after this: nobody who waited for the turn is told less than he finds.
            let told = Told::from(&*self.tracking);
            let before = mem::replace(&mut *self.told.lock(), told);
            // Files that were removed may close here, which takes time: not while others are told.
            drop(before);
        }
    }
}
