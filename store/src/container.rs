//! A container: an immutable object of compressed regions, and the manifest that says which chunk
//! lies in which slot.
//!
//! ```text
//! 0        header 64    magic "STDNCON1" | version u32 | 0 u32 | store 16 | id u64 | 0.. | crc32c u32
//! 64       regions      each up to 32 chunks, compressed together, encrypted where the store is    (region.rs)
//! m        manifest     slots * 32: fingerprints | regions * 16: offset u32, stored u32, crc32c u32,
//!                       chunks u16, encoding u8, 0 u8 | version 2: per chunk: its slot u16, ascending
//! end-112  footer 112   magic "STDNCONF" | version u32 | slots u32 | regions u32 | 0 u32 | store 16
//!                       | id u64 | m u64 | sha256 of the manifest 32 | 0 .. | crc32c u32
//! ```
//!
//! Version 1: slots are counted through the regions in order. Version 2: garbage collection has left out the chunks
//! that nobody needs; those that are left keep their slots. Rule: a region's bytes are handed out only after
//! its checksum and the fingerprint of every chunk in it were found right.

use crate::codec::{Decoded, Decoder, Encode, Malformed, VERSION};
use crate::fingerprint::Fingerprint;
use crate::place::{ObjectId, SLOTS_MAX};
use crate::region::{self, ChunkCodec, PackedRegion};
use std::borrow::Cow;

/// The version of a container that lacks some slots, in its footer.
const VERSION_SPARSE: u32 = 2;

pub(crate) const MAGIC: [u8; 8] = *b"STDNCON1";
const FOOTER_MAGIC: [u8; 8] = *b"STDNCONF";

pub(crate) const HEADER_LEN: usize = 64;
pub(crate) const FOOTER_LEN: usize = 112;
const REGION_ENTRY_LEN: usize = 16;

/// The bytes of a container, and its manifest. `slots`: of each chunk, ascending, where some are left out.
pub(crate) fn encode(
    store: [u8; 16],
    id: ObjectId,
    fingerprints: Vec<Fingerprint>,
    slots: Option<Vec<u16>>,
    packed: &[PackedRegion],
) -> (Vec<u8>, Manifest) {
    let data: usize = packed.iter().map(|region| region.stored.len()).sum();
    let manifest_len = manifest_len(fingerprints.len(), packed.len(), slots.is_some());
    let mut out = Vec::with_capacity(HEADER_LEN + data + manifest_len + FOOTER_LEN);
    put_header(&mut out, store, id);
    let mut regions = Vec::with_capacity(packed.len());
    let mut first = 0;
    for region in packed {
        regions.push(Region {
            offset: to_u32(out.len()),
            stored: to_u32(region.stored.len()),
            crc: region.crc,
            first,
            chunks: region.chunks,
            encoding: region.encoding,
        });
        first += region.chunks;
        out.put_bytes(&region.stored);
    }
    assert_eq!(
        usize::from(first),
        fingerprints.len(),
        "one fingerprint per chunk"
    );
    let manifest_at = out.len();
    fingerprints.iter().for_each(|f| out.put_bytes(&f.0));
    regions.iter().for_each(|region| region.put(&mut out));
    let kept = slots.iter().flatten();
    kept.for_each(|slot| out.put_u16(*slot));
    let counts = [fingerprints.len(), regions.len()];
    put_footer(&mut out, store, id, manifest_at, counts, slots.is_some());
    let manifest = Manifest {
        fingerprints: fingerprints.into(),
        slots: slots.map(Into::into),
        regions: regions.into(),
    };
    (out, manifest)
}

fn manifest_len(chunks: usize, regions: usize, sparse: bool) -> usize {
    chunks * (32 + 2 * usize::from(sparse)) + regions * REGION_ENTRY_LEN
}

fn to_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a container is a few MiB")
}

fn put_header(out: &mut Vec<u8>, store: [u8; 16], id: ObjectId) {
    out.put_bytes(&MAGIC);
    out.put_u32(VERSION);
    out.put_u32(0);
    out.put_bytes(&store);
    out.put_u64(id.0);
    out.resize(HEADER_LEN - 4, 0);
    let crc = crc32c::crc32c(out);
    out.put_u32(crc);
}

