//! Who can open an encrypted store: the master key, wrapped once for each passphrase and key.
//!
//! ```text
//! keys/slots-NUMBER, keys/slots-NUMBER.copy:
//!   "STDNKEY1" | version u32 | store 16 | number u64 | next slot u32 | slots u32: slot..  | crc32c u32, in armor
//! ```
//!
//! The highest number counts. A change creates the next one, and then removes those before it: a passphrase that was taken
//! away opens nothing that is still there. Without any of them nobody opens the store again: therefore the copy.
//!
//! Rule: an object with slots is created only after its slots were opened to the master key that `format` names.

use std::io;
use std::sync::Arc;

use block::{Random, UnixNanos};

use crate::armor::{self, Kind, Owner};
use crate::backend::Backend;
use crate::codec::{self, Decoded, Decoder, Encode};
use crate::error::{Result, StoreError, io_error};
use crate::format::{self, Format};
use crate::region::ChunkCodec;
use crate::seal::{KeyId, MasterKey};
use slot::Slot;

pub use secret::{InvalidSecret, Secret};

mod secret;
mod slot;

const MAGIC: [u8; 8] = *b"STDNKEY1";
const FOLDER: &str = "keys";
pub(crate) const LEN_MAX: u64 = 64 << 10;

/// Most slots of a store.
const SLOTS_MAX: usize = 16;
const LABEL_BYTES_MAX: usize = 256;

/// One of the ways to open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Its number, by which it is removed.
    pub number: u32,
    /// Whether it is a passphrase; else a key.
    pub is_passphrase: bool,
    /// What its owner calls it.
    pub label: String,
    /// When it was made.
    pub made_at: UnixNanos,
}

/// The ways to open an encrypted store.
pub struct Keys {
    place: Arc<dyn Backend>,
    store: [u8; 16],
    key: KeyId,
    slots: Slots,
}

/// An object with slots.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slots {
    number: u64,
    next: u32,
    slots: Vec<Slot>,
}

impl Keys {
    /// Reads what ways there are.
    ///
    /// # Errors
    /// `NotFound` if there is no store, `NoKey` if it is not encrypted, `Corrupt`, `Io`.
    pub fn open(place: &Arc<dyn Backend>) -> Result<Self> {
        let Format { store, key } = format::read(&**place)?;
        let key = key.ok_or(StoreError::NotEncrypted)?;
        Ok(Self {
            place: Arc::clone(place),
            store,
            key,
            slots: newest(&**place, store)?,
        })
    }

    /// The ways to open the store, oldest first.
    #[must_use]
    pub fn slots(&self) -> Vec<KeySlot> {
        self.slots.slots.iter().map(Slot::describe).collect()
    }

    /// One way more: what `with` opens, `new` opens from now on. Returns its number. Needs no lease: protections go on.
    ///
    /// # Errors
    /// `NoKey` if `with` does not open the store, `Retry` if somebody else changes the slots, `Invalid`, `Full`, `Io`.
    pub fn add(
        &mut self,
        with: &Secret,
        new: &Secret,
        label: &str,
        random: &dyn Random,
        at: UnixNanos,
    ) -> Result<u32> {
        if self.slots.slots.len() == SLOTS_MAX {
            return Err(StoreError::Invalid(
                "a store has at most 16 ways to open it",
            ));
        }
        let (_, master) = self.slots.unlock(self.key, with)?;
        let mut slots = self.slots.clone();
        let number = slots.push(&master, new, label, random, at)?;
        self.replace(slots, random)?;
        Ok(number)
    }

    /// One way less. `with` is one that stays: so there always is one that somebody has.
    ///
    /// # Errors
    /// As [`add`](Self::add); `Invalid` for the way that `with` is, or if there is none of that number.
    pub fn remove(&mut self, with: &Secret, number: u32, random: &dyn Random) -> Result<()> {
        let (own, _) = self.slots.unlock(self.key, with)?;
        if own == number {
            let sentence = "the way by which the store is opened just now cannot be taken away; open it by another";
            return Err(StoreError::Invalid(sentence));
        }
        let mut slots = self.slots.clone();
        slots.slots.retain(|slot| slot.number != number);
        if slots.slots.len() == self.slots.slots.len() {
            return Err(StoreError::Invalid(
                "no way to open the store has this number",
            ));
        }
        self.replace(slots, random)
    }

    fn replace(&mut self, mut slots: Slots, random: &dyn Random) -> Result<()> {
        slots.number = self.slots.number + 1;
        create(&*self.place, self.store, &slots, random)?;
        // Until here both old and new ways open the store.
        for number in numbers(&*self.place)? {
            if number < slots.number {
                remove(&*self.place, number)?;
            }
        }
        sync(&*self.place)?;
        self.slots = slots;
        Ok(())
    }
}

