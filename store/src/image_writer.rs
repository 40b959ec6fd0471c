//! Writing an image: hash, look up, pack what is new, remember where every chunk lies.
//!
//! ```text
//! chunk -> zeroes? -> 16 fingerprints -> where the last hit goes on? -> packer -> index -> (sampled: neighbours, base)
//!            |               found: checked in its manifest                             not found: packed
//!            +---------------------------> Changes --finish--> a change list, or folded into a tree
//! ```
//!
//! Rule: an image writer that failed once stays failed; the store goes on.

use std::sync::Arc;

use block::{GRANULE, GranuleRange};

use crate::container::Manifest;
use crate::error::{Result, StoreError};
use crate::fingerprint::{AT_ONCE, CHUNK, Fingerprint, ZERO_CHUNK};
use crate::fold::{self, TreeWriter};
use crate::image::{Image, Locator};
use crate::index::Neighbours;
use crate::packer::{Engine, Packer};
use crate::pins::Holder;
use crate::place::{ObjectId, Place};
use crate::pool::Pool;
use crate::runs::{self, Changes, Run};
use crate::tree::{self, ImageRef, LISTS_MAX, ListRef, SIZE_MAX, Shape};
use bounds::Bounds;
pub use received::{CheckedRegion, RegionCheck};
use waiting::Waiting;

mod bounds;
mod held;
mod received;
mod waiting;

/// What a new image starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Zeroes.
    Empty {
        /// Size in bytes, a multiple of 512.
        size: u64,
    },
    /// The content of another image of this store.
    Image(ImageRef),
}

impl Base {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Empty { size } => *size,
            Self::Image(image) => image.size(),
        }
    }
}

/// Writes one image. Dropped without [`finish`](Self::finish) it leaves nothing that counts.
pub struct ImageWriter {
    engine: Arc<Engine>,
    /// Keeps all that the image needs from being collected.
    holder: Arc<Holder>,
    base: ImageRef,
    bounds: Bounds,
    locator: Locator,
    shape: Shape,
    packer: Packer,
    tree: TreeWriter,
    changes: Changes,
    neighbours: Neighbours,
    /// The manifest of the last hit, and the place after it: streams repeat in order.
    expected: Option<(ObjectId, Arc<Manifest>, usize)>,
    waiting: Waiting,
    changed_granules: u64,
    failed: Option<(Arc<str>, crate::ErrorKind)>,
}

/// An image that is complete, but that no point or seed names yet. What it needs is kept while this value, or a clone
/// of it, lives.
#[derive(Clone, Debug)]
pub struct FinishedImage {
    pub(crate) image: ImageRef,
    pub(crate) stored_new_bytes: u64,
    pub(crate) changed_bytes: u64,
    pub(crate) holder: Arc<Holder>,
}

impl FinishedImage {
    /// The image; this process can read it.
    #[must_use]
    pub fn image(&self) -> &ImageRef {
        &self.image
    }

    /// Bytes of the objects that were created for it.
    #[must_use]
    pub fn stored_new_bytes(&self) -> u64 {
        self.stored_new_bytes
    }

    /// Bytes (whole granules) that differ from the base.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.changed_bytes
    }
}

impl ImageWriter {
    /// `holder` has pinned the base.
    pub(crate) fn new(
        engine: Arc<Engine>,
        pool: Arc<Pool>,
        holder: Holder,
        base: ImageRef,
    ) -> Result<Self> {
        let holder = Arc::new(holder);
        if base.size > SIZE_MAX || !base.size.is_multiple_of(block::SECTOR) {
            let sentence = "the size of an image is a multiple of 512, at most 2^60";
            return Err(StoreError::Invalid(sentence));
        }
        let image = Image::open(Arc::clone(&engine.objects), &base)?;
        Ok(Self {
            shape: image.shape,
            bounds: Bounds::of(base.size),
            locator: Locator::new(image),
            packer: Packer::new(Arc::clone(&engine), pool, Arc::clone(&holder)),
            tree: TreeWriter::new(Arc::clone(&engine), Arc::clone(&holder)),
            engine,
            holder,
            base,
            changes: Changes::default(),
            neighbours: Neighbours::default(),
            expected: None,
            waiting: Waiting::default(),
            changed_granules: 0,
            failed: None,
        })
    }