fn put_footer(
    out: &mut Vec<u8>,
    store: [u8; 16],
    id: ObjectId,
    manifest_at: usize,
    [chunks, regions]: [usize; 2],
    sparse: bool,
) {
    let sha = Fingerprint::of_bytes(&out[manifest_at..]);
    let mut footer = FOOTER_MAGIC.to_vec();
    footer.put_u32(if sparse { VERSION_SPARSE } else { VERSION });
    footer.put_count(chunks);
    footer.put_count(regions);
    footer.put_u32(0);
    footer.put_bytes(&store);
    footer.put_u64(id.0);
    footer.put_u64(manifest_at as u64);
    footer.put_bytes(&sha.0);
    footer.resize(FOOTER_LEN - 4, 0);
    let crc = crc32c::crc32c(&footer);
    footer.put_u32(crc);
    out.put_bytes(&footer);
}

/// Checks the header of a container.
pub(crate) fn check_header(bytes: &[u8], store: [u8; 16], id: ObjectId) -> Decoded<()> {
    let mut decoder = Decoder::new(bytes);
    let header = Decoder::new(bytes).bytes(HEADER_LEN)?;
    let mut expected = Vec::with_capacity(HEADER_LEN);
    put_header(&mut expected, store, id);
    decoder.is(
        Decoder::array,
        MAGIC,
        "the magic number of its header is wrong",
    )?;
    decoder.check(
        header == expected,
        "its header is damaged or another object's",
    )
}

/// The checked footer of a container.
#[derive(Debug)]
pub(crate) struct Footer {
    chunks: usize,
    sparse: bool,
    regions: usize,
    /// Where the manifest begins; it ends where the footer begins.
    pub(crate) manifest_at: u64,
    pub(crate) manifest_len: usize,
    sha: Fingerprint,
}

impl Footer {
    /// Checks the last [`FOOTER_LEN`] bytes of the container `id` that is `container_len` bytes long.
    pub(crate) fn decode(
        bytes: &[u8],
        store: [u8; 16],
        id: ObjectId,
        container_len: u64,
    ) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        d.check(bytes.len() == FOOTER_LEN, "its footer is cut off")?;
        let crc = crc32c::crc32c(&bytes[..FOOTER_LEN - 4]).to_le_bytes();
        d.is(
            Decoder::array,
            FOOTER_MAGIC,
            "the magic number of its footer is wrong",
        )?;
        d.check(
            bytes.ends_with(&crc),
            "the checksum of its footer does not match",
        )?;
        let sparse = match d.u32()? {
            VERSION => false,
            VERSION_SPARSE => true,
            _ => return Err(d.error("its version is unknown")),
        };
        let [chunks, regions] = [d.u32()? as usize, d.u32()? as usize];
        d.check(
            (1..=SLOTS_MAX).contains(&chunks),
            "its number of slots is impossible",
        )?;
        d.check(
            (1..=chunks).contains(&regions),
            "its number of regions is impossible",
        )?;
        d.u32()?;
        d.is(Decoder::array, store, "it belongs to another store")?;
        d.is(Decoder::u64, id.0, "it is another container")?;
        let manifest_at = d.u64()?;
        let manifest_len = manifest_len(chunks, regions, sparse);
        let tail = (manifest_len + FOOTER_LEN) as u64;
        d.check(
            manifest_at.checked_add(tail) == Some(container_len),
            "its length is wrong",
        )?;
        Ok(Self {
            chunks,
            sparse,
            regions,
            manifest_at,
            manifest_len,
            sha: Fingerprint(d.array()?),
        })
    }
}

/// Which chunk lies in which slot, and where its region is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    fingerprints: Box<[Fingerprint]>,
    /// The slot of each chunk, where some are left out.
    slots: Option<Box<[u16]>>,
    pub(crate) regions: Box<[Region]>,
}

/// Where a region lies in its container, and which chunks it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    crc: u32,
    /// Its first chunk, counted through the regions.
    pub(crate) first: u16,
    pub(crate) chunks: u16,
    encoding: u8,
}

