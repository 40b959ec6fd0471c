//! The store: chunks, trees that say where they lie, and the catalog that names them, in one place.
//!
//! ```text
//! format              which store             lease/        the one writer
//! catalog/            points and seeds        headroom/     room for a store that is full to be cleaned
//! keys/               who opens it, if it is encrypted
//! containers/NNNNNN/  chunks                  trees/NNNNNN/ image trees and change lists
//! bundles/NNNNNN/     what collections have moved of both
//! ```
//!
//! Rule: a point is listed only after all that it needs is durable.

use std::sync::Arc;
use std::time::Duration;

use block::{ByteRange, Clock, Name, UnixNanos};
use parking_lot::Mutex;

use crate::backend::Backend;
use crate::catalog::{Catalog, Change, Held, State};
use crate::diff;
use crate::error::{ErrorKind, Result, StoreError};
use crate::explain::{self, ExplainedChunk, ExplainedPoint, ExplainedStore};
use crate::gc::{self, GcOptions, GcReport};
use crate::headroom::Headroom;
use crate::image::Image;
use crate::image_writer::{Base, FinishedImage, ImageWriter};
use crate::lease::Lease;
use crate::objects::Objects;
use crate::packer::Engine;
use crate::pins::Holder;
use crate::pool::Pool;
use crate::records::{PointDraft, PointId, PointRecord, PointRef, SeedDraft, SeedRecord};
use crate::region::ChunkCodec;
use crate::scrub::{self, LastScrub, ScrubOptions, ScrubReport};
use crate::seal::KeyId;
use crate::sweep;
use crate::tree::ImageRef;
use crate::verify::{self, VerifyReport};

pub use around::Around;

mod around;
mod commit;
mod opening;

/// An open store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) place: Arc<dyn Backend>,
    pub(crate) objects: Arc<Objects>,
    pub(crate) catalog: Catalog,
    pub(crate) state: Mutex<State>,
    clock: Arc<dyn Clock>,
    /// The store's time when it was opened, and the machine's then.
    opened: (u64, Duration),
    workers: usize,
    headroom: Headroom,
    /// Names the master key, if the store is encrypted.
    pub(crate) key: Option<KeyId>,
    pub(crate) writer: Option<Writer>,
}

pub(crate) struct Writer {
    pub(crate) engine: Arc<Engine>,
    pool: Arc<Pool>,
    /// Held by the one collection of garbage.
    pub(crate) collecting: Mutex<()>,
    /// Held while an object is healed, and while objects are removed.
    pub(crate) healing: Mutex<()>,
    /// The first failure after which nobody can say what is durable.
    latch: Mutex<Option<Arc<str>>>,
    /// The last to go.
    pub(crate) lease: Lease,
}

/// The images of a store, to read.
#[derive(Clone)]
pub struct Images(Arc<Objects>);

impl Images {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn open(&self, image: &ImageRef) -> Result<Image> {
        Image::open(Arc::clone(&self.0), image)
    }
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// Bytes of all containers and tree objects.
    pub stored_bytes: u64,
    /// Containers.
    pub container_count: u64,
    /// Chunks in them.
    pub chunk_count: u64,
    /// Bytes of containers: compressed chunks and their fingerprints.
    pub container_bytes: u64,
    /// Bytes of trees and change lists.
    pub tree_bytes: u64,
    /// Bytes of objects that nothing needs any more, and that will be removed. They are in no other figure.
    pub quarantined_bytes: u64,
    /// Points listed.
    pub point_count: u64,
    /// Fingerprints that the index in memory holds; 0 for a reader.
    pub index_entries: u64,
}

/// The index of a writer: a cache that every opening builds anew from the manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFigures {
    /// Containers.
    pub containers: u64,
    /// Chunks in those that can be read.
    pub chunks: u64,
    /// Entries.
    pub entries: u64,
    /// One in 2 to this many chunks has an entry.
    pub sampling: u32,
    /// Objects with containers that cannot be read: nothing is built on them.
    pub damaged: Vec<String>,
}

impl Store {
    /// All points, in the order of their commits.
    #[must_use]
    pub fn points(&self) -> Vec<Arc<PointRecord>> {
        self.inner.state.lock().points.clone()
    }

