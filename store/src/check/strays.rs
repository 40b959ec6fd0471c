//! What lies in a store and is not in its order: places that are none, objects that nothing needs, halves of objects.

use std::collections::{BTreeMap, BTreeSet};

use crate::armor::Kind;
use crate::bundle::Section;
use crate::copies::{self, Thing};
use crate::error::{ErrorKind, Result, StoreError, io_error};
use crate::gc::mark::Marks;
use crate::locations::{Locations, Spot};
use crate::place::ObjectId;
use crate::scrub::LostObject;
use crate::store::Inner;
use crate::sweep;

use super::{Half, Pile};

/// Places that the catalog names, where nothing of that kind lies.
pub(super) fn astray(inner: &Inner) -> Result<Vec<LostObject>> {
    let objects = &inner.objects;
    let mut found = Vec::new();
    for (bundle, things) in by_bundle(&objects.locations()) {
        let (what, missed) = match objects.directory(bundle) {
            Ok(sections) => {
                let missed = missed(&things, bundle, &sections);
                ("it does not hold", missed)
            }
            Err(StoreError::Missing { .. }) => ("it is missing, with", things),
            // It is named as damaged.
            Err(e) if e.kind() == ErrorKind::Corrupt => continue,
            Err(e) => return Err(e),
        };
        if !missed.is_empty() {
            found.push((bundle, what, missed));
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // Collections move things and remove bundles. Where the catalog does not open, nobody collects.
    match objects.refresh() {
        Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
        _ => {}
    }
    let mut astray = Vec::new();
    for (bundle, what, mut things) in found {
        things.retain(|((kind, id), spot)| objects.spot(*kind, *id) == Some(*spot));
        if !things.is_empty() {
            let things: BTreeSet<Thing> = things.into_iter().map(|(thing, _)| thing).collect();
            astray.push(LostObject {
                object: objects.opener.path(Kind::Bundle, bundle),
                what: format!("{what} {}", list_of(&things)),
            });
        }
    }
    Ok(astray)
}

/// The things that the catalog knows in each bundle.
fn by_bundle(locations: &Locations) -> BTreeMap<ObjectId, Vec<(Thing, Spot)>> {
    let containers = locations.containers.iter();
    let containers = containers.map(|(id, spot)| ((Kind::Container, *id), *spot));
    let trees = locations.trees.iter();
    let trees = trees.map(|(id, spot)| ((Kind::Tree, *id), *spot));
    let mut bundles: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (thing, spot) in containers.chain(trees) {
        bundles.entry(spot.bundle).or_default().push((thing, spot));
    }
    bundles
}

/// Those that are not where the catalog says.
fn missed(things: &[(Thing, Spot)], bundle: ObjectId, sections: &[Section]) -> Vec<(Thing, Spot)> {
    let there: BTreeMap<Thing, Spot> = sections
        .iter()
        .map(|section| {
            let spot = Spot {
                bundle,
                at: section.at,
                len: section.len,
            };
            ((section.kind, section.id), spot)
        })
        .collect();
    let mut missed = things.to_vec();
    missed.retain(|(thing, spot)| there.get(thing) != Some(spot));
    missed
}

fn list_of(things: &BTreeSet<Thing>) -> String {
    const SHOWN_MAX: usize = 4;
    let mut text = things
        .iter()
        .take(SHOWN_MAX)
        .copied()
        .map(copies::named)
        .collect::<Vec<_>>();
    if let Some(more) = things.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

/// Objects that nothing refers to, and that are not in quarantine.
pub(super) fn unneeded(inner: &Inner, marks: &Marks) -> Result<Pile> {
    let objects = &inner.objects;
    let locations = objects.locations();
    let quarantine = inner.state.lock().quarantine.clone();
    let is_needed = |thing| copies::is_needed(marks, thing);
    let things = by_bundle(&locations).into_iter();
    let bundles: BTreeSet<ObjectId> = things
        .filter(|(_, things)| things.iter().any(|(thing, _)| is_needed(*thing)))
        .map(|(bundle, _)| bundle)
        .collect();
    let mut pile = Pile::default();
    for kind in [Kind::Container, Kind::Tree, Kind::Bundle] {
        let shelf = objects.opener.shelf(kind);
        for id in shelf.list()? {
            let needed = match kind {
                Kind::Bundle => bundles.contains(&id),
                _ => objects.spot(kind, id).is_none() && is_needed((kind, id)),
            };
            if needed || quarantine.contains_key(&(kind, id)) {
                continue;
            }
            match shelf.len(id) {
                // A collection was faster.
                Err(StoreError::Missing { .. }) => {}
                len => {
                    pile.objects += 1;
                    pile.bytes += len?;
                }
            }
        }
    }
    Ok(pile)
}

/// What waits to be removed.
pub(super) fn quarantined(inner: &Inner) -> Pile {
    let quarantine = &inner.state.lock().quarantine;
    Pile {
        objects: quarantine.len() as u64,
        bytes: sweep::bytes(quarantine),
    }
}

/// What is half created at this moment.
pub(super) fn half_created(inner: &Inner) -> Result<Vec<Half>> {
    let opener = &inner.objects.opener;
    let shelves = [&opener.containers, &opener.trees, &opener.bundles];
    let fixed = ["", "catalog", "lease"].map(str::to_owned);
    let mut found = Vec::new();
    for folder in fixed
        .into_iter()
        .chain(shelves.into_iter().flat_map(|shelf| shelf.folders()))
    {
        let halves = inner.place.half_created(&folder);
        let halves = halves.map_err(|e| io_error("list", folder.clone(), e))?;
        found.extend(halves.into_iter().map(|(name, bytes)| Half {
            object: match folder.as_str() {
                "" => name,
                folder => format!("{folder}/{name}"),
            },
            bytes,
        }));
    }
    Ok(found)
}

/// What was there at the beginning and has not changed: nobody is writing it.
pub(super) fn still_there(before: &[Half], after: &[Half]) -> Vec<Half> {
    let both = before.iter().filter(|half| after.contains(half));
    both.cloned().collect()
}
