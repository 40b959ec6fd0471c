//! A shelf: numbered objects that are created once and never changed, in folders of 4096.
//!
//! ```text
//! containers/000000/000000000001.con      containers/NNNNNN/ holds the ids NNNNNN000..NNNNNNfff
//! ```
//!
//! Rule: an object stays through a power cut once [`Shelf::sync`] returned after it was put.

use std::any::Any;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::backend::{Backend, waiting_threads};
use crate::error::{Result, StoreError, io_error};
use crate::place::ObjectId;

const SHARD_BITS: u32 = 12;

/// Numbered objects of one kind.
pub(crate) struct Shelf {
    place: Arc<dyn Backend>,
    label: &'static str,
    suffix: &'static str,
    /// Shards with names that are not synced.
    unsynced: Mutex<BTreeSet<u64>>,
    /// Ids from here on do not exist.
    next: AtomicU64,
}

impl Shelf {
    /// The shelf in the folder `label` of the store; ids from `next` on are free.
    pub(crate) fn open(
        place: &Arc<dyn Backend>,
        label: &'static str,
        suffix: &'static str,
        next: u64,
    ) -> Self {
        Self {
            place: Arc::clone(place),
            label,
            suffix,
            unsynced: Mutex::new(BTreeSet::new()),
            next: AtomicU64::new(next),
        }
    }

    /// The name of an object in the store.
    pub(crate) fn path(&self, id: ObjectId) -> String {
        format!("{}/{}", self.folder(id.0 >> SHARD_BITS), self.name(id))
    }

    /// Whether an object of that name lies here.
    pub(crate) fn holds(&self, object: &str) -> bool {
        let below = object.strip_prefix(self.label);
        below.is_some_and(|below| below.starts_with('/'))
    }

    fn folder(&self, shard: u64) -> String {
        format!("{}/{shard:06x}", self.label)
    }

    fn name(&self, id: ObjectId) -> String {
        format!("{:012x}.{}", id.0, self.suffix)
    }

    /// The first id that is free.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Ids below `next` may exist.
    pub(crate) fn reaches(&self, next: u64) {
        self.next.fetch_max(next, Ordering::AcqRel);
    }

    /// Goes on with the ids of the next folder: those of this one may be taken by a writer that does not know yet that it
    /// is fenced.
    pub(crate) fn begin_folder(&self) {
        self.begin_folder_after(self.next());
    }

    fn begin_folder_after(&self, id: u64) {
        self.reaches(((id >> SHARD_BITS) + 1) << SHARD_BITS);
    }

    /// An id that nobody else gets.
    pub(crate) fn allocate(&self) -> ObjectId {
        ObjectId(self.next.fetch_add(1, Ordering::AcqRel))
    }

    /// How many threads its readers need beside those that compute.
    pub(crate) fn waiting_readers(&self) -> usize {
        waiting_threads(&*self.place)
    }

    /// Length of an object that something refers to: it must be there.
    pub(crate) fn len(&self, id: ObjectId) -> Result<u64> {
        self.existing(id, |path| self.place.len(path))
    }