impl Manifest {
    /// Checks the bytes between a container's regions and its footer.
    pub(crate) fn decode(bytes: &[u8], footer: &Footer) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        d.check(
            bytes.len() == footer.manifest_len,
            "its manifest is cut off",
        )?;
        let intact = Fingerprint::of_bytes(bytes) == footer.sha;
        d.check(intact, "the hash of its manifest does not match")?;
        let fingerprints = (0..footer.chunks).map(|_| Ok(Fingerprint(d.array()?)));
        let fingerprints = fingerprints.collect::<Decoded<_>>()?;
        let mut regions = Vec::with_capacity(footer.regions);
        let (mut chunks, mut offset) = (0, HEADER_LEN as u64);
        for _ in 0..footer.regions {
            let region = Region::decode(&mut d, chunks)?;
            d.check(
                u64::from(region.offset) == offset,
                "a region is out of place",
            )?;
            offset += u64::from(region.stored);
            chunks += region.chunks;
            d.check(
                usize::from(chunks) <= footer.chunks,
                "its regions hold too many slots",
            )?;
            regions.push(region);
        }
        d.check(
            usize::from(chunks) == footer.chunks,
            "its regions hold too few slots",
        )?;
        d.check(
            offset == footer.manifest_at,
            "its regions do not reach the manifest",
        )?;
        Ok(Self {
            fingerprints,
            slots: footer
                .sparse
                .then(|| decode_slots(&mut d, chunks))
                .transpose()?,
            regions: regions.into(),
        })
    }

    /// Chunks that it holds.
    pub(crate) fn chunk_count(&self) -> usize {
        self.fingerprints.len()
    }

    /// Bytes in memory, about.
    pub(crate) fn held_bytes(&self) -> usize {
        size_of_val(&*self.fingerprints) + size_of_val(&*self.regions)
    }

    /// Every chunk's slot and fingerprint, ascending.
    pub(crate) fn chunks(&self) -> impl ExactSizeIterator<Item = (u64, &Fingerprint)> + Clone {
        let slot = |i: usize| match &self.slots {
            Some(slots) => u64::from(slots[i]),
            None => i as u64,
        };
        let chunks = self.fingerprints.iter().enumerate();
        chunks.map(move |(i, fingerprint)| (slot(i), fingerprint))
    }

    /// The chunk in `slot`, counted through the regions; `None` if it has no such slot (any more).
    pub(crate) fn position(&self, slot: usize) -> Option<usize> {
        match &self.slots {
            None => (slot < self.fingerprints.len()).then_some(slot),
            Some(slots) => slots.binary_search(&u16::try_from(slot).ok()?).ok(),
        }
    }

    /// The fingerprint of the chunk in `slot`.
    pub(crate) fn fingerprint(&self, slot: usize) -> Option<&Fingerprint> {
        Some(&self.fingerprints[self.position(slot)?])
    }

    /// The fingerprints of the chunks in `count` slots from `slot` on; `None` if one of them is not there.
    pub(crate) fn fingerprints(&self, slot: usize, count: usize) -> Option<&[Fingerprint]> {
        let first = self.position(slot)?;
        let last = self.position(slot + count.checked_sub(1)?)?;
        // Slots ascend, so if none is missing between them they stand together.
        (last - first + 1 == count).then(|| &self.fingerprints[first..=last])
    }

    /// How many chunks from a [`position`](Self::position) on lie in slots that follow each other.
    pub(crate) fn together(&self, position: usize) -> usize {
        match &self.slots {
            None => self.fingerprints.len() - position,
            Some(slots) => {
                let pairs = slots[position..].windows(2);
                1 + pairs.take_while(|pair| pair[0] + 1 == pair[1]).count()
            }
        }
    }

    /// The region that holds the chunk at a [`position`](Self::position).
    pub(crate) fn region_of(&self, position: usize) -> usize {
        let after = |region: &Region| usize::from(region.first) <= position;
        self.regions.partition_point(after) - 1
    }

    /// Bytes in memory.
    pub(crate) fn footprint(&self) -> usize {
        let slots = self.slots.as_ref().map_or(0, |slots| slots.len() * 2);
        self.fingerprints.len() * 32 + slots + self.regions.len() * size_of::<Region>() + 96
    }

    /// The chunks of a region from its stored bytes, all found right.
    pub(crate) fn open_region<'a>(
        &self,
        region: usize,
        stored: Cow<'a, [u8]>,
        codec: &ChunkCodec,
    ) -> Decoded<Cow<'a, [u8]>> {
        self.check_region(region, &stored)?;
        let region = &self.regions[region];
        let shape = (region.encoding, region.chunks);
        let opened = codec.open_bytes(shape, stored, self.of_region(region));
        opened.map_err(|what| region.wrong(what))
    }

    /// Whether a region's stored bytes are those that were put there: all that can be said without its key.
    fn check_region(&self, region: usize, stored: &[u8]) -> Decoded<()> {
        let region = &self.regions[region];
        match crc32c::crc32c(stored) == region.crc {
            true => Ok(()),
            false => Err(region.wrong("the checksum of a region does not match")),
        }
    }

    /// The fingerprints of a region's chunks.
    pub(crate) fn of_region(&self, region: &Region) -> &[Fingerprint] {
        &self.fingerprints[usize::from(region.first)..][..usize::from(region.chunks)]
    }

    /// The chunks of a region, with their slots.
    pub(crate) fn chunks_of(
        &self,
        region: &Region,
    ) -> impl Iterator<Item = (u64, &Fingerprint)> + Clone {
        let first = usize::from(region.first);
        self.chunks().skip(first).take(usize::from(region.chunks))
    }

    /// A region as it lies there; checked as far as that goes without its key.
    pub(crate) fn packed(&self, region: usize, stored: Vec<u8>) -> Decoded<PackedRegion> {
        self.check_region(region, &stored)?;
        let region = &self.regions[region];
        let packed =
            PackedRegion::from_parts(region.encoding, usize::from(region.chunks), stored.into());
        packed.ok_or_else(|| region.wrong("the length of a region is impossible"))
    }
}

