//! Marking: which chunks and which records the images of a store need.
//!
//! ```text
//! image: its change lists, merged -> every chunk they name
//!        its tree -> subtrees that no change touches: once, however many images share them
//!                 -> the others: down to the leaf, without what a change hides
//! ```
//!
//! Rule: what cannot be read ends the marking. Nobody knows what lies under it, so nothing may be collected.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use block::{GranuleRange, Name};

use crate::catalog::HeldImage;
use crate::container::Manifest;
use crate::error::{ErrorKind, Result};
use crate::fingerprint::FANOUT;
use crate::image::Image;
use crate::objects::Objects;
use crate::place::{ObjectId, Place, SLOTS_MAX};
use crate::runs::{self, Run};
use crate::tree::{Children, ImageRef, NodeRef, Record, RecordRef};

const WORDS: usize = SLOTS_MAX / 64;

/// Bytes of memory that the marks of a container take.
pub(crate) const BYTES_PER_CONTAINER: usize = WORDS * 8 + 48;

/// What was marked.
#[derive(Default)]
pub(crate) struct Marks {
    slots: HashMap<ObjectId, Box<[u64; WORDS]>>,
    /// Bytes of live records, by tree object.
    pub(crate) tree_bytes: HashMap<ObjectId, u64>,
    /// The live records of the tree objects that were asked for: offset, length, checksum.
    pub(crate) records: BTreeMap<ObjectId, BTreeMap<u32, (u32, u32)>>,
}

impl Marks {
    /// How many chunks of a container are needed.
    pub(crate) fn live(&self, id: ObjectId) -> u32 {
        let slots = self.slots.get(&id);
        slots.map_or(0, |slots| slots.iter().map(|word| word.count_ones()).sum())
    }

    /// Whether the chunk in a slot is needed.
    pub(crate) fn is_live(&self, id: ObjectId, slot: u64) -> bool {
        let (word, bit) = (block::index(slot / 64), slot % 64);
        let slots = self.slots.get(&id);
        slots.is_some_and(|slots| slots[word] >> bit & 1 == 1)
    }

    /// The slots of a container that are needed.
    pub(crate) fn slots(&self, id: ObjectId) -> impl Iterator<Item = u64> {
        (0..SLOTS_MAX as u64).filter(move |slot| self.is_live(id, *slot))
    }

    /// The containers of which something is needed.
    pub(crate) fn containers(&self) -> impl Iterator<Item = ObjectId> {
        self.slots.keys().copied()
    }

    /// Marks all chunks of each region of a container of which one is marked.
    pub(crate) fn widen(&mut self, id: ObjectId, manifest: &Manifest) {
        for region in &manifest.regions {
            let slots: Vec<u64> = manifest.chunks_of(region).map(|(slot, _)| slot).collect();
            if slots.iter().any(|slot| self.is_live(id, *slot)) {
                let places = slots.into_iter().filter_map(|slot| Place::new(id, slot));
                places.for_each(|place| self.set(place, 1));
            }
        }
    }

    fn set(&mut self, place: Place, count: u64) {
        let slots = self.slots.entry(place.container());
        let slots = slots.or_insert_with(|| Box::new([0; WORDS]));
        let first = place.slot() as u64;
        for slot in first..first + count {
            slots[block::index(slot / 64)] |= 1 << (slot % 64);
        }
    }
}

/// What to mark.
pub(crate) struct Wanted {
    /// Containers whose slots are marked.
    pub(crate) containers: Range<ObjectId>,
    /// Tree objects whose records are collected.
    pub(crate) records: HashSet<ObjectId>,
}

/// Marks image after image.
pub(crate) struct Marker {
    objects: Arc<Objects>,
    wanted: Wanted,
    marks: Marks,
    /// Inner nodes that were marked with all that lies under them.
    done: HashSet<(ObjectId, u32)>,
    lists: HashSet<(ObjectId, u32)>,
    /// The newest image of each disk of the group whose images come just now.
    neighbours: (Option<Name>, BTreeMap<Name, Image>),
    tolerant: bool,
    met_damage: bool,
}

impl Marker {
    pub(crate) fn new(objects: Arc<Objects>, wanted: Wanted) -> Self {
        Self {
            objects,
            wanted,
            marks: Marks::default(),
            done: HashSet::new(),
            lists: HashSet::new(),
            neighbours: (None, BTreeMap::new()),
            tolerant: false,
            met_damage: false,
        }
    }

    /// Nodes that cannot be read are passed over: for who collects nothing.
    pub(crate) fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// Whether something was passed over.
    pub(crate) fn met_damage(&self) -> bool {
        self.met_damage
    }

    pub(crate) fn finish(self) -> Marks {
        self.marks
    }

