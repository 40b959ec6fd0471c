//! HMAC-SHA-256 (RFC 2104) of chunks: its two keyed blocks are hashed once, not for each chunk.

use sha2::block_api::compress256;

use super::{CHUNK, Start};

const BLOCK: usize = 64;
/// Bytes of a digest.
const DIGEST: usize = 32;

/// What fingerprints of an encrypted store are made with.
pub(crate) struct FingerprintKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl FingerprintKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let keyed = |pad: u8| {
            let mut block = [pad; BLOCK];
            block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
            let mut state = Start::UNKEYED.state;
            compress256(&mut state, &[block]);
            state
        };
        Self {
            inner: keyed(0x36),
            outer: keyed(0x5c),
        }
    }

    /// Where the inner hash of a chunk begins.
    pub(crate) fn start(&self) -> Start {
        Start {
            state: self.inner,
            hashed: BLOCK,
        }
    }

    /// From the inner hash to the whole.
    pub(crate) fn finish(&self, inner: [u8; DIGEST]) -> [u8; DIGEST] {
        let mut state = self.outer;
        let mut block = [0; BLOCK];
        block[..DIGEST].copy_from_slice(&inner);
        end(&mut block, DIGEST, BLOCK + DIGEST);
        compress256(&mut state, &[block]);
        digest(state)
    }

    pub(crate) fn of(&self, chunk: &[u8; CHUNK]) -> [u8; DIGEST] {
        let mut state = self.inner;
        let (blocks, _) = chunk.as_chunks();
        compress256(&mut state, blocks);
        let mut last = [0; BLOCK];
        end(&mut last, 0, BLOCK + CHUNK);
        compress256(&mut state, &[last]);
        self.finish(digest(state))
    }
}

/// One bit after what is in the last block, and the length of all in bits (FIPS 180-4, section 5.1.1).
fn end(block: &mut [u8; BLOCK], at: usize, bytes: usize) {
    block[at] = 0x80;
    let bits = 8 * bytes as u64;
    block[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
}

fn digest(state: [u32; 8]) -> [u8; DIGEST] {
    let mut out = [0; DIGEST];
    for (bytes, word) in out.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    out
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;

    use super::*;

    #[test]
    fn it_is_hmac_as_others_have_it() {
        let key: [u8; 32] = std::array::from_fn(|i| i.to_le_bytes()[0].wrapping_mul(37));
        let chunk: [u8; CHUNK] = std::array::from_fn(|i| (i / 3).to_le_bytes()[0]);
        let theirs = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &chunk);
        assert_eq!(FingerprintKey::new(&key).of(&chunk), theirs.as_ref());
    }
}
