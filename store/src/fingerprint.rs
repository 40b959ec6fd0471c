//! Fingerprints: what names a chunk, a leaf, an inner node and a whole image by its content.
//!
//! ```text
//! chunk  SHA-256(4096 bytes), of an encrypted store HMAC-SHA-256; a chunk of zeroes has ZERO, and is never stored
//! node   SHA-256(level byte, 256 fingerprints of children); ZERO if all of them are ZERO
//! image  SHA-256("STDNROOT", size u64, fingerprint of the top node)
//! ```
//!
//! Rule: same content and size, same image fingerprint, whatever the history; in stores with one key, or none.

use std::fmt;

use block::{GRANULE, index};
use sha2::{Digest, Sha256};

pub(crate) use key::FingerprintKey;

mod key;

#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod streams;

/// Chunks that are best hashed at once.
pub(crate) const AT_ONCE: usize = 16;

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = index(GRANULE);

/// Children of a node, and chunks of a leaf.
pub(crate) const FANOUT: usize = 256;

/// A chunk of zeroes.
pub(crate) static ZERO_CHUNK: [u8; CHUNK] = [0; CHUNK];

/// Where the hash of a chunk begins.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    /// SHA-256's state.
    state: [u32; 8],
    /// Bytes that went into it.
    hashed: usize,
}

impl Start {
    /// FIPS 180-4, section 5.3.3.
    const UNKEYED: Self = Self {
        state: [
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ],
        hashed: 0,
    };
}

/// The SHA-256 of each of at most [`AT_ONCE`] chunks, after what `start` stands for; `None` where this processor is not known to
/// be faster with several at once.
#[cfg(target_arch = "x86_64")]
fn several(chunks: &[&[u8; CHUNK]], start: Start) -> Option<Vec<[u8; 32]>> {
    lanes::digests(chunks, start).or_else(|| streams::digests(chunks, start))
}

#[cfg(not(target_arch = "x86_64"))]
fn several(_: &[&[u8; CHUNK]], _: Start) -> Option<Vec<[u8; 32]>> {
    None
}

/// A SHA-256 or HMAC-SHA-256, or [`Fingerprint::ZERO`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub(crate) [u8; 32]);

impl Fingerprint {
    /// Stands for content that is all zeroes.
    pub const ZERO: Self = Self([0; 32]);

    /// The fingerprints of chunks that are not all zeroes; fastest for a multiple of [`AT_ONCE`].
    pub(crate) fn of_chunks(chunks: &[&[u8; CHUNK]], key: Option<&FingerprintKey>) -> Vec<Self> {
        let start = key.map_or(Start::UNKEYED, FingerprintKey::start);
        let mut found = Vec::with_capacity(chunks.len());
        for some in chunks.chunks(AT_ONCE) {
            match (several(some, start), key) {
                (Some(digests), None) => found.extend(digests.into_iter().map(Self)),
                (Some(inner), Some(key)) => {
                    found.extend(inner.into_iter().map(|inner| Self(key.finish(inner))));
                }
                (None, Some(key)) => found.extend(some.iter().map(|chunk| Self(key.of(chunk)))),
                (None, None) => found.extend(some.iter().map(|chunk| Self::of_bytes(*chunk))),
            }
        }
        found
    }

    /// The fingerprint of a node from those of its children.
    pub(crate) fn of_children(level: u8, children: &[Self; FANOUT]) -> Self {
        if children.iter().all(|child| *child == Self::ZERO) {
            return Self::ZERO;
        }
        let mut hash = Sha256::new();
        hash.update([level]);
        for child in children {
            hash.update(child.0);
        }
        Self(hash.finalize().into())
    }

    /// The fingerprint of an image.
    pub(crate) fn of_image(size: u64, top: Self) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"STDNROOT");
        hash.update(size.to_le_bytes());
        hash.update(top.0);
        Self(hash.finalize().into())
    }

    /// SHA-256 of any bytes (chunks, catalog objects, manifests).
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The fingerprint with these bytes, of whoever says that a chunk has it.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 64 bits: what the index keeps of it.
    pub(crate) fn prefix(&self) -> u64 {
        let (prefix, _) = self.0.split_first_chunk::<8>().expect("32 bytes");
        u64::from_le_bytes(*prefix)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn many_at_once_are_as_one_by_one() {
        let mut content = vec![0; 70 * CHUNK];
        ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut content);
        content[7 * CHUNK..8 * CHUNK].fill(0xff);
        let (chunks, _) = content.as_chunks();
        let chunks: Vec<_> = chunks.iter().collect();
        let key = FingerprintKey::new(&[7; 32]);
        for count in 0..=70 {
            let some = &chunks[..count];
            let plain: Vec<_> = some.iter().map(|c| Fingerprint::of_bytes(*c)).collect();
            assert_eq!(Fingerprint::of_chunks(some, None), plain);
            let keyed: Vec<_> = some.iter().map(|c| Fingerprint(key.of(c))).collect();
            assert_eq!(Fingerprint::of_chunks(some, Some(&key)), keyed);
        }
    }
}
