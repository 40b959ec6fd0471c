//! What a repair changes in the catalog: other copies of containers and tree objects are used from now on.
//!
//! ```text
//! relocation:  containers moved | trees moved | containers that lie in objects of their own | trees that do | kept
//! moved, ids:  as in a sweep (sweep.rs)        kept: objects that leave the quarantine
//! ```

use crate::armor::Kind;
use crate::codec::{Decoded, Decoder};
use crate::locations::{Locations, Spot, decode_moved, put_moved};
use crate::place::ObjectId;
use crate::sweep::{self, Quarantine};

/// Other places of things, and objects that are needed again for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relocation {
    pub(crate) moved_containers: Vec<(ObjectId, Spot)>,
    pub(crate) moved_trees: Vec<(ObjectId, Spot)>,
    pub(crate) own_containers: Vec<ObjectId>,
    pub(crate) own_trees: Vec<ObjectId>,
    pub(crate) kept: Vec<(Kind, ObjectId)>,
}

impl Relocation {
    /// Uses the copy of a thing that lies there; `None`: the object that it once was.
    pub(crate) fn uses(&mut self, (kind, id): (Kind, ObjectId), copy: Option<Spot>) {
        match (kind, copy) {
            (Kind::Container, Some(spot)) => self.moved_containers.push((id, spot)),
            (Kind::Container, None) => self.own_containers.push(id),
            (_, Some(spot)) => self.moved_trees.push((id, spot)),
            (_, None) => self.own_trees.push(id),
        }
    }

    pub(crate) fn apply(&self, locations: &mut Locations, quarantine: &mut Quarantine) {
        let moved = self.moved_containers.iter().copied();
        locations.containers.extend(moved);
        locations.trees.extend(self.moved_trees.iter().copied());
        for id in &self.own_containers {
            locations.containers.remove(id);
        }
        for id in &self.own_trees {
            locations.trees.remove(id);
        }
        for object in &self.kept {
            quarantine.remove(object);
        }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_moved(self.moved_containers.iter().copied(), out);
        put_moved(self.moved_trees.iter().copied(), out);
        sweep::put_ids(&self.own_containers, out);
        sweep::put_ids(&self.own_trees, out);
        sweep::put_objects(&self.kept, out);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(Self {
            moved_containers: decode_moved(d)?,
            moved_trees: decode_moved(d)?,
            own_containers: sweep::decode_ids(d)?,
            own_trees: sweep::decode_ids(d)?,
            kept: sweep::decode_objects(d)?,
        })
    }
}
