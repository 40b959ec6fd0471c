//! Armor: what an object wears so that bit rot in it can be healed without another copy.
//!
//! ```text
//! plate 64 | table | 0.. | payload | 0.. | recovery shards | table | plate 64
//! plate:  "STDNARM1" | version u32 | shard length u32 | payload length u64 | recovery shards u32 | kind u32
//!         | store 16 | id u64 | crc32c u32 of the table | crc32c u32 of the 60 bytes before
//! table:  crc32c u32 of every shard of the payload (the last one ends in zeroes), then of every recovery shard
//! ```
//!
//! The recovery shards are Reed-Solomon over GF(2^16), one for 128 shards of the payload: as many damaged shards,
//! wherever they lie, can be computed anew. Plate and table stand at both ends. The payload is readable
//! where it lies, without any of that.
//!
//! Rule: what was healed is believed only after the payload's own checksums were found right; the
//! payload may hold bytes that a guest chose, plates among them.

use std::borrow::Cow;
use std::ops::Range;

use crate::codec::{Decoded, Decoder, Encode, Malformed};

const MAGIC: [u8; 8] = *b"STDNARM1";
const VERSION: u32 = 1;

/// Bytes of a plate.
pub(crate) const PLATE_LEN: usize = 64;

/// A sector of a disk: what is damaged together lies in one shard.
const SHARD: usize = 4096;

/// More shards than this are not made; they grow instead.
const SHARDS_MAX: usize = 16 << 10;

/// Shards of the payload for each recovery shard.
const SHARDS_PER_RECOVERY: usize = 128;

/// What an object is, in its plate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Container,
    Tree,
    Bundle,
    Commit,
    Checkpoint,
    Format,
    Keys,
}

/// Whose armor it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) store: [u8; 16],
    pub(crate) kind: Kind,
    pub(crate) id: u64,
}

/// Where the parts of an armored object lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plate {
    owner: Owner,
    shard: usize,
    payload_len: usize,
    recovery: usize,
    table_crc: u32,
}

impl Plate {
    fn for_payload(owner: Owner, len: usize) -> Self {
        let shard = if len <= SHARD {
            len.max(1).next_multiple_of(64)
        } else {
            len.div_ceil(SHARDS_MAX).next_multiple_of(64).max(SHARD)
        };
        let shards = len.max(1).div_ceil(shard);
        Self {
            owner,
            shard,
            payload_len: len,
            recovery: shards.div_ceil(SHARDS_PER_RECOVERY),
            table_crc: 0,
        }
    }

    fn shards(&self) -> usize {
        self.payload_len.max(1).div_ceil(self.shard)
    }

    fn table_len(&self) -> usize {
        (self.shards() + self.recovery) * 4
    }

    /// Where the payload lies in the object.
    pub(crate) fn payload(&self) -> Range<usize> {
        let front = PLATE_LEN + self.table_len();
        // Shards of a sector each begin where a sector begins.
        let at = front.next_multiple_of(if self.shard < SHARD { 64 } else { SHARD });
        at..at + self.payload_len
    }

    fn shard_at(&self, i: usize) -> usize {
        self.payload().start + i * self.shard
    }

    /// Length of the whole object.
    fn object_len(&self) -> usize {
        self.shard_at(self.shards() + self.recovery) + self.table_len() + PLATE_LEN
    }

    fn put(&self, out: &mut Vec<u8>) {
        let from = out.len();
        let narrow = |n: usize| u32::try_from(n).expect("objects are far smaller");
        out.put_bytes(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(narrow(self.shard));
        out.put_u64(self.payload_len as u64);
        out.put_u32(narrow(self.recovery));
        out.put_u32(self.owner.kind.number());
        out.put_bytes(&self.owner.store);
        out.put_u64(self.owner.id);
        out.put_u32(self.table_crc);
        let crc = crc32c::crc32c(&out[from..]);
        out.put_u32(crc);
        debug_assert_eq!(out.len() - from, PLATE_LEN);
    }

    /// Reads a plate from either end of an object of `owner`. An object without armor has none.
    pub(crate) fn decode(bytes: &[u8], owner: Owner) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        d.is(Decoder::array, MAGIC, "it has no armor there")?;
        d.check(bytes.len() == PLATE_LEN, "its armor is cut off")?;
        let crc = crc32c::crc32c(&bytes[..PLATE_LEN - 4]).to_le_bytes();
        d.check(bytes.ends_with(&crc), "its armor is damaged")?;
        d.is(Decoder::u32, VERSION, "the version of its armor is unknown")?;
        let shard = d.u32()? as usize;
        let len = d.u64()?;
        let recovery = d.u32()? as usize;
        let kind = d.u32()?;
        d.check(kind == owner.kind.number(), "it is another kind of object")?;
        d.is(Decoder::array, owner.store, "it belongs to another store")?;
        d.is(Decoder::u64, owner.id, "it is another object")?;
        let table_crc = d.u32()?;
        let legal = len <= u64::from(u32::MAX);
        d.check(legal, "its armor covers an impossible length")?;
        let plate = Self {
            table_crc,
            ..Self::for_payload(owner, block::index(len))
        };
        let as_made = plate.shard == shard && plate.recovery == recovery;
        d.check(as_made, "its armor has impossible shards")?;
        Ok(plate)
    }

