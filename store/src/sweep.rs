//! What garbage collection changes in the catalog: things move, things go, and objects that nothing refers to any
//! more are in quarantine until they are removed.
//!
//! ```text
//! sweep:       next bundle u64 | containers moved | trees moved | containers gone | trees gone | freed
//! moved:       u32 count: id zigzag (to the one before), bundle zigzag, at varint, length varint
//! gone:        u32 count: id zigzag
//! freed:       u32 count: kind u8, id zigzag, bytes varint        objects: the same without bytes
//! quarantine:  u32 count: kind u8, id zigzag, bytes varint, since u64 ns
//! ```

use std::collections::BTreeMap;

use crate::armor::Kind;
use crate::codec::{Decoded, Decoder, Encode};
use crate::locations::{Locations, Spot, decode_moved, decode_near, put_moved, put_near};
use crate::place::ObjectId;

/// Objects in quarantine.
pub(crate) type Quarantine = BTreeMap<(Kind, ObjectId), Quarantined>;

/// An object that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quarantined {
    pub(crate) bytes: u64,
    /// Time of the commit, ns since 1970.
    pub(crate) since: u64,
}

/// Bytes of all objects in quarantine.
pub(crate) fn bytes(quarantine: &Quarantine) -> u64 {
    let bytes = quarantine.values().map(|object| object.bytes);
    bytes.fold(0, u64::saturating_add)
}

/// One step of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub(crate) next_bundle: u64,
    pub(crate) moved_containers: Vec<(ObjectId, Spot)>,
    pub(crate) moved_trees: Vec<(ObjectId, Spot)>,
    pub(crate) gone_containers: Vec<ObjectId>,
    pub(crate) gone_trees: Vec<ObjectId>,
    /// Objects that nothing refers to once this is committed, and their bytes.
    pub(crate) freed: Vec<(Kind, ObjectId, u64)>,
}

impl Sweep {
    pub(crate) fn apply(&self, locations: &mut Locations, quarantine: &mut Quarantine, at: u64) {
        locations
            .containers
            .extend(self.moved_containers.iter().copied());
        locations.trees.extend(self.moved_trees.iter().copied());
        for id in &self.gone_containers {
            locations.containers.remove(id);
        }
        for id in &self.gone_trees {
            locations.trees.remove(id);
        }
        for (kind, id, bytes) in &self.freed {
            let quarantined = Quarantined {
                bytes: *bytes,
                since: at,
            };
            quarantine.insert((*kind, *id), quarantined);
        }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.next_bundle);
        put_moved(self.moved_containers.iter().copied(), out);
        put_moved(self.moved_trees.iter().copied(), out);
        put_ids(&self.gone_containers, out);
        put_ids(&self.gone_trees, out);
        out.put_count(self.freed.len());
        let mut near = 0;
        for (kind, id, bytes) in &self.freed {
            put_object(*kind, *id, &mut near, out);
            out.put_varint(*bytes);
        }
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        let next_bundle = d.u64()?;
        let moved_containers = decode_moved(d)?;
        let moved_trees = decode_moved(d)?;
        let gone_containers = decode_ids(d)?;
        let gone_trees = decode_ids(d)?;
        let mut freed = Vec::new();
        let mut near = 0;
        for _ in 0..d.count(usize::MAX, 3)? {
            let (kind, id) = decode_object(d, &mut near)?;
            freed.push((kind, id, d.varint()?));
        }
        Ok(Self {
            next_bundle,
            moved_containers,
            moved_trees,
            gone_containers,
            gone_trees,
            freed,
        })
    }
}

pub(crate) fn put_ids(ids: &[ObjectId], out: &mut Vec<u8>) {
    out.put_count(ids.len());
    let mut near = 0;
    ids.iter().for_each(|id| put_near(*id, &mut near, out));
}

pub(crate) fn decode_ids(d: &mut Decoder<'_>) -> Decoded<Vec<ObjectId>> {
    let count = d.count(usize::MAX, 1)?;
    let mut near = 0;
    (0..count).map(|_| decode_near(d, &mut near)).collect()
}

fn put_object(kind: Kind, id: ObjectId, near: &mut u64, out: &mut Vec<u8>) {
    out.put_u8(match kind {
        Kind::Container => 1,
        Kind::Tree => 2,
        Kind::Bundle => 3,
        _ => unreachable!("what the catalog itself consists of is not collected"),
    });
    put_near(id, near, out);
}

fn decode_object(d: &mut Decoder<'_>, near: &mut u64) -> Decoded<(Kind, ObjectId)> {
    let kind = match d.u8()? {
        1 => Kind::Container,
        2 => Kind::Tree,
        3 => Kind::Bundle,
        _ => return Err(d.error("the kind of an object is unknown")),
    };
    Ok((kind, decode_near(d, near)?))
}

pub(crate) fn put_objects(objects: &[(Kind, ObjectId)], out: &mut Vec<u8>) {
    out.put_count(objects.len());
    let mut near = 0;
    let each = objects.iter();
    each.for_each(|(kind, id)| put_object(*kind, *id, &mut near, out));
}

pub(crate) fn decode_objects(d: &mut Decoder<'_>) -> Decoded<Vec<(Kind, ObjectId)>> {
    let count = d.count(usize::MAX, 2)?;
    let mut near = 0;
    (0..count).map(|_| decode_object(d, &mut near)).collect()
}

pub(crate) fn put_quarantine(quarantine: &Quarantine, out: &mut Vec<u8>) {
    out.put_count(quarantine.len());
    let mut near = 0;
    for ((kind, id), quarantined) in quarantine {
        put_object(*kind, *id, &mut near, out);
        out.put_varint(quarantined.bytes);
        out.put_u64(quarantined.since);
    }
}

pub(crate) fn decode_quarantine(d: &mut Decoder<'_>) -> Decoded<Quarantine> {
    let count = d.count(usize::MAX, 11)?;
    let mut near = 0;
    let one = |_| {
        let object = decode_object(d, &mut near)?;
        let quarantined = Quarantined {
            bytes: d.varint()?,
            since: d.u64()?,
        };
        Ok((object, quarantined))
    };
    (0..count).map(one).collect()
}
