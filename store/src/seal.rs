//! Encryption of regions, and the keys of what a store holds.
//!
//! ```text
//! master key 32 --HKDF-SHA-256--> fingerprint key (HMAC-SHA-256 of each chunk)
//!                            +--> region key --HKDF, the nonce's first 12 bytes--> key of one region
//!                            +--> key id 16, which `format` has
//!
//! sealed region:  nonce 24 (random) | AES-256-GCM(region, nonce's last 12 bytes) | tag 16
//! ```
//!
//! HKDF: RFC 5869; GCM: NIST SP 800-38D. A key of its own for each region, of a random nonce of 24 bytes, so that no count
//! of regions, writers or restored machines makes a nonce meet its key twice (the way of C2SP's XAES-256-GCM). What a region
//! is part of is not bound to it: it is copied into other containers, and other stores with the same key, by who has none.
//! What says that it lies where it should are the keyed fingerprints of its chunks.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use block::Random;
use zeroize::Zeroizing;

use crate::fingerprint::FingerprintKey;

/// Bytes that a sealed region has more than what is in it.
pub(crate) const SEAL_LEN: usize = NONCE_BYTES + TAG_LEN;

const NONCE_BYTES: usize = 24;
const TAG_LEN: usize = 16;

/// Names a master key without telling it.
pub(crate) type KeyId = [u8; 16];

/// What everything that a store encrypts depends on.
pub(crate) struct MasterKey(pub(crate) Zeroizing<[u8; 32]>);

/// The keys for what a store holds.
pub(crate) struct ContentKeys {
    pub(crate) fingerprint: FingerprintKey,
    region: Prk,
    random: Arc<dyn Random>,
}

impl MasterKey {
    pub(crate) fn new(random: &dyn Random) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        random.fill(&mut *key);
        Self(key)
    }

    pub(crate) fn id(&self) -> KeyId {
        self.derived(b"standin key id 1")
    }

    pub(crate) fn content_keys(&self, random: Arc<dyn Random>) -> ContentKeys {
        let region: Zeroizing<[u8; 32]> = Zeroizing::new(self.derived(b"standin region key 1"));
        ContentKeys {
            fingerprint: FingerprintKey::new(&Zeroizing::new(
                self.derived(b"standin fingerprint key 1"),
            )),
            region: Prk::new_less_safe(HKDF_SHA256, &*region),
            random,
        }
    }

    fn derived<const N: usize>(&self, what_for: &[u8]) -> [u8; N] {
        derive(&*self.0, b"", what_for)
    }
}

/// HKDF-SHA-256 of a secret that is random.
pub(crate) fn derive<const N: usize>(secret: &[u8], salt: &[u8], what_for: &[u8]) -> [u8; N] {
    let prk = Salt::new(HKDF_SHA256, salt).extract(secret);
    let mut out = [0; N];
    let info = [what_for];
    let expanded = prk.expand(&info, Length(N));
    expanded
        .and_then(|okm| okm.fill(&mut out))
        .expect("HKDF gives up to 8,160 bytes");
    out
}

/// How many bytes HKDF is to give.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// What GCM vouches for beside the region's bytes.
fn bound(encoding: u8, chunks: u16) -> Aad<[u8; 3]> {
    let [low, high] = chunks.to_le_bytes();
    Aad::from([encoding, low, high])
}

impl ContentKeys {
    /// The key and the nonce for GCM.
    fn of_region(&self, nonce: &[u8; NONCE_BYTES]) -> (LessSafeKey, Nonce) {
        let (head, tail) = nonce.split_at(NONCE_BYTES - NONCE_LEN);
        let info = [head];
        let key = self.region.expand(&info, &AES_256_GCM);
        let key = UnboundKey::from(key.expect("HKDF gives 32 bytes"));
        let nonce = Nonce::try_assume_unique_for_key(tail).expect("12 bytes");
        (LessSafeKey::new(key), nonce)
    }
}

/// Encrypts what a region is made of.
pub(crate) fn seal(keys: &ContentKeys, encoding: u8, chunks: u16, inside: &[u8]) -> Vec<u8> {
    let mut nonce = [0; NONCE_BYTES];
    keys.random.fill(&mut nonce);
    let mut out = Vec::with_capacity(inside.len() + SEAL_LEN);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(inside);
    let (key, gcm_nonce) = keys.of_region(&nonce);
    let aad = bound(encoding, chunks);
    let tag = key.seal_in_place_separate_tag(gcm_nonce, aad, &mut out[NONCE_BYTES..]);
    out.extend_from_slice(
        tag.expect("a region is far shorter than GCM's limit")
            .as_ref(),
    );
    out
}

/// `None` if it is not what [`seal`] made with these keys.
pub(crate) fn open(
    keys: &ContentKeys,
    encoding: u8,
    chunks: u16,
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let (nonce, inside) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let (key, gcm_nonce) = keys.of_region(nonce);
    let mut out = inside.to_vec();
    let opened = key.open_in_place(gcm_nonce, bound(encoding, chunks), &mut out);
    let len = opened.ok()?.len();
    out.truncate(len);
    Some(out)
}

#[cfg(test)]
mod tests {
    use block::OsRandom;

    use super::*;

    fn keys(byte: u8) -> ContentKeys {
        MasterKey(Zeroizing::new([byte; 32])).content_keys(Arc::new(OsRandom))
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_shape_alone() {
        let sealed = seal(&keys(1), 3, 7, b"what a guest wrote");
        assert_eq!(
            open(&keys(1), 3, 7, &sealed).as_deref(),
            Some(&b"what a guest wrote"[..])
        );
        assert_eq!(sealed.len(), 18 + SEAL_LEN);
        assert!(open(&keys(2), 3, 7, &sealed).is_none());
        assert!(open(&keys(1), 2, 7, &sealed).is_none());
        assert!(open(&keys(1), 3, 8, &sealed).is_none());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(open(&keys(1), 3, 7, &bad).is_none(), "byte {at}");
            assert!(open(&keys(1), 3, 7, &sealed[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn the_same_region_is_never_sealed_to_the_same_bytes() {
        let keys = keys(1);
        assert_ne!(seal(&keys, 3, 1, b"x"), seal(&keys, 3, 1, b"x"));
    }

    /// RFC 5869, A.1.
    #[test]
    fn hkdf_is_that_of_the_rfc() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let derived: [u8; 8] = derive(&[0x0b; 22], &salt, &info);
        assert_eq!(derived, [0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a]);
    }
}
