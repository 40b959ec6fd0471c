//! The store: a directory of containers, trees and the catalog that names them.
//!
//! ```text
//! format              "STDNSTO1" version | store 16 | crc32c
//! lease/              the one writer          catalog/      points and seeds
//! containers/NNNNNN/  chunks                  trees/NNNNNN/ image trees and change lists
//! ```
//!
//! Rule: a point is listed only after all that it needs is durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{ByteRange, Clock, Name};
use parking_lot::Mutex;

use crate::backend::{Backend, read_whole};
use crate::catalog::{AppendError, Catalog, Change, Held, State};
use crate::codec::{self, Encode};
use crate::diff;
use crate::error::{ErrorKind, Result, StoreError, io_error};
use crate::image::Image;
use crate::image_writer::{Base, ImageWriter};
use crate::index::{ENTRIES_MAX, Index};
use crate::lease::Lease;
use crate::objects::Objects;
use crate::packer::{Engine, Totals};
use crate::pool::{OnWorker, Pool};
use crate::records::{PointDraft, PointRecord, PointRef, SeedDraft, SeedRecord};
use crate::tree::ImageRef;
use crate::verify::{self, VerifyReport};

const MAGIC: [u8; 8] = *b"STDNSTO1";

/// What a store needs of the world beside its directory.
#[derive(Clone)]
pub struct Around {
    /// The time written on commits; nothing depends on it.
    pub clock: Arc<dyn Clock>,
    /// Threads that compress and write containers; 0: the callers do it themselves.
    pub workers: usize,
    /// What each of them does first.
    pub on_worker: OnWorker,
}

impl Around {
    /// As many workers as processors and one more, since some wait for the disk; at most 9.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = processors.min(8) + 1;
        Self {
            clock,
            workers,
            on_worker: OnWorker::default(),
        }
    }
}

/// An open store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<Objects>,
    catalog: Catalog,
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    workers: usize,
    writer: Option<Writer>,
}

struct Writer {
    lease: Lease,
    engine: Arc<Engine>,
    pool: Arc<Pool>,
    /// The first failure after which nobody can say what is durable.
    latch: Mutex<Option<Arc<str>>>,
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
    /// Points listed.
    pub point_count: u64,
    /// Fingerprints that the index in memory holds; 0 for a reader.
    pub index_entries: u64,
}

impl Store {
    /// Makes a store in an empty place. What a crash in the middle leaves, a second call completes.
    ///
    /// # Errors
    /// `Invalid` if there is a store or anything else; `Full`, `Io`.
    pub fn create(place: &Arc<dyn Backend>) -> Result<()> {
        let names = place
            .list("")
            .map_err(|e| io_error("list", place.describe(), e))?;
        let occupied = |why| StoreError::Occupied {
            dir: place.describe(),
            why,
        };
        if names.iter().any(|name| name == "format") {
            return Err(occupied("it holds a store"));
        }
        if !names.is_empty() {
            return Err(occupied("it is not empty"));
        }
        let failed = |e| io_error("create", "format".into(), e);
        for folder in ["", "lease", "catalog", "containers", "trees"] {
            place.recover(folder).map_err(failed)?;
        }
        let mut format = codec::begin(MAGIC);
        format.put_bytes(uuid::Uuid::new_v4().as_bytes());
        let created = place.create("format", &codec::seal(format), 0);
        created.map_err(failed)?;
        place.sync("").map_err(failed)
    }

    /// Opens a store to read it as it is now. Any number of readers may, beside a writer.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Corrupt` naming what is damaged, `Io`.
    pub fn open_reader(place: &Arc<dyn Backend>, around: Around) -> Result<Self> {
        let store = read_format(&**place)?;
        let catalog = Catalog::open(place, store);
        let state = catalog.load()?;
        catalog.sync()?;
        let next = [state.held.next_container, state.held.next_tree];
        let objects = Arc::new(Objects::open(place, store, next));
        Ok(Self::assemble(objects, catalog, state, around, None))
    }

    /// Opens a store to write to it: the only one who does. Removes what a crashed writer left half
    /// written, and reads the manifests of all containers into the index.
    ///
    /// # Errors
    /// As [`open_reader`](Self::open_reader); `Retry` if somebody else writes.
    pub fn open_writer(place: &Arc<dyn Backend>, around: Around) -> Result<Self> {
        let store = read_format(&**place)?;
        let lease = Lease::take(place, store, around.clock.wall())?;
        // Who created the store may have been killed before its name was durable.
        place
            .sync("")
            .map_err(|e| io_error("sync", place.describe(), e))?;
        let catalog = Catalog::open(place, store);
        catalog.recover()?;
        let state = catalog.load()?;
        let next = [state.held.next_container, state.held.next_tree];
        let objects = Arc::new(Objects::open(place, store, next));
        let engine = Arc::new(Engine {
            index: Mutex::new(Index::new(ENTRIES_MAX)),
            epoch: lease.epoch,
            totals: Totals::default(),
            objects: Arc::clone(&objects),
        });
        engine.recover(state.held.tree_bytes)?;
        let pool = Pool::new(around.workers, &around.on_worker);
        let pool = pool.map_err(|e| io_error("start threads for", place.describe(), e))?;
        let writer = Writer {
            lease,
            engine,
            pool: Arc::new(pool),
            latch: Mutex::new(None),
        };
        Ok(Self::assemble(
            objects,
            catalog,
            state,
            around,
            Some(writer),
        ))
    }

