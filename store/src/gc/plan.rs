//! What a collection is to do with each container and tree object, from the marks.
//!
//! Rule: only what was there before the collection began, and is neither marked nor pinned, goes.

use std::collections::BTreeMap;

use crate::inventory::Inventory;
use crate::locations::{Locations, Spot};
use crate::place::ObjectId;

use super::mark::Marks;

/// An object that is smaller than this is laid together with others.
const SMALL: u64 = 1 << 20;

/// A tree object that is smaller than this is.
const SMALL_TREE: u64 = 256 << 10;

/// Fewer small objects than this are left where they are.
pub(crate) const TOGETHER_MIN: usize = 8;

/// What to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Nothing needs them.
    pub(crate) gone: Vec<ObjectId>,
    /// To be laid into bundles, without what nothing needs, in order.
    pub(crate) moving: Vec<Moving>,
    /// Bytes of what stays where it is although nothing needs it: too little of its container to be worth copying the rest.
    pub(crate) left_bytes: u64,
}

/// Something to be moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moving {
    pub(crate) id: ObjectId,
    /// About so many bytes are needed of it.
    pub(crate) live_bytes: u64,
    /// Whether moving it frees something; else it is only small.
    pub(crate) frees: bool,
}

/// What is to be moved: things of which less than this part is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Below(pub(crate) f64);

impl Below {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn is(self, live: u64, of: u64) -> bool {
        (live as f64) < of as f64 * self.0
    }
}

/// How much is needed of each bundle of something, in bytes.
struct Needed<'a> {
    inventory: &'a Inventory,
    bytes: BTreeMap<ObjectId, u64>,
}

impl<'a> Needed<'a> {
    /// `live`: how much is needed of what lies in a place.
    fn of(
        inventory: &'a Inventory,
        spots: &BTreeMap<ObjectId, Spot>,
        live: impl Fn(ObjectId, Spot) -> u64,
    ) -> Self {
        let mut bytes: BTreeMap<ObjectId, u64> = BTreeMap::new();
        for (id, spot) in spots {
            *bytes.entry(spot.bundle).or_default() += live(*id, *spot);
        }
        Self { inventory, bytes }
    }

    /// Whether too little is needed of a bundle. Beside what is needed it has one byte in `overhead` of its own, which
    /// is no garbage.
    fn is_below(&self, below: Below, bundle: ObjectId, overhead: u64) -> bool {
        let held = self.inventory.bundles().get(&bundle);
        let of = held.map_or(0, |held| held.bytes);
        let needed = self.bytes.get(&bundle).copied().unwrap_or(of);
        below.is(needed + needed / overhead + 16384, of)
    }
}

/// The plan for containers in `ids`.
pub(crate) fn containers(
    ids: std::ops::Range<ObjectId>,
    inventory: &Inventory,
    locations: &Locations,
    marks: &Marks,
    below: Below,
) -> Plan {
    let mut plan = Plan::default();
    let live_bytes = |id: ObjectId| {
        let held = inventory.containers().get(&id)?;
        let live = u64::from(marks.live(id)).min(u64::from(held.chunks));
        Some(held.bytes * live / u64::from(held.chunks.max(1)))
    };
    let needed = Needed::of(inventory, &locations.containers, |id, spot| {
        match ids.contains(&id) {
            true => live_bytes(id).unwrap_or(0),
            // It counts in full: what is needed of it is not known.
            false => u64::from(spot.len),
        }
    });
    for (id, held) in inventory.containers().range(ids) {
        let live = marks.live(*id);
        if live == 0 {
            plan.gone.push(*id);
            continue;
        }
        if held.chunks == 0 {
            // It cannot be read: it is what it is.
            continue;
        }
        let live_bytes = live_bytes(*id).unwrap_or(held.bytes);
        let spot = locations.containers.get(id);
        let sparse = match spot {
            None => below.is(u64::from(live), u64::from(held.chunks)),
            Some(spot) => {
                needed.is_below(below, spot.bundle, 64)
                    || below.is(u64::from(live), u64::from(held.chunks)) && below.0 >= 1.0
            }
        };
        let small = held.own && held.bytes < SMALL;
        if sparse || small {
            plan.moving.push(Moving {
                id: *id,
                live_bytes,
                frees: sparse,
            });
        } else {
            plan.left_bytes += held.bytes - live_bytes;
        }
    }
    plan
}

/// The plan for tree objects before `end`.
pub(crate) fn trees(
    end: ObjectId,
    inventory: &Inventory,
    locations: &Locations,
    marks: &Marks,
    below: Below,
) -> Plan {
    let mut plan = Plan::default();
    let live_of = |id: &ObjectId| marks.tree_bytes.get(id).copied().unwrap_or(0);
    let needed = Needed::of(inventory, &locations.trees, |id, spot| {
        live_of(&id).min(u64::from(spot.len))
    });
    for (id, held) in inventory.trees().range(..end) {
        let bytes = held.bytes;
        let live = live_of(id).min(bytes);
        if live == 0 {
            plan.gone.push(*id);
            continue;
        }
        let sparse = match locations.trees.get(id) {
            // Some of it is armor.
            None => below.is(live + live / 32 + 12288, bytes),
            Some(spot) => needed.is_below(below, spot.bundle, 16),
        };
        let small = held.own && bytes < SMALL_TREE;
        if sparse || small {
            plan.moving.push(Moving {
                id: *id,
                live_bytes: live,
                frees: sparse,
            });
        } else {
            plan.left_bytes += bytes.saturating_sub(live + live / 32 + 12288);
        }
    }
    plan
}

/// Cuts what is to be moved into bundles of about `target` bytes. The last one, if it is only a few small things,
/// waits for company.
pub(crate) fn bundles(moving: Vec<Moving>, target: u64) -> Vec<Vec<Moving>> {
    let mut all = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0);
    for one in moving {
        bytes += one.live_bytes;
        open.push(one);
        if bytes >= target {
            all.push(std::mem::take(&mut open));
            bytes = 0;
        }
    }
    if open.len() >= TOGETHER_MIN || open.iter().any(|one| one.frees) {
        all.push(open);
    }
    all
}
