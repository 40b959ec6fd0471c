//! The steps of a sweep: what one commit lets go of, and what it moves into a bundle.
//!
//! Rule: everything is prepared, and the bundle lies in its place, before the commit; memory follows after it.

use std::collections::BTreeMap;

use crate::armor::Kind;
use crate::bundle::{Builder, tree_section};
use crate::error::{ErrorKind, Result};
use crate::fingerprint::Fingerprint;
use crate::inventory::{HeldBundle, HeldContainer, HeldTree, Inventory, Sums};
use crate::locations::Spot;
use crate::packer::Engine;
use crate::place::{ObjectId, Place};
use crate::sweep::Sweep;
use crate::tree::RecordRef;

use super::Collection;
use super::mark::Marks;
use super::plan::Moving;
use super::section::Section;

/// What one commit changes.
#[derive(Default)]
pub(super) struct Step {
    pub(super) sweep: Sweep,
    /// Chunks that are where they were no more.
    forgotten: Vec<(Fingerprint, Place)>,
    /// Containers that move, as they will be.
    containers: Vec<(ObjectId, HeldContainer)>,
    /// How many sections leave which bundle.
    leaving: BTreeMap<ObjectId, u32>,
    freed_tree_bytes: u64,
    bundle: Option<(ObjectId, HeldBundle)>,
}

impl Step {
    pub(super) fn is_empty(&self) -> bool {
        self.sweep == Sweep::default()
    }

    /// Nothing needs a container.
    pub(super) fn container_goes(&mut self, engine: &Engine, id: ObjectId) {
        if let Ok(manifest) = engine.objects.load_manifest(id) {
            for (slot, fingerprint) in manifest.chunks() {
                if let Some(place) = Place::new(id, slot) {
                    self.forgotten.push((*fingerprint, place));
                }
            }
        }
        self.sweep.gone_containers.push(id);
        self.leaves(engine, Kind::Container, id);
    }

    /// Nothing needs a tree object.
    pub(super) fn tree_goes(&mut self, engine: &Engine, id: ObjectId) {
        self.sweep.gone_trees.push(id);
        self.leaves(engine, Kind::Tree, id);
    }

    /// What is needed of a container goes into a bundle.
    fn container_moves(&mut self, engine: &Engine, section: &Section) {
        self.forgotten.extend_from_slice(&section.left_out);
        self.leaves(engine, Kind::Container, section.id);
        let held = HeldContainer {
            chunks: section.chunks,
            bytes: section.bytes.len() as u64,
            own: false,
        };
        self.containers.push((section.id, held));
    }

    /// Something leaves the object that it is, or the bundle that it lies in.
    fn leaves(&mut self, engine: &Engine, kind: Kind, id: ObjectId) {
        let inventory = engine.inventory.lock();
        match (engine.objects.spot(kind, id), kind) {
            (Some(spot), _) => {
                *self.leaving.entry(spot.bundle).or_default() += 1;
                self.sweep
                    .freed
                    .retain(|(kind, _, _)| *kind != Kind::Bundle);
                let emptied = inventory.emptied_bundles(&self.leaving);
                let freed = emptied.map(|(id, held)| (Kind::Bundle, id, held.bytes));
                self.sweep.freed.extend(freed);
            }
            (None, Kind::Tree) => {
                let held = inventory.trees().get(&id);
                let bytes = held.map_or(0, |held| held.bytes);
                self.freed_tree_bytes += bytes;
                self.sweep.freed.push((kind, id, bytes));
            }
            (None, _) => {
                let held = inventory.containers().get(&id);
                let bytes = held.map_or(0, |held| held.bytes);
                self.sweep.freed.push((kind, id, bytes));
            }
        }
    }

    /// What the store will hold after it.
    pub(super) fn sums_after(&self, inventory: &Inventory) -> Sums {
        let mut sums = inventory.sums();
        let held = |id: &ObjectId| inventory.containers().get(id).copied();
        let gone = self.sweep.gone_containers.iter().filter_map(held);
        let moved = self.containers.iter().filter_map(|(id, _)| held(id));
        for before in gone.chain(moved) {
            sums.containers -= 1;
            sums.chunks -= u64::from(before.chunks);
            if before.own {
                sums.container_bytes -= before.bytes;
            }
        }
        for (_, after) in &self.containers {
            sums.containers += 1;
            sums.chunks += u64::from(after.chunks);
        }
        for (_, held) in inventory.emptied_bundles(&self.leaving) {
            match held.of {
                Kind::Tree => sums.tree_bytes -= held.bytes,
                _ => sums.container_bytes -= held.bytes,
            }
        }
        sums.tree_bytes -= self.freed_tree_bytes;
        match self.bundle {
            Some((_, bundle)) if bundle.of == Kind::Tree => sums.tree_bytes += bundle.bytes,
            Some((_, bundle)) => sums.container_bytes += bundle.bytes,
            None => {}
        }
        sums
    }

    /// After its commit.
    pub(super) fn apply(&self, engine: &Engine) {
        let mut inventory = engine.inventory.lock();
        for id in &self.sweep.gone_containers {
            inventory.remove_container(*id);
        }
        for (id, held) in &self.containers {
            inventory.put_container(*id, *held);
        }
        for id in &self.sweep.gone_trees {
            inventory.remove_tree(*id);
        }
        for (id, spot) in &self.sweep.moved_trees {
            let held = HeldTree {
                bytes: u64::from(spot.len),
                own: false,
            };
            inventory.put_tree(*id, held);
        }
        for (bundle, count) in &self.leaving {
            inventory.leave_bundle(*bundle, *count);
        }
        if let Some((id, held)) = self.bundle {
            inventory.put_bundle(id, held);
        }
        drop(inventory);
        let mut index = engine.index.lock();
        for (fingerprint, place) in &self.forgotten {
            index.forget(fingerprint, *place);
        }
    }
}

