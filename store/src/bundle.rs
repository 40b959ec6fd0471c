//! A bundle: what is still needed of several containers, or of several tree objects, in one object.
//!
//! ```text
//! bundle:        "STDNBUN1" | version u32 | sections u32 | store 16 | id u64 | sections .. | directory | crc32c u32 of all before
//! directory:     per section: kind u32 (1 container, 2 tree) | id u64 | at u32 | length u32
//! container:     as an object of its own, with the slots it still has (container.rs)
//! tree section:  "STDNTRS1" | version u32 | records u32 | store 16 | id u64
//!                | per record, ascending: where it was in its object u32, length u32 | crc32c u32 of all before | the records
//! ```
//!
//! The catalog says where a section lies ([`Locations`](crate::locations::Locations)); the directory is for who has lost it.

use crate::armor::Kind;
use crate::codec::{Decoded, Decoder, Encode, VERSION};
use crate::place::ObjectId;
use crate::tree::RECORD_LEN_MAX;

const MAGIC: [u8; 8] = *b"STDNBUN1";
const TREE_MAGIC: [u8; 8] = *b"STDNTRS1";
pub(crate) const HEADER_LEN: usize = 40;
pub(crate) const ENTRY_LEN: usize = 20;
pub(crate) const CRC_LEN: usize = 4;
const TREE_ENTRY_LEN: usize = 8;

/// A bundle is closed when its sections take this many bytes.
pub(crate) const TARGET: usize = 4 << 20;

/// A section of a bundle, by its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) kind: Kind,
    pub(crate) id: ObjectId,
    pub(crate) at: u32,
    pub(crate) len: u32,
}

/// Collects sections.
pub(crate) struct Builder {
    store: [u8; 16],
    id: ObjectId,
    bytes: Vec<u8>,
    pub(crate) sections: Vec<Section>,
}

impl Builder {
    pub(crate) fn new(store: [u8; 16], id: ObjectId) -> Self {
        Self {
            store,
            id,
            bytes: vec![0; HEADER_LEN],
            sections: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    /// Whether a section of that length belongs into this bundle, and not into the next. An empty one takes any.
    pub(crate) fn has_room_for(&self, section: usize) -> bool {
        self.sections.is_empty() || self.bytes.len() + section <= TARGET + TARGET / 4
    }

    pub(crate) fn add(&mut self, kind: Kind, id: ObjectId, section: &[u8]) {
        let narrow = |len| u32::try_from(len).expect("bundles are a few MiB");
        self.sections.push(Section {
            kind,
            id,
            at: narrow(self.bytes.len()),
            len: narrow(section.len()),
        });
        self.bytes.put_bytes(section);
    }

    /// The bytes of the bundle, before its armor.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let header = header(self.store, self.id, self.sections.len());
        self.bytes[..HEADER_LEN].copy_from_slice(&header);
        for section in &self.sections {
            self.bytes.put_u32(number(section.kind));
            self.bytes.put_u64(section.id.0);
            self.bytes.put_u32(section.at);
            self.bytes.put_u32(section.len);
        }
        let crc = crc32c::crc32c(&self.bytes);
        self.bytes.put_u32(crc);
        self.bytes
    }
}

fn number(kind: Kind) -> u32 {
    match kind {
        Kind::Container => 1,
        Kind::Tree => 2,
        _ => unreachable!("only containers and tree objects are sections"),
    }
}

fn header(store: [u8; 16], id: ObjectId, sections: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u32(VERSION);
    out.put_count(sections);
    out.put_bytes(&store);
    out.put_u64(id.0);
    out
}

/// Checks a whole bundle, and says what lies in it.
pub(crate) fn decode(bytes: &[u8], store: [u8; 16], id: ObjectId) -> Decoded<Vec<Section>> {
    let count = check_header(bytes, store, id, bytes.len() as u64)?;
    let d = Decoder::new(bytes);
    let Some((body, crc)) = bytes.split_last_chunk::<CRC_LEN>() else {
        return Err(d.error("it is cut off"));
    };
    let intact = crc32c::crc32c(body) == u32::from_le_bytes(*crc);
    d.check(intact, "its checksum does not match")?;
    let end = body.len() - count * ENTRY_LEN;
    decode_directory(&body[end..], end as u64)
}

/// How many sections a bundle of `len` bytes has, by what it begins with.
pub(crate) fn check_header(
    header: &[u8],
    store: [u8; 16],
    id: ObjectId,
    len: u64,
) -> Decoded<usize> {
    let mut d = Decoder::new(header);
    d.is(Decoder::array, MAGIC, "its magic number is wrong")?;
    d.is(Decoder::u32, VERSION, "its version is unknown")?;
    let count = d.u32()? as usize;
    d.is(Decoder::array, store, "it belongs to another store")?;
    d.is(Decoder::u64, id.0, "it is another bundle")?;
    let least = (HEADER_LEN + CRC_LEN) as u64 + count as u64 * ENTRY_LEN as u64;
    d.check(least <= len, "it is too short for its sections")?;
    Ok(count)
}

/// Reads the directory of a bundle, which begins at byte `end` of it: there the sections end.
pub(crate) fn decode_directory(bytes: &[u8], end: u64) -> Decoded<Vec<Section>> {
    let mut d = Decoder::new(bytes);
    let mut sections = Vec::with_capacity(bytes.len() / ENTRY_LEN);
    let mut at = HEADER_LEN as u64;
    while d.remaining() > 0 {
        let kind = match d.u32()? {
            1 => Kind::Container,
            2 => Kind::Tree,
            _ => return Err(d.error("the kind of a section is unknown")),
        };
        let section = Section {
            kind,
            id: ObjectId(d.u64()?),
            at: d.u32()?,
            len: d.u32()?,
        };
        d.check(u64::from(section.at) == at, "a section is out of place")?;
        at += u64::from(section.len);
        sections.push(section);
    }
    d.check(at == end, "its sections do not reach its directory")?;
    Ok(sections)
}

/// What is left of a tree object: records, by where they were in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TreeTable {
    /// Where a record was, its length, and where it is in the section.
    records: Vec<(u32, u32, u32)>,
}

