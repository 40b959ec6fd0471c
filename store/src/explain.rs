//! Explain: what holds the space of a store, and when it can be free.
//!
//! ```text
//! store: what listed points need | what only removed points need | garbage | quarantine; what each group, each first copy alone needs
//! point: what nothing else needs; what keeps it
//! chunk: which points and first copies need it, and for how long those that were removed
//! ```
//!
//! Bytes are those of containers with their armor, in proportion to their chunks: a region is compressed as a whole.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use block::{GRANULE, GranuleRange, Name, UnixNanos};

use crate::catalog::HeldImage;
use crate::error::{Result, StoreError};
use crate::fingerprint::FANOUT;
use crate::gc::mark::{Marker, Marks, Wanted};
use crate::image::Image;
use crate::objects::Objects;
use crate::place::{ObjectId, Place};
use crate::records::PointId;
use crate::runs::{self, Run};
use crate::store::Inner;
use crate::tree::{ImageRef, NodeRef, Record};

/// What holds the space of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExplainedStore {
    /// Bytes of chunks that listed points and seeds need.
    pub needed_bytes: u64,
    /// Bytes of chunks that only points need that were removed, and can be brought back.
    pub removed_bytes: u64,
    /// When the last of those is gone for good.
    pub removed_until: Option<UnixNanos>,
    /// Bytes of chunks that nothing needs: the next collections free them.
    pub garbage_bytes: u64,
    /// Bytes of objects that were let go of.
    pub quarantined_bytes: u64,
    /// What each group alone needs, and with how many points.
    pub groups: Vec<(Name, u64, u64)>,
    /// What each first copy that is under way alone needs, by its group: it is free once that is given up.
    pub seeds: Vec<(Name, u64)>,
}

/// What holds the space of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedPoint {
    /// The point.
    pub point: PointId,
    /// Bytes of chunks that it needs.
    pub needed_bytes: u64,
    /// Bytes of chunks that nothing else needs: what removing it frees.
    pub alone_bytes: u64,
    /// Whether it is the newest of its group, which the next point builds on.
    pub newest: bool,
}

/// Who needs a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedChunk {
    /// Its fingerprint.
    pub fingerprint: String,
    /// The object that it lies in.
    pub object: String,
    /// Its container, and the slot there.
    pub place: (u64, u64),
    /// The points that need it, by group, and in it by age.
    pub points: Vec<PointId>,
    /// When the last of those of them is gone for good that were removed.
    pub removed_until: Option<UnixNanos>,
    /// The groups of which the first copy needs it that is under way.
    pub seeds: Vec<Name>,
}

fn mark<'a>(objects: &Arc<Objects>, images: impl Iterator<Item = &'a HeldImage>) -> Result<Marks> {
    let wanted = Wanted {
        containers: ObjectId(1)..ObjectId(ObjectId::END),
        records: HashSet::new(),
    };
    let mut marker = Marker::new(Arc::clone(objects), wanted);
    for held in images {
        marker.held(held)?;
    }
    Ok(marker.finish())
}

/// Counts bytes of chunks.
struct Scale<'a> {
    objects: &'a Objects,
    containers: HashMap<ObjectId, (u64, u64)>,
}

impl Scale<'_> {
    /// Bytes of the slots of `marks` that are in none of `but`.
    fn bytes(&mut self, marks: &Marks, but: Option<&Marks>) -> Result<u64> {
        let mut all = 0;
        for id in marks.containers() {
            let slots = marks.slots(id);
            let count = match but {
                None => u64::from(marks.live(id)),
                Some(but) => slots.filter(|slot| !but.is_live(id, *slot)).count() as u64,
            };
            if count > 0 {
                let (bytes, chunks) = self.container(id)?;
                all += bytes * count.min(chunks) / chunks.max(1);
            }
        }
        Ok(all)
    }

    fn container(&mut self, id: ObjectId) -> Result<(u64, u64)> {
        if let Some(known) = self.containers.get(&id) {
            return Ok(*known);
        }
        let opened = self.objects.container(id)?;
        let bytes = self.objects.container_weight(&opened)?;
        let known = (bytes, opened.manifest.chunk_count() as u64);
        self.containers.insert(id, known);
        Ok(known)
    }
}

pub(crate) fn store(inner: &Inner) -> Result<ExplainedStore> {
    let (images, mut explained, held) = {
        let state = inner.state.lock();
        let until = state.removed.values().map(|(_, until)| UnixNanos(*until));
        let explained = ExplainedStore {
            removed_until: until.max(),
            quarantined_bytes: crate::sweep::bytes(&state.quarantine),
            ..ExplainedStore::default()
        };
        (state.images(), explained, inner.held(&state))
    };
    let listed = || images.iter().filter(|held| held.removed_until.is_none());
    let objects = &inner.objects;
    let mut scale = Scale {
        objects,
        containers: HashMap::new(),
    };
    let needed = mark(objects, listed())?;
    let all = mark(objects, images.iter())?;
    explained.needed_bytes = scale.bytes(&needed, None)?;
    explained.removed_bytes = scale.bytes(&all, Some(&needed))?;
    let held = held.container_bytes;
    explained.garbage_bytes = held.saturating_sub(explained.needed_bytes + explained.removed_bytes);
    let mut groups: Vec<&Name> = listed().map(|held| &held.group).collect();
    groups.dedup();
    for group in groups {
        let others = mark(objects, images.iter().filter(|held| held.group != *group))?;
        let own = listed().filter(|held| held.group == *group);
        let points: HashSet<&PointId> = own.clone().filter_map(|own| own.point.as_ref()).collect();
        let bytes = scale.bytes(&mark(objects, own)?, Some(&others))?;
        explained
            .groups
            .push((group.clone(), points.len() as u64, bytes));
    }
    let seeds = images.iter().filter(|held| held.point.is_none());
    let mut of_seeds: Vec<&Name> = seeds.map(|held| &held.group).collect();
    of_seeds.dedup();
    for group in of_seeds {
        let is_own = |held: &&HeldImage| held.point.is_none() && held.group == *group;
        let others = mark(objects, images.iter().filter(|held| !is_own(held)))?;
        let own = mark(objects, images.iter().filter(is_own))?;
        let bytes = scale.bytes(&own, Some(&others))?;
        explained.seeds.push((group.clone(), bytes));
    }
    Ok(explained)
}

