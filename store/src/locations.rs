//! Where containers and tree objects lie once garbage collection has moved them into bundles.
//!
//! Rule: what an image refers to never changes: the container and the slot, the tree object and the offset. Only
//! where that lies does, and that is written here, in the catalog.

use std::collections::BTreeMap;

use crate::armor::Kind;
use crate::codec::{Decoded, Decoder, Encode};
use crate::place::ObjectId;

/// A section of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) bundle: ObjectId,
    pub(crate) at: u32,
    pub(crate) len: u32,
}

/// The objects that have moved. Those that have not are objects of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locations {
    pub(crate) containers: BTreeMap<ObjectId, Spot>,
    pub(crate) trees: BTreeMap<ObjectId, Spot>,
}

impl Locations {
    /// What lies in a bundle.
    pub(crate) fn of_bundle(&self, bundle: ObjectId) -> impl Iterator<Item = (Kind, ObjectId)> {
        let containers = self.containers.iter().map(|moved| (Kind::Container, moved));
        let trees = self.trees.iter().map(|moved| (Kind::Tree, moved));
        let inside = containers.chain(trees);
        let inside = inside.filter(move |(_, (_, spot))| spot.bundle == bundle);
        inside.map(|(kind, (id, _))| (kind, *id))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_moved(self.containers.iter().map(|(id, spot)| (*id, *spot)), out);
        put_moved(self.trees.iter().map(|(id, spot)| (*id, *spot)), out);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(Self {
            containers: decode_moved(d)?.into_iter().collect(),
            trees: decode_moved(d)?.into_iter().collect(),
        })
    }
}

/// Writes objects that moved, and where to.
pub(crate) fn put_moved(moved: impl ExactSizeIterator<Item = (ObjectId, Spot)>, out: &mut Vec<u8>) {
    out.put_count(moved.len());
    let (mut near, mut near_bundle) = (0, 0);
    for (id, spot) in moved {
        put_near(id, &mut near, out);
        put_near(spot.bundle, &mut near_bundle, out);
        out.put_varint(u64::from(spot.at));
        out.put_varint(u64::from(spot.len));
    }
}

/// Reads what [`put_moved`] wrote.
pub(crate) fn decode_moved(d: &mut Decoder<'_>) -> Decoded<Vec<(ObjectId, Spot)>> {
    let count = d.count(usize::MAX, 4)?;
    let mut moved = Vec::with_capacity(count);
    let (mut near, mut near_bundle) = (0, 0);
    for _ in 0..count {
        let id = decode_near(d, &mut near)?;
        let bundle = decode_near(d, &mut near_bundle)?;
        let [at, len] = [d.varint()?, d.varint()?].map(u32::try_from);
        let (Ok(at), Ok(len)) = (at, len) else {
            return Err(d.error("a section of a bundle is impossible"));
        };
        moved.push((id, Spot { bundle, at, len }));
    }
    Ok(moved)
}

/// Writes the number of an object as the difference to the one before.
pub(crate) fn put_near(id: ObjectId, near: &mut u64, out: &mut Vec<u8>) {
    out.put_signed(id.0.wrapping_sub(*near).cast_signed());
    *near = id.0;
}

/// Reads what [`put_near`] wrote.
pub(crate) fn decode_near(d: &mut Decoder<'_>, near: &mut u64) -> Decoded<ObjectId> {
    let id = near.wrapping_add(d.signed()?.cast_unsigned());
    let legal = (1..ObjectId::END).contains(&id);
    d.check(legal, "the number of an object is impossible")?;
    *near = id;
    Ok(ObjectId(id))
}