    /// Whether an object of this length can wear it.
    pub(crate) fn fits(&self, object_len: u64) -> bool {
        self.object_len() as u64 == object_len
    }
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Container => 1,
            Self::Tree => 2,
            Self::Bundle => 3,
            Self::Commit => 4,
            Self::Checkpoint => 5,
            Self::Format => 6,
            Self::Keys => 7,
        }
    }
}

/// The object for `payload`.
pub(crate) fn wrap(owner: Owner, payload: &[u8]) -> Vec<u8> {
    let mut plate = Plate::for_payload(owner, payload.len());
    let mut out = vec![0; plate.payload().start];
    out.reserve(plate.object_len() - out.len());
    out.put_bytes(payload);
    out.resize(plate.shard_at(plate.shards()), 0);
    let shards = &out[plate.payload().start..];
    let encoded = reed_solomon_simd::encode(
        plate.shards(),
        plate.recovery,
        shards.chunks_exact(plate.shard),
    );
    let recovery = encoded.expect("the number and the length of shards are legal by construction");
    recovery.iter().for_each(|shard| out.put_bytes(shard));
    let table = table_of(&out[plate.payload().start..], plate.shard);
    plate.table_crc = crc32c::crc32c(&table);
    out.put_bytes(&table);
    plate.put(&mut out);
    let mut front = Vec::with_capacity(PLATE_LEN);
    plate.put(&mut front);
    out[..PLATE_LEN].copy_from_slice(&front);
    out[PLATE_LEN..][..table.len()].copy_from_slice(&table);
    debug_assert_eq!(out.len(), plate.object_len());
    out
}

fn table_of(shards: &[u8], shard: usize) -> Vec<u8> {
    let mut table = Vec::with_capacity(shards.len() / shard * 4);
    let crcs = shards.chunks_exact(shard).map(crc32c::crc32c);
    crcs.for_each(|crc| table.put_u32(crc));
    table
}

/// Whether every byte of an object is as it was written, by its checksums. An object without armor is not known to be.
pub(crate) fn is_intact(object: &[u8], owner: Owner) -> bool {
    intact_payload(object, owner).is_some()
}

/// The payload of an object that is as it was written.
fn intact_payload(object: &[u8], owner: Owner) -> Option<&[u8]> {
    let (front, back) = (object.get(..PLATE_LEN)?, object.last_chunk::<PLATE_LEN>()?);
    let plate = Plate::decode(front, owner).ok()?;
    if back != front || !plate.fits(object.len() as u64) {
        return None;
    }
    let payload = plate.payload();
    let shards_end = plate.shard_at(plate.shards() + plate.recovery);
    let table = table_of(&object[payload.start..shards_end], plate.shard);
    let front = &object[PLATE_LEN..][..table.len()];
    let back = &object[shards_end..][..table.len()];
    let padding = &object[PLATE_LEN + table.len()..payload.start];
    let as_made = table == front && table == back && padding.iter().all(|byte| *byte == 0);
    (as_made && crc32c::crc32c(&table) == plate.table_crc).then(|| &object[payload])
}

/// What a small object holds: `decode` reads it as it lies there, else as it was before the damage. Objects of
/// version 1 have no armor, and are read as they are. Returns with it how many bytes are damaged.
///
/// # Errors
/// What `decode` says of the bytes as they are.
pub(crate) fn read_small<T>(
    object: &[u8],
    owner: Owner,
    decode: impl Fn(&[u8]) -> Decoded<T>,
) -> Decoded<(T, u64)> {
    match heal(object, owner) {
        Ok(healed) => Ok((decode(&healed.payload)?, healed.damaged_bytes)),
        Err(_) => Ok((decode(object)?, 0)),
    }
}

/// What was made of a damaged object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Healed<'a> {
    /// What it probably held; its own checksums decide.
    pub(crate) payload: Cow<'a, [u8]>,
    /// Bytes of the object that are not as they were written.
    pub(crate) damaged_bytes: u64,
    /// Whether its checksums were found; else the payload is what lies where it should.
    pub(crate) by_checksums: bool,
}