pub(crate) fn point(inner: &Inner, id: &PointId) -> Result<ExplainedPoint> {
    let (images, newest) = {
        let state = inner.state.lock();
        let of_group = state
            .points
            .iter()
            .filter(|point| point.id.group == id.group);
        let newest = of_group.map(|point| point.id.sequence).max();
        (state.images(), newest == Some(id.sequence))
    };
    let is_own = |held: &&HeldImage| held.point.as_ref() == Some(id);
    if !images.iter().any(|held| is_own(&held)) {
        return Err(StoreError::NoPoint(id.to_string()));
    }
    let objects = &inner.objects;
    let mut scale = Scale {
        objects,
        containers: HashMap::new(),
    };
    let others = mark(objects, images.iter().filter(|held| !is_own(held)))?;
    let own = mark(objects, images.iter().filter(is_own))?;
    Ok(ExplainedPoint {
        point: id.clone(),
        needed_bytes: scale.bytes(&own, None)?,
        alone_bytes: scale.bytes(&own, Some(&others))?,
        newest,
    })
}

/// The chunk at byte `offset` of an image; `None` if that is zeroes.
pub(crate) fn chunk(
    inner: &Inner,
    reference: &ImageRef,
    offset: u64,
) -> Result<Option<ExplainedChunk>> {
    let objects = &inner.objects;
    let image = Image::open(Arc::clone(objects), reference)?;
    let granule = offset / GRANULE;
    let mut found = None;
    let one = GranuleRange {
        start: granule,
        end: granule + 1,
    };
    image.each_run(one, &mut |run| {
        found = run.place;
        Ok(())
    })?;
    let Some(place) = found else { return Ok(None) };
    let manifest = objects.manifest(place.container())?;
    let fingerprint = manifest.fingerprint(place.slot());
    let fingerprint = fingerprint.ok_or_else(|| objects.no_such_slot(place))?;
    let images = inner.state.lock().images();
    let mut search = Search {
        objects,
        place,
        known: HashMap::new(),
    };
    let mut explained = ExplainedChunk {
        fingerprint: fingerprint.to_string(),
        object: objects.container_path(place.container()),
        place: (place.container().0, place.slot() as u64),
        points: Vec::new(),
        removed_until: None,
        seeds: Vec::new(),
    };
    for held in images {
        let is_known = match &held.point {
            Some(id) => explained.points.contains(id),
            None => explained.seeds.contains(&held.group),
        };
        if is_known || !search.image(&held.image)? {
            continue;
        }
        let until = held.removed_until.map(UnixNanos);
        explained.removed_until = explained.removed_until.max(until);
        match held.point {
            Some(id) => explained.points.push(id),
            None => explained.seeds.push(held.group),
        }
    }
    Ok(Some(explained))
}

/// Looks for a place in images, through subtrees that they share only once.
struct Search<'a> {
    objects: &'a Arc<Objects>,
    place: Place,
    known: HashMap<(ObjectId, u32), bool>,
}

impl Search<'_> {
    fn image(&mut self, reference: &ImageRef) -> Result<bool> {
        let image = Image::open(Arc::clone(self.objects), reference)?;
        if image.changes.iter().any(|run| self.is_in(run)) {
            return Ok(true);
        }
        match image.reference.root {
            None => Ok(false),
            Some(root) => self.node(&image, image.shape.height(), 0, root),
        }
    }

    fn is_in(&self, run: &Run) -> bool {
        let first = run
            .place
            .filter(|place| place.container() == self.place.container());
        first.is_some_and(|first| {
            let slots = first.slot()..first.slot() + block::index(run.count);
            slots.contains(&self.place.slot())
        })
    }

    fn node(&mut self, image: &Image, level: u8, node: u64, stored: NodeRef) -> Result<bool> {
        let under = image.shape.under(level, node);
        let untouched = runs::touching(&image.changes, under).is_empty();
        let key = (stored.record.object, stored.record.offset);
        if let Some(known) = self.known.get(&key).filter(|_| untouched) {
            return Ok(*known);
        }
        let found = match &*self.objects.node(&stored, level)? {
            Record::Inner(children) => {
                let mut found = false;
                for (i, child) in (0..).zip(children.iter()) {
                    if let Some(child) = child
                        && self.node(image, level - 1, node * FANOUT as u64 + i, *child)?
                    {
                        found = true;
                        break;
                    }
                }
                found
            }
            _ => image
                .leaf_runs(node, Some(stored))?
                .iter()
                .any(|run| self.is_in(run)),
        };
        if untouched {
            self.known.insert(key, found);
        }
        Ok(found)
    }
}
