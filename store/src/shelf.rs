//! A shelf: numbered objects that are created once and never changed, in directories of 4096.
//!
//! ```text
//! containers/000000/000000000001.con      containers/NNNNNN/ holds the ids NNNNNN000..NNNNNNfff
//! an object is written under NAME.tmp-EPOCH, synced, and only then given its NAME
//! ```
//!
//! Rule: whoever sees an object under its name sees all of it, and it stays so through a power cut,
//! once [`Shelf::sync`] returned after it was put.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Dir, File};
use parking_lot::Mutex;

use crate::error::{Result, StoreError};
use crate::place::ObjectId;

const SHARD_BITS: u32 = 12;

/// Marks a file that is being written. Only a writer that holds the lock removes such files.
pub(crate) const TMP_MARK: &str = ".tmp-";

/// Numbered objects of one kind.
pub(crate) struct Shelf {
    root: Arc<dyn Dir>,
    label: &'static str,
    suffix: &'static str,
    shards: Mutex<BTreeMap<u64, Arc<dyn Dir>>>,
    /// Shards with names that are not synced.
    unsynced: Mutex<BTreeSet<u64>>,
    /// Ids from here on do not exist.
    next: AtomicU64,
}

impl Shelf {
    /// The shelf in the directory `label` of the store; ids from `next` on are free.
    pub(crate) fn open(
        store: &dyn Dir,
        label: &'static str,
        suffix: &'static str,
        next: u64,
    ) -> Result<Self> {
        let root = store
            .subdir(label)
            .map_err(|e| io_error("open", label.into(), e))?;
        Ok(Self {
            root,
            label,
            suffix,
            shards: Mutex::new(BTreeMap::new()),
            unsynced: Mutex::new(BTreeSet::new()),
            next: AtomicU64::new(next),
        })
    }

    /// The path of an object in the store.
    pub(crate) fn path(&self, id: ObjectId) -> String {
        format!("{}/{}/{}", self.label, shard_name(id), self.name(id))
    }

    fn name(&self, id: ObjectId) -> String {
        format!("{:012x}.{}", id.0, self.suffix)
    }

    fn shard(&self, shard: u64) -> io::Result<Arc<dyn Dir>> {
        if let Some(dir) = self.shards.lock().get(&shard) {
            return Ok(Arc::clone(dir));
        }
        let dir = self.root.subdir(&format!("{shard:06x}"))?;
        self.shards.lock().insert(shard, Arc::clone(&dir));
        Ok(dir)
    }

    /// The first id that is free.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// An id that nobody else gets.
    pub(crate) fn allocate(&self) -> ObjectId {
        ObjectId(self.next.fetch_add(1, Ordering::AcqRel))
    }

    /// Opens an object that something refers to: it must be there.
    pub(crate) fn get(&self, id: ObjectId) -> Result<Arc<dyn File>> {
        let missing = || StoreError::corrupt(self.path(id), "it is missing");
        if id.0 == 0 || id.0 >= self.next() {
            return Err(missing());
        }
        let opened = self.shard(id.0 >> SHARD_BITS);
        match opened.and_then(|dir| dir.open(&self.name(id))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing()),
            other => other.map_err(|e| io_error("open", self.path(id), e)),
        }
    }

    /// Creates an object. Its name is durable after the next [`sync`](Self::sync).
    pub(crate) fn put(&self, id: ObjectId, bytes: &[u8], epoch: u64) -> Result<()> {
        let failed = |verb| move |e| io_error(verb, self.path(id), e);
        let dir = self.shard(id.0 >> SHARD_BITS).map_err(failed("create"))?;
        put_object(&*dir, &self.name(id), bytes, epoch).map_err(failed("create"))?;
        self.unsynced.lock().insert(id.0 >> SHARD_BITS);
        Ok(())
    }

    /// Makes the names of all objects that were put durable.
    pub(crate) fn sync(&self) -> Result<()> {
        // Held throughout: a second caller must not return before the first one's sync did.
        let mut unsynced = self.unsynced.lock();
        while let Some(shard) = unsynced.first().copied() {
            let synced = self.shard(shard).and_then(|dir| dir.sync());
            synced.map_err(|e| io_error("sync", format!("{}/{shard:06x}", self.label), e))?;
            unsynced.remove(&shard);
        }
        Ok(())
    }

    /// For the one writer, before it writes: removes what crashed writers left half written,
    /// makes every name durable that it may build on, and finds the first free id.
    /// Returns the ids that exist, in order.
    pub(crate) fn recover(&self) -> Result<Vec<ObjectId>> {
        let mut ids = Vec::new();
        let committed_shards = self.next() >> SHARD_BITS;
        for shard in 0.. {
            let path = || format!("{}/{shard:06x}", self.label);
            let dir = self.shard(shard).map_err(|e| io_error("open", path(), e))?;
            let names = dir.list().map_err(|e| io_error("list", path(), e))?;
            // Ids are handed out in order, and few at a time: past the committed ones, an empty
            // directory is the end.
            if names.is_empty() && shard > committed_shards {
                break;
            }
            for name in names {
                if name.contains(TMP_MARK) {
                    dir.remove(&name)
                        .map_err(|e| io_error("remove", format!("{}/{name}", path()), e))?;
                } else if let Some(id) = self.parse_name(&name) {
                    ids.push(id);
                }
            }
            dir.sync().map_err(|e| io_error("sync", path(), e))?;
        }
        // The names of the directories themselves: who made one may not have lived to sync it.
        self.root
            .sync()
            .map_err(|e| io_error("sync", self.label.into(), e))?;
        ids.sort_unstable();
        let next = ids.last().map_or(1, |id| id.0 + 1);
        self.next.fetch_max(next, Ordering::AcqRel);
        Ok(ids)
    }

    fn parse_name(&self, name: &str) -> Option<ObjectId> {
        let digits = name.strip_suffix(self.suffix)?.strip_suffix('.')?;
        let id = ObjectId(u64::from_str_radix(digits, 16).ok()?);
        let legal = (1..ObjectId::END).contains(&id.0) && self.name(id) == name;
        legal.then_some(id)
    }
}

fn shard_name(id: ObjectId) -> String {
    format!("{:06x}", id.0 >> SHARD_BITS)
}

/// Creates the object `name` in `dir`: all of it, or none.
pub(crate) fn put_object(dir: &dyn Dir, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
    let tmp = format!("{name}{TMP_MARK}{epoch}");
    let put = || {
        let file = dir.create(&tmp)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        dir.rename_new(&tmp, name)
    };
    put().inspect_err(|_| {
        // Debris does no harm; the next writer tries again.
        let _ = dir.remove(&tmp);
    })
}

/// Reads a whole small object.
pub(crate) fn read_object(dir: &dyn Dir, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
    let file = dir.open(name)?;
    let len = file.len()?;
    if len > len_max {
        let sentence = "it is far larger than it can be";
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    let mut bytes = vec![0; block::index(len)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

pub(crate) fn io_error(verb: &'static str, object: String, source: io::Error) -> StoreError {
    StoreError::Io {
        verb,
        object,
        source,
    }
}
