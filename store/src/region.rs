//! A region: a run of chunks compressed together, and encrypted where the store is.
//!
//! ```text
//! encoding 0: the chunks     1: zstd of them     2, 3: the same, encrypted (seal.rs)
//! ```
//!
//! Rule: chunks are handed out only after the fingerprint of every one of them was found right.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;

use crate::fingerprint::{CHUNK, Fingerprint, ZERO_CHUNK};
use crate::seal::{self, ContentKeys, SEAL_LEN};

/// Most chunks compressed together: 128 KiB.
pub(crate) const REGION_CHUNKS_MAX: usize = 32;

/// Fast and nearly as small as slower levels (peers/dedup.md A3); later levels recompress when idle.
const ZSTD_LEVEL: i32 = 1;

pub(crate) const RAW: u8 = 0;
pub(crate) const ZSTD: u8 = 1;
/// Added to one of the others.
pub(crate) const SEALED: u8 = 2;

/// A run of chunks as it lies in a container. Invariant: its length is one that its encoding can have.
#[derive(Clone, Debug)]
pub struct PackedRegion {
    pub(crate) stored: Bytes,
    pub(crate) chunks: u16,
    pub(crate) encoding: u8,
    pub(crate) crc: u32,
}

impl PackedRegion {
    /// Takes what another one had, after a journey; `None` if there can be no such region. What it holds is not known to be
    /// right before it is opened.
    #[must_use]
    pub fn from_parts(encoding: u8, chunks: usize, stored: Bytes) -> Option<Self> {
        let stored_len = u32::try_from(stored.len()).ok()?;
        let chunks = u16::try_from(chunks).ok()?;
        check(encoding, chunks, stored_len).ok()?;
        Some(Self {
            crc: crc32c::crc32c(&stored),
            stored,
            chunks,
            encoding,
        })
    }

    /// How its chunks were made into bytes: docs/formats/container.md.
    #[must_use]
    pub fn encoding(&self) -> u8 {
        self.encoding
    }

    /// How many chunks it holds: 1 to 32.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        usize::from(self.chunks)
    }

    /// Its bytes.
    #[must_use]
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// The same, in memory of its own.
    pub(crate) fn by_itself(mut self) -> Self {
        self.stored = Bytes::copy_from_slice(&self.stored);
        self
    }

    /// Whether only who has the key can open it.
    pub(crate) fn is_sealed(&self) -> bool {
        is_sealed(self.encoding)
    }
}

pub(crate) fn is_sealed(encoding: u8) -> bool {
    encoding & SEALED != 0
}

/// Whether a region of so many chunks can be so long; else what is wrong.
pub(crate) fn check(encoding: u8, chunks: u16, stored: u32) -> Result<(), &'static str> {
    if !(1..=REGION_CHUNKS_MAX).contains(&usize::from(chunks)) {
        return Err("a region holds too many chunks or none");
    }
    if encoding > ZSTD + SEALED {
        return Err("the encoding of a region is unknown");
    }
    let raw = usize::from(chunks) * CHUNK;
    let seal = if is_sealed(encoding) { SEAL_LEN } else { 0 };
    let inside = (stored as usize).checked_sub(seal);
    let legal = match encoding & !SEALED {
        RAW => inside == Some(raw),
        _ => inside.is_some_and(|len| len < raw),
    };
    if legal {
        Ok(())
    } else {
        Err("the length of a region is impossible")
    }
}

/// How a store makes fingerprints and regions of chunks, and chunks of regions: with its key, if it has one.
#[derive(Clone, Default)]
pub struct ChunkCodec {
    keys: Option<Arc<ContentKeys>>,
}

impl ChunkCodec {
    /// That of a store that is not encrypted.
    #[must_use]
    pub fn plain() -> Self {
        Self::default()
    }

    pub(crate) fn sealed(keys: Arc<ContentKeys>) -> Self {
        Self { keys: Some(keys) }
    }

    /// The fingerprints of granules; of zeroes it is [`Fingerprint::ZERO`].
    ///
    /// # Panics
    /// If it is not whole granules.
    #[must_use]
    pub fn fingerprints(&self, content: &[u8]) -> Vec<Fingerprint> {
        let (chunks, rest) = content.as_chunks();
        assert!(rest.is_empty(), "whole granules");
        let mut found = vec![Fingerprint::ZERO; chunks.len()];
        let data: Vec<usize> = (0..chunks.len())
            .filter(|at| chunks[*at] != ZERO_CHUNK)
            .collect();
        let some: Vec<_> = data.iter().map(|at| &chunks[*at]).collect();
        for (at, fingerprint) in data.into_iter().zip(self.of_chunks(&some)) {
            found[at] = fingerprint;
        }
        found
    }

