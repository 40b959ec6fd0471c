//! Who can open an encrypted store: the master key, wrapped once for each passphrase and key.
//!
//! ```text
//! keys/STORE-NUMBER, keys/STORE-NUMBER.copy:
//!   "STDNKEY1" | version u32 | store 16 | number u64 | next slot u32 | slots u32: slot..  | crc32c u32, in armor
//! ```
//!
//! The highest number counts. A change creates the next one, and then removes those before it; so does the next change, and a
//! scrub, where one was interrupted. Without any of them nobody opens the store again: therefore the copy. The store's id
//! is in the names, so that of two who make a store in one place each has keys of its own, whoever wins.
//!
//! Rule: a change is made by who opens the store, and leaves the way by which that was done.

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
pub use wrapped::{NewKeys, WrappedKey};

mod secret;
mod slot;
mod wrapped;

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

    /// Whether `with` opens the store, and there is room for one way more: to be asked before a key is made for it.
    ///
    /// # Errors
    /// `NoKey`, `Invalid`.
    pub fn check_room(&self, with: &Secret) -> Result<()> {
        self.slots.unlock(self.key, with)?;
        self.slots.check_room()
    }

    /// One way more, for who keeps the store to [`append`](Self::append): what `with` opens, `new` opens then.
    ///
    /// # Errors
    /// `NoKey` if `with` does not open the store, `Invalid`.
    pub fn wrap(
        &self,
        with: &Secret,
        new: &Secret,
        label: &str,
        random: &dyn Random,
        at: UnixNanos,
    ) -> Result<WrappedKey> {
        let (_, master) = self.slots.unlock(self.key, with)?;
        let slot = self.slots.wrap(&master, new, label, random, at)?;
        Ok(WrappedKey(slot))
    }

    /// Adds a way that somebody made who can open the store; whoever has none of its secrets can. Returns its number. Needs no
    /// lease: protections go on.
    ///
    /// # Errors
    /// `Retry` if somebody else changed the slots since it was made, or does now; `Invalid` if there are too many, `Full`,
    /// `Io`.
    pub fn append(&mut self, wrapped: &WrappedKey, random: &dyn Random) -> Result<u32> {
        purge(&*self.place, self.store, self.slots.number)?;
        self.slots.check_room()?;
        let WrappedKey(slot) = wrapped;
        // The key in it is bound to its number.
        if slot.number != self.slots.next()? {
            return Err(StoreError::KeysChanged);
        }
        let mut slots = self.slots.clone();
        slots.push(slot.clone());
        self.replace(slots, random)?;
        Ok(slot.number)
    }

    /// Whether this way is one of them.
    #[must_use]
    pub fn has(&self, wrapped: &WrappedKey) -> bool {
        self.slots.slots.contains(&wrapped.0)
    }

    /// One way less. `with` is one that stays: so there always is one that somebody has.
    ///
    /// # Errors
    /// `NoKey` if `with` does not open the store, and as [`append`](Self::append); `Invalid` for the way that `with` is, or if there is none of that number.
    pub fn remove(&mut self, with: &Secret, number: u32, random: &dyn Random) -> Result<()> {
        let (own, _) = self.slots.unlock(self.key, with)?;
        // Whatever an interrupted change has left; also where this one has nothing more to do.
        purge(&*self.place, self.store, self.slots.number)?;
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
        // Two changes by others, and the second has removed the first: its number was free again.
        if !counts(&*self.place, self.store, slots.number)? {
            purge(&*self.place, self.store, slots.number + 1)?;
            return Err(StoreError::KeysChanged);
        }
        // Until here both old and new ways open the store.
        purge(&*self.place, self.store, slots.number)?;
        self.slots = slots;
        Ok(())
    }
}

/// Gives a new store its key, and the first ways to open it. `Format` names it.
pub(crate) fn begin(
    place: &dyn Backend,
    store: [u8; 16],
    new: &NewKeys,
    random: &dyn Random,
) -> Result<KeyId> {
    recover(place)?;
    create(place, store, &new.slots, random)?;
    Ok(new.key)
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
    let numbers = numbers(place, store)?.into_iter();
    let object = |number| {
        let name = name(store, number);
        ([name.clone(), copy_of(&name)], owner(store, number))
    };
    Ok(numbers.map(object).collect())
}

/// Whether there are no newer slots than these. Lists may be old: it is looked for them.
pub(crate) fn counts(place: &dyn Backend, store: [u8; 16], number: u64) -> Result<bool> {
    Ok(newest(place, store)?.number <= number)
}

/// Removes all slots before these, durably.
pub(crate) fn purge(place: &dyn Backend, store: [u8; 16], number: u64) -> Result<()> {
    // These first: without any nobody opens the store again.
    sync(place)?;
    let listed = numbers(place, store)?.into_iter();
    // What a list does not show yet is among the last.
    let last = number.saturating_sub(UNLISTED_MAX).max(1)..number;
    let mut old: Vec<u64> = listed.filter(|old| *old < number).chain(last).collect();
    old.sort_unstable();
    old.dedup();
    for old in old {
        let name = name(store, old);
        for name in [copy_of(&name), name] {
            match place.remove(&name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|e| io_error("remove", name, e))?,
            }
        }
    }
    sync(place)
}

