//! Reading containers and tree objects, checked and cached, wherever they lie.
//!
//! | cache | holds | budget |
//! |---|---|---|
//! | manifests | fingerprints and regions of containers | 24 MiB, 190 full containers |
//! | regions | chunks, checked | 24 MiB |
//! | records | nodes of trees, decoded | 12 MiB |
//! | tables | where records lie of tree objects that moved | 4 MiB |
//! | opened | payloads that had to be healed | 32 MiB |
//!
//! Rule: nothing enters a cache before it was checked; what fails a check is healed from its own armor, or an error
//! that names the object.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use block::index;
use parking_lot::RwLock;

use crate::armor::Kind;
use crate::backend::Backend;
use crate::bundle::{self, TreeTable};
use crate::cache::ByteCache;
use crate::codec::{Decoded, Malformed};
use crate::container::{self, Footer, Manifest};
use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, FANOUT, Fingerprint};
use crate::locations::{Locations, Spot};
use crate::opened::Opener;
use crate::place::{ObjectId, Place};
use crate::region::{ChunkCodec, PackedRegion};
use crate::runs::Run;
use crate::shelf::Shelf;
use crate::tree::{self, ListRef, NodeRef, Record, RecordRef};

const MANIFESTS_BYTES_MAX: usize = 24 << 20;
const REGIONS_BYTES_MAX: usize = 24 << 20;
const RECORDS_BYTES_MAX: usize = 12 << 20;
const TABLES_BYTES_MAX: usize = 4 << 20;

/// A container is never larger: 4096 chunks that do not compress, and its manifest.
const CONTAINER_LEN_MAX: u64 = 17 << 20;

/// How many chunks a container of 4 MiB has, if they are compressed to half of what they were.
const CONTAINER_CHUNKS: u64 = 2048;

/// Reads the catalog again: where everything lies now, and the number of the newest commit.
pub(crate) type Refresh = Box<dyn Fn() -> Result<(u64, Arc<Locations>)> + Send + Sync>;

/// The objects of a store.
pub(crate) struct Objects {
    pub(crate) opener: Opener,
    /// With the number of the commit that they are of.
    locations: RwLock<(u64, Arc<Locations>)>,
    /// A collection may move things under the feet of a reader: also of one that was opened with a store that wrote, and
    /// is closed.
    refresh: Refresh,
    manifests: ByteCache<At, Manifest>,
    regions: ByteCache<(At, usize), Vec<u8>>,
    records: ByteCache<RecordKey, Record>,
    tables: ByteCache<At, TreeTable>,
}

/// A container or a tree object, where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct At {
    kind: Kind,
    id: ObjectId,
    /// `None`: it is an object of its own.
    spot: Option<Spot>,
}

impl At {
    /// The object that holds it.
    fn object(&self) -> (Kind, ObjectId) {
        match self.spot {
            Some(spot) => (Kind::Bundle, spot.bundle),
            None => (self.kind, self.id),
        }
    }
}

/// A container's manifest, and where that container lay when it was read.
#[derive(Clone)]
pub(crate) struct Opened {
    at: At,
    pub(crate) manifest: Arc<Manifest>,
}

type RecordKey = (ObjectId, u32, u32, u32);

impl Objects {
    /// `codec`: none where the store is encrypted, and its key is not known. `next`: the first free numbers of containers
    /// and tree objects.
    pub(crate) fn open(
        place: &Arc<dyn Backend>,
        store: [u8; 16],
        codec: Option<ChunkCodec>,
        next: [u64; 3],
        locations: (u64, Arc<Locations>),
        refresh: Refresh,
    ) -> Self {
        let shelves = [
            Shelf::open(place, "containers", "con", next[0]),
            Shelf::open(place, "trees", "tre", next[1]),
            Shelf::open(place, "bundles", "bun", next[2]),
        ];
        Self {
            opener: Opener::new(store, codec, shelves),
            locations: RwLock::new(locations),
            refresh,
            manifests: ByteCache::new(MANIFESTS_BYTES_MAX),
            regions: ByteCache::new(REGIONS_BYTES_MAX),
            records: ByteCache::new(RECORDS_BYTES_MAX),
            tables: ByteCache::new(TABLES_BYTES_MAX),
        }
    }

