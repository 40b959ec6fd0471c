use block::OsRandom;
use zeroize::Zeroizing;

use super::*;
use crate::seal::MasterKey;

fn codec(byte: u8) -> ChunkCodec {
    let key = MasterKey(Zeroizing::new([byte; 32]));
    ChunkCodec::sealed(Arc::new(key.content_keys(Arc::new(OsRandom))))
}

/// Chunks that compress, then chunks that do not.
fn samples() -> [Vec<u8>; 2] {
    let random = (0_u32..1024).flat_map(|i| *Fingerprint::of_bytes(&i.to_le_bytes()).as_bytes());
    [
        b"guest".repeat(2 * CHUNK)[..8 * CHUNK].to_vec(),
        random.collect(),
    ]
}

#[test]
fn what_is_packed_opens_to_the_same() {
    for raw in samples() {
        for codec in [ChunkCodec::plain(), codec(1)] {
            let packed = codec.pack(raw.clone());
            let fingerprints = codec.fingerprints(&raw);
            assert_eq!(codec.open(&packed, &fingerprints).as_deref(), Ok(&*raw));
            let parts = (packed.encoding(), packed.chunk_count());
            let again = PackedRegion::from_parts(parts.0, parts.1, packed.stored.clone());
            let again = again.expect("it was a region before");
            assert_eq!(codec.open(&again, &fingerprints).as_deref(), Ok(&*raw));
        }
    }
}

#[test]
fn random_bytes_are_stored_as_they_are() {
    let [_, raw] = samples();
    let packed = ChunkCodec::plain().pack(raw.clone());
    assert_eq!((packed.encoding, &*packed.stored), (RAW, &*raw));
}

#[test]
fn a_region_opens_with_the_key_of_its_store_alone() {
    let [raw, _] = samples();
    let all = [ChunkCodec::plain(), codec(1), codec(2)];
    for (i, one) in all.iter().enumerate() {
        let packed = one.pack(raw.clone());
        for (j, other) in all.iter().enumerate() {
            let opened = other.open(&packed, &one.fingerprints(&raw));
            assert_eq!(opened.is_ok(), i == j, "{i} {j}");
        }
        assert_eq!(packed.is_sealed(), i > 0);
    }
}

#[test]
fn fingerprints_tell_nothing_without_the_key() {
    let [raw, _] = samples();
    let [a, b, c] = [ChunkCodec::plain(), codec(1), codec(2)].map(|c| c.fingerprints(&raw));
    assert!(a[0] != b[0] && b[0] != c[0] && a[0] != c[0]);
    let zeroes = codec(1).fingerprints(&[0; CHUNK]);
    assert_eq!(zeroes, [Fingerprint::ZERO]);
}

#[test]
fn a_chunk_that_is_another_is_refused() {
    let [raw, _] = samples();
    for codec in [ChunkCodec::plain(), codec(1)] {
        let packed = codec.pack(raw.clone());
        let mut lying = codec.fingerprints(&raw);
        lying.swap(1, 2);
        assert!(codec.open(&packed, &lying).is_err());
        assert!(codec.open(&packed, &lying[1..]).is_err());
    }
}

#[test]
fn impossible_regions_are_none() {
    for (encoding, chunks, len) in [
        (0, 0, 0),
        (0, 33, 33 * CHUNK),
        (0, 2, CHUNK),
        (1, 1, CHUNK),
        (2, 1, CHUNK),
        (3, 1, CHUNK + SEAL_LEN),
        (3, 1, SEAL_LEN - 1),
        (4, 1, 10),
        (255, 1, 10),
    ] {
        let region = PackedRegion::from_parts(encoding, chunks, vec![0; len].into());
        assert!(region.is_none(), "{encoding} {chunks} {len}");
    }
    assert!(PackedRegion::from_parts(2, 1, vec![0; CHUNK + SEAL_LEN].into()).is_some());
}
