//! Pins: what images in the making need, so that garbage collection leaves it alone.
//!
//! ```text
//! image writer --pin(container)--> its holder's set, and the set of the collection that is running
//!    finish --> the holder lives on in the FinishedImage --commit--> the catalog names it; the holder ends
//! collection: begin --mark from catalog and holders--> doom(what is neither marked nor pinned) --commit--> done
//! ```
//!
//! Rule: a writer that wants to build on a container pins it before it believes that it is there. A pin is
//! refused for what is doomed; what was pinned at any moment of a collection is not doomed by it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::place::ObjectId;
use crate::tree::ImageRef;

/// All pins of a writing store.
#[derive(Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    holders: BTreeMap<u64, Pinned>,
    /// What was pinned since the collection that is running began.
    collection: Option<Pinned>,
    /// Containers and tree objects that are about to go or to move.
    doomed: Pinned,
}

/// What somebody needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pinned {
    pub(crate) containers: BTreeSet<ObjectId>,
    pub(crate) trees: BTreeSet<ObjectId>,
    /// Images with all that they need.
    pub(crate) images: Vec<ImageRef>,
}

/// Keeps what it pins until it is dropped.
pub(crate) struct Holder {
    pins: Arc<Pins>,
    id: u64,
}

impl Pinned {
    fn take_in(&mut self, other: &Self) {
        self.containers.extend(&other.containers);
        self.trees.extend(&other.trees);
        self.images.extend_from_slice(&other.images);
    }
}

impl State {
    /// What an holder pins, and what the collection that is running is told of.
    fn sets(&mut self, holder: u64) -> impl Iterator<Item = &mut Pinned> {
        self.holders
            .get_mut(&holder)
            .into_iter()
            .chain(&mut self.collection)
    }

    fn pin_image(&mut self, holder: u64, image: &ImageRef) {
        self.sets(holder)
            .for_each(|pinned| pinned.images.push(image.clone()));
    }
}

impl Pins {
    pub(crate) fn holder(self: &Arc<Self>) -> Holder {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.holders.insert(id, Pinned::default());
        Holder {
            pins: Arc::clone(self),
            id,
        }
    }

    /// A collection begins: it is told of every pin, of those that are there and of those to come.
    pub(crate) fn begin_collection(&self) {
        let mut state = self.state.lock();
        let mut all = Pinned::default();
        for pinned in state.holders.values() {
            all.take_in(pinned);
        }
        state.collection = Some(all);
    }

    /// The images that were pinned since the collection began.
    pub(crate) fn images_of_collection(&self) -> Vec<ImageRef> {
        let state = self.state.lock();
        let collection = state.collection.as_ref();
        collection.map_or(Vec::new(), |pinned| pinned.images.clone())
    }

    /// Dooms what was not pinned since the collection began, and returns it: nobody can pin it any more.
    pub(crate) fn doom(
        &self,
        containers: impl IntoIterator<Item = ObjectId>,
        trees: impl IntoIterator<Item = ObjectId>,
    ) -> (BTreeSet<ObjectId>, BTreeSet<ObjectId>) {
        let mut state = self.state.lock();
        let State {
            collection, doomed, ..
        } = &mut *state;
        let Some(pinned) = collection else {
            return Default::default();
        };
        let free = |id: &ObjectId| !pinned.containers.contains(id);
        let containers: BTreeSet<_> = containers.into_iter().filter(free).collect();
        let free = |id: &ObjectId| !pinned.trees.contains(id);
        let trees: BTreeSet<_> = trees.into_iter().filter(free).collect();
        doomed.containers.extend(&containers);
        doomed.trees.extend(&trees);
        (containers, trees)
    }

    /// They have moved, and can be pinned again; or they are gone, and nobody will ask for them.
    pub(crate) fn reprieve<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a ObjectId>,
        trees: impl IntoIterator<Item = &'a ObjectId>,
    ) {
        let mut state = self.state.lock();
        for id in containers {
            state.doomed.containers.remove(id);
        }
        for id in trees {
            state.doomed.trees.remove(id);
        }
    }

    /// Ends the collection, however it went.
    pub(crate) fn end_collection(&self) {
        let mut state = self.state.lock();
        state.collection = None;
        state.doomed = Pinned::default();
    }
}

impl Holder {
    /// Pins a container; `false` if it is about to go: then it must not be built on.
    pub(crate) fn pin_container(&self, id: ObjectId) -> bool {
        self.with(|state, holder| {
            if state.doomed.containers.contains(&id) {
                return false;
            }
            for pinned in state.sets(holder) {
                pinned.containers.insert(id);
            }
            true
        })
    }

    /// Pins a tree object that this holder is making.
    pub(crate) fn pin_tree(&self, id: ObjectId) {
        self.with(|state, holder| {
            for pinned in state.sets(holder) {
                pinned.trees.insert(id);
            }
        });
    }

    /// Pins an image that the catalog holds at this moment.
    pub(crate) fn pin_image(&self, image: &ImageRef) {
        self.with(|state, holder| state.pin_image(holder, image));
    }

    /// Pins an image if somebody pins it already.
    pub(crate) fn share_image(&self, image: &ImageRef) -> bool {
        self.with(|state, holder| {
            let held = state.holders.values().any(|p| p.images.contains(image));
            if held {
                state.pin_image(holder, image);
            }
            held
        })
    }

    /// Whether it belongs to these pins: an image of another opening of the store is no image of this one.
    pub(crate) fn is_of(&self, pins: &Arc<Pins>) -> bool {
        Arc::ptr_eq(&self.pins, pins)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> T) -> T {
        act(&mut self.pins.state.lock(), self.id)
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holder({})", self.id)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.pins.state.lock().holders.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids<const N: usize>(ids: [u64; N]) -> impl Iterator<Item = ObjectId> {
        ids.into_iter().map(ObjectId)
    }

    #[test]
    fn what_was_pinned_at_any_moment_of_a_collection_is_not_doomed_by_it() {
        let pins = Arc::new(Pins::default());
        let [before, during, dropped] = [(); 3].map(|()| pins.holder());
        assert!(before.pin_container(ObjectId(1)));
        pins.begin_collection();
        assert!(during.pin_container(ObjectId(2)));
        assert!(dropped.pin_container(ObjectId(3)));
        drop((before, dropped));
        let (doomed, _) = pins.doom(ids([1, 2, 3, 4]), []);
        assert_eq!(doomed, ids([4]).collect());
        assert!(!during.pin_container(ObjectId(4)), "it is about to go");
        pins.reprieve(&doomed, []);
        assert!(during.pin_container(ObjectId(4)));
        pins.end_collection();
        pins.begin_collection();
        let (doomed, _) = pins.doom(ids([1, 2, 3, 4]), []);
        assert_eq!(doomed, ids([1, 3]).collect());
    }

    #[test]
    fn nothing_is_doomed_without_a_collection() {
        let pins = Arc::new(Pins::default());
        assert!(pins.doom(ids([1]), ids([1])).0.is_empty());
    }
}