    pub(crate) fn store(&self) -> [u8; 16] {
        self.opener.store
    }

    /// What chunks are made with; `NoKey` if that is not known here.
    pub(crate) fn codec(&self) -> Result<&ChunkCodec> {
        self.opener.codec.as_ref().ok_or(StoreError::NoKey)
    }

    /// Things lie there by the commit of that number. What an older one says is not believed any more.
    pub(crate) fn set_locations(&self, sequence: u64, locations: Arc<Locations>) {
        let mut known = self.locations.write();
        if sequence >= known.0 {
            *known = (sequence, locations);
        }
    }

    fn at(&self, kind: Kind, id: ObjectId) -> At {
        let (_, locations) = &*self.locations.read();
        let moved = match kind {
            Kind::Container => &locations.containers,
            _ => &locations.trees,
        };
        let spot = moved.get(&id).copied();
        At { kind, id, spot }
    }

    /// Where a container or a tree object has been moved to.
    pub(crate) fn spot(&self, kind: Kind, id: ObjectId) -> Option<Spot> {
        self.at(kind, id).spot
    }

    /// The containers that lie in a bundle, by the catalog.
    pub(crate) fn containers_in(&self, bundle: ObjectId) -> Vec<ObjectId> {
        let (_, locations) = &*self.locations.read();
        let inside = locations.containers.iter();
        let inside = inside.filter(|(_, spot)| spot.bundle == bundle);
        inside.map(|(id, _)| *id).collect()
    }

    /// The containers that an object holds, as far as the catalog says.
    pub(crate) fn containers_of(&self, (kind, id): (Kind, ObjectId)) -> Vec<ObjectId> {
        match kind {
            Kind::Container => vec![id],
            Kind::Bundle => self.containers_in(id),
            _ => Vec::new(),
        }
    }

    /// For who cannot rely on the catalog: finds the objects past those of which it knows.
    pub(crate) fn find_ends(&self) -> Result<()> {
        let opener = &self.opener;
        let mut shelves = [&opener.containers, &opener.trees, &opener.bundles].into_iter();
        shelves.try_for_each(Shelf::find_end)
    }

    /// Where everything lies that has been moved.
    pub(crate) fn locations(&self) -> Arc<Locations> {
        Arc::clone(&self.locations.read().1)
    }

    /// What lies in a bundle, by its own directory.
    pub(crate) fn directory(&self, id: ObjectId) -> Result<Vec<bundle::Section>> {
        self.opener.healing(Kind::Bundle, id, || {
            let damaged =
                |malformed| StoreError::malformed(self.opener.bundles.path(id), malformed);
            let len = self.opener.payload_len(Kind::Bundle, id)?;
            let mut header = [0; bundle::HEADER_LEN];
            self.opener.read(Kind::Bundle, id, 0, &mut header)?;
            let count = bundle::check_header(&header, self.store(), id, len).map_err(damaged)?;
            let mut directory = vec![0; count * bundle::ENTRY_LEN];
            let at = len - (directory.len() + bundle::CRC_LEN) as u64;
            self.opener.read(Kind::Bundle, id, at, &mut directory)?;
            bundle::decode_directory(&directory, at).map_err(damaged)
        })
    }

    /// What a container takes in its place: its object, or its section with its share of the bundle's armor.
    pub(crate) fn container_weight(&self, opened: &Opened) -> Result<u64> {
        match opened.at.spot {
            None => self.opener.containers.len(opened.at.id),
            Some(spot) => Ok(u64::from(spot.len) + u64::from(spot.len) / 98),
        }
    }

    /// Keeps a container at hand for who reads so many of its chunks next, until the returned value is dropped: as
    /// [`Backend::hold`]. One that lies in a bundle is a part of something much larger.
    pub(crate) fn hold(&self, id: ObjectId, chunks: u64) -> Option<Box<dyn Any + Send>> {
        let at = self.at(Kind::Container, id);
        if at.spot.is_some() {
            return None;
        }
        // From a quarter on all of it took fewer bytes than pieces of growing length did (the images of the bench). Where it is not known how
        // many chunks it has, it has as many as most.
        let manifest = self.manifests.get(&at);
        let all = manifest.map_or(CONTAINER_CHUNKS, |manifest| manifest.chunk_count() as u64);
        self.opener.containers.hold(id, 4 * chunks >= all)
    }

