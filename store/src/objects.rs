//! Reading containers and tree objects, checked and cached.
//!
//! | cache | holds | budget |
//! |---|---|---|
//! | manifests | fingerprints and regions of containers | 24 MiB, 190 full containers |
//! | regions | chunks, checked | 24 MiB |
//! | records | nodes of trees, decoded | 12 MiB |
//! | headers | tree objects whose header was right | 4096 |
//!
//! Rule: nothing enters a cache before it was checked; what fails a check is an error that names the object.

use std::sync::Arc;

use block::index;

use crate::backend::Backend;
use crate::cache::ByteCache;
use crate::container::{self, Footer, Manifest};
use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, FANOUT, Fingerprint};
use crate::place::{ObjectId, Place};
use crate::runs::Run;
use crate::shelf::Shelf;
use crate::tree::{self, ListRef, NodeRef, Record, RecordRef};

const MANIFESTS_BYTES_MAX: usize = 24 << 20;
const REGIONS_BYTES_MAX: usize = 24 << 20;
const RECORDS_BYTES_MAX: usize = 12 << 20;
const HEADERS_MAX: usize = 4096;

/// A container is never larger: 4 MiB of regions, the last one on top, and its manifest.
const CONTAINER_LEN_MAX: u64 = 17 << 20;

/// The objects of a store.
pub(crate) struct Objects {
    pub(crate) store: [u8; 16],
    pub(crate) containers: Shelf,
    pub(crate) trees: Shelf,
    manifests: ByteCache<ObjectId, Manifest>,
    regions: ByteCache<(ObjectId, usize), Vec<u8>>,
    records: ByteCache<RecordKey, Record>,
    tree_headers: ByteCache<ObjectId, ()>,
}

type RecordKey = (ObjectId, u32, u32, u32);

impl Objects {
    pub(crate) fn open(place: &Arc<dyn Backend>, store: [u8; 16], next: [u64; 2]) -> Self {
        Self {
            store,
            containers: Shelf::open(place, "containers", "con", next[0]),
            trees: Shelf::open(place, "trees", "tre", next[1]),
            manifests: ByteCache::new(MANIFESTS_BYTES_MAX),
            regions: ByteCache::new(REGIONS_BYTES_MAX),
            records: ByteCache::new(RECORDS_BYTES_MAX),
            tree_headers: ByteCache::new(HEADERS_MAX),
        }
    }

    fn damaged_container(&self, id: ObjectId, malformed: crate::codec::Malformed) -> StoreError {
        StoreError::malformed(self.containers.path(id), malformed)
    }

    fn check_tree_header(&self, id: ObjectId) -> Result<()> {
        const WRONG: &str = "its header is damaged";
        if self.tree_headers.get(&id).is_some() {
            return Ok(());
        }
        let expected = tree::begin_object(self.store, id);
        let mut header = vec![0; expected.len()];
        self.trees.read(id, 0, &mut header, WRONG)?;
        if header != expected {
            return Err(StoreError::corrupt(self.trees.path(id), WRONG));
        }
        self.tree_headers.put(id, Arc::new(()), 1);
        Ok(())
    }

    /// The manifest of a container.
    pub(crate) fn manifest(&self, id: ObjectId) -> Result<Arc<Manifest>> {
        if let Some(manifest) = self.manifests.get(&id) {
            return Ok(manifest);
        }
        let manifest = Arc::new(self.load_manifest(id)?);
        self.keep_manifest(id, Arc::clone(&manifest));
        Ok(manifest)
    }

    pub(crate) fn keep_manifest(&self, id: ObjectId, manifest: Arc<Manifest>) {
        let bytes = manifest.footprint();
        self.manifests.put(id, manifest, bytes);
    }

    /// Reads a manifest past the cache.
    pub(crate) fn load_manifest(&self, id: ObjectId) -> Result<Manifest> {
        const CUT: &str = "it is cut off";
        let damaged = |malformed| self.damaged_container(id, malformed);
        let len = self.containers.len(id)?;
        let least = (container::HEADER_LEN + container::FOOTER_LEN) as u64;
        if !(least..=CONTAINER_LEN_MAX).contains(&len) {
            let what = "its length is impossible";
            return Err(StoreError::corrupt(self.containers.path(id), what));
        }
        let read = |at, buf: &mut [u8]| self.containers.read(id, at, buf, CUT);
        let mut header = [0; container::HEADER_LEN];
        read(0, &mut header)?;
        container::check_header(&header, self.store, id).map_err(damaged)?;
        let mut footer = [0; container::FOOTER_LEN];
        read(len - container::FOOTER_LEN as u64, &mut footer)?;
        let footer = Footer::decode(&footer, self.store, id, len).map_err(damaged)?;
        let mut bytes = vec![0; footer.manifest_len];
        read(footer.manifest_at, &mut bytes)?;
        Manifest::decode(&bytes, &footer).map_err(damaged)
    }

