//! From an object to the payload in it: past its armor, and healed by it where that is needed.
//!
//! ```text
//! read(object, at) -> plate at its end, else at its front -> where the payload lies
//! damaged? -> heal(object): all of it is read, computed anew, checked; later reads are served from memory
//! ```
//!
//! Rule: healing here changes nothing in the store; a scrub does.

use std::borrow::Cow;
use std::sync::Arc;

use block::index;

use crate::armor::{self, Kind, Owner, PLATE_LEN, Plate};
use crate::backend::is_damage;
use crate::bundle;
use crate::cache::ByteCache;
use crate::codec::Decoded;
use crate::container;
use crate::error::{Result, StoreError};
use crate::place::ObjectId;
use crate::region::ChunkCodec;
use crate::shelf::Shelf;
use crate::tree;

/// Healed payloads in memory, and where payloads lie.
const OPENED_BYTES_MAX: usize = 32 << 20;

/// An object is never larger.
const OBJECT_LEN_MAX: u64 = 64 << 20;

/// The objects of a store as they lie in its place.
pub(crate) struct Opener {
    pub(crate) store: [u8; 16],
    /// None where the store is encrypted, and its key is not known.
    pub(crate) codec: Option<ChunkCodec>,
    pub(crate) containers: Shelf,
    pub(crate) trees: Shelf,
    pub(crate) bundles: Shelf,
    opened: ByteCache<(Kind, ObjectId), Opened>,
}

/// An object that was opened.
enum Opened {
    /// Its payload lies there.
    Lies { at: u64, len: u64 },
    /// It was damaged; this is its payload.
    Healed(Vec<u8>),
}

impl Opener {
    pub(crate) fn new(
        store: [u8; 16],
        codec: Option<ChunkCodec>,
        [containers, trees, bundles]: [Shelf; 3],
    ) -> Self {
        Self {
            store,
            codec,
            containers,
            trees,
            bundles,
            opened: ByteCache::new(OPENED_BYTES_MAX),
        }
    }

    pub(crate) fn shelf(&self, kind: Kind) -> &Shelf {
        match kind {
            Kind::Container => &self.containers,
            Kind::Tree => &self.trees,
            Kind::Bundle => &self.bundles,
            _ => unreachable!("what the catalog consists of lies on no shelf"),
        }
    }

    /// What is created from now on lies in folders of its own.
    pub(crate) fn begin_folders(&self) {
        for shelf in [&self.containers, &self.trees, &self.bundles] {
            shelf.begin_folder();
        }
    }

    pub(crate) fn path(&self, kind: Kind, id: ObjectId) -> String {
        self.shelf(kind).path(id)
    }

    /// Whether an object of that name is a container, a tree object or a bundle.
    pub(crate) fn is_on_a_shelf(&self, object: &str) -> bool {
        let shelves = [&self.containers, &self.trees, &self.bundles];
        shelves.into_iter().any(|shelf| shelf.holds(object))
    }

    fn owner(&self, kind: Kind, id: ObjectId) -> Owner {
        Owner {
            store: self.store,
            kind,
            id: id.0,
        }
    }

    /// Creates the object for a payload. Returns its length.
    pub(crate) fn put(&self, kind: Kind, id: ObjectId, payload: &[u8], epoch: u64) -> Result<u64> {
        let object = armor::wrap(self.owner(kind, id), payload);
        if object.len() as u64 > OBJECT_LEN_MAX {
            // It could not be read back.
            let sentence = "an object would be longer than objects may be; this is a bug";
            return Err(StoreError::Invalid(sentence));
        }
        self.shelf(kind).put(id, &object, epoch)?;
        Ok(object.len() as u64)
    }

    /// Length of an object's payload.
    pub(crate) fn payload_len(&self, kind: Kind, id: ObjectId) -> Result<u64> {
        Ok(match &*self.open(kind, id)? {
            Opened::Lies { len, .. } => *len,
            Opened::Healed(payload) => payload.len() as u64,
        })
    }

    /// Fills `buf` from byte `at` of an object's payload.
    pub(crate) fn read(&self, kind: Kind, id: ObjectId, at: u64, buf: &mut [u8]) -> Result<()> {
        const CUT: &str = "it is cut off";
        let cut = || StoreError::corrupt(self.path(kind, id), CUT);
        let end = at.checked_add(buf.len() as u64).ok_or_else(cut)?;
        match &*self.open(kind, id)? {
            Opened::Lies { at: from, len } if end <= *len => {
                self.shelf(kind).read(id, from + at, buf, CUT)
            }
            Opened::Healed(payload) if end <= payload.len() as u64 => {
                buf.copy_from_slice(&payload[index(at)..index(end)]);
                Ok(())
            }
            _ => Err(cut()),
        }
    }

    fn open(&self, kind: Kind, id: ObjectId) -> Result<Arc<Opened>> {
        if let Some(opened) = self.opened.get(&(kind, id)) {
            return Ok(opened);
        }
        let opened = Arc::new(self.find_payload(kind, id)?);
        self.opened.put((kind, id), Arc::clone(&opened), 64);
        Ok(opened)
    }

