//! Making a store, and opening one: to read, or as its one writer.

use std::sync::Arc;

use block::Random;
use parking_lot::Mutex;

use super::{Around, Inner, Store, Writer};
use crate::backend::{Backend, waiting_threads};
use crate::catalog::{Catalog, State};
use crate::error::{Result, StoreError, io_error};
use crate::format::{self, Format};
use crate::headroom::Headroom;
use crate::keys::{self, NewKeys, Secret};
use crate::lease::Lease;
use crate::objects::{Objects, Refresh};
use crate::pool::Pool;
use crate::recover;
use crate::region::ChunkCodec;
use crate::seal::KeyId;
use crate::tree::LIST_RUNS_MAX;

impl Store {
    /// Makes a store in an empty place. What a crash in the middle leaves, a second call completes.
    ///
    /// # Errors
    /// `Invalid` if there is a store or anything else; `Full`, `Io`.
    pub fn create(place: &Arc<dyn Backend>) -> Result<()> {
        Self::create_with(place, |_| Ok(None))
    }

    /// The same for an encrypted store, which each of `secrets` (1 to 16, with what their owners call them) opens.
    ///
    /// # Errors
    /// As [`create_with_keys`](Self::create_with_keys).
    pub fn create_encrypted(
        place: &Arc<dyn Backend>,
        secrets: &[(Secret, String)],
        around: &Around,
    ) -> Result<()> {
        let random = &*around.random;
        let keys = NewKeys::make(secrets, random, around.clock.wall())?;
        Self::create_with_keys(place, &keys, random)
    }

