//! An image: a read-only disk whose chunks lie in containers.
//!
//! ```text
//! chunk -> change lists (merged, in memory)? -> tree: inner nodes -> leaf -> place -> region -> chunk
//! ```
//!
//! Rule: every byte that is handed out was checked against its fingerprint when its region was read.

use std::sync::Arc;

use block::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, Fua, GRANULE, GranuleRange, Op,
    ZeroOptions, index,
};

use crate::error::{ErrorKind, Result, StoreError};
use crate::fingerprint::{FANOUT, Fingerprint};
use crate::fold::hash_leaf;
use crate::objects::Objects;
use crate::pins::Holder;
use crate::place::Place;
use crate::runs::{self, Run};
use crate::tree::{self, Children, ImageRef, NodeRef, Record, Shape};

/// A restore point's disk, or any other image of the store, as a read-only device.
pub struct Image {
    pub(crate) objects: Arc<Objects>,
    pub(crate) reference: ImageRef,
    pub(crate) shape: Shape,
    /// The change lists, merged.
    pub(crate) changes: Vec<Run>,
    /// Keeps what the image needs from being collected, in a store that writes.
    pin: Option<Holder>,
}

impl Image {
    /// Reads the change lists: at most 1.5 MiB.
    pub(crate) fn open(objects: Arc<Objects>, reference: &ImageRef) -> Result<Self> {
        let shape = Shape::of(reference.size);
        let mut changes = Vec::new();
        for list in &reference.lists {
            let record = objects.list(list, shape.granules)?;
            if let Record::List(newer) = &*record {
                changes = runs::overlay(&changes, newer);
            }
        }
        Ok(Self {
            objects,
            reference: reference.clone(),
            shape,
            changes,
            pin: None,
        })
    }

    /// While it is open nothing of it is collected.
    pub(crate) fn pinned(mut self, pin: Option<Holder>) -> Self {
        self.pin = pin;
        self
    }

    /// The image that was opened.
    #[must_use]
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// The fingerprint of the whole content and size: the same content has the same root, whatever
    /// its history. An image with change lists computes it: it reads the manifests of the leaves
    /// that the lists touch.
    ///
    /// # Errors
    /// If the tree or a manifest cannot be read.
    pub fn root(&self) -> Result<Fingerprint> {
        let top = self.hash_node(self.shape.height(), 0, self.reference.root)?;
        Ok(Fingerprint::of_image(self.reference.size, top))
    }

    /// The fingerprints of the granules in `range`, from manifests: no chunk is read.
    ///
    /// # Errors
    /// If the tree or a manifest cannot be read.
    pub fn fingerprints(&self, range: GranuleRange) -> Result<Vec<Fingerprint>> {
        let mut found = vec![Fingerprint::ZERO; index(range.count())];
        self.each_run(range, &mut |run| {
            let [start, end] = [run.start, run.end()].map(|at| index(at - range.start));
            self.objects.run_fingerprints(&run, &mut found[start..end])
        })?;
        Ok(found)
    }

    /// The fingerprints that granules of such content have in this image's store.
    ///
    /// # Errors
    /// `NoKey`.
    ///
    /// # Panics
    /// If it is not whole granules.
    pub fn fingerprints_of(&self, content: &[u8]) -> Result<Vec<Fingerprint>> {
        Ok(self.objects.codec()?.fingerprints(content))
    }

    fn hash_node(&self, level: u8, node: u64, old: Option<NodeRef>) -> Result<Fingerprint> {
        let under = self.shape.under(level, node);
        let changes = runs::touching(&self.changes, under);
        if changes.is_empty() {
            return Ok(old.map_or(Fingerprint::ZERO, |old| old.hash));
        }
        if old.is_none() && changes.iter().all(|run| run.place.is_none()) {
            return Ok(Fingerprint::ZERO);
        }
        if level == 0 {
            return hash_leaf(&self.objects, &self.leaf_runs(node, old)?);
        }
        let children = self.children(level, old)?;
        let mut hashes = [Fingerprint::ZERO; FANOUT];
        for (i, hash) in hashes.iter_mut().enumerate() {
            let id = node * FANOUT as u64 + i as u64;
            if id * self.shape.under(level - 1, 0).count() < self.shape.granules {
                *hash = self.hash_node(level - 1, id, children[i])?;
            }
        }
        Ok(Fingerprint::of_children(level, &hashes))
    }

    /// The children of a stored inner node; none of a node of zeroes.
    pub(crate) fn children(&self, level: u8, node: Option<NodeRef>) -> Result<Box<Children>> {
        if let Some(node) = node
            && let Record::Inner(children) = &*self.objects.node(&node, level)?
        {
            return Ok(children.clone());
        }
        Ok(Box::new([None; FANOUT]))
    }

