//! What a writer finds when it opens a store: everything there is, and the index over it.
//!
//! Rule: nothing is removed here. Before this writer's first commit another one may still believe that the store is
//! its own; what is left of a crash goes with the next collection.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::armor::Kind;
use crate::backend::Backend;
use crate::catalog::{Held, State};
use crate::error::{ErrorKind, Result};
use crate::index::{ENTRIES_MAX, Index};
use crate::inventory::{HeldBundle, HeldContainer, HeldTree, Inventory};
use crate::objects::Objects;
use crate::packer::Engine;
use crate::pins::Pins;
use crate::place::ObjectId;
use crate::side_by_side::side_by_side;

/// Manifests that are in memory at once.
const MANIFESTS_AT_ONCE: usize = 64;

/// Finds out what the store holds, and fills the index.
pub(crate) fn engine(
    objects: Arc<Objects>,
    epoch: u64,
    state: &State,
    place: &dyn Backend,
    list_runs_max: usize,
) -> Result<Engine> {
    let mut inventory = Inventory::default();
    let mut index = Index::new(ENTRIES_MAX);
    let opener = &objects.opener;
    let quarantined = |kind, id: &ObjectId| state.quarantine.contains_key(&(kind, *id));

    let moved = &state.locations.trees;
    for (id, bytes) in opener.trees.recover()? {
        match moved.contains_key(&id) {
            _ if quarantined(Kind::Tree, &id) => {}
            true => inventory.found_debris(Kind::Tree, id),
            false => inventory.put_tree(id, HeldTree { bytes, own: true }),
        }
    }
    for (id, spot) in moved {
        let bytes = u64::from(spot.len);
        inventory.put_tree(*id, HeldTree { bytes, own: false });
    }

    let moved = &state.locations.containers;
    let sections = moved.iter().map(|(id, spot)| (*id, u64::from(spot.len)));
    let mut all: BTreeMap<_, _> = sections.collect();
    for (id, bytes) in opener.containers.recover()? {
        match moved.contains_key(&id) {
            _ if quarantined(Kind::Container, &id) => {}
            true => inventory.found_debris(Kind::Container, id),
            false => drop(all.insert(id, bytes)),
        }
    }
    let ids: Vec<ObjectId> = all.keys().copied().collect();
    // Who reads from a disk of this machine does not wait for it for long.
    let threads = match place.requests_at_once() {
        1 | 2 => 1,
        many => many,
    };
    // In order, whoever reads first: what is inserted first keeps its place in the index.
    for some in ids.chunks(MANIFESTS_AT_ONCE) {
        let manifests = side_by_side(some, threads, |id| objects.load_manifest(*id));
        for (id, manifest) in some.iter().zip(manifests) {
            let chunks = match manifest {
                Ok(manifest) => {
                    index.insert_all(*id, &manifest);
                    u32::try_from(manifest.chunk_count()).expect("at most SLOTS_MAX")
                }
                // It is not built on; verifying a point that needs it says what is lost.
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    tracing::error!(error = %e, "a container is damaged");
                    0
                }
                Err(e) => return Err(e),
            };
            let held = HeldContainer {
                chunks,
                bytes: all[id],
                own: !moved.contains_key(id),
            };
            inventory.put_container(*id, held);
        }
    }

    let mut bundles: BTreeMap<_, _> = opener.bundles.recover()?.into_iter().collect();
    let trees = state
        .locations
        .trees
        .values()
        .map(|spot| (Kind::Tree, spot));
    let containers = state.locations.containers.values();
    let sections = trees.chain(containers.map(|spot| (Kind::Container, spot)));
    for (of, spot) in sections {
        if inventory.enter_bundle(spot.bundle) {
            continue;
        }
        // One that is missing is named when something in it is needed.
        let bytes = bundles.remove(&spot.bundle).unwrap_or(0);
        let held = HeldBundle {
            of,
            bytes,
            sections: 1,
        };
        inventory.put_bundle(spot.bundle, held);
    }
    bundles.retain(|id, _| !quarantined(Kind::Bundle, id));
    let debris = bundles.into_keys();
    debris.for_each(|id| inventory.found_debris(Kind::Bundle, id));
    Ok(Engine {
        objects,
        index: Mutex::new(index),
        epoch,
        inventory: Mutex::new(inventory),
        pins: Arc::new(Pins::default()),
        list_runs_max,
        container_bytes: place.container_bytes(),
        closed_max: place.requests_at_once(),
    })
}

impl Engine {
    /// What the store holds, for the catalog.
    pub(crate) fn held(&self) -> Held {
        let opener = &self.objects.opener;
        let mut held = Held {
            next_container: opener.containers.next(),
            next_tree: opener.trees.next(),
            ..Held::default()
        };
        held.set_sums(self.inventory.lock().sums());
        held
    }
}