    /// A point by name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn point(&self, point: &PointRef) -> Result<Arc<PointRecord>> {
        let found = match point {
            PointRef::Latest(group) => self.newest(group),
            PointRef::Id(id) => {
                let state = self.inner.state.lock();
                state.points.iter().rev().find(|p| p.id == *id).cloned()
            }
        };
        found.ok_or_else(|| StoreError::NoPoint(point.to_string()))
    }

    /// A group's newest point.
    #[must_use]
    pub fn newest(&self, group: &Name) -> Option<Arc<PointRecord>> {
        let state = self.inner.state.lock();
        let of_group = |point: &&Arc<PointRecord>| point.id.group == *group;
        state.points.iter().rev().find(of_group).cloned()
    }

    /// A group's seed, if one is under way.
    #[must_use]
    pub fn seed(&self, group: &Name) -> Option<Arc<SeedRecord>> {
        self.inner.state.lock().seeds.get(group).cloned()
    }

    /// All seeds, by group.
    #[must_use]
    pub fn seeds(&self) -> Vec<Arc<SeedRecord>> {
        let state = self.inner.state.lock();
        state.seeds.values().cloned().collect()
    }

    /// Begins an image. Any number may be written at the same time.
    ///
    /// # Errors
    /// `Invalid` for a reader or an impossible size; `Corrupt`, `Io` if the base cannot be opened.
    pub fn image_writer(&self, base: Base) -> Result<ImageWriter> {
        let writer = self.inner.writer()?;
        writer.check_latch()?;
        let holder = writer.engine.pins.holder();
        let base = match base {
            Base::Empty { size } => ImageRef::empty(size),
            Base::Image(image) if self.inner.pin(&holder, &image) => image,
            Base::Image(_) => return Err(StoreError::NoImage),
        };
        let (engine, pool) = (Arc::clone(&writer.engine), Arc::clone(&writer.pool));
        ImageWriter::new(engine, pool, holder, base)
    }

    /// Lists a point. It is durable, with all that it needs, when this returns. Ends the group's seed.
    ///
    /// # Errors
    /// `Fenced` if a newer writer has taken over, `Invalid`, `Full`, `Io`: nothing is listed.
    /// After a failed sync the store must be opened again.
    pub fn commit_point(&self, draft: PointDraft) -> Result<Arc<PointRecord>> {
        let images = draft.disks.iter().map(|(_, image)| image);
        self.inner.check_holders(images)?;
        let mut state = self.inner.state.lock();
        let sequence = state.next_number(&draft.group);
        let point = Arc::new(draft.to_record(sequence)?);
        let change = Change::AddPoint(Arc::clone(&point));
        // The draft's images are pinned until the catalog holds them.
        self.inner.commit(&mut state, change)?;
        Ok(point)
    }

    /// The same for a point of another store, under the number that it has there.
    ///
    /// # Errors
    /// As [`commit_point`](Self::commit_point); `Invalid` if the group has given the number, or a later one, already.
    pub fn commit_replica(&self, draft: &PointDraft, sequence: u64) -> Result<Arc<PointRecord>> {
        self.commit_copy(draft, sequence, |state, point| {
            let is_new = sequence >= state.next_number(&draft.group);
            is_new.then_some(Change::AddPoint(point))
        })
    }

    /// The same for a point whose commit was lost.
    pub(crate) fn commit_returned(
        &self,
        draft: &PointDraft,
        sequence: u64,
    ) -> Result<Arc<PointRecord>> {
        self.commit_copy(draft, sequence, |state, point| {
            let is_listed = state.points.iter().any(|listed| listed.id == point.id);
            (!is_listed).then_some(Change::ReturnPoint(point))
        })
    }

    /// Lists a copy of a point under its number, unless `change` says that it may not be.
    fn commit_copy(
        &self,
        draft: &PointDraft,
        sequence: u64,
        change: impl FnOnce(&State, Arc<PointRecord>) -> Option<Change>,
    ) -> Result<Arc<PointRecord>> {
        let images = draft.disks.iter().map(|(_, image)| image);
        self.inner.check_holders(images)?;
        let point = Arc::new(draft.to_record(sequence)?);
        let mut state = self.inner.state.lock();
        let sentence = "this store has given the number of the point, or a later one, already";
        let change = change(&state, Arc::clone(&point)).ok_or(StoreError::Invalid(sentence))?;
        self.inner.commit(&mut state, change)?;
        Ok(point)
    }

    /// The number that a group's next point gets.
    #[must_use]
    pub fn next_number(&self, group: &Name) -> u64 {
        self.inner.state.lock().next_number(group)
    }

    /// Saves the progress of a group's seed, in place of what was saved before. Durable when this
    /// returns.
    ///
    /// # Errors
    /// As [`commit_point`](Self::commit_point).
    pub fn save_seed(&self, draft: SeedDraft) -> Result<()> {
        self.inner
            .check_holders(draft.disks.iter().map(|disk| &disk.image))?;
        let seed = Arc::new(draft.to_record()?);
        let mut state = self.inner.state.lock();
        self.inner.commit(&mut state, Change::SaveSeed(seed))
    }

    /// Collects garbage: what no point, seed, open image or image in the making needs. Writers and readers go on.
    ///
    /// # Errors
    /// `Retry` if a collection is running, `Corrupt` if an image's tree cannot be read (then nothing is collected: nobody
    /// knows what it needs), `Fenced`, `Full`, `Io`. What was done before stays done, and is consistent.
    pub fn collect_garbage(&self, options: &GcOptions<'_>) -> Result<GcReport> {
        gc::collect(&self.inner, options)
    }

    /// What holds the space of the store, and when it can be free.
    ///
    /// # Errors
    /// `Corrupt` if a tree cannot be read, `Io`.
    pub fn explain(&self) -> Result<ExplainedStore> {
        explain::store(&self.inner)
    }

    /// What holds the space of a point.
    ///
    /// # Errors
    /// `NotFound`; as [`explain`](Self::explain).
    pub fn explain_point(&self, id: &PointId) -> Result<ExplainedPoint> {
        explain::point(&self.inner, id)
    }

    /// Which points need the chunk at byte `offset` of an image; `None` if that is zeroes.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub fn explain_chunk(&self, image: &ImageRef, offset: u64) -> Result<Option<ExplainedChunk>> {
        explain::chunk(&self.inner, image, offset)
    }

    /// When the store had its first writer; `None` if that is not known any more.
    #[must_use]
    pub fn began_at(&self) -> Option<UnixNanos> {
        Lease::first_at(&*self.inner.place)
    }

    /// Whether an earlier failure left open what is durable: nothing is committed until the store is opened again.
    #[must_use]
    pub fn must_be_opened_again(&self) -> bool {
        let writer = self.inner.writer.as_ref();
        writer.is_some_and(|writer| writer.check_latch().is_err())
    }

    /// What makes chunks and fingerprints as this store has them, for who does that elsewhere.
    ///
    /// # Errors
    /// `NoKey`.
    pub fn codec(&self) -> Result<ChunkCodec> {
        self.inner.objects.codec().cloned()
    }

    /// Whether what it holds is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.inner.key.is_some()
    }

    /// The newest scrub that went over everything.
    #[must_use]
    pub fn last_scrub(&self) -> Option<LastScrub> {
        self.inner.state.lock().scrubbed
    }

    /// Reads and checks every object, and heals what is damaged. Writers and readers go on.
    ///
    /// # Errors
    /// `Io`, `Full`; damage is no error but in the report.
    pub fn scrub(&self, options: &ScrubOptions<'_>) -> Result<ScrubReport> {
        scrub::scrub(&self.inner, options)
    }

    /// Opens an image for reading. A store that writes collects nothing of it while it is open.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn image(&self, image: &ImageRef) -> Result<Image> {
        let pin = match &self.inner.writer {
            None => None,
            Some(writer) => {
                let holder = writer.engine.pins.holder();
                if !self.inner.pin(&holder, image) {
                    return Err(StoreError::NoImage);
                }
                Some(holder)
            }
        };
        let image = Image::open(Arc::clone(&self.inner.objects), image)?;
        Ok(image.pinned(pin))
    }

    /// Reads images of this store, and goes on reading those that were committed by now when the store
    /// is closed. It keeps nobody from writing.
    #[must_use]
    pub fn images(&self) -> Images {
        Images(Arc::clone(&self.inner.objects))
    }

    /// The ranges in which two images of the same size differ, whole granules, in order; from the
    /// trees (and, where places differ, manifests) alone.
    ///
    /// # Errors
    /// `Invalid` if their sizes differ; `Corrupt`, `Io`.
    pub fn diff_images(&self, a: &ImageRef, b: &ImageRef) -> Result<Vec<ByteRange>> {
        diff::diff(&self.image(a)?, &self.image(b)?)
    }

    /// Reads and checks every byte of an image: each chunk against its fingerprint, each node of
    /// the tree against its hash. `progress` is told bytes done and bytes in all, from several
    /// threads.
    ///
    /// # Errors
    /// `Io`; damage is no error but in the report.
    pub fn verify_image(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<VerifyReport> {
        match self.image(image) {
            Ok(image) => verify::verify(&image, self.inner.workers, progress),
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(VerifyReport::lost(image, &e)),
            Err(e) => Err(e),
        }
    }

    /// What the index is.
    ///
    /// # Errors
    /// `Invalid` for a reader, which has none.
    pub fn index(&self) -> Result<IndexFigures> {
        let engine = &self.inner.writer()?.engine;
        let inventory = engine.inventory.lock();
        let held = inventory.containers().iter();
        let unread = held.filter(|(_, held)| held.chunks == 0);
        let damaged = unread.map(|(id, _)| engine.objects.container_path(*id));
        let index = engine.index.lock();
        let sums = inventory.sums();
        Ok(IndexFigures {
            containers: sums.containers,
            chunks: sums.chunks,
            entries: index.len() as u64,
            sampling: index.sampling(),
            damaged: damaged.collect(),
        })
    }

    /// Whether what is listed can be looked at, or can within `most`: not while a commit waits for a place that hangs.
    #[must_use]
    pub fn answers_within(&self, most: Duration) -> bool {
        self.inner.state.try_lock_for(most).is_some()
    }

    /// What the store holds: for a writer as of now, for a reader as of the newest commit it knows.
    #[must_use]
    pub fn figures(&self) -> StoreFigures {
        let state = self.inner.state.lock();
        let held = self.inner.held(&state);
        let writer = self.inner.writer.as_ref();
        let index_entries = writer.map_or(0, |writer| writer.engine.index.lock().len());
        let quarantined = sweep::bytes(&state.quarantine);
        StoreFigures {
            stored_bytes: held.container_bytes + held.tree_bytes,
            container_count: held.containers,
            chunk_count: held.chunks,
            container_bytes: held.container_bytes,
            tree_bytes: held.tree_bytes,
            point_count: state.points.len() as u64,
            index_entries: index_entries as u64,
            quarantined_bytes: quarantined,
        }
    }
}