impl TreeTable {
    /// Where the record that was at `offset` of its object lies in the section; `None` if it is not there.
    pub(crate) fn find(&self, offset: u32, len: u32) -> Option<u32> {
        let i = self.records.binary_search_by_key(&offset, |r| r.0).ok()?;
        let (_, found, at) = self.records[i];
        (found == len).then_some(at)
    }

    /// Bytes in memory.
    pub(crate) fn footprint(&self) -> usize {
        self.records.len() * size_of::<(u32, u32, u32)>() + 64
    }

    /// How many bytes of a section its table takes; from the section's first [`TABLE_HEAD_LEN`] bytes.
    pub(crate) fn len_of(head: &[u8], store: [u8; 16], id: ObjectId) -> Decoded<usize> {
        let mut d = Decoder::new(head);
        d.is(
            Decoder::array,
            TREE_MAGIC,
            "the magic number of a section is wrong",
        )?;
        d.is(Decoder::u32, VERSION, "the version of a section is unknown")?;
        let count = d.u32()? as usize;
        d.is(Decoder::array, store, "it belongs to another store")?;
        d.is(Decoder::u64, id.0, "a section is another tree object's")?;
        Ok(TABLE_HEAD_LEN + count * TREE_ENTRY_LEN + 4)
    }

    /// Reads a table that [`len_of`](Self::len_of) measured, of a section of `len` bytes.
    pub(crate) fn decode(bytes: &[u8], len: u32) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(d.error("the table of a section is cut off"));
        };
        let intact = crc32c::crc32c(body) == u32::from_le_bytes(*crc);
        d.check(intact, "the checksum of a section's table does not match")?;
        d.bytes(TABLE_HEAD_LEN)?;
        let mut records = Vec::new();
        let (mut at, mut least) = (bytes.len() as u64, 0);
        while d.remaining() > 4 {
            let [was, record_len] = [d.u32()?, d.u32()?];
            d.check(was >= least, "the records of a section are out of order")?;
            least = was.saturating_add(1);
            let place = u32::try_from(at).map_err(|_| d.error("a section is too long"))?;
            records.push((was, record_len, place));
            d.check(record_len <= RECORD_LEN_MAX, "a record is too long")?;
            at += u64::from(record_len);
        }
        d.check(at == u64::from(len), "the length of a section is wrong")?;
        Ok(Self { records })
    }
}

/// Bytes of a tree section that say how long its table is.
pub(crate) const TABLE_HEAD_LEN: usize = 40;

/// The section for records of the tree object `id`: where each was, ascending, and its bytes.
pub(crate) fn tree_section(store: [u8; 16], id: ObjectId, records: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = TREE_MAGIC.to_vec();
    out.put_u32(VERSION);
    out.put_count(records.len());
    out.put_bytes(&store);
    out.put_u64(id.0);
    for (was, record) in records {
        out.put_u32(*was);
        out.put_count(record.len());
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    records.iter().for_each(|(_, record)| out.put_bytes(record));
    out
}