    fn assemble(
        objects: Arc<Objects>,
        catalog: Catalog,
        state: State,
        around: Around,
        writer: Option<Writer>,
    ) -> Self {
        let inner = Inner {
            objects,
            catalog,
            state: Mutex::new(state),
            clock: around.clock,
            workers: around.workers,
            writer,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

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

    /// Begins an image. Any number may be written at the same time.
    ///
    /// # Errors
    /// `Invalid` for a reader or an impossible size; `Corrupt`, `Io` if the base cannot be opened.
    pub fn image_writer(&self, base: Base) -> Result<ImageWriter> {
        let writer = self.inner.writer()?;
        writer.check_latch()?;
        ImageWriter::new(Arc::clone(&writer.engine), Arc::clone(&writer.pool), base)
    }

    /// Lists a point. It is durable, with all that it needs, when this returns. Ends the group's seed.
    ///
    /// # Errors
    /// `Fenced` if a newer writer has taken over, `Invalid`, `Full`, `Io`: nothing is listed.
    /// After a failed sync the store must be opened again.
    pub fn commit_point(&self, draft: PointDraft) -> Result<Arc<PointRecord>> {
        let mut state = self.inner.state.lock();
        let sequence = state.next_number(&draft.group);
        let point = Arc::new(draft.into_record(sequence)?);
        let change = Change::AddPoint(Arc::clone(&point));
        self.inner.commit(&mut state, change)?;
        Ok(point)
    }

    /// Saves the progress of a group's seed, in place of what was saved before. Durable when this
    /// returns.
    ///
    /// # Errors
    /// As [`commit_point`](Self::commit_point).
    pub fn save_seed(&self, draft: SeedDraft) -> Result<()> {
        let seed = Arc::new(draft.into_record()?);
        let mut state = self.inner.state.lock();
        self.inner.commit(&mut state, Change::SaveSeed(seed))
    }

    /// Opens an image for reading.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn image(&self, image: &ImageRef) -> Result<Image> {
        Image::open(Arc::clone(&self.inner.objects), image)
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

    /// What the store holds: for a writer as of now, for a reader as of the newest commit it knows.
    #[must_use]
    pub fn figures(&self) -> StoreFigures {
        let state = self.inner.state.lock();
        let (held, index_entries) = match &self.inner.writer {
            Some(writer) => (writer.engine.held(), writer.engine.index.lock().len()),
            None => (state.held, 0),
        };
        StoreFigures {
            stored_bytes: held.container_bytes + held.tree_bytes,
            container_count: held.containers,
            chunk_count: held.chunks,
            container_bytes: held.container_bytes,
            tree_bytes: held.tree_bytes,
            point_count: state.points.len() as u64,
            index_entries: index_entries as u64,
        }
    }
}

impl Inner {
    fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(StoreError::ReadOnly)
    }

    /// Containers, then trees, then the commit: each durable before the next is begun.
    fn commit(&self, state: &mut State, change: Change) -> Result<()> {
        let writer = self.writer()?;
        writer.check_latch()?;
        writer.lease.check()?;
        let objects = &self.objects;
        let synced = objects
            .containers
            .sync()
            .and_then(|()| objects.trees.sync());
        synced.map_err(|e| writer.latch(e))?;
        let epoch = writer.lease.epoch;
        let at = self.clock.wall().0;
        let held = writer.engine.held();
        match self.catalog.append(state, epoch, at, held, change) {
            Ok(true) => {}
            Ok(false) => {
                writer.lease.check()?;
                let (ours, theirs) = (epoch, epoch + 1);
                return Err(writer.latch(StoreError::Fenced { ours, theirs }));
            }
            Err(AppendError::NotDone(e)) => return Err(e),
            Err(AppendError::Unknown(e)) => return Err(writer.latch(e)),
        }
        if let Err(e) = self.catalog.checkpoint_if_due(state, epoch) {
            tracing::warn!(error = %e, "no checkpoint of the catalog could be written");
        }
        Ok(())
    }
}

impl Writer {
    fn check_latch(&self) -> Result<()> {
        match &*self.latch.lock() {
            None => Ok(()),
            Some(first) => Err(StoreError::Latched {
                first: Arc::clone(first),
            }),
        }
    }

    fn latch(&self, error: StoreError) -> StoreError {
        let mut latch = self.latch.lock();
        latch.get_or_insert_with(|| error.chain().into());
        error
    }
}

impl Engine {
    /// Finds out what the store holds, and fills the index.
    fn recover(&self, tree_bytes: u64) -> Result<()> {
        self.objects.trees.recover()?;
        self.totals.tree_bytes.store(tree_bytes, Ordering::Relaxed);
        let ids = self.objects.containers.recover()?;
        let mut index = self.index.lock();
        for id in ids {
            match self.objects.load_manifest(id) {
                Ok(manifest) => {
                    self.totals.count_container(&manifest);
                    index.insert_all(id, &manifest);
                }
                // It is not built on; verifying a point that needs it says what is lost.
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    tracing::error!(error = %e, "a container is damaged");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn held(&self) -> Held {
        let read = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed);
        Held {
            next_container: self.objects.containers.next(),
            next_tree: self.objects.trees.next(),
            containers: read(&self.totals.containers),
            chunks: read(&self.totals.chunks),
            container_bytes: read(&self.totals.container_bytes),
            tree_bytes: read(&self.totals.tree_bytes),
        }
    }
}

/// The store's id.
fn read_format(place: &dyn Backend) -> Result<[u8; 16]> {
    const FORMAT_LEN_MAX: u64 = 4096;
    let bytes = match read_whole(place, "format", FORMAT_LEN_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let dir = place.describe();
            return Err(StoreError::NotAStore { dir });
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(StoreError::corrupt("format".into(), e.to_string()));
        }
        other => other.map_err(|e| io_error("read", "format".into(), e))?,
    };
    let decode = || {
        let mut d = codec::unseal(&bytes, MAGIC)?;
        let store = d.array()?;
        d.end()?;
        Ok(store)
    };
    decode().map_err(|malformed| StoreError::malformed("format".into(), malformed))
}