    /// The stored leaf over chunk `256 * leaf`; `None` if it is all zeroes.
    pub(crate) fn leaf_node(&self, leaf: u64) -> Result<Option<NodeRef>> {
        let mut node = self.reference.root;
        for level in (1..=self.shape.height()).rev() {
            let Some(inner) = node else { return Ok(None) };
            let child = leaf >> (8 * u32::from(level - 1)) & (FANOUT as u64 - 1);
            node = match &*self.objects.node(&inner, level)? {
                Record::Inner(children) => children[index(child)],
                _ => None,
            };
        }
        Ok(node)
    }

    /// The data runs of a leaf, relative to it, with the changes laid over it.
    pub(crate) fn leaf_runs(&self, leaf: u64, node: Option<NodeRef>) -> Result<Vec<Run>> {
        let under = self.shape.under(0, leaf);
        let relative = |run: &Run| {
            let inside = run.clip(under)?;
            Some(Run {
                start: inside.start - under.start,
                ..inside
            })
        };
        let changes = runs::touching(&self.changes, under);
        let changes: Vec<Run> = changes.iter().filter_map(relative).collect();
        let stored = node.map(|node| self.objects.node(&node, 0)).transpose()?;
        let mut runs = match stored.as_deref() {
            Some(Record::Leaf(stored)) if changes.is_empty() => stored.clone(),
            Some(Record::Leaf(stored)) => runs::overlay(stored, &changes),
            _ => changes,
        };
        runs.retain(|run| run.place.is_some());
        let inside = runs.iter().all(|run| run.end() <= under.count());
        match node {
            Some(node) if !inside => Err(self
                .objects
                .damaged_record(&node.record, "a leaf reaches past the end of its disk")),
            _ => Ok(runs),
        }
    }

    /// The data runs in `range`, in order, with absolute starts; what lies between is zeroes.
    /// Parts of the tree that hold nothing are passed over, not walked.
    pub(crate) fn each_run(
        &self,
        range: GranuleRange,
        each: &mut dyn FnMut(Run) -> Result<()>,
    ) -> Result<()> {
        let walk = Walk { image: self, range };
        walk.node(self.shape.height(), 0, self.reference.root, each)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        let granules = range.granules_touched();
        let mut filled = offset;
        self.each_run(granules, &mut |run| {
            for i in 0..run.count {
                let at = GranuleRange {
                    start: run.start + i,
                    end: run.start + i + 1,
                };
                let place = run.place.and_then(|place| place.after(i));
                let place = place.expect("data runs stay in their container");
                let chunk = ByteRange::at(at.start * GRANULE, GRANULE).expect("sizes are bounded");
                let wanted = chunk.intersect(range).expect("the walk stays in the range");
                let out = index(wanted.start() - offset)..index(wanted.end() - offset);
                buf[index(filled - offset)..out.start].fill(0);
                let from = index(wanted.start() - chunk.start());
                self.objects
                    .read_chunk(place, from, &mut buf[out])
                    .map_err(|e| e.hitting(at.bytes(self.reference.size)))?;
                filled = wanted.end();
            }
            Ok(())
        })
        .map_err(|e| e.hitting(range))?;
        buf[index(filled - offset)..].fill(0);
        Ok(())
    }
}

/// A walk over the data of an image.
struct Walk<'a> {
    image: &'a Image,
    range: GranuleRange,
}

impl Walk<'_> {
    fn node(
        &self,
        level: u8,
        node: u64,
        stored: Option<NodeRef>,
        each: &mut dyn FnMut(Run) -> Result<()>,
    ) -> Result<()> {
        let image = self.image;
        let under = image.shape.under(level, node);
        let wanted = GranuleRange {
            start: under.start.max(self.range.start),
            end: under.end.min(self.range.end),
        };
        let changes = runs::touching(&image.changes, wanted);
        let no_data = stored.is_none() && changes.iter().all(|run| run.place.is_none());
        if wanted.is_empty() || no_data {
            return Ok(());
        }
        if level == 0 {
            for run in image.leaf_runs(node, stored)? {
                let start = run.start + under.start;
                if let Some(run) = (Run { start, ..run }).clip(wanted) {
                    each(run)?;
                }
            }
            return Ok(());
        }
        let children = image.children(level, stored)?;
        let span = image.shape.under(level - 1, 0).count().max(1);
        let [first, last] = [wanted.start, wanted.end - 1].map(|chunk| chunk / span);
        for id in first..=last {
            let child = children[index(id - node * FANOUT as u64)];
            self.node(level - 1, id, child, each)?;
        }
        Ok(())
    }
}

/// How a failure of the store looks through a device.
pub(crate) fn device_error(op: Op, range: ByteRange, error: StoreError) -> Error {
    let kind = match error.kind() {
        ErrorKind::Corrupt => block::ErrorKind::Corrupt,
        _ => block::ErrorKind::Io,
    };
    Error::source(op, range, kind, error)
}

impl BlockDevice for Image {
    fn size(&self) -> u64 {
        self.reference.size
    }