    /// The fingerprints of the chunks of a leaf, from its data runs.
    pub(crate) fn leaf_fingerprints(&self, leaf: &[Run]) -> Result<[Fingerprint; FANOUT]> {
        let mut chunks = [Fingerprint::ZERO; FANOUT];
        for run in leaf {
            self.run_fingerprints(run, &mut chunks[index(run.start)..index(run.end())])?;
        }
        Ok(chunks)
    }

    /// The fingerprints of the chunks of a run.
    pub(crate) fn run_fingerprints(&self, run: &Run, chunks: &mut [Fingerprint]) -> Result<()> {
        let Some(place) = run.place else {
            chunks.fill(Fingerprint::ZERO);
            return Ok(());
        };
        let manifest = self.manifest(place.container())?;
        let slots = place.slot()..place.slot() + index(run.count);
        let found = manifest.fingerprints.get(slots);
        chunks.copy_from_slice(found.ok_or_else(|| self.no_such_slot(place))?);
        Ok(())
    }

    fn no_such_slot(&self, place: Place) -> StoreError {
        let what = format!("an image refers to slot {}, which it lacks", place.slot());
        StoreError::corrupt(self.containers.path(place.container()), what)
    }

    /// Copies the chunk at `place`, from byte `from` of it, into `buf`.
    pub(crate) fn read_chunk(&self, place: Place, from: usize, buf: &mut [u8]) -> Result<()> {
        let id = place.container();
        let manifest = self.manifest(id)?;
        let Some(region) = manifest.region_of(place.slot()) else {
            return Err(self.no_such_slot(place));
        };
        let first = usize::from(manifest.regions[region].first_slot);
        let at = (place.slot() - first) * CHUNK + from;
        let chunks = match self.regions.get(&(id, region)) {
            Some(chunks) => chunks,
            None => {
                let chunks = Arc::new(self.load_region(id, &manifest, region)?);
                let bytes = chunks.len();
                self.regions.put((id, region), Arc::clone(&chunks), bytes);
                chunks
            }
        };
        buf.copy_from_slice(&chunks[at..at + buf.len()]);
        Ok(())
    }

    /// Reads, checks and decompresses a region, past the cache.
    pub(crate) fn load_region(
        &self,
        id: ObjectId,
        manifest: &Manifest,
        region: usize,
    ) -> Result<Vec<u8>> {
        let entry = &manifest.regions[region];
        let mut stored = vec![0; entry.stored as usize];
        let at = u64::from(entry.offset);
        self.containers.read(id, at, &mut stored, "it is cut off")?;
        let opened = manifest.open_region(region, &stored);
        opened.map_err(|malformed| self.damaged_container(id, malformed))
    }

    /// A node of a tree.
    pub(crate) fn node(&self, node: &NodeRef, level: u8) -> Result<Arc<Record>> {
        self.record(&node.record, |bytes| Record::decode_node(bytes, level))
    }

    /// A change list of a disk of so many chunks.
    pub(crate) fn list(&self, list: &ListRef, granules: u64) -> Result<Arc<Record>> {
        let decode = |bytes: &[u8]| Record::decode_list(bytes, granules);
        let record = self.record(&list.record, decode)?;
        match &*record {
            Record::List(runs) if runs.len() == list.runs as usize => Ok(record),
            _ => Err(self.damaged_record(&list.record, "a change list has another length")),
        }
    }

    fn record(
        &self,
        record: &RecordRef,
        decode: impl FnOnce(&[u8]) -> crate::codec::Decoded<Record>,
    ) -> Result<Arc<Record>> {
        let key = (record.object, record.offset, record.len, record.crc);
        if let Some(found) = self.records.get(&key) {
            return Ok(found);
        }
        let mut bytes = vec![0; record.len as usize];
        self.check_tree_header(record.object)?;
        let at = u64::from(record.offset);
        let cut = format!("it is cut off (record at byte {at})");
        self.trees.read(record.object, at, &mut bytes, &cut)?;
        if crc32c::crc32c(&bytes) != record.crc {
            return Err(self.damaged_record(record, "the checksum of a record does not match"));
        }
        let decoded = decode(&bytes).map_err(|malformed| {
            StoreError::malformed(self.trees.path(record.object), malformed)
        })?;
        let footprint = decoded.footprint();
        let decoded = Arc::new(decoded);
        self.records.put(key, Arc::clone(&decoded), footprint);
        Ok(decoded)
    }

    pub(crate) fn damaged_record(&self, record: &RecordRef, what: &'static str) -> StoreError {
        let what = format!("{what} (record at byte {})", record.offset);
        StoreError::corrupt(self.trees.path(record.object), what)
    }
}
