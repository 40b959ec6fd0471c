//! Who uses a sealed generation: readers, who share it, or a merge, which changes it.
//!
//! ```text
//!  Shared(n) --claim--> Shared(n + 1)        Shared(0) --begin a merge--> Gone
//!  Unfinished --merge complete--> Shared(0)  Unfinished --bytes lost--> Broken
//! ```
//!
//! Rule: what is read stays as it is until the claim is dropped.

use std::sync::Arc;

use parking_lot::Mutex;

pub(crate) struct Uses(Mutex<State>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many read it.
    Shared(usize),
    /// It is part of a later generation, or of another value for the same one.
    Gone,
    /// A part of it is still in an older one's files.
    Unfinished,
    /// A part of it is nowhere any more.
    Broken,
}

/// Keeps a sealed generation as it is.
pub struct Claim(Arc<Uses>);

impl Uses {
    pub(crate) fn free() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State::Shared(0))))
    }

    pub(crate) fn unfinished() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State::Unfinished)))
    }

    /// Of one that lacks bytes, and is about to be given up.
    pub(crate) fn broken() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State::Broken)))
    }

    pub(crate) fn share(self: &Arc<Self>) -> Option<Claim> {
        let mut state = self.0.lock();
        let State::Shared(count) = &mut *state else {
            return None;
        };
        *count += 1;
        Some(Claim(Arc::clone(self)))
    }

    /// Takes it away from later readers. `false` if somebody reads it, or it is away already.
    pub(crate) fn take(&self) -> bool {
        self.swap(State::Shared(0), State::Gone)
    }

    /// Takes back [`Self::take`].
    pub(crate) fn give_back(&self) {
        self.swap(State::Gone, State::Shared(0));
    }

    pub(crate) fn finish(&self) {
        self.swap(State::Unfinished, State::Shared(0));
    }

    pub(crate) fn spoil(&self) {
        self.swap(State::Unfinished, State::Broken);
    }

    pub(crate) fn is_free(&self) -> bool {
        *self.0.lock() == State::Shared(0)
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        matches!(*self.0.lock(), State::Unfinished | State::Broken)
    }

    pub(crate) fn is_broken(&self) -> bool {
        *self.0.lock() == State::Broken
    }

    fn swap(&self, from: State, to: State) -> bool {
        let mut state = self.0.lock();
        let fits = *state == from;
        if fits {
            *state = to;
        }
        fits
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let State::Shared(count) = &mut *self.0.0.lock() {
            *count -= 1;
        }
    }
}