    /// All bytes of a container.
    pub(crate) fn container_bytes(&self, opened: &Opened) -> Result<Vec<u8>> {
        let (holder, object) = opened.at.object();
        self.opener.healing(holder, object, || {
            let mut bytes = vec![0; index(self.len(&opened.at)?)];
            self.read(&opened.at, 0, &mut bytes)?;
            Ok(bytes)
        })
    }

    /// A container's name in messages: itself, or what holds it.
    pub(crate) fn container_path(&self, id: ObjectId) -> String {
        let at = self.at(Kind::Container, id);
        let (kind, object) = at.object();
        self.opener.path(kind, object)
    }

    fn damaged(&self, at: &At, malformed: Malformed) -> StoreError {
        let (kind, object) = at.object();
        StoreError::malformed(self.opener.path(kind, object), malformed)
    }

    fn corrupt(&self, at: &At, what: impl Into<crate::error::Cow>) -> StoreError {
        let (kind, object) = at.object();
        StoreError::corrupt(self.opener.path(kind, object), what)
    }

    /// Does `read` where a thing lies; healed if that is damaged, and again where it has been moved to meanwhile.
    fn wherever<T>(&self, kind: Kind, id: ObjectId, read: impl Fn(At) -> Result<T>) -> Result<T> {
        /// Collections in a row that may be faster than one reader.
        const MOVES_MAX: usize = 16;
        let mut at = self.at(kind, id);
        for _ in 0..MOVES_MAX {
            let (holder, object) = at.object();
            let missing = match self.opener.healing(holder, object, || read(at)) {
                Err(missing @ StoreError::Missing { .. }) => missing,
                other => return other,
            };
            if self.at(kind, id) == at {
                self.refresh()?;
            }
            let now = self.at(kind, id);
            if now == at {
                return Err(missing);
            }
            at = now;
        }
        let (holder, object) = at.object();
        self.opener.healing(holder, object, || read(at))
    }

    /// Learns where everything lies by the catalog as it is now.
    pub(crate) fn refresh(&self) -> Result<()> {
        let (sequence, locations) = (self.refresh)()?;
        let bundles = locations
            .containers
            .values()
            .chain(locations.trees.values());
        let last = bundles.map(|spot| spot.bundle.0).max();
        self.opener.bundles.reaches(last.map_or(1, |last| last + 1));
        self.set_locations(sequence, locations);
        Ok(())
    }

    /// Length of a container or a tree object.
    fn len(&self, at: &At) -> Result<u64> {
        match at.spot {
            Some(spot) => Ok(u64::from(spot.len)),
            None => self.opener.payload_len(at.kind, at.id),
        }
    }

    fn read(&self, at: &At, from: u64, buf: &mut [u8]) -> Result<()> {
        let base = match at.spot {
            None => 0,
            Some(spot) => {
                let inside = from + buf.len() as u64 <= u64::from(spot.len);
                if !inside {
                    return Err(self.corrupt(at, "it is cut off"));
                }
                u64::from(spot.at)
            }
        };
        let (holder, object) = at.object();
        self.opener.read(holder, object, base + from, buf)
    }

    /// The manifest of a container.
    pub(crate) fn manifest(&self, id: ObjectId) -> Result<Arc<Manifest>> {
        Ok(self.container(id)?.manifest)
    }

    /// A container's manifest, with what it takes to read its regions.
    pub(crate) fn container(&self, id: ObjectId) -> Result<Opened> {
        self.wherever(Kind::Container, id, |at| {
            if let Some(manifest) = self.manifests.get(&at) {
                return Ok(Opened { at, manifest });
            }
            let manifest = Arc::new(self.load_manifest_at(&at)?);
            self.manifests
                .put(at, Arc::clone(&manifest), manifest.footprint());
            Ok(Opened { at, manifest })
        })
    }

    /// Whether a container lies elsewhere by now.
    pub(crate) fn has_moved(&self, opened: &Opened) -> bool {
        // What the catalog cannot be asked is told by whoever reads next.
        self.refresh().is_ok() && self.at(Kind::Container, opened.at.id) != opened.at
    }