    /// Marks all that an image of the catalog needs. Quick where they come in the order of [`State::images`]: each
    /// shares most of its leaves with the one before it.
    ///
    /// [`State::images`]: crate::catalog::State::images
    pub(crate) fn held(&mut self, held: &HeldImage) -> Result<()> {
        if self.neighbours.0.as_ref() != Some(&held.group) {
            self.neighbours = (Some(held.group.clone()), BTreeMap::new());
        }
        let previous = self.neighbours.1.remove(&held.disk);
        let image = self.image_after(&held.image, previous.as_ref())?;
        self.neighbours.1.insert(held.disk.clone(), image);
        Ok(())
    }

    /// Marks all that `image` needs.
    pub(crate) fn image(&mut self, image: &ImageRef) -> Result<()> {
        self.image_after(image, None).map(drop)
    }

    /// `previous`: one that was marked and may share much with it at the same places.
    fn image_after(&mut self, image: &ImageRef, previous: Option<&Image>) -> Result<Image> {
        let image = Image::open(Arc::clone(&self.objects), image)?;
        for list in &image.reference.lists {
            if self.lists.insert((list.record.object, list.record.offset)) {
                self.record(&list.record);
            }
        }
        for run in &image.changes {
            self.run(run);
        }
        let previous = previous.filter(|p| p.reference.size == image.reference.size);
        if let Some(root) = image.reference.root {
            let was = previous.and_then(|previous| previous.reference.root);
            let mut walk = Walk {
                marker: self,
                image: &image,
                previous,
            };
            walk.node(image.shape.height(), 0, root, was)?;
        }
        Ok(image)
    }

    fn run(&mut self, run: &Run) {
        if let Some(place) = run.place
            && self.wanted.containers.contains(&place.container())
        {
            self.marks.set(place, run.count);
        }
    }

    fn record(&mut self, record: &RecordRef) {
        let object = record.object;
        *self.marks.tree_bytes.entry(object).or_default() += u64::from(record.len);
        if self.wanted.records.contains(&object) {
            let records = self.marks.records.entry(object).or_default();
            records.insert(record.offset, (record.len, record.crc));
        }
    }
}

struct Walk<'a> {
    marker: &'a mut Marker,
    image: &'a Image,
    previous: Option<&'a Image>,
}

impl Walk<'_> {
    /// `was`: the node of the previous image in this place.
    fn node(&mut self, level: u8, node: u64, stored: NodeRef, was: Option<NodeRef>) -> Result<()> {
        let image = self.image;
        let under = image.shape.under(level, node);
        let changes = runs::touching(&image.changes, under);
        let key = (stored.record.object, stored.record.offset);
        let same = was == Some(stored);
        if changes.is_empty() {
            let all_of_it = |p: &Image| runs::touching(&p.changes, under).is_empty();
            let just_done = same && self.previous.is_some_and(all_of_it);
            if just_done || self.marker.done.contains(&key) {
                return Ok(());
            }
        }
        if !same {
            self.marker.record(&stored.record);
        }
        let record = match self.marker.objects.node(&stored, level) {
            Err(e) if e.kind() == ErrorKind::Corrupt && self.marker.tolerant => {
                self.marker.met_damage = true;
                return Ok(());
            }
            other => other?,
        };
        match &*record {
            Record::Leaf(leaf) => {
                for run in leaf {
                    let start = run.start + under.start;
                    self.visible(Run { start, ..*run }, changes);
                }
            }
            Record::Inner(children) => {
                let before = match was {
                    _ if same => children.clone(),
                    Some(was) => self.children(level, was)?,
                    None => Box::new([None; FANOUT]),
                };
                let pairs = children.iter().zip(before.iter());
                for (i, (child, was)) in (0..).zip(pairs) {
                    if let Some(child) = child {
                        self.node(level - 1, node * FANOUT as u64 + i, *child, *was)?;
                    }
                }
            }
            Record::List(_) => {}
        }
        if changes.is_empty() && level > 0 {
            self.marker.done.insert(key);
        }
        Ok(())
    }

    /// What lies under a node of the previous image. If it cannot be read, that image was passed over there.
    fn children(&self, level: u8, node: NodeRef) -> Result<Box<Children>> {
        Ok(match self.marker.objects.node(&node, level) {
            Err(e) if e.kind() == ErrorKind::Corrupt && self.marker.tolerant => {
                Box::new([None; FANOUT])
            }
            read => match &*read? {
                Record::Inner(children) => children.clone(),
                _ => Box::new([None; FANOUT]),
            },
        })
    }

    /// Marks the parts of `run` that no change hides.
    fn visible(&mut self, run: Run, changes: &[Run]) {
        let mut from = run.start;
        for change in runs::touching(changes, range(run.start, run.end())) {
            if let Some(part) = run.clip(range(from, change.start)) {
                self.marker.run(&part);
            }
            from = from.max(change.end());
        }
        if let Some(part) = run.clip(range(from, run.end())) {
            self.marker.run(&part);
        }
    }
}

fn range(start: u64, end: u64) -> GranuleRange {
    GranuleRange {
        start,
        end: end.max(start),
    }
}
