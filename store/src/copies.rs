//! Other copies of what does not lie where the catalog says: collections move containers and tree objects, and what they
//! have moved from lies in quarantine for a while.
//!
//! ```text
//! container 7:  its own object | a section of bundle 3 | a section of bundle 9     the catalog says: bundle 9, which is lost
//! ```
//!
//! Rule: of several copies the oldest has the most, and one that waits to be removed is the last choice.

use std::collections::{BTreeMap, BTreeSet};

use crate::armor::Kind;
use crate::error::{ErrorKind, Result};
use crate::gc::mark::Marks;
use crate::locations::Spot;
use crate::place::ObjectId;
use crate::relocation::Relocation;
use crate::store::Inner;

/// A container, a tree object or a bundle.
pub(crate) type Thing = (Kind, ObjectId);

/// Where a copy lies; `None`: it is an object of its own.
type Copy = Option<Spot>;

/// Another copy of a thing, or the one that is used, where that waits to be removed.
pub(crate) struct Found {
    pub(crate) thing: Thing,
    from: Copy,
    to: Copy,
    /// The object that holds it waits to be removed.
    is_going: bool,
}

impl Found {
    /// The object that was said to hold the thing.
    pub(crate) fn lost(&self) -> Thing {
        holder(self.thing, self.from)
    }

    /// The object that holds this copy.
    pub(crate) fn instead(&self) -> Thing {
        holder(self.thing, self.to)
    }

    /// Whether it is another copy.
    pub(crate) fn is_another(&self) -> bool {
        self.from != self.to
    }
}

/// Finds copies of things that do not lie where they should. `unreadable`: objects that are damaged beyond their armor.
/// `begins_anew`: the catalog may not know what was moved last.
pub(crate) fn find(
    inner: &Inner,
    unreadable: &BTreeSet<Thing>,
    begins_anew: bool,
) -> Result<Vec<Found>> {
    let quarantine = inner.state.lock().quarantine.clone();
    let is_going = |object: Thing| quarantine.contains_key(&object);
    let mut found = Vec::new();
    for (thing, copies) in copies(inner, unreadable)? {
        let from = inner.objects.spot(thing.0, thing.1);
        let at_risk = begins_anew && from.is_some() && is_going(holder(thing, from));
        if copies.contains(&from) && !at_risk {
            continue;
        }
        let order = |copy: &&Copy| (is_going(holder(thing, **copy)), **copy);
        if let Some(to) = copies.iter().min_by_key(order).copied() {
            found.push(Found {
                thing,
                from,
                to,
                is_going: is_going(holder(thing, to)),
            });
        }
    }
    Ok(found)
}

/// What a catalog has to say so that these copies are used.
pub(crate) fn relocation(found: &[Found]) -> Relocation {
    let mut relocation = Relocation::default();
    for copy in found.iter().filter(|copy| copy.is_another()) {
        relocation.uses(copy.thing, copy.to);
    }
    let going = found.iter().filter(|copy| copy.is_going);
    let kept: BTreeSet<Thing> = going.map(Found::instead).collect();
    relocation.kept = kept.into_iter().collect();
    relocation
}

/// Whether something is known to need a thing.
pub(crate) fn is_needed(marks: &Marks, (kind, id): Thing) -> bool {
    match kind {
        Kind::Container => marks.live(id) > 0,
        _ => marks.tree_bytes.contains_key(&id),
    }
}

/// A container or a tree object, to a person.
pub(crate) fn named((kind, id): Thing) -> String {
    match kind {
        Kind::Container => format!("container {}", id.0),
        _ => format!("tree object {}", id.0),
    }
}

/// The object that holds a copy.
fn holder(thing: Thing, copy: Copy) -> Thing {
    copy.map_or(thing, |spot| (Kind::Bundle, spot.bundle))
}

/// All copies of everything, in objects that can be read.
fn copies(inner: &Inner, unreadable: &BTreeSet<Thing>) -> Result<BTreeMap<Thing, BTreeSet<Copy>>> {
    let objects = &inner.objects;
    let mut copies: BTreeMap<Thing, BTreeSet<Copy>> = BTreeMap::new();
    for kind in [Kind::Container, Kind::Tree, Kind::Bundle] {
        for id in objects.opener.shelf(kind).list()? {
            if unreadable.contains(&(kind, id)) {
                continue;
            }
            if kind != Kind::Bundle {
                copies.entry((kind, id)).or_default().insert(None);
                continue;
            }
            let sections = match objects.directory(id) {
                Err(e) if e.kind() == ErrorKind::Corrupt => continue,
                sections => sections?,
            };
            for section in sections {
                let spot = Spot {
                    bundle: id,
                    at: section.at,
                    len: section.len,
                };
                let thing = (section.kind, section.id);
                copies.entry(thing).or_default().insert(Some(spot));
            }
        }
    }
    Ok(copies)
}
