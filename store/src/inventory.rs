//! What a writing store has: every container, tree object and bundle, and what they take.
//!
//! Rule: a thing is in here once it lies under its name, and until a commit has let it go.

use std::collections::BTreeMap;

use crate::armor::Kind;
use crate::place::ObjectId;

/// A container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldContainer {
    /// Chunks; 0 if its manifest cannot be read.
    pub(crate) chunks: u32,
    /// Bytes of its object, or of its section of a bundle.
    pub(crate) bytes: u64,
    /// Whether it is an object of its own.
    pub(crate) own: bool,
}

/// A tree object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldTree {
    /// Bytes of its object, or of its section of a bundle.
    pub(crate) bytes: u64,
    /// Whether it is an object of its own.
    pub(crate) own: bool,
}

/// A bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldBundle {
    /// Of what its sections are.
    pub(crate) of: Kind,
    /// Bytes of the object.
    pub(crate) bytes: u64,
    /// Sections that the catalog still refers to.
    pub(crate) sections: u32,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    containers: BTreeMap<ObjectId, HeldContainer>,
    trees: BTreeMap<ObjectId, HeldTree>,
    bundles: BTreeMap<ObjectId, HeldBundle>,
    /// Objects that a crash left, and that the catalog has never known or knows elsewhere.
    debris: Vec<(Kind, ObjectId)>,
    sums: Sums,
}

/// What it adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) containers: u64,
    pub(crate) chunks: u64,
    /// Of all objects that hold containers.
    pub(crate) container_bytes: u64,
    /// Of all objects that hold trees.
    pub(crate) tree_bytes: u64,
}

impl Inventory {
    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    pub(crate) fn containers(&self) -> &BTreeMap<ObjectId, HeldContainer> {
        &self.containers
    }

    pub(crate) fn has_container(&self, id: ObjectId) -> bool {
        self.containers.contains_key(&id)
    }

    /// Whether an object is needed as it lies in its place.
    pub(crate) fn has_object(&self, kind: Kind, id: ObjectId) -> bool {
        match kind {
            Kind::Container => self.containers.get(&id).is_some_and(|held| held.own),
            Kind::Tree => self.trees.get(&id).is_some_and(|held| held.own),
            _ => self.bundles.contains_key(&id),
        }
    }

    pub(crate) fn trees(&self) -> &BTreeMap<ObjectId, HeldTree> {
        &self.trees
    }

    pub(crate) fn bundles(&self) -> &BTreeMap<ObjectId, HeldBundle> {
        &self.bundles
    }

    pub(crate) fn found_debris(&mut self, kind: Kind, id: ObjectId) {
        self.debris.push((kind, id));
    }

    /// Gives up the list of debris, to who removes it.
    pub(crate) fn take_debris(&mut self) -> Vec<(Kind, ObjectId)> {
        std::mem::take(&mut self.debris)
    }

    /// Puts a container in, in place of what was known of it.
    pub(crate) fn put_container(&mut self, id: ObjectId, held: HeldContainer) {
        self.remove_container(id);
        self.sums.containers += 1;
        self.sums.chunks += u64::from(held.chunks);
        if held.own {
            self.sums.container_bytes += held.bytes;
        }
        self.containers.insert(id, held);
    }

    pub(crate) fn remove_container(&mut self, id: ObjectId) {
        let Some(held) = self.containers.remove(&id) else {
            return;
        };
        self.sums.containers -= 1;
        self.sums.chunks -= u64::from(held.chunks);
        if held.own {
            self.sums.container_bytes -= held.bytes;
        }
    }

    /// Puts a tree object in, in place of what was known of it.
    pub(crate) fn put_tree(&mut self, id: ObjectId, held: HeldTree) {
        self.remove_tree(id);
        if held.own {
            self.sums.tree_bytes += held.bytes;
        }
        self.trees.insert(id, held);
    }

    pub(crate) fn remove_tree(&mut self, id: ObjectId) {
        if let Some(held) = self.trees.remove(&id).filter(|held| held.own) {
            self.sums.tree_bytes -= held.bytes;
        }
    }

    /// A bundle that the catalog refers to.
    pub(crate) fn put_bundle(&mut self, id: ObjectId, held: HeldBundle) {
        match held.of {
            Kind::Tree => self.sums.tree_bytes += held.bytes,
            _ => self.sums.container_bytes += held.bytes,
        }
        self.bundles.insert(id, held);
    }

    /// One section more in a bundle that is known already; `false` if it is not.
    pub(crate) fn enter_bundle(&mut self, id: ObjectId) -> bool {
        let held = self.bundles.get_mut(&id);
        held.map(|held| held.sections += 1).is_some()
    }

    /// The bundles of which nothing is left once so many of their sections have left them.
    pub(crate) fn emptied_bundles(
        &self,
        leaving: &BTreeMap<ObjectId, u32>,
    ) -> impl Iterator<Item = (ObjectId, HeldBundle)> {
        leaving.iter().filter_map(|(id, count)| {
            let held = self.bundles.get(id)?;
            (held.sections <= *count).then_some((*id, *held))
        })
    }

    /// So many sections of a bundle are not needed any more; it goes with the last.
    pub(crate) fn leave_bundle(&mut self, id: ObjectId, count: u32) {
        let Some(held) = self.bundles.get_mut(&id) else {
            return;
        };
        held.sections = held.sections.saturating_sub(count);
        if held.sections > 0 {
            return;
        }
        let (of, bytes) = (held.of, held.bytes);
        self.bundles.remove(&id);
        match of {
            Kind::Tree => self.sums.tree_bytes -= bytes,
            _ => self.sums.container_bytes -= bytes,
        }
    }
}