    fn features(&self) -> Features {
        Features::READ_ONLY
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> block::Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        Error::check_range(Op::Read, range, self.size())?;
        self.read(buf, offset)
            .map_err(|e| device_error(Op::Read, range, e))
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> block::Result<()> {
        let range = ByteRange::of_buf(offset, data);
        Err(Error::read_only(Op::Write, range))
    }

    fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> block::Result<()> {
        Err(Error::read_only(Op::WriteZeroes, range))
    }

    fn trim(&self, range: ByteRange, _fua: Fua) -> block::Result<()> {
        Err(Error::read_only(Op::Trim, range))
    }

    fn flush(&self) -> block::Result<()> {
        Ok(())
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> block::Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size())?;
        let mut extents = Extents::new(range, extents_max);
        let granules = range.granules_touched();
        let walked = self.each_run(granules, &mut |run| {
            let chunks = GranuleRange {
                start: run.start,
                end: run.end(),
            };
            match extents.data(chunks.bytes(self.size())) {
                true => Ok(()),
                // Ends the walk; what was found is a good answer.
                false => Err(StoreError::Invalid("enough")),
            }
        });
        match walked {
            Err(e) if !extents.is_full() => Err(device_error(Op::BlockStatus, range, e)),
            _ => Ok(extents.finish()),
        }
    }

    fn prefetch(&self, range: ByteRange) -> block::Result<()> {
        Error::check_range(Op::Prefetch, range, self.size())
    }
}

/// Data runs, in order, as extents without gaps.
struct Extents {
    range: ByteRange,
    found: Vec<Extent>,
    extents_max: usize,
}

impl Extents {
    fn new(range: ByteRange, extents_max: usize) -> Self {
        Self {
            range,
            found: Vec::new(),
            extents_max,
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() > self.extents_max
    }

    fn end(&self) -> u64 {
        let last = self.found.last();
        last.map_or(self.range.start(), |extent| extent.range.end())
    }

    fn push(&mut self, to: u64, state: ExtentState) {
        let to = to.min(self.range.end());
        let from = match self.found.last() {
            Some(last) if last.state == state => {
                self.found.pop().expect("there is a last").range.start()
            }
            _ => self.end(),
        };
        if let Some(range) = ByteRange::new(from, to).filter(|range| !range.is_empty()) {
            self.found.push(Extent { range, state });
        }
    }

    /// Whether more is wanted. One extent more than asked is collected: only then is the last
    /// one asked for complete.
    fn data(&mut self, data: ByteRange) -> bool {
        if data.start() > self.end() {
            self.push(data.start(), ExtentState::Hole);
        }
        self.push(data.end(), ExtentState::Data);
        !self.is_full()
    }

    fn finish(mut self) -> Vec<Extent> {
        if !self.is_full() && self.end() < self.range.end() {
            self.push(self.range.end(), ExtentState::Hole);
        }
        self.found.truncate(self.extents_max.max(1));
        self.found
    }
}

/// Where the chunks of an image lie, for a writer that asks about chunk after chunk.
pub(crate) struct Locator {
    image: Image,
    leaf: Option<(u64, Vec<Run>)>,
}

impl Locator {
    pub(crate) fn new(image: Image) -> Self {
        Self { image, leaf: None }
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Bytes in memory, about.
    pub(crate) fn held_bytes(&self) -> usize {
        let leaf = self.leaf.as_ref().map_or(0, |(_, runs)| runs.capacity());
        (self.image.changes.capacity() + leaf) * size_of::<Run>()
    }

    /// Hands on the parts of `run` that differ from the image.
    pub(crate) fn changed_parts(&mut self, run: Run, each: &mut dyn FnMut(Run)) -> Result<()> {
        let range = GranuleRange {
            start: run.start,
            end: run.end(),
        };
        let mut from = run.start;
        let mut pass = |from: u64, to: u64| {
            if let Some(part) = run.clip(GranuleRange {
                start: from,
                end: to,
            }) {
                each(part);
            }
        };
        self.image.each_run(range, &mut |old| {
            let same_data = run
                .place
                .is_some_and(|place| place.after(old.start - run.start) == old.place);
            if run.place.is_none() {
                pass(old.start, old.end());
            } else if same_data {
                pass(from, old.start);
            }
            if run.place.is_none() || same_data {
                from = old.end();
            }
            Ok(())
        })?;
        if run.place.is_some() {
            pass(from, run.end());
        }
        Ok(())
    }

    /// `None` if the chunk is zeroes.
    pub(crate) fn place(&mut self, granule: u64) -> Result<Option<Place>> {
        let leaf = granule / tree::LEAF_CHUNKS;
        if self.leaf.as_ref().is_none_or(|(known, _)| *known != leaf) {
            let node = self.image.leaf_node(leaf)?;
            self.leaf = Some((leaf, self.image.leaf_runs(leaf, node)?));
        }
        let (_, runs) = self.leaf.as_ref().expect("it was just loaded");
        let at = granule % tree::LEAF_CHUNKS;
        let chunk = GranuleRange {
            start: at,
            end: at + 1,
        };
        let run = runs::touching(runs, chunk).first();
        Ok(run.and_then(|run| run.clip(chunk)?.place))
    }
}