/// Makes the key of a new store, and the first ways to open it. `Format` names it.
pub(crate) fn begin(
    place: &dyn Backend,
    store: [u8; 16],
    secrets: &[(Secret, String)],
    random: &dyn Random,
    at: UnixNanos,
) -> Result<KeyId> {
    if secrets.is_empty() || secrets.len() > SLOTS_MAX {
        let sentence = "an encrypted store begins with 1 to 16 ways to open it";
        return Err(StoreError::Invalid(sentence));
    }
    let master = MasterKey::new(random);
    let mut slots = Slots {
        number: next_number(place)?,
        next: 1,
        slots: Vec::new(),
    };
    for (secret, label) in secrets {
        slots.push(&master, secret, label, random, at)?;
    }
    create(place, store, &slots, random)?;
    Ok(master.id())
}

/// For a new store the ways to open another one: they have the same key.
pub(crate) fn begin_like(
    place: &dyn Backend,
    store: [u8; 16],
    like: &dyn Backend,
    random: &dyn Random,
) -> Result<Option<KeyId>> {
    let theirs = format::read(like)?;
    let Some(key) = theirs.key else {
        return Ok(None);
    };
    let slots = Slots {
        number: next_number(place)?,
        ..newest(like, theirs.store)?
    };
    create(place, store, &slots, random)?;
    Ok(Some(key))
}

/// The number of the first slots of a new store: what a crash has left counts no more.
fn next_number(place: &dyn Backend) -> Result<u64> {
    recover(place)?;
    Ok(numbers(place)?.last().map_or(1, |last| last + 1))
}

/// What a store makes chunks with: `None` if it is encrypted, and no secret was given.
pub(crate) fn codec(
    place: &dyn Backend,
    format: &Format,
    secret: Option<&Secret>,
    random: &Arc<dyn Random>,
) -> Result<Option<ChunkCodec>> {
    match (format.key, secret) {
        (None, None) => Ok(Some(ChunkCodec::plain())),
        (None, Some(_)) => Err(StoreError::NotEncrypted),
        (Some(_), None) => Ok(None),
        (Some(key), Some(secret)) => {
            let slots = newest(place, format.store)?;
            let (_, master) = slots.unlock(key, secret)?;
            let keys = master.content_keys(Arc::clone(random));
            Ok(Some(ChunkCodec::sealed(Arc::new(keys))))
        }
    }
}

/// The objects with slots, for a scrub: their names, each with that of its copy, and their owners.
pub(crate) fn objects(place: &dyn Backend, store: [u8; 16]) -> Result<Vec<([String; 2], Owner)>> {
    let numbers = numbers(place)?.into_iter();
    let object = |number| ([name(number), copy_name(number)], owner(store, number));
    Ok(numbers.map(object).collect())
}

/// Whether there are no newer slots than these.
pub(crate) fn counts(place: &dyn Backend, number: u64) -> Result<bool> {
    Ok(numbers(place)?.last().is_none_or(|last| *last <= number))
}

/// Reads an object with slots; the store is the one in its owner.
pub(crate) fn check(bytes: &[u8], owner: Owner) -> Decoded<Vec<u8>> {
    Slots::decode(bytes, owner.store, owner.id)?;
    Ok(bytes.to_vec())
}

impl Slots {
    fn push(
        &mut self,
        master: &MasterKey,
        secret: &Secret,
        label: &str,
        random: &dyn Random,
        at: UnixNanos,
    ) -> Result<u32> {
        if label.len() > LABEL_BYTES_MAX {
            return Err(StoreError::Invalid(
                "a label of a key has at most 256 bytes",
            ));
        }
        let number = self.next;
        let mut slot = Slot::new(number, secret, label, random, at);
        slot.wrap(master, secret)?;
        self.next += 1;
        self.slots.push(slot);
        Ok(number)
    }

    /// The number of the slot that the secret opens, and what is in it.
    fn unlock(&self, key: KeyId, secret: &Secret) -> Result<(u32, MasterKey)> {
        for slot in &self.slots {
            if let Some(master) = slot.unwrap(key, secret)?
                && master.id() == key
            {
                return Ok((slot.number, master));
            }
        }
        Err(StoreError::WrongKey)
    }

    fn encode(&self, store: [u8; 16]) -> Vec<u8> {
        let mut out = codec::begin(MAGIC);
        out.put_bytes(&store);
        out.put_u64(self.number);
        out.put_u32(self.next);
        out.put_count(self.slots.len());
        self.slots.iter().for_each(|slot| slot.put(&mut out));
        codec::seal(out)
    }