    /// Fills `buf` from an object that something refers to. `Corrupt` with the sentence `cut` if it is too short.
    pub(crate) fn read(&self, id: ObjectId, at: u64, buf: &mut [u8], cut: &str) -> Result<()> {
        self.existing(id, |path| self.place.read(path, at, buf))
            .map_err(|e| match e {
                StoreError::Io { source, object, .. }
                    if source.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    StoreError::corrupt(object, cut.to_owned())
                }
                other => other,
            })
    }

    /// Keeps an object at hand for who reads a good part of it next: as [`Backend::hold`].
    pub(crate) fn hold(&self, id: ObjectId, worth: bool) -> Option<Box<dyn Any + Send>> {
        self.place.hold(&self.path(id), worth)
    }

    /// The whole of an object that something refers to, around sectors that its disk has lost.
    pub(crate) fn read_whole(&self, id: ObjectId, len_max: u64) -> Result<Vec<u8>> {
        let read = |path: &str| self.place.read_whole(path, len_max);
        self.existing(id, read).map_err(|e| match e {
            StoreError::Io { source, object, .. }
                if source.kind() == io::ErrorKind::InvalidData =>
            {
                StoreError::corrupt(object, source.to_string())
            }
            other => other,
        })
    }

    fn existing<T>(&self, id: ObjectId, read: impl FnOnce(&str) -> io::Result<T>) -> Result<T> {
        let path = self.path(id);
        if id.0 == 0 || id.0 >= self.next() {
            return Err(StoreError::missing(path));
        }
        match read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::missing(path)),
            other => other.map_err(|e| io_error("read", path, e)),
        }
    }

    /// Creates an object. Its name is durable after the next [`sync`](Self::sync).
    pub(crate) fn put(&self, id: ObjectId, bytes: &[u8], epoch: u64) -> Result<()> {
        let path = self.path(id);
        let created = self.place.create(&path, bytes, epoch);
        created.map_err(|e| {
            if e.kind() == io::ErrorKind::AlreadyExists {
                // A writer that is fenced, and does not know it yet, puts objects where no lock keeps it out. In the next
                // folder it will hardly be.
                self.begin_folder_after(id.0);
            }
            io_error("create", path, e)
        })?;
        self.unsynced.lock().insert(id.0 >> SHARD_BITS);
        Ok(())
    }

    /// Puts healed bytes in place of damaged ones. Durable after the next [`sync`](Self::sync).
    pub(crate) fn replace(&self, id: ObjectId, bytes: &[u8], epoch: u64) -> Result<()> {
        let path = self.path(id);
        let replaced = self.place.replace(&path, bytes, epoch);
        replaced.map_err(|e| io_error("replace", path, e))?;
        self.unsynced.lock().insert(id.0 >> SHARD_BITS);
        Ok(())
    }

    /// Removes an object, if it is there. Durable after the next [`sync`](Self::sync).
    pub(crate) fn remove(&self, id: ObjectId) -> Result<()> {
        let path = self.path(id);
        match self.place.remove(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|e| io_error("remove", path, e))?,
        }
        self.unsynced.lock().insert(id.0 >> SHARD_BITS);
        Ok(())
    }

    /// Makes what was put, replaced and removed durable.
    pub(crate) fn sync(&self) -> Result<()> {
        // Held throughout: a second caller must not return before the first one's sync did.
        let mut unsynced = self.unsynced.lock();
        while let Some(shard) = unsynced.first().copied() {
            let folder = self.folder(shard);
            let synced = self.place.sync(&folder);
            synced.map_err(|e| io_error("sync", folder, e))?;
            unsynced.remove(&shard);
        }
        Ok(())
    }

    /// The objects that exist, in order.
    pub(crate) fn list(&self) -> Result<Vec<ObjectId>> {
        let mut ids = Vec::new();
        for folder in self.folders() {
            let names = self.place.list(&folder);
            let names = names.map_err(|e| io_error("list", folder, e))?;
            ids.extend(names.iter().filter_map(|(name, _)| self.parse_name(name)));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// For who cannot rely on the catalog: finds the objects past those of which it knows.
    pub(crate) fn find_end(&self) -> Result<()> {
        let committed_shards = self.next() >> SHARD_BITS;
        for shard in committed_shards.. {
            let folder = self.folder(shard);
            let names = self.place.list(&folder);
            let names = names.map_err(|e| io_error("list", folder, e))?;
            if names.is_empty() && shard > committed_shards {
                return Ok(());
            }
            let ids = names.iter().filter_map(|(name, _)| self.parse_name(name));
            self.reaches(ids.max().map_or(1, |last| last.0 + 1));
        }
        Ok(())
    }

    /// The first id of the next folder: no id below it is given again, whatever was made and removed meanwhile.
    pub(crate) fn next_folder(&self) -> u64 {
        ((self.next() >> SHARD_BITS) + 1) << SHARD_BITS
    }

    /// The folders that hold its objects.
    pub(crate) fn folders(&self) -> impl Iterator<Item = String> {
        (0..=self.next() >> SHARD_BITS).map(|shard| self.folder(shard))
    }

    /// For the one writer, before it writes: removes what crashed writers left half written,
    /// makes every name durable that it may build on, and finds the first free id.
    /// Returns the objects that exist, in order, with their lengths.
    pub(crate) fn recover(&self) -> Result<Vec<(ObjectId, u64)>> {
        let mut ids = Vec::new();
        let committed_shards = self.next() >> SHARD_BITS;
        for shard in 0.. {
            let folder = self.folder(shard);
            let recovered = self.place.recover(&folder);
            recovered.map_err(|e| io_error("recover", folder.clone(), e))?;
            let names = self.place.list(&folder);
            let names = names.map_err(|e| io_error("list", folder, e))?;
            // Ids are handed out in order, and few at a time: past the committed ones, an empty
            // folder is the end.
            if names.is_empty() && shard > committed_shards {
                break;
            }
            let named = |(name, len): &(String, u64)| Some((self.parse_name(name)?, *len));
            ids.extend(names.iter().filter_map(named));
        }
        ids.sort_unstable();
        let next = ids.last().map_or(1, |(id, _)| id.0 + 1);
        self.reaches(next);
        Ok(ids)
    }

    fn parse_name(&self, name: &str) -> Option<ObjectId> {
        let digits = name.strip_suffix(self.suffix)?.strip_suffix('.')?;
        let id = ObjectId(u64::from_str_radix(digits, 16).ok()?);
        let legal = (1..ObjectId::END).contains(&id.0) && self.name(id) == name;
        legal.then_some(id)
    }
}