    /// The fingerprints of chunks that are not all zeroes; fastest for a multiple of
    /// [`AT_ONCE`](crate::fingerprint::AT_ONCE).
    pub(crate) fn of_chunks(&self, chunks: &[&[u8; CHUNK]]) -> Vec<Fingerprint> {
        let key = self.keys.as_ref().map(|keys| &keys.fingerprint);
        Fingerprint::of_chunks(chunks, key)
    }

    /// Compresses whole chunks, and encrypts them if this is done here.
    ///
    /// # Panics
    /// If it is not whole chunks, at least one and at most 32.
    #[must_use]
    pub fn pack(&self, raw: Vec<u8>) -> PackedRegion {
        let chunks = raw.len() / CHUNK;
        assert!(raw.len().is_multiple_of(CHUNK) && (1..=REGION_CHUNKS_MAX).contains(&chunks));
        let chunks = u16::try_from(chunks).expect("checked above");
        let (mut encoding, mut stored) = match compress(&raw) {
            Some(smaller) => (ZSTD, smaller),
            None => (RAW, raw),
        };
        if let Some(keys) = &self.keys {
            encoding |= SEALED;
            stored = seal::seal(keys, encoding, chunks, &stored);
        }
        PackedRegion {
            crc: crc32c::crc32c(&stored),
            stored: stored.into(),
            chunks,
            encoding,
        }
    }

    /// The chunks of a region, if they have these fingerprints; else what is wrong.
    ///
    /// # Errors
    /// A sentence.
    pub fn open<'a>(
        &self,
        region: &'a PackedRegion,
        fingerprints: &[Fingerprint],
    ) -> Result<Cow<'a, [u8]>, &'static str> {
        let shape = (region.encoding, region.chunks);
        let stored = Cow::Borrowed(&*region.stored);
        self.open_bytes(shape, stored, fingerprints)
    }

    /// Bytes that lie as they are come back as they are.
    pub(crate) fn open_bytes<'a>(
        &self,
        (encoding, chunks): (u8, u16),
        stored: Cow<'a, [u8]>,
        fingerprints: &[Fingerprint],
    ) -> Result<Cow<'a, [u8]>, &'static str> {
        let raw = match (&self.keys, is_sealed(encoding)) {
            (None, false) => unpack(encoding, chunks, stored)?,
            (Some(keys), true) => {
                let inside = seal::open(keys, encoding, chunks, &stored);
                let inside = inside.ok_or("a region cannot be decrypted")?;
                unpack(encoding, chunks, inside.into())?
            }
            // Whoever could put one there could put his own bytes there.
            (Some(_), false) => return Err("a region of an encrypted store is not encrypted"),
            (None, true) => return Err("a region is encrypted, and its store is not"),
        };
        let (each, _) = raw.as_chunks();
        let each: Vec<_> = each.iter().collect();
        if self.of_chunks(&each) != fingerprints {
            return Err("a chunk does not have its fingerprint");
        }
        Ok(raw)
    }
}

fn unpack(encoding: u8, chunks: u16, stored: Cow<'_, [u8]>) -> Result<Cow<'_, [u8]>, &'static str> {
    let raw_len = usize::from(chunks) * CHUNK;
    let raw = match encoding & !SEALED {
        RAW => stored,
        _ => {
            let raw = decompress(&stored, raw_len);
            raw.ok_or("a region cannot be decompressed")?.into()
        }
    };
    match raw.len() == raw_len {
        true => Ok(raw),
        false => Err("the length of a region is impossible"),
    }
}

/// `None` if the result would not be smaller.
fn compress(raw: &[u8]) -> Option<Vec<u8>> {
    thread_local! {
        static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }
    let mut out = Vec::with_capacity(raw.len());
    let len = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        // A result that does not fit is an error: then it is not smaller.
        slot.as_mut()?.compress_to_buffer(raw, &mut out).ok()
    })?;
    (len < raw.len()).then(|| {
        out.shrink_to_fit();
        out
    })
}

/// `None` if it is not zstd, or of more than `raw_len` bytes.
fn decompress(stored: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Decompressor::new().ok();
        }
        slot.as_mut()?.decompress(stored, raw_len).ok()
    })
}

#[cfg(test)]
mod tests;