    /// Keeps the manifest of a container that was just put as an object of its own.
    pub(crate) fn keep_manifest(&self, id: ObjectId, manifest: Arc<Manifest>) {
        let at = self.at(Kind::Container, id);
        let bytes = manifest.footprint();
        self.manifests.put(at, manifest, bytes);
    }

    /// Reads a manifest past the cache.
    pub(crate) fn load_manifest(&self, id: ObjectId) -> Result<Manifest> {
        self.wherever(Kind::Container, id, |at| self.load_manifest_at(&at))
    }

    fn load_manifest_at(&self, at: &At) -> Result<Manifest> {
        let damaged = |malformed| self.damaged(at, malformed);
        let len = self.len(at)?;
        let least = (container::HEADER_LEN + container::FOOTER_LEN) as u64;
        if !(least..=CONTAINER_LEN_MAX).contains(&len) {
            return Err(self.corrupt(at, "its length is impossible"));
        }
        // What its header says its footer says, too: for most readers it would be one more way to the place.
        let mut footer = [0; container::FOOTER_LEN];
        self.read(at, len - container::FOOTER_LEN as u64, &mut footer)?;
        let footer = Footer::decode(&footer, self.store(), at.id, len).map_err(damaged)?;
        let mut bytes = vec![0; footer.manifest_len];
        self.read(at, footer.manifest_at, &mut bytes)?;
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
        let found = manifest.fingerprints(place.slot(), index(run.count));
        chunks.copy_from_slice(found.ok_or_else(|| self.no_such_slot(place))?);
        Ok(())
    }

    pub(crate) fn no_such_slot(&self, place: Place) -> StoreError {
        let what = format!(
            "an image refers to slot {} of container {}, which it lacks",
            place.slot(),
            place.container().0
        );
        StoreError::corrupt(self.container_path(place.container()), what)
    }

    /// Copies the chunk at `place`, from byte `from` of it, into `buf`.
    pub(crate) fn read_chunk(&self, place: Place, from: usize, buf: &mut [u8]) -> Result<()> {
        let (chunks, at) = self.following(place.container(), |opened| {
            let (region, at) = self.chunk_in(opened, place)?;
            let chunks = self.region(opened, region)?;
            Ok((chunks, at * CHUNK + from))
        })?;
        buf.copy_from_slice(&chunks[at..at + buf.len()]);
        Ok(())
    }

    /// The region of a place, and which of its chunks it is.
    pub(crate) fn chunk_in(&self, opened: &Opened, place: Place) -> Result<(usize, usize)> {
        let Some(position) = opened.manifest.position(place.slot()) else {
            return Err(self.no_such_slot(place));
        };
        let region = opened.manifest.region_of(position);
        let first = usize::from(opened.manifest.regions[region].first);
        Ok((region, position - first))
    }

    /// Does `read` with an open container; again where that has been moved since its manifest was read.
    pub(crate) fn following<T>(
        &self,
        id: ObjectId,
        read: impl Fn(&Opened) -> Result<T>,
    ) -> Result<T> {
        loop {
            let before = self.at(Kind::Container, id);
            match self.container(id).and_then(|opened| read(&opened)) {
                // What is gone for good lies nowhere else.
                Err(missing @ StoreError::Missing { .. }) => {
                    self.refresh()?;
                    if self.at(Kind::Container, id) == before {
                        return Err(missing);
                    }
                }
                other => return other,
            }
        }
    }

    fn region(&self, opened: &Opened, region: usize) -> Result<Arc<Vec<u8>>> {
        let key = (opened.at, region);
        if let Some(chunks) = self.regions.get(&key) {
            return Ok(chunks);
        }
        let chunks = Arc::new(self.load_region(opened, region)?);
        self.regions.put(key, Arc::clone(&chunks), chunks.len());
        Ok(chunks)
    }

    /// Reads, checks and decompresses a region, past the cache.
    pub(crate) fn load_region(&self, opened: &Opened, region: usize) -> Result<Vec<u8>> {
        let codec = self.codec()?;
        self.stored_region(opened, region, |stored| {
            let chunks = opened.manifest.open_region(region, stored.into(), codec);
            chunks.map(Cow::into_owned)
        })
    }