impl Region {
    fn wrong(&self, what: &'static str) -> Malformed {
        let at = self.offset as usize;
        Malformed { what, at }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.offset);
        out.put_u32(self.stored);
        out.put_u32(self.crc);
        out.put_u16(self.chunks);
        out.put_u8(self.encoding);
        out.put_u8(0);
    }

    fn decode(d: &mut Decoder<'_>, first: u16) -> Decoded<Self> {
        let [offset, stored, crc] = [d.u32()?, d.u32()?, d.u32()?];
        let (chunks, encoding) = (d.u16()?, d.u8()?);
        d.u8()?;
        region::check(encoding, chunks, stored).map_err(|what| d.error(what))?;
        Ok(Self {
            offset,
            stored,
            crc,
            first,
            chunks,
            encoding,
        })
    }
}

fn decode_slots(d: &mut Decoder<'_>, count: u16) -> Decoded<Box<[u16]>> {
    let mut slots = Vec::with_capacity(usize::from(count));
    let mut least = 0;
    for _ in 0..count {
        let slot = d.u16()?;
        let legal = slot >= least && usize::from(slot) < SLOTS_MAX;
        d.check(legal, "its slots are out of order")?;
        least = slot + 1;
        slots.push(slot);
    }
    Ok(slots.into())
}

/// Checks every byte of a container; without its key (`None`) what is encrypted by its checksums alone.
pub(crate) fn check_whole(
    bytes: &[u8],
    store: [u8; 16],
    id: ObjectId,
    codec: Option<&ChunkCodec>,
) -> Decoded<Manifest> {
    check_header(bytes, store, id)?;
    let too_short = Malformed {
        what: "it is cut off",
        at: bytes.len(),
    };
    let footer_at = bytes.len().checked_sub(FOOTER_LEN).ok_or(too_short)?;
    let footer = Footer::decode(&bytes[footer_at..], store, id, bytes.len() as u64)?;
    let manifest = &bytes[block::index(footer.manifest_at)..footer_at];
    let manifest = Manifest::decode(manifest, &footer)?;
    for (i, region) in manifest.regions.iter().enumerate() {
        let from = region.offset as usize;
        let stored = &bytes[from..from + region.stored as usize];
        match codec {
            Some(codec) => drop(manifest.open_region(i, stored.into(), codec)?),
            None => manifest.check_region(i, stored)?,
        }
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests;
