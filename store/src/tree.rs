//! The tree of an image: nodes by reference, and their bytes.
//!
//! ```text
//! ImageRef { size, root node, change lists }      an image is its tree with the lists laid over it, oldest first
//!   inner, level n: 256 children of level n-1     a child that is all zeroes is not stored
//!     leaf, level 0: 256 chunks = 1 MiB           stored as runs, hashed over the fingerprints
//!
//! tree object: magic "STDNTRE1" | version u32 | 0 u32 | store 16 | id u64
//!              records, back to back: kind u8 (0 leaf, 1..=5 inner level, 128 change list) | body
//!              crc32c u32 of everything before
//! inner body:  count u16 | per child: index u8, fingerprint 32, object (difference, zigzag), offset varint,
//!              length varint, crc32c u32
//! ```
//!
//! Rule: a reference carries length and checksum of its record, so a record that is damaged, or that
//! lies where another one should, is never taken for it.

use block::GranuleRange;

use crate::codec::{Decoded, Decoder, Encode, VERSION};
use crate::fingerprint::{FANOUT, Fingerprint};
use crate::place::ObjectId;
use crate::runs::{self, Run};

pub(crate) const MAGIC: [u8; 8] = *b"STDNTRE1";

/// Bytes before the first record of a tree object.
pub(crate) const HEADER_LEN: usize = 40;

/// A record is never larger (a change list of [`LIST_RUNS_MAX`] runs is below 2 MiB).
pub(crate) const RECORD_LEN_MAX: u32 = 8 << 20;

/// Most change lists of an image.
pub(crate) const LISTS_MAX: usize = 16;

/// Most runs in all change lists of an image: what opening one costs at most, 1.5 MiB of memory.
pub(crate) const LIST_RUNS_MAX: usize = 64 << 10;

/// The largest disk: 2^60 bytes. Its tree has five inner levels.
pub(crate) const SIZE_MAX: u64 = 1 << 60;

const KIND_LIST: u8 = 128;

/// Where a record lies, and what proves that it is the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordRef {
    pub(crate) object: ObjectId,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

/// A node of a tree that is not all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeRef {
    pub(crate) record: RecordRef,
    pub(crate) hash: Fingerprint,
}

/// A change list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListRef {
    pub(crate) record: RecordRef,
    /// How many runs it holds.
    pub(crate) runs: u32,
}

/// Names an image in its store: a tree, and at most 16 change lists laid over it.
///
/// Two references may differ and yet name the same content (one with change lists, one without);
/// [`Image::root`](crate::Image::root) tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    pub(crate) size: u64,
    pub(crate) root: Option<NodeRef>,
    pub(crate) lists: Vec<ListRef>,
}

impl ImageRef {
    /// An image of zeroes.
    pub(crate) fn empty(size: u64) -> Self {
        Self {
            size,
            root: None,
            lists: Vec::new(),
        }
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The reference as bytes, for who keeps it elsewhere: docs/formats/tree.md.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// The reference that was made into these bytes; `None` if they are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut d = Decoder::new(bytes);
        let image = Self::decode(&mut d).ok()?;
        d.end().ok().map(|()| image)
    }

    pub(crate) fn list_runs(&self) -> usize {
        self.lists.iter().map(|list| list.runs as usize).sum()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.size);
        out.put_u8(u8::from(self.root.is_some()));
        if let Some(root) = &self.root {
            out.put_bytes(&root.hash.0);
            root.record.put(out, 0);
        }
        out.put_u8(u8::try_from(self.lists.len()).expect("at most LISTS_MAX"));
        for list in &self.lists {
            list.record.put(out, 0);
            out.put_u32(list.runs);
        }
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        let size = d.u64()?;
        d.check(size <= SIZE_MAX, "an image is impossibly large")?;
        let root = match d.u8()? {
            0 => None,
            1 => {
                let hash = Fingerprint(d.array()?);
                let record = RecordRef::decode(d, 0)?;
                Some(NodeRef { record, hash })
            }
            _ => return Err(d.error("an image has an unknown kind of root")),
        };
        let count = usize::from(d.u8()?);
        d.check(count <= LISTS_MAX, "an image has too many change lists")?;
        let mut lists = Vec::with_capacity(count);
        for _ in 0..count {
            let record = RecordRef::decode(d, 0)?;
            let runs = d.u32()?;
            lists.push(ListRef { record, runs });
        }
        let image = Self { size, root, lists };
        let bounded = image.list_runs() <= LIST_RUNS_MAX;
        d.check(bounded, "the change lists of an image are too long")?;
        Ok(image)
    }
}

impl RecordRef {
    /// `near`: an object whose number is probably close.
    fn put(&self, out: &mut Vec<u8>, near: u64) {
        out.put_signed(self.object.0.wrapping_sub(near).cast_signed());
        out.put_varint(u64::from(self.offset));
        out.put_varint(u64::from(self.len));
        out.put_u32(self.crc);
    }

    fn decode(d: &mut Decoder<'_>, near: u64) -> Decoded<Self> {
        let object = near.wrapping_add(d.signed()?.cast_unsigned());
        let legal = (1..ObjectId::END).contains(&object);
        d.check(legal, "a reference names an impossible object")?;
        let (offset, len) = (d.varint()?, d.varint()?);
        let (Ok(offset), Ok(len)) = (u32::try_from(offset), u32::try_from(len)) else {
            return Err(d.error("a reference is out of range"));
        };
        d.check(
            len <= RECORD_LEN_MAX,
            "a reference names a record that is too long",
        )?;
        Ok(Self {
            object: ObjectId(object),
            offset,
            len,
            crc: d.u32()?,
        })
    }
}

/// The shape of the tree over a disk of some size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) granules: u64,
}