    /// Reads a region as it lies there.
    pub(crate) fn packed_region(&self, opened: &Opened, region: usize) -> Result<PackedRegion> {
        self.stored_region(opened, region, |stored| {
            opened.manifest.packed(region, stored)
        })
    }

    fn stored_region<T>(
        &self,
        opened: &Opened,
        region: usize,
        check: impl Fn(Vec<u8>) -> Decoded<T>,
    ) -> Result<T> {
        let entry = &opened.manifest.regions[region];
        let at = &opened.at;
        let (holder, object) = at.object();
        self.opener.healing(holder, object, || {
            let mut stored = vec![0; entry.stored as usize];
            self.read(at, u64::from(entry.offset), &mut stored)?;
            check(stored).map_err(|malformed| self.damaged(at, malformed))
        })
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
        decode: impl Fn(&[u8]) -> crate::codec::Decoded<Record>,
    ) -> Result<Arc<Record>> {
        let key = (record.object, record.offset, record.len, record.crc);
        if let Some(found) = self.records.get(&key) {
            return Ok(found);
        }
        let decoded = self.wherever(Kind::Tree, record.object, |at| {
            let bytes = self.record_bytes_at(&at, record)?;
            decode(&bytes).map_err(|malformed| self.damaged(&at, malformed))
        })?;
        let footprint = decoded.footprint();
        let decoded = Arc::new(decoded);
        self.records.put(key, Arc::clone(&decoded), footprint);
        Ok(decoded)
    }

    /// The bytes of a record, checked.
    pub(crate) fn record_bytes(&self, record: &RecordRef) -> Result<Vec<u8>> {
        self.wherever(Kind::Tree, record.object, |at| {
            self.record_bytes_at(&at, record)
        })
    }

    fn record_bytes_at(&self, at: &At, record: &RecordRef) -> Result<Vec<u8>> {
        let wrong = |what| {
            let what = format!("{what} (record at byte {})", record.offset);
            self.corrupt(at, what)
        };
        let offset = match at.spot {
            None => {
                self.check_tree_header(at)?;
                record.offset
            }
            Some(spot) => {
                let found = self.table(at, spot)?.find(record.offset, record.len);
                found.ok_or_else(|| wrong("a record is not there"))?
            }
        };
        let mut bytes = vec![0; record.len as usize];
        self.read(at, u64::from(offset), &mut bytes)
            .map_err(|e| match e {
                StoreError::Corrupt { .. } => wrong("it is cut off"),
                other => other,
            })?;
        if crc32c::crc32c(&bytes) != record.crc {
            return Err(wrong("the checksum of a record does not match"));
        }
        Ok(bytes)
    }

    fn check_tree_header(&self, at: &At) -> Result<()> {
        let expected = tree::begin_object(self.store(), at.id);
        let mut header = vec![0; expected.len()];
        self.read(at, 0, &mut header)?;
        if header != expected {
            return Err(self.corrupt(at, "its header is damaged"));
        }
        Ok(())
    }

    /// Where the records lie of a tree object that moved.
    fn table(&self, at: &At, spot: Spot) -> Result<Arc<TreeTable>> {
        if let Some(table) = self.tables.get(at) {
            return Ok(table);
        }
        let damaged = |malformed| self.damaged(at, malformed);
        let mut head = [0; bundle::TABLE_HEAD_LEN];
        self.read(at, 0, &mut head)?;
        let len = TreeTable::len_of(&head, self.store(), at.id).map_err(damaged)?;
        if len > spot.len as usize {
            return Err(self.corrupt(at, "the table of a section is too long"));
        }
        let mut bytes = vec![0; len];
        self.read(at, 0, &mut bytes)?;
        let table = TreeTable::decode(&bytes, spot.len).map_err(damaged)?;
        let footprint = table.footprint();
        let table = Arc::new(table);
        self.tables.put(*at, Arc::clone(&table), footprint);
        Ok(table)
    }

    pub(crate) fn damaged_record(&self, record: &RecordRef, what: &'static str) -> StoreError {
        let what = format!("{what} (record at byte {})", record.offset);
        self.corrupt(&self.at(Kind::Tree, record.object), what)
    }
}
