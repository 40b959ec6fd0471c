//! One draft: an image that a client writes, and what it has come to.
//!
//! ```text
//! open --finish--> finished: it can be listed
//!   +--a failure--> lost
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use store::{Base, FinishedImage, ImageWriter, RegionCheck, StoreError};

use crate::server::refusal::{Answer, Refusal};
use crate::server::vaults::Vault;

/// Which draft of a ship: a name that the client gives to what it lists together, and a number in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfShip {
    pub(crate) ship: [u8; 16],
    pub(crate) number: u64,
}

/// Whose a draft is.
pub(super) struct Owner {
    pub(super) token: String,
    pub(super) vault: Arc<Vault>,
    /// Of its store.
    pub(super) turn: u64,
    pub(super) of: Option<OfShip>,
}

impl Owner {
    /// Whether both are drafts of one ship.
    pub(super) fn ships_with(&self, other: &Self) -> bool {
        let ship = |owner: &Self| owner.of.as_ref().map(|of| of.ship);
        let together = self.token == other.token && self.vault.name == other.vault.name;
        together && ship(self).is_some() && ship(self) == ship(other)
    }

    /// Whether both are the same draft of one ship.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.ships_with(other) && self.of == other.of && self.turn == other.turn
    }
}

/// A draft.
pub(crate) struct Draft {
    pub(super) owner: Owner,
    /// What it began from.
    pub(super) base: Base,
    touched: Mutex<Duration>,
    check: RegionCheck,
    state: Mutex<State>,
    /// Bytes in memory, when it was last written to.
    held: AtomicU64,
    /// Bytes that it holds however often it is told to hold less.
    kept: AtomicU64,
}

enum State {
    Open(Box<ImageWriter>),
    Finished(FinishedImage),
    /// It failed, and this is how; nothing more can be done with it.
    Lost(Refusal),
}

impl Draft {
    pub(super) fn new(owner: Owner, base: Base, now: Duration, writer: ImageWriter) -> Self {
        Self {
            held: AtomicU64::new(writer.held_bytes()),
            kept: AtomicU64::new(base.kept_bytes()),
            owner,
            base,
            touched: Mutex::new(now),
            check: writer.region_check(),
            state: Mutex::new(State::Open(Box::new(writer))),
        }
    }

    pub(crate) fn vault(&self) -> &Arc<Vault> {
        &self.owner.vault
    }

    /// Whether its store is open as it was when the draft began.
    pub(super) fn is_current(&self) -> bool {
        self.owner.turn == self.owner.vault.turn()
    }

    pub(super) fn touch(&self, now: Duration) {
        *self.touched.lock() = now;
    }

    /// For how long nobody has touched it.
    pub(super) fn idle(&self, now: Duration) -> Duration {
        now.saturating_sub(*self.touched.lock())
    }

    /// Checks what is to be written to it: nobody waits for that.
    pub(crate) fn check(&self) -> &RegionCheck {
        &self.check
    }

    pub(super) fn write<T>(
        &self,
        act: impl FnOnce(&mut ImageWriter) -> Result<T, StoreError>,
    ) -> Answer<T> {
        let mut state = self.state.lock();
        let writer = match &mut *state {
            State::Open(writer) => writer,
            // What is asked for again was done before: its image is complete.
            State::Finished(_) => return Err(Refusal::invalid("the draft is complete")),
            State::Lost(first) => return Err(first.clone()),
        };
        let done = act(writer);
        let lost = self.settle(&mut state);
        drop(state);
        drop(lost);
        Ok(done?)
    }

    /// After its writer was used. One that failed holds nothing any more: it is handed out, to be dropped where nobody waits.
    fn settle(&self, state: &mut State) -> Option<State> {
        let State::Open(writer) = state else {
            return None;
        };
        let Some(failure) = writer.failure() else {
            self.held.store(writer.held_bytes(), Relaxed);
            return None;
        };
        self.holds_nothing();
        Some(std::mem::replace(state, State::Lost(failure.into())))
    }

    /// Whether it has failed. One that somebody is at work on has not yet.
    pub(super) fn is_lost(&self) -> bool {
        let state = self.state.try_lock();
        state.is_some_and(|state| matches!(*state, State::Lost(_)))
    }

    pub(super) fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Bytes that it holds however often it is told to hold less.
    pub(super) fn kept(&self) -> u64 {
        self.kept.load(Relaxed)
    }

    fn holds_nothing(&self) {
        self.held.store(0, Relaxed);
        self.kept.store(0, Relaxed);
    }

    /// Unless somebody is at work on it.
    pub(super) fn hold_less(&self) {
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        let State::Open(writer) = &mut *state else {
            return;
        };
        // Whoever writes to it next is told what failed.
        if let Err(error) = writer.hold_less() {
            tracing::warn!(vault = %self.owner.vault.name, error = crate::chain(&error), "a draft is lost");
        }
        let lost = self.settle(&mut state);
        drop(state);
        drop(lost);
    }

    /// Completes it; a second time, too.
    pub(crate) fn finish(&self) -> Answer<FinishedImage> {
        let mut state = self.state.lock();
        let finished = match std::mem::replace(&mut *state, State::Lost(gone())) {
            State::Open(writer) => writer.finish().map_err(Refusal::from),
            State::Finished(image) => Ok(image),
            State::Lost(first) => Err(first),
        };
        self.holds_nothing();
        *state = match &finished {
            Ok(image) => State::Finished(image.clone()),
            Err(refusal) => State::Lost(refusal.clone()),
        };
        finished
    }

    /// The image, once it is complete.
    pub(crate) fn image(&self) -> Answer<FinishedImage> {
        match &*self.state.lock() {
            State::Finished(image) => Ok(image.clone()),
            State::Open(_) => Err(Refusal::invalid("the draft is not complete")),
            State::Lost(first) => Err(first.clone()),
        }
    }
}

pub(super) fn gone() -> Refusal {
    Refusal::missing("there is no such draft any more; begin the image again")
}