impl Collection<'_> {
    /// Lays what is needed of some containers into one bundle.
    pub(super) fn move_containers(&mut self, moving: &[Moving], marks: &Marks) -> Result<()> {
        let engine = &self.writer.engine;
        let ids = moving.iter().map(|one| one.id);
        let (doomed, _) = engine.pins.doom(ids, []);
        let mut step = Step::default();
        let mut bundle = self.new_bundle();
        let mut moved = 0;
        for id in &doomed {
            match Section::of(&engine.objects, *id, marks) {
                Ok(section) => {
                    (self.options.pace)(2 * section.bytes.len() as u64);
                    // How long it would be was only estimated.
                    if !bundle.has_room_for(section.bytes.len()) {
                        let full = std::mem::replace(&mut bundle, self.new_bundle());
                        let step = std::mem::take(&mut step);
                        moved += self.finish_move(full, step, Kind::Container)?;
                    }
                    step.container_moves(engine, &section);
                    bundle.add(Kind::Container, *id, &section.bytes);
                }
                // What is damaged is not made worse: it stays, for a repair that knows another copy.
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    tracing::warn!(error = %e, "a damaged container is left where it is");
                    self.report.damaged += 1;
                    engine.pins.reprieve([id], []);
                }
                Err(e) => return Err(e),
            }
        }
        moved += self.finish_move(bundle, step, Kind::Container)?;
        self.report.containers_moved += moved;
        Ok(())
    }

    /// Lays what is needed of some tree objects into one bundle.
    pub(super) fn move_trees(&mut self, moving: &[Moving], marks: &Marks) -> Result<()> {
        let engine = &self.writer.engine;
        let objects = &engine.objects;
        let ids = moving.iter().map(|one| one.id);
        let (_, doomed) = engine.pins.doom([], ids);
        let mut step = Step::default();
        let mut bundle = self.new_bundle();
        let mut moved = 0;
        for id in &doomed {
            let mut records = Vec::new();
            for (offset, (len, crc)) in marks.records.get(id).into_iter().flatten() {
                let record = RecordRef {
                    object: *id,
                    offset: *offset,
                    len: *len,
                    crc: *crc,
                };
                records.push((*offset, objects.record_bytes(&record)?));
            }
            let section = tree_section(objects.store(), *id, &records);
            (self.options.pace)(section.len() as u64);
            if !bundle.has_room_for(section.len()) {
                let full = std::mem::replace(&mut bundle, self.new_bundle());
                let step = std::mem::take(&mut step);
                moved += self.finish_move(full, step, Kind::Tree)?;
            }
            step.leaves(engine, Kind::Tree, *id);
            bundle.add(Kind::Tree, *id, &section);
        }
        moved += self.finish_move(bundle, step, Kind::Tree)?;
        self.report.trees_moved += moved;
        Ok(())
    }

    fn new_bundle(&self) -> Builder {
        let objects = &self.writer.engine.objects;
        Builder::new(objects.store(), objects.opener.bundles.allocate())
    }

    /// Puts the bundle, and commits that things lie in it. Returns how many; none where there is no room for it.
    fn finish_move(&mut self, bundle: Builder, mut step: Step, of: Kind) -> Result<u64> {
        if bundle.sections.is_empty() {
            return Ok(0);
        }
        let id = bundle.id();
        let spots = bundle.sections.iter().map(|section| {
            let spot = Spot {
                bundle: id,
                at: section.at,
                len: section.len,
            };
            (section.id, spot)
        });
        match of {
            Kind::Tree => step.sweep.moved_trees = spots.collect(),
            _ => step.sweep.moved_containers = spots.collect(),
        }
        let sections = u32::try_from(bundle.sections.len()).expect("a few thousand at most");
        let payload = bundle.finish();
        let engine = &self.writer.engine;
        let put = || {
            let opener = &engine.objects.opener;
            opener.put(Kind::Bundle, id, &payload, engine.epoch)
        };
        let bytes = match put() {
            Err(e) if e.kind() == ErrorKind::Full => {
                self.full = true;
                self.purge()?;
                self.inner.use_headroom();
                put()
            }
            other => other,
        };
        let bytes = match bytes {
            Err(e) => {
                self.inner.keep_headroom();
                // Nothing has moved.
                let containers = step.sweep.moved_containers.iter().map(|(id, _)| id);
                let trees = step.sweep.moved_trees.iter().map(|(id, _)| id);
                engine.pins.reprieve(containers, trees);
                if e.kind() == ErrorKind::Full {
                    self.no_room = true;
                    return Ok(0);
                }
                return Err(e);
            }
            Ok(bytes) => bytes,
        };
        let held = HeldBundle {
            of,
            bytes,
            sections,
        };
        step.bundle = Some((id, held));
        self.report.written_bytes += bytes;
        if let Err(e) = self.take(step) {
            engine.inventory.lock().found_debris(Kind::Bundle, id);
            return Err(e);
        }
        if self.full {
            // What has moved leaves room for the next bundle.
            self.purge()?;
            self.inner.restore_some_headroom();
        }
        Ok(u64::from(sections))
    }
}
