//! The target that stage two has open, for others that use it meanwhile.
//!
//! Rule: stage two gives the store up when something fails. Whoever uses it then must let go, or the store could not
//! be opened again: [`Use::is_over`] says so.

use parking_lot::Mutex;
use store::Store;

use crate::target_writer::TargetWriter;

/// The store, while it is open.
#[derive(Default)]
pub(crate) struct OpenTarget {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    store: Option<Store>,
    /// Counts how often it was opened or given up.
    turn: u64,
}

/// A store that somebody uses.
pub(crate) struct Use<'a> {
    place: &'a OpenTarget,
    turn: u64,
    pub(crate) store: Store,
}

impl OpenTarget {
    /// A vault is used by its server alone.
    pub(crate) fn opened(&self, target: &TargetWriter) {
        self.turn(target.store().cloned());
    }

    pub(crate) fn given_up(&self) {
        self.turn(None);
    }

    fn turn(&self, store: Option<Store>) {
        let mut state = self.state.lock();
        state.store = store;
        state.turn += 1;
    }

    /// `None` if it is not open at this moment.
    pub(crate) fn use_it(&self) -> Option<Use<'_>> {
        let state = self.state.lock();
        Some(Use {
            place: self,
            turn: state.turn,
            store: state.store.clone()?,
        })
    }
}

impl Use<'_> {
    /// Whether stage two has given up this store.
    pub(crate) fn is_over(&self) -> bool {
        self.place.state.lock().turn != self.turn
    }
}
