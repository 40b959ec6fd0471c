//! The packer of one image writer: new chunks in stream order become regions, regions a container.
//!
//! ```text
//! add(chunk) -> raw region (128 KiB) --job--> compressed
//!                     |  container closed: 4096 slots, or about 4 MiB stored (16 in object stores)
//!                     +--job--> waits for its regions, lays them out, puts the object, tells the index
//! ```
//!
//! A chunk has its place at once, long before its container exists. Rule: nobody but this writer
//! learns of a place before the container was put, and the writer's image is finished only after
//! all of its containers were.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, bounded};
use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::armor::Kind;
use crate::container;
use crate::error::{Result, StoreError, io_error};
use crate::fingerprint::{CHUNK, Fingerprint};
use crate::index::Index;
use crate::inventory::{HeldContainer, Inventory};
use crate::objects::Objects;
use crate::pins::{Holder, Pins};
use crate::place::{ObjectId, Place, SLOTS_MAX};
use crate::pool::Pool;
use crate::region::{ChunkCodec, PackedRegion, REGION_CHUNKS_MAX};

/// What the jobs of a writing store share.
pub(crate) struct Engine {
    pub(crate) objects: Arc<Objects>,
    pub(crate) index: Mutex<Index>,
    pub(crate) epoch: u64,
    pub(crate) inventory: Mutex<Inventory>,
    pub(crate) pins: Arc<Pins>,
    /// More runs in the change lists of an image are folded into its tree.
    pub(crate) list_runs_max: usize,
    /// How long containers should be.
    pub(crate) container_bytes: u64,
    /// Containers of one image writer that are closed but not put, at most.
    pub(crate) closed_max: usize,
}

/// Lays new chunks into containers.
pub(crate) struct Packer {
    engine: Arc<Engine>,
    pool: Arc<Pool>,
    holder: Arc<Holder>,
    open: Option<Container>,
    closed: VecDeque<Closed>,
    /// Bytes of the containers that were put.
    pub(crate) put_bytes: u64,
}

/// The container that is being filled.
struct Container {
    id: ObjectId,
    chunks: Chunks,
    raw: Vec<u8>,
    regions: Vec<Receiver<PackedRegion>>,
    stored: Arc<AtomicU64>,
    raw_submitted: u64,
}

/// A container's fingerprints, by slot and by content.
#[derive(Default)]
struct Chunks {
    fingerprints: Vec<Fingerprint>,
    slots: HashTable<u16>,
}

/// A container that is being put.
struct Closed {
    id: ObjectId,
    chunks: Chunks,
    result: Receiver<Result<u64>>,
}

impl Packer {
    pub(crate) fn new(engine: Arc<Engine>, pool: Arc<Pool>, holder: Arc<Holder>) -> Self {
        Self {
            engine,
            pool,
            holder,
            open: None,
            closed: VecDeque::new(),
            put_bytes: 0,
        }
    }

    /// Where this writer itself has put such a chunk, in a container that others do not know yet.
    pub(crate) fn find(&self, fingerprint: &Fingerprint) -> Option<Place> {
        let open = self.open.iter().map(|c| (c.id, &c.chunks));
        let closed = self.closed.iter().map(|c| (c.id, &c.chunks));
        open.chain(closed).find_map(|(id, chunks)| {
            let slot = chunks.find(fingerprint)?;
            Place::new(id, u64::from(slot))
        })
    }

    /// Takes a chunk that the store lacks.
    pub(crate) fn add(&mut self, fingerprint: Fingerprint, chunk: &[u8]) -> Result<Place> {
        let codec = self.engine.objects.codec()?;
        let open = open(&mut self.open, &self.engine, &self.holder);
        let place = open.place(fingerprint)?;
        open.raw.extend_from_slice(chunk);
        if open.raw.len() == REGION_CHUNKS_MAX * CHUNK {
            open.submit_region(&self.pool, codec);
            self.close_if_full()?;
        }
        Ok(place)
    }

    /// Takes a region whose chunks were checked, as far as that is possible here. Returns the place of each.
    pub(crate) fn add_region(
        &mut self,
        fingerprints: &[Fingerprint],
        region: PackedRegion,
    ) -> Result<Vec<Place>> {
        if let Some(open) = &mut self.open
            && !open.raw.is_empty()
        {
            // Slots are counted through the regions.
            open.submit_region(&self.pool, self.engine.objects.codec()?);
            self.close_if_full()?;
        }
        let open = open(&mut self.open, &self.engine, &self.holder);
        let places = fingerprints.iter().map(|f| open.place(*f));
        let places = places.collect::<Result<_>>()?;
        open.push_region(region);
        self.close_if_full()?;
        Ok(places)
    }