    /// The same for an encrypted store whose key somebody else made: who makes the store need not know it. Where a crash in
    /// the middle leaves keys without a store in a bucket, those must be removed by hand.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with_keys(
        place: &Arc<dyn Backend>,
        keys: &NewKeys,
        random: &dyn Random,
    ) -> Result<()> {
        Self::create_with(place, |store| {
            keys::begin(&**place, store, keys, random).map(Some)
        })
    }

    /// The same for a store that is to have the points of another one: encrypted if that is, and opened by what opens that.
    ///
    /// # Errors
    /// As [`create`](Self::create); `NotFound` if there is no other store.
    pub fn create_replica(
        place: &Arc<dyn Backend>,
        of: &Arc<dyn Backend>,
        around: &Around,
    ) -> Result<()> {
        match NewKeys::of(&**of)? {
            Some(keys) => Self::create_with_keys(place, &keys, &*around.random),
            None => Self::create(place),
        }
    }

    fn create_with(
        place: &Arc<dyn Backend>,
        keys: impl FnOnce([u8; 16]) -> Result<Option<KeyId>>,
    ) -> Result<()> {
        let occupied = |why| StoreError::Occupied {
            dir: place.describe(),
            why,
        };
        if format::is_there(&**place)? {
            return Err(occupied("it holds a store"));
        }
        let empty = place.is_empty();
        if !empty.map_err(|e| io_error("list", place.describe(), e))? {
            return Err(occupied("it is not empty"));
        }
        let failed = |e| io_error("create", "format".into(), e);
        for folder in ["", "lease", "catalog", "containers", "trees"] {
            place.recover(folder).map_err(failed)?;
        }
        let store = *uuid::Uuid::new_v4().as_bytes();
        // Before the store: one whose keys are lost is worth nothing.
        let key = keys(store)?;
        format::create(&**place, &Format { store, key }).map_err(failed)?;
        place.sync("").map_err(failed)
    }

    /// Opens a store to read it as it is now. Any number of readers may, beside a writer. An encrypted one opens without
    /// its key, too: what points hold cannot be read then.
    ///
    /// # Errors
    /// `NotFound` if there is none, `NoKey` if it is not encrypted with the secret that was given, `Corrupt` naming what is
    /// damaged, `Io`.
    pub fn open_reader(place: &Arc<dyn Backend>, around: Around) -> Result<Self> {
        let format = format::read(&**place)?;
        let catalog = Catalog::open(place, format.store);
        let state = catalog.load()?;
        catalog.sync()?;
        Self::reader_of(place, &format, catalog, state, around)
    }

    /// A store to read, by what is known of its catalog.
    pub(crate) fn reader_of(
        place: &Arc<dyn Backend>,
        format: &Format,
        catalog: Catalog,
        state: State,
        around: Around,
    ) -> Result<Self> {
        let store = format.store;
        let codec = around.codec(&**place, format)?;
        let refresh = refresher(Catalog::open(place, store), state.clone());
        let locations = (state.sequence, Arc::clone(&state.locations));
        let objects = Objects::open(place, store, codec, state.next(), locations, refresh);
        let objects = Arc::new(objects);
        Ok(Self::assemble(
            place, format.key, objects, catalog, state, around, None,
        ))
    }

    /// Opens a store to write to it: the only one who does. Removes what a crashed writer left half
    /// written, and reads the manifests of all containers into the index.
    ///
    /// # Errors
    /// As [`open_reader`](Self::open_reader); `Retry` if somebody else writes.
    pub fn open_writer(place: &Arc<dyn Backend>, around: Around) -> Result<Self> {
        let format = format::read(&**place)?;
        let codec = around.codec(&**place, &format)?;
        let lease = Lease::take(place, format.store, &*around.clock, around.lease_term)?;
        Self::writer_with(place, &format, codec, lease, around)
    }

    /// The same for who has the right to.
    pub(crate) fn writer_with(
        place: &Arc<dyn Backend>,
        format: &Format,
        codec: Option<ChunkCodec>,
        lease: Lease,
        around: Around,
    ) -> Result<Self> {
        let store = format.store;
        // Who created the store may have been killed before its name was durable.
        place
            .recover("")
            .map_err(|e| io_error("recover", place.describe(), e))?;
        let catalog = Catalog::open(place, store);
        catalog.recover()?;
        let state = catalog.load()?;
        let locations = (state.sequence, Arc::clone(&state.locations));
        let refresh = refresher(Catalog::open(place, store), state.clone());
        let objects = Objects::open(place, store, codec, state.next(), locations, refresh);
        let objects = Arc::new(objects);
        let engine = recover::engine(
            Arc::clone(&objects),
            lease.epoch,
            &state,
            &**place,
            around.list_runs_max.min(LIST_RUNS_MAX),
        )?;
        let engine = Arc::new(engine);
        if lease.overtook {
            objects.opener.begin_folders();
        }
        let threads = match around.workers {
            0 => 0,
            workers => workers + waiting_threads(&**place),
        };
        let pool = Pool::new(threads, &around.on_worker);
        let pool = pool.map_err(|e| io_error("start threads for", place.describe(), e))?;
        let writer = Writer {
            engine,
            pool: Arc::new(pool),
            collecting: Mutex::new(()),
            healing: Mutex::new(()),
            latch: Mutex::new(None),
            lease,
        };
        let key = format.key;
        let store = Self::assemble(place, key, objects, catalog, state, around, Some(writer));
        store.inner.restore_headroom();
        Ok(store)
    }

    fn assemble(
        place: &Arc<dyn Backend>,
        key: Option<KeyId>,
        objects: Arc<Objects>,
        catalog: Catalog,
        state: State,
        around: Around,
        writer: Option<Writer>,
    ) -> Self {
        let epoch = writer.as_ref().map_or(0, |writer| writer.lease.epoch);
        let inner = Inner {
            place: Arc::clone(place),
            key,
            headroom: Headroom::new(place, around.headroom_bytes, epoch),
            objects,
            catalog,
            opened: (
                around.clock.wall().0.max(state.at),
                around.clock.monotonic(),
            ),
            state: Mutex::new(state),
            clock: around.clock,
            workers: around.workers,
            writer,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What makes chunks for the store in a place, without opening it: for who hands them to somebody else that does.
    ///
    /// # Errors
    /// `NotFound` if there is none, `NoKey` if it is encrypted and nothing that was given opens it, `Io`.
    pub fn codec_at(place: &Arc<dyn Backend>, around: &Around) -> Result<ChunkCodec> {
        let format = format::read(&**place)?;
        let codec = around.codec(&**place, &format)?;
        codec.ok_or(StoreError::NoKey)
    }
}

/// Reads where things lie now.
fn refresher(catalog: Catalog, state: State) -> Refresh {
    let state = Mutex::new(state);
    Box::new(move || {
        let mut state = state.lock();
        catalog.follow(&mut state)?;
        Ok((state.sequence, Arc::clone(&state.locations)))
    })
}