/// Computes the payload from what is left of an object.
///
/// # Errors
/// Why that cannot be done.
pub(crate) fn heal(object: &[u8], owner: Owner) -> Decoded<Healed<'_>> {
    if let Some(payload) = intact_payload(object, owner) {
        return Ok(Healed {
            payload: payload.into(),
            damaged_bytes: 0,
            by_checksums: true,
        });
    }
    let hopeless = |what| Malformed { what, at: 0 };
    let Some((plate, table)) = find_table(object, owner) else {
        // Nothing can be computed, but a plate may still say where the payload lies.
        let payload = find_payload(object, owner);
        let payload =
            payload.ok_or_else(|| hopeless("it has no armor, or both ends of it are damaged"))?;
        return Ok(compared(owner, payload.into(), object, false));
    };
    let crc_of = |i: usize| {
        let crc = table[i * 4..][..4].try_into();
        u32::from_le_bytes(crc.expect("the table has four bytes for each shard"))
    };
    let intact = |i: usize| {
        let shard = object.get(plate.shard_at(i)..plate.shard_at(i + 1))?;
        (crc32c::crc32c(shard) == crc_of(i)).then_some(shard)
    };
    let missing: Vec<usize> = (0..plate.shards())
        .filter(|i| intact(*i).is_none())
        .collect();
    let left = (0..plate.recovery).filter_map(|i| Some((i, intact(plate.shards() + i)?)));
    // Also a promise that memory is taken only for what is really there.
    if missing.len() > left.clone().count() {
        return Err(hopeless("more of it is damaged than its armor can heal"));
    }
    let original = (0..plate.shards()).filter_map(|i| Some((i, intact(i)?)));
    let restored = reed_solomon_simd::decode(plate.shards(), plate.recovery, original, left);
    let restored = restored.map_err(|_| hopeless("its armor has impossible shards"))?;
    let mut payload = Vec::with_capacity(plate.shards() * plate.shard);
    for i in 0..plate.shards() {
        let shard = intact(i).or_else(|| restored.get(&i).map(Vec::as_slice));
        payload.put_bytes(shard.ok_or_else(|| hopeless("a shard could not be computed"))?);
    }
    payload.truncate(plate.payload_len);
    Ok(compared(owner, payload.into(), object, true))
}

/// How much of an object is not as it was written.
fn compared<'a>(
    owner: Owner,
    payload: Cow<'a, [u8]>,
    object: &[u8],
    by_checksums: bool,
) -> Healed<'a> {
    let whole = wrap(owner, &payload);
    let differ = whole.iter().zip(object).filter(|(a, b)| a != b).count();
    let lengths = whole.len().abs_diff(object.len());
    Healed {
        payload,
        damaged_bytes: (differ + lengths) as u64,
        by_checksums,
    }
}

/// The payload by either plate, as it lies there.
fn find_payload(object: &[u8], owner: Owner) -> Option<&[u8]> {
    let ends = [
        object.first_chunk::<PLATE_LEN>(),
        object.last_chunk::<PLATE_LEN>(),
    ];
    let plates = ends.into_iter().flatten();
    let mut plates = plates.filter_map(|bytes| Plate::decode(bytes, owner).ok());
    plates.find_map(|plate| object.get(plate.payload()))
}

/// A plate and the table that belongs to it: from the ends, else from wherever they are.
fn find_table(object: &[u8], owner: Owner) -> Option<(Plate, &[u8])> {
    let front = |at: usize| {
        let bytes = object.get(at..at + PLATE_LEN)?;
        let plate = Plate::decode(bytes, owner).ok()?;
        let table = object.get(at + PLATE_LEN..)?.get(..plate.table_len())?;
        (crc32c::crc32c(table) == plate.table_crc).then_some((plate, table))
    };
    let back = || {
        let at = object.len().checked_sub(PLATE_LEN)?;
        let plate = Plate::decode(&object[at..], owner).ok()?;
        let table = object.get(at.checked_sub(plate.table_len())?..at)?;
        (crc32c::crc32c(table) == plate.table_crc).then_some((plate, table))
    };
    // One end's plate may stand beside the other end's table.
    let crossed = || {
        let ends = [
            object.get(..PLATE_LEN),
            object.len().checked_sub(PLATE_LEN).map(|at| &object[at..]),
        ];
        let plates = ends.into_iter().flatten();
        plates
            .filter_map(|bytes| Plate::decode(bytes, owner).ok())
            .find_map(|plate| {
                let len = plate.table_len();
                let behind = object.len().checked_sub(PLATE_LEN + len);
                let tables = [
                    Some(PLATE_LEN),
                    behind,
                    Some(plate.object_len() - PLATE_LEN - len),
                ];
                let tables = tables.into_iter().flatten();
                let mut tables = tables.filter_map(|at| object.get(at..at + len));
                let table = tables.find(|table| crc32c::crc32c(table) == plate.table_crc)?;
                Some((plate, table))
            })
    };
    front(0).or_else(back).or_else(crossed)
}

#[cfg(test)]
mod tests;