/// Reads an object with slots; the store is the one in its owner.
pub(crate) fn check(bytes: &[u8], owner: Owner) -> Decoded<Vec<u8>> {
    Slots::decode(bytes, owner.store, owner.id)?;
    Ok(bytes.to_vec())
}

impl Slots {
    /// The first of a store.
    fn begin(next: u32, slots: Vec<Slot>) -> Self {
        Self {
            number: 1,
            next,
            slots,
        }
    }

    fn check_room(&self) -> Result<()> {
        match self.slots.len() < SLOTS_MAX {
            true => Ok(()),
            false => Err(StoreError::Invalid(
                "a store has at most 16 ways to open it",
            )),
        }
    }

    /// The number of the next slot.
    fn next(&self) -> Result<u32> {
        match self.next {
            u32::MAX => Err(StoreError::Invalid(
                "a store has run out of numbers for keys",
            )),
            next => Ok(next),
        }
    }

    /// The slot that is the next one, with the master key in it.
    fn wrap(
        &self,
        master: &MasterKey,
        secret: &Secret,
        label: &str,
        random: &dyn Random,
        at: UnixNanos,
    ) -> Result<Slot> {
        if label.len() > LABEL_BYTES_MAX {
            return Err(StoreError::Invalid(
                "a label of a key has at most 256 bytes",
            ));
        }
        let mut slot = Slot::new(self.next()?, secret, label, random, at);
        slot.wrap(master, secret)?;
        Ok(slot)
    }

    /// The number of the slot is the next one.
    fn push(&mut self, slot: Slot) {
        self.next += 1;
        self.slots.push(slot);
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
        self.put(&mut out);
        codec::seal(out)
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.next);
        out.put_count(self.slots.len());
        self.slots.iter().for_each(|slot| slot.put(out));
    }

    fn decode(bytes: &[u8], store: [u8; 16], number: u64) -> Decoded<Self> {
        let mut d = codec::unseal(bytes, MAGIC)?;
        d.is(Decoder::array, store, "it belongs to another store")?;
        d.is(Decoder::u64, number, "it has another number")?;
        let slots = Self::take(&mut d, number)?;
        d.end()?;
        Ok(slots)
    }

    fn take(d: &mut Decoder<'_>, number: u64) -> Decoded<Self> {
        let next = d.u32()?;
        let count = d.count(SLOTS_MAX, slot::LEN_MIN)?;
        let slots = (0..count).map(|_| Slot::decode(d, LABEL_BYTES_MAX));
        let slots = slots.collect::<Decoded<Vec<Slot>>>()?;
        let numbers = slots.iter().map(|slot| slot.number).chain([next]);
        let ascending = numbers.is_sorted_by(|a, b| a < b);
        d.check(ascending, "its slots are out of order")?;
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

/// The first part of the names of a store's keys.
fn prefix(store: [u8; 16]) -> String {
    format!("{:032x}-", u128::from_be_bytes(store))
}

fn name(store: [u8; 16], number: u64) -> String {
    format!("{FOLDER}/{}{number:016x}", prefix(store))
}

fn copy_of(name: &str) -> String {
    format!("{name}.copy")
}

/// The numbers of the objects with slots of a store that are listed, ascending.
fn numbers(place: &dyn Backend, store: [u8; 16]) -> Result<Vec<u64>> {
    let listed = place.list(FOLDER);
    let listed = listed.map_err(|e| io_error("list", FOLDER.into(), e))?;
    let prefix = prefix(store);
    let parse = |(name, _): &(String, u64)| parse(name.strip_prefix(&prefix)?);
    let mut numbers: Vec<u64> = listed.iter().filter_map(parse).collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

fn parse(digits: &str) -> Option<u64> {
    /// So many changes nobody makes; there is room behind them.
    const NUMBER_MAX: u64 = 1 << 60;
    let digits = digits.strip_suffix(".copy").unwrap_or(digits);
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16 && (1..NUMBER_MAX).contains(&number)).then_some(number)
}

/// Changes that a list may not show yet.
const UNLISTED_MAX: u64 = 16;

/// The object with slots that counts.
fn newest(place: &dyn Backend, store: [u8; 16]) -> Result<Slots> {
    let listed = numbers(place, store)?.last().copied().unwrap_or(1);
    let mut newest = Err(StoreError::missing(name(store, listed)));
    for number in listed..listed + UNLISTED_MAX {
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
    let name = name(store, number);
    let first = read_one(place, store, number, &name);
    match first {
        Err(StoreError::Missing { .. } | StoreError::Corrupt { .. }) => {
            match read_one(place, store, number, &copy_of(&name)) {
                Err(StoreError::Missing { .. } | StoreError::Corrupt { .. }) => first,
                found => found,
            }
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
    let name = name(store, slots.number);
    let created = place.create(&name, &object, epoch);
    created.map_err(|e| io_error("create", name.clone(), e))?;
    let copy = copy_of(&name);
    match place.create(&copy, &object, epoch) {
        // A scrub has found that it was not there.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(|e| io_error("create", copy, e))?,
    }
    sync(place)
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