    fn find_payload(&self, kind: Kind, id: ObjectId) -> Result<Opened> {
        const CUT: &str = "its length is impossible";
        let shelf = self.shelf(kind);
        let len = shelf.len(id)?;
        let corrupt = |what: &'static str| StoreError::corrupt(shelf.path(id), what);
        if len > OBJECT_LEN_MAX {
            return Err(corrupt(CUT));
        }
        let owner = self.owner(kind, id);
        // Objects of version 1 may be shorter than a plate.
        let mut plate = vec![0; index(len).min(PLATE_LEN)];
        for at in [len.saturating_sub(PLATE_LEN as u64), 0] {
            shelf.read(id, at, &mut plate, CUT)?;
            match Plate::decode(&plate, owner) {
                Ok(plate) if plate.fits(len) => {
                    let payload = plate.payload();
                    let (at, len) = (payload.start as u64, payload.len() as u64);
                    return Ok(Opened::Lies { at, len });
                }
                Ok(_) => return Err(corrupt("its length is not what its armor says")),
                // Half of its armor is damaged: what is whole of it says where the payload lies.
                Err(_) => {}
            }
        }
        // Version 1 had no armor.
        let magic = match kind {
            Kind::Container => container::MAGIC,
            Kind::Tree => tree::MAGIC,
            _ => return Err(corrupt("both ends of its armor are damaged")),
        };
        if plate.starts_with(&magic) {
            return Ok(Opened::Lies { at: 0, len });
        }
        Err(corrupt("its header is damaged, or both ends of its armor"))
    }

    /// What `read` gives; where that is damage of the object, what it gives once the object is healed in memory.
    pub(crate) fn healing<T>(
        &self,
        kind: Kind,
        id: ObjectId,
        read: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let error = match read() {
            Err(StoreError::Io { source, object, .. }) if is_damage(&source) => {
                let what = format!("it cannot be read ({source})");
                StoreError::corrupt(object, what)
            }
            Err(error @ StoreError::Corrupt { .. }) => error,
            other => return other,
        };
        let cached = self.opened.get(&(kind, id));
        if cached.is_some_and(|opened| matches!(*opened, Opened::Healed(_))) {
            return Err(error);
        }
        match self.heal(kind, id) {
            Ok(()) => read(),
            Err(StoreError::Corrupt { .. }) => Err(error),
            Err(other) => Err(other),
        }
    }

    fn heal(&self, kind: Kind, id: ObjectId) -> Result<()> {
        let bytes = self.read_object(kind, id)?;
        let (payload, _) = self.healed_payload(kind, id, &bytes)?;
        let object = self.path(kind, id);
        tracing::warn!(
            object,
            "an object is damaged, and was healed to be read; a scrub puts it right"
        );
        let footprint = payload.len() + 64;
        let opened = Arc::new(Opened::Healed(payload.into_owned()));
        self.opened.put((kind, id), opened, footprint);
        Ok(())
    }

    /// All bytes of an object as they lie there.
    pub(crate) fn read_object(&self, kind: Kind, id: ObjectId) -> Result<Vec<u8>> {
        self.shelf(kind).read_whole(id, OBJECT_LEN_MAX)
    }

    /// Whether an object is as it was written, by the checksums of its armor.
    pub(crate) fn is_intact(&self, kind: Kind, id: ObjectId, object: &[u8]) -> bool {
        armor::is_intact(object, self.owner(kind, id))
    }

    /// The payload of an object with all its checks done, healed if need be, and how many bytes were damaged.
    pub(crate) fn healed_payload<'a>(
        &self,
        kind: Kind,
        id: ObjectId,
        object: &'a [u8],
    ) -> Result<(Cow<'a, [u8]>, u64)> {
        let failed = |malformed| StoreError::malformed(self.path(kind, id), malformed);
        let owner = self.owner(kind, id);
        match armor::heal(object, owner) {
            Ok(healed) => {
                let checked = self.check_payload(kind, &healed.payload, id);
                checked.map_err(failed)?;
                Ok((healed.payload, healed.damaged_bytes))
            }
            Err(no_armor) => match self.check_payload(kind, object, id) {
                Ok(()) => Ok((object.into(), 0)),
                Err(_) => Err(failed(no_armor)),
            },
        }
    }

    /// Puts a healed object in place of the damaged one.
    pub(crate) fn replace(
        &self,
        kind: Kind,
        id: ObjectId,
        payload: &[u8],
        epoch: u64,
    ) -> Result<()> {
        let object = armor::wrap(self.owner(kind, id), payload);
        self.shelf(kind).replace(id, &object, epoch)?;
        self.opened.forget(&(kind, id));
        Ok(())
    }

    /// Nothing of an object is kept in memory any more.
    pub(crate) fn forget(&self, kind: Kind, id: ObjectId) {
        self.opened.forget(&(kind, id));
    }

    /// Checks every byte of a payload.
    fn check_payload(&self, kind: Kind, payload: &[u8], id: ObjectId) -> Decoded<()> {
        let (store, codec) = (self.store, self.codec.as_ref());
        match kind {
            Kind::Container => container::check_whole(payload, store, id, codec).map(drop),
            Kind::Tree => tree::check_object(payload, store, id),
            _ => {
                for section in bundle::decode(payload, store, id)? {
                    // Sections lie in the bundle: that was just checked.
                    let bytes = &payload[section.at as usize..][..section.len as usize];
                    if section.kind == Kind::Container {
                        container::check_whole(bytes, store, section.id, codec)?;
                    }
                }
                Ok(())
            }
        }
    }
}