    fn decode(bytes: &[u8], store: [u8; 16], number: u64) -> Decoded<Self> {
        let mut d = codec::unseal(bytes, MAGIC)?;
        d.is(Decoder::array, store, "it belongs to another store")?;
        d.is(Decoder::u64, number, "it has another number")?;
        let next = d.u32()?;
        let count = d.count(SLOTS_MAX, slot::LEN_MIN)?;
        let slots = (0..count).map(|_| Slot::decode(&mut d, LABEL_BYTES_MAX));
        let slots = slots.collect::<Decoded<_>>()?;
        d.end()?;
        Ok(Self {
            number,
            next,
            slots,
        })
    }
}

fn owner(store: [u8; 16], number: u64) -> Owner {
    Owner {
        store,
        kind: Kind::Keys,
        id: number,
    }
}

fn name(number: u64) -> String {
    format!("{FOLDER}/slots-{number:016x}")
}

fn copy_name(number: u64) -> String {
    format!("{}.copy", name(number))
}

/// The numbers of the objects with slots that there are, ascending.
fn numbers(place: &dyn Backend) -> Result<Vec<u64>> {
    let listed = place.list(FOLDER);
    let listed = listed.map_err(|e| io_error("list", FOLDER.into(), e))?;
    let mut numbers: Vec<u64> = listed.iter().filter_map(|(name, _)| parse(name)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

fn parse(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("slots-")?;
    let digits = digits.strip_suffix(".copy").unwrap_or(digits);
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16).then_some(number)
}

/// The object with slots that counts.
fn newest(place: &dyn Backend, store: [u8; 16]) -> Result<Slots> {
    /// Changes that a list may not show yet.
    const UNLISTED_MAX: u64 = 16;
    let listed = numbers(place)?.last().copied().unwrap_or(1);
    let mut newest = Err(StoreError::missing(name(listed)));
    for number in listed..listed.saturating_add(UNLISTED_MAX) {
        match read(place, store, number) {
            Err(StoreError::Missing { .. }) if newest.is_ok() => break,
            // Somebody has changed them since they were listed.
            Err(StoreError::Missing { .. }) => {}
            found => newest = Ok(found?),
        }
    }
    newest
}

/// The object or, where that is damaged or gone, its copy.
fn read(place: &dyn Backend, store: [u8; 16], number: u64) -> Result<Slots> {
    let first = read_one(place, store, number, &name(number));
    match first {
        Err(StoreError::Missing { .. } | StoreError::Corrupt { .. }) => {
            read_one(place, store, number, &copy_name(number)).or(first)
        }
        other => other,
    }
}

fn read_one(place: &dyn Backend, store: [u8; 16], number: u64, name: &str) -> Result<Slots> {
    let bytes = match place.read_whole(name, LEN_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::missing(name.to_owned()));
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(StoreError::corrupt(name.to_owned(), e.to_string()));
        }
        other => other.map_err(|e| io_error("read", name.to_owned(), e))?,
    };
    let decode = |bytes: &[u8]| Slots::decode(bytes, store, number);
    let read = armor::read_small(&bytes, owner(store, number), decode);
    let (slots, _) = read.map_err(|malformed| StoreError::malformed(name.to_owned(), malformed))?;
    Ok(slots)
}

/// `Retry` if the number is taken.
fn create(place: &dyn Backend, store: [u8; 16], slots: &Slots, random: &dyn Random) -> Result<()> {
    let object = armor::wrap(owner(store, slots.number), &slots.encode(store));
    // Of no writer: two of us must not write the same temporary file.
    let mut epoch = [0; 8];
    random.fill(&mut epoch);
    let epoch = u64::from_le_bytes(epoch);
    for name in [name(slots.number), copy_name(slots.number)] {
        let created = place.create(&name, &object, epoch);
        created.map_err(|e| io_error("create", name, e))?;
    }
    sync(place)
}

pub(crate) fn remove(place: &dyn Backend, number: u64) -> Result<()> {
    for name in [name(number), copy_name(number)] {
        match place.remove(&name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|e| io_error("remove", name, e))?,
        }
    }
    Ok(())
}

fn recover(place: &dyn Backend) -> Result<()> {
    let recovered = place.recover(FOLDER);
    recovered.map_err(|e| io_error("recover", FOLDER.into(), e))
}

fn sync(place: &dyn Backend) -> Result<()> {
    let synced = place.sync(FOLDER);
    synced.map_err(|e| io_error("sync", FOLDER.into(), e))
}

#[cfg(test)]
mod tests;