    /// Size of the image in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.base.size
    }

    /// Sets whole granules from `first_granule` on. `data` is a multiple of 4096 bytes; past the end
    /// of a disk whose last granule is short it must be zeroes. Any order will do, ascending is
    /// fast; the last write of a granule wins.
    ///
    /// # Errors
    /// `Invalid` for a call that is not as above, `NoKey` where the store is encrypted and was opened without its key,
    /// `Full`, `Io`, `Corrupt` (of what it builds on). After any but the first two the writer is lost.
    pub fn put(&mut self, first_granule: u64, data: &[u8]) -> Result<()> {
        if !data.len().is_multiple_of(CHUNK) {
            return Err(StoreError::Invalid("an image is written in whole granules"));
        }
        let granules = self
            .bounds
            .granules(first_granule, (data.len() / CHUNK) as u64)?;
        self.bounds.check_tail(granules, data)?;
        self.engine.objects.codec()?;
        let (chunks, _) = data.as_chunks();
        self.guarded(|writer| writer.put_chunks(granules, chunks))
    }

    /// Makes granules zero.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn zero(&mut self, granules: GranuleRange) -> Result<()> {
        let granules = self.bounds.granules(granules.start, granules.count())?;
        if granules.is_empty() {
            return Ok(());
        }
        self.guarded(|writer| writer.put_zeroes(granules))
    }

    /// Completes the image: every chunk is in a container, every container and tree object is put.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn finish(mut self) -> Result<FinishedImage> {
        self.guarded(Self::settle)?;
        self.holder.pin_image(&self.base);
        Ok(FinishedImage {
            holder: self.holder,
            image: self.base,
            stored_new_bytes: self.packer.put_bytes + self.tree.put_bytes,
            changed_bytes: self.changed_granules * GRANULE,
        })
    }

    /// What every call returns after the first failure; none while the writer is of use.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        let (first, kind) = self.failed.as_ref()?;
        Some(StoreError::ImageFailed {
            first: Arc::clone(first),
            kind: *kind,
        })
    }

    /// Latches on the first failure.
    fn guarded(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let done = act(self);
        if let Err(error) = &done {
            self.failed = Some((error.chain().into(), error.kind()));
        }
        done
    }

    fn put_zeroes(&mut self, granules: GranuleRange) -> Result<()> {
        if self.waiting.touches(granules) {
            self.place_waiting(&mut Vec::new())?;
        }
        self.changed_granules += granules.count();
        self.record(Run {
            start: granules.start,
            count: granules.count(),
            place: None,
        })
    }

    fn put_chunks(&mut self, granules: GranuleRange, chunks: &[[u8; CHUNK]]) -> Result<()> {
        // These and what waits are hashed at once; what is left over waits.
        let mut some = Vec::with_capacity(AT_ONCE);
        for (granule, chunk) in (granules.start..).zip(chunks) {
            if *chunk == ZERO_CHUNK {
                self.put_zeroes(GranuleRange {
                    start: granule,
                    end: granule + 1,
                })?;
                continue;
            }
            self.changed_granules += 1;
            some.push((granule, chunk));
            if self.waiting.len() + some.len() == AT_ONCE {
                self.place_waiting(&mut some)?;
            }
        }
        for (granule, chunk) in some {
            self.waiting.push(granule, chunk);
        }
        Ok(())
    }

    /// Places what waits, then `more`, in this order.
    fn place_waiting(&mut self, more: &mut Vec<(u64, &[u8; CHUNK])>) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let all: Vec<_> = waiting.iter().chain(more.drain(..)).collect();
        let chunks: Vec<_> = all.iter().map(|(_, chunk)| *chunk).collect();
        if all.is_empty() {
            return Ok(());
        }
        let fingerprints = self.engine.objects.codec()?.of_chunks(&chunks);
        for ((granule, chunk), fingerprint) in all.into_iter().zip(fingerprints) {
            let place = self.place_of(granule, fingerprint, chunk)?;
            self.record(Run {
                start: granule,
                count: 1,
                place: Some(place),
            })?;
        }
        waiting.clear();
        self.waiting = waiting;
        Ok(())
    }

    fn place_of(&mut self, granule: u64, fingerprint: Fingerprint, chunk: &[u8]) -> Result<Place> {
        match self.place_if_known(Some(granule), &fingerprint)? {
            Some(place) => Ok(place),
            None => self.packer.add(fingerprint, chunk),
        }
    }

    /// Where the store, or this writer, has such a chunk. `granule`: where it belongs, if anywhere.
    fn place_if_known(
        &mut self,
        granule: Option<u64>,
        fingerprint: &Fingerprint,
    ) -> Result<Option<Place>> {
        if let Some(place) = self.expected_hit(fingerprint) {
            return Ok(Some(place));
        }
        if let Some(place) = self.packer.find(fingerprint) {
            return Ok(Some(place));
        }
        self.known(granule, fingerprint)
    }

    /// The chunk after the last hit.
    fn expected_hit(&mut self, fingerprint: &Fingerprint) -> Option<Place> {
        let (id, manifest, slot) = self.expected.as_mut()?;
        if manifest.fingerprint(*slot) != Some(fingerprint) {
            return None;
        }
        let place = Place::new(*id, *slot as u64)?;
        *slot += 1;
        Some(place)
    }

    /// Where the store has such a chunk.
    fn known(&mut self, granule: Option<u64>, fingerprint: &Fingerprint) -> Result<Option<Place>> {
        let (guess, exact) = {
            let index = self.engine.index.lock();
            (index.find(fingerprint), index.is_exact())
        };
        let guess = match guess {
            None if exact => return Ok(None),
            None => match (self.neighbours.find(fingerprint), granule) {
                (None, Some(granule)) => self.locator.place(granule)?,
                (near, _) => near,
            },
            found => found,
        };
        let Some(place) = guess else { return Ok(None) };
        let id = place.container();
        // In this order: what is let go of leaves the inventory before it can be pinned again.
        let pinned = self.holder.pin_container(id);
        if !pinned || !self.engine.inventory.lock().has_container(id) {
            return Ok(None);
        }
        // A container that cannot be read is no place to build on; verifying names it.
        let Ok(manifest) = self.engine.objects.manifest(id) else {
            return Ok(None);
        };
        if manifest.fingerprint(place.slot()) != Some(fingerprint) {
            return Ok(None);
        }
        if !exact {
            self.neighbours.remember(id, &manifest);
        }
        self.expected = Some((id, manifest, place.slot() + 1));
        Ok(Some(place))
    }

    fn record(&mut self, run: Run) -> Result<()> {
        self.changes.set(run);
        if self.changes.count() > self.engine.list_runs_max {
            // Too many to keep: they become part of the tree that this writer builds on.
            self.packer.flush()?;
            self.fold_all()?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.place_waiting(&mut Vec::new())?;
        self.packer.flush()?;
        let runs = self.drop_unchanged()?;
        if !runs.is_empty() {
            self.append(runs)?;
        }
        self.tree.flush()
    }

    /// Gives up the changes, without those that are none: chunks that lie where the base has them.
    fn drop_unchanged(&mut self) -> Result<Vec<Run>> {
        let mut out = Vec::new();
        for run in self.changes.take() {
            self.locator
                .changed_parts(run, &mut |part| runs::push(&mut out, part))?;
        }
        Ok(out)
    }

    /// Lays `runs` over the base: as one change list more where that stays cheap to open, else folded.
    fn append(&mut self, runs: Vec<Run>) -> Result<()> {
        let mut list = self.merged_with_lists(&runs)?;
        let kept = self.base.lists.len() - list.merged;
        let kept_runs: usize = self.base.lists[..kept]
            .iter()
            .map(|l| l.runs as usize)
            .sum();
        // Counted after merging: a run that is written over in its middle becomes two.
        if kept_runs + list.runs.len() > self.engine.list_runs_max {
            runs.into_iter().for_each(|run| self.changes.set(run));
            return self.fold_all();
        }
        let runs = std::mem::take(&mut list.runs);
        self.base.lists.truncate(kept);
        self.base.lists.push(ListRef {
            record: self.tree.add(&tree::encode_list(&runs))?,
            runs: u32::try_from(runs.len()).expect("bounded by LIST_RUNS_MAX"),
        });
        Ok(())
    }

    /// `newest` as the next change list; where that would be one too many, merged with the newest
    /// lists, from the first one on that is no longer than those after it together: so a run is
    /// rewritten a few times only, however many points there are.
    fn merged_with_lists(&self, newest: &[Run]) -> Result<NewList> {
        let lists = &self.base.lists;
        if lists.len() < LISTS_MAX {
            return Ok(NewList {
                runs: newest.to_vec(),
                merged: 0,
            });
        }
        let lengths = lists.iter().map(|list| list.runs as usize);
        let lengths: Vec<usize> = lengths.chain([newest.len()]).collect();
        let short = |i: &usize| lengths[*i] <= lengths[i + 1..].iter().sum();
        let from = (0..lists.len()).find(short).unwrap_or(lists.len() - 1);
        let mut merged = Vec::new();
        for list in &lists[from..] {
            let record = self.engine.objects.list(list, self.shape.granules)?;
            if let tree::Record::List(newer) = &*record {
                merged = runs::overlay(&merged, newer);
            }
        }
        Ok(NewList {
            runs: runs::overlay(&merged, newest),
            merged: lists.len() - from,
        })
    }

    /// Everything, lists and changes, becomes part of the tree.
    fn fold_all(&mut self) -> Result<()> {
        let changes = self.changes.take();
        let all = runs::overlay(&self.locator.image().changes, &changes);
        let root = fold::fold(&mut self.tree, self.base.size, self.base.root, &all)?;
        self.base.root = root;
        self.base.lists.clear();
        let image = Image::open(Arc::clone(&self.engine.objects), &self.base)?;
        self.locator = Locator::new(image);
        Ok(())
    }
}

/// A change list to be, and how many of the newest lists it takes the place of.
struct NewList {
    runs: Vec<Run>,
    merged: usize,
}