    /// Bytes of the container that is being filled.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, Container::held_bytes)
    }

    fn close_if_full(&mut self) -> Result<()> {
        match &self.open {
            Some(open) if open.is_full(self.engine.container_bytes) => self.close(),
            _ => Ok(()),
        }
    }

    /// Puts what is left, and waits until all containers are put.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.close()?;
        while !self.closed.is_empty() {
            self.settle_oldest()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        if !open.raw.is_empty() {
            open.submit_region(&self.pool, self.engine.objects.codec()?);
        }
        let (answer, result) = bounded(1);
        let engine = Arc::clone(&self.engine);
        let (id, fingerprints) = (open.id, open.chunks.fingerprints.clone());
        let regions = open.regions;
        // Until it is put: the writer may be dropped before.
        let holder = Arc::clone(&self.holder);
        self.pool.submit(move || {
            let _ = answer.send(put_container(&engine, id, fingerprints, regions));
            drop(holder);
        });
        self.closed.push_back(Closed {
            id,
            chunks: open.chunks,
            result,
        });
        while self.closed.len() > self.engine.closed_max {
            self.settle_oldest()?;
        }
        Ok(())
    }

    fn settle_oldest(&mut self) -> Result<()> {
        let Some(oldest) = self.closed.pop_front() else {
            return Ok(());
        };
        self.put_bytes += oldest.result.recv().unwrap_or_else(|_| {
            let path = self.engine.objects.container_path(oldest.id);
            Err(worker_died(path))
        })?;
        Ok(())
    }
}

/// The container that is being filled; a new one if there is none.
fn open<'a>(
    open: &'a mut Option<Container>,
    engine: &Engine,
    holder: &Holder,
) -> &'a mut Container {
    open.get_or_insert_with(|| {
        let id = engine.objects.opener.containers.allocate();
        // It is new: nobody can have doomed it.
        holder.pin_container(id);
        Container::new(id)
    })
}

impl Container {
    fn new(id: ObjectId) -> Self {
        Self {
            id,
            chunks: Chunks::default(),
            raw: Vec::with_capacity(REGION_CHUNKS_MAX * CHUNK),
            regions: Vec::new(),
            stored: Arc::new(AtomicU64::new(0)),
            raw_submitted: 0,
        }
    }

    /// The place of one chunk more.
    fn place(&mut self, fingerprint: Fingerprint) -> Result<Place> {
        let place = Place::new(self.id, self.chunks.push(fingerprint));
        place.ok_or(StoreError::Invalid("the store has run out of containers"))
    }

    fn push_region(&mut self, region: PackedRegion) {
        self.raw_submitted += (region.chunk_count() * CHUNK) as u64;
        let len = region.stored.len() as u64;
        self.stored.fetch_add(len, Ordering::Relaxed);
        let (answer, result) = bounded(1);
        answer.send(region).expect("there is room for one");
        self.regions.push(result);
    }

    fn submit_region(&mut self, pool: &Pool, codec: &ChunkCodec) {
        let raw = std::mem::replace(&mut self.raw, Vec::with_capacity(REGION_CHUNKS_MAX * CHUNK));
        self.raw_submitted += raw.len() as u64;
        let (answer, result) = bounded(1);
        let (stored, codec) = (Arc::clone(&self.stored), codec.clone());
        pool.submit(move || {
            let region = codec.pack(raw);
            stored.fetch_add(region.stored.len() as u64, Ordering::Relaxed);
            let _ = answer.send(region);
        });
        self.regions.push(result);
    }

    fn held_bytes(&self) -> u64 {
        // A fingerprint, and its slot in the table.
        let known = self.chunks.fingerprints.capacity() * (size_of::<Fingerprint>() + 4);
        self.stored.load(Ordering::Relaxed) + (self.raw.capacity() + known) as u64
    }

    /// Regions on their way to the workers are few, so what is stored so far is near enough.
    fn is_full(&self, bytes: u64) -> bool {
        self.chunks.fingerprints.len() + REGION_CHUNKS_MAX > SLOTS_MAX
            || self.stored.load(Ordering::Relaxed) >= bytes
            || self.raw_submitted >= 4 * bytes
    }
}

impl Chunks {
    fn find(&self, fingerprint: &Fingerprint) -> Option<u16> {
        let same = |slot: &u16| self.fingerprints[usize::from(*slot)] == *fingerprint;
        self.slots.find(fingerprint.prefix(), same).copied()
    }

    /// Returns the slot.
    fn push(&mut self, fingerprint: Fingerprint) -> u64 {
        let slot = self.fingerprints.len();
        self.fingerprints.push(fingerprint);
        let narrow = u16::try_from(slot).expect("a container is closed at SLOTS_MAX");
        let fingerprints = &self.fingerprints;
        let hash = |slot: &u16| fingerprints[usize::from(*slot)].prefix();
        self.slots.insert_unique(fingerprint.prefix(), narrow, hash);
        slot as u64
    }
}

/// Returns the length of the object.
fn put_container(
    engine: &Engine,
    id: ObjectId,
    fingerprints: Vec<Fingerprint>,
    regions: Vec<Receiver<PackedRegion>>,
) -> Result<u64> {
    let packed: std::result::Result<Vec<_>, _> = regions.iter().map(Receiver::recv).collect();
    let packed = packed.map_err(|_| worker_died(engine.objects.container_path(id)))?;
    let store = engine.objects.store();
    let (payload, manifest) = container::encode(store, id, fingerprints, None, &packed);
    drop(packed);
    let opener = &engine.objects.opener;
    let bytes = opener.put(Kind::Container, id, &payload, engine.epoch)?;
    let held = HeldContainer {
        chunks: u32::try_from(manifest.chunk_count()).expect("at most SLOTS_MAX"),
        bytes,
        own: true,
    };
    engine.inventory.lock().put_container(id, held);
    engine.index.lock().insert_all(id, &manifest);
    engine.objects.keep_manifest(id, Arc::new(manifest));
    Ok(bytes)
}

fn worker_died(path: String) -> StoreError {
    io_error(
        "create",
        path,
        io::Error::other("a worker thread has ended"),
    )
}