impl Shape {
    pub(crate) fn of(size: u64) -> Self {
        Self {
            granules: GranuleRange::of_size(size).count(),
        }
    }

    /// Level of the root; 0 if it is a leaf.
    pub(crate) fn height(self) -> u8 {
        let tall_enough = |level: &u8| chunks_under(*level) >= self.granules;
        (0..8).find(tall_enough).expect("sizes are below 2^60")
    }

    /// The chunks of the disk that lie under a node.
    pub(crate) fn under(self, level: u8, node: u64) -> GranuleRange {
        let span = chunks_under(level);
        GranuleRange {
            start: node * span,
            end: ((node + 1) * span).min(self.granules),
        }
    }
}

/// Chunks under a node of a level.
fn chunks_under(level: u8) -> u64 {
    1_u64 << (8 * (u32::from(level) + 1)).min(63)
}

/// Chunks of a leaf.
pub(crate) const LEAF_CHUNKS: u64 = FANOUT as u64;

/// The children of an inner node.
pub(crate) type Children = [Option<NodeRef>; FANOUT];

/// A decoded record.
#[derive(Debug)]
pub(crate) enum Record {
    /// Runs of data, relative to the leaf; what they leave out is zeroes.
    Leaf(Vec<Run>),
    Inner(Box<Children>),
    List(Vec<Run>),
}

impl Record {
    /// Bytes in memory.
    pub(crate) fn footprint(&self) -> usize {
        match self {
            Self::Leaf(runs) | Self::List(runs) => runs.capacity() * size_of::<Run>() + 64,
            Self::Inner(_) => size_of::<Children>() + 64,
        }
    }

    /// Reads a record that is expected to be a node of `level`, of a disk of any size.
    pub(crate) fn decode_node(bytes: &[u8], level: u8) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        d.is(
            Decoder::u8,
            level,
            "a record is not the node that it should be",
        )?;
        let record = if level == 0 {
            let leaf = GranuleRange {
                start: 0,
                end: LEAF_CHUNKS,
            };
            let runs = runs::decode(&mut d, leaf)?;
            let data = runs.iter().all(|run| run.place.is_some());
            d.check(data, "a leaf stores zeroes")?;
            Self::Leaf(runs)
        } else {
            Self::Inner(decode_children(&mut d)?)
        };
        d.end()?;
        Ok(record)
    }

    /// Reads a record that is expected to be a change list of a disk of so many chunks.
    pub(crate) fn decode_list(bytes: &[u8], granules: u64) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        d.is(
            Decoder::u8,
            KIND_LIST,
            "a record is not the change list that it should be",
        )?;
        let disk = GranuleRange {
            start: 0,
            end: granules,
        };
        let runs = runs::decode(&mut d, disk)?;
        d.end()?;
        Ok(Self::List(runs))
    }
}

/// The record of a leaf; `runs` are relative to it.
pub(crate) fn encode_leaf(runs: &[Run]) -> Vec<u8> {
    let mut out = vec![0];
    runs::encode(runs, 0, &mut out);
    out
}

/// The record of a change list.
pub(crate) fn encode_list(runs: &[Run]) -> Vec<u8> {
    let mut out = vec![KIND_LIST];
    runs::encode(runs, 0, &mut out);
    out
}

/// The record of an inner node.
pub(crate) fn encode_inner(level: u8, children: &Children) -> Vec<u8> {
    let mut out = vec![level];
    let stored = children.iter().flatten().count();
    out.put_u16(u16::try_from(stored).expect("at most FANOUT"));
    let mut near = 0;
    for (i, child) in (0..=u8::MAX).zip(children) {
        let Some(child) = child else { continue };
        out.put_u8(i);
        out.put_bytes(&child.hash.0);
        child.record.put(&mut out, near);
        near = child.record.object.0;
    }
    out
}

fn decode_children(d: &mut Decoder<'_>) -> Decoded<Box<Children>> {
    let count = usize::from(d.u16()?);
    d.check(
        (1..=FANOUT).contains(&count),
        "a node has an impossible number of children",
    )?;
    let mut children = Box::new([None; FANOUT]);
    let (mut near, mut least) = (0, 0);
    for _ in 0..count {
        let i = usize::from(d.u8()?);
        d.check(i >= least, "the children of a node are out of order")?;
        least = i + 1;
        let hash = Fingerprint(d.array()?);
        let record = RecordRef::decode(d, near)?;
        near = record.object.0;
        children[i] = Some(NodeRef { record, hash });
    }
    Ok(children)
}

/// The fingerprint of an inner node.
pub(crate) fn hash_inner(level: u8, children: &Children) -> Fingerprint {
    let hashes = children.map(|child| child.map_or(Fingerprint::ZERO, |child| child.hash));
    Fingerprint::of_children(level, &hashes)
}

/// The first bytes of a tree object.
pub(crate) fn begin_object(store: [u8; 16], id: ObjectId) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u32(VERSION);
    out.put_u32(0);
    out.put_bytes(&store);
    out.put_u64(id.0);
    debug_assert_eq!(out.len(), HEADER_LEN);
    out
}

/// Checks a whole tree object: its header, and the checksum over all of it.
pub(crate) fn check_object(bytes: &[u8], store: [u8; 16], id: ObjectId) -> Decoded<()> {
    let mut d = Decoder::new(bytes);
    let expected = begin_object(store, id);
    let header = d.bytes(HEADER_LEN)?;
    d.check(header == expected, "its header is damaged")?;
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(d.error("it is cut off"));
    };
    let intact = crc32c::crc32c(body) == u32::from_le_bytes(*crc);
    d.check(intact, "its checksum does not match")
}

#[cfg(test)]
mod tests;