impl Inner {
    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(StoreError::ReadOnly)
    }

    /// Pins an image that the catalog, or another holder, has at this moment.
    fn pin(&self, holder: &Holder, image: &ImageRef) -> bool {
        let state = self.state.lock();
        let held = state.holds_image(image);
        if held {
            holder.pin_image(image);
        }
        held || holder.share_image(image)
    }

    pub(crate) fn check_holders<'a>(
        &self,
        images: impl Iterator<Item = &'a FinishedImage>,
    ) -> Result<()> {
        let pins = &self.writer()?.engine.pins;
        let mut images = images;
        match images.all(|image| image.holder.is_of(pins)) {
            true => Ok(()),
            false => Err(StoreError::NoImage),
        }
    }

    /// What the store holds: for a writer as of now, for a reader as of the newest commit it knows.
    pub(crate) fn held(&self, state: &State) -> Held {
        let writer = self.writer.as_ref();
        writer.map_or(state.held, |writer| writer.engine.held())
    }

    /// The store's own time, ns since 1970: the clock's when the store was opened, but never before its last commit,
    /// and from then on as long as the machine says that it took. Whoever sets the clock back does not set it back, and
    /// whoever sets it ahead changes nothing until the store is opened again.
    pub(crate) fn now(&self) -> u64 {
        let elapsed = self.clock.monotonic().saturating_sub(self.opened.1);
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.opened.0.saturating_add(elapsed)
    }
}
