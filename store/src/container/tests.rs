use proptest::prelude::*;

use super::*;
use crate::fingerprint::CHUNK;
use crate::region::REGION_CHUNKS_MAX;

const STORE: [u8; 16] = [7; 16];
const ID: ObjectId = ObjectId(1);

fn chunks(count: u8) -> Vec<u8> {
    let chunk = |i: u8| [vec![i + 1; CHUNK / 2], vec![!i; CHUNK / 2]].concat();
    (0..count).flat_map(chunk).collect()
}

fn object(regions: &[u8]) -> (Vec<u8>, Manifest) {
    let raw: Vec<Vec<u8>> = regions.iter().map(|count| chunks(*count)).collect();
    let of_region = |raw: &Vec<u8>| {
        raw.chunks(CHUNK)
            .map(Fingerprint::of_bytes)
            .collect::<Vec<_>>()
    };
    let fingerprints = raw.iter().flat_map(of_region).collect();
    let packed: Vec<_> = raw.into_iter().map(pack).collect();
    encode(STORE, ID, fingerprints, None, &packed)
}

/// A container that has lost all slots but these.
fn sparse(slots: &[u16]) -> (Vec<u8>, Manifest) {
    let raw: Vec<u8> = slots.iter().flat_map(|slot| chunk_of(*slot)).collect();
    let fingerprints = raw.chunks(CHUNK).map(Fingerprint::of_bytes).collect();
    let regions = raw.chunks(CHUNK * REGION_CHUNKS_MAX).map(<[u8]>::to_vec);
    let packed: Vec<_> = regions.map(pack).collect();
    encode(STORE, ID, fingerprints, Some(slots.to_vec()), &packed)
}

fn chunk_of(slot: u16) -> Vec<u8> {
    slot.to_le_bytes().repeat(CHUNK / 2)
}

fn pack(raw: Vec<u8>) -> PackedRegion {
    ChunkCodec::plain().pack(raw)
}

fn open(manifest: &Manifest, region: usize, stored: &[u8]) -> Decoded<Vec<u8>> {
    let opened = manifest.open_region(region, stored.into(), &ChunkCodec::plain());
    opened.map(|chunks| chunks.into_owned())
}

fn decode(bytes: &[u8]) -> Decoded<Manifest> {
    check_header(bytes, STORE, ID)?;
    let at = bytes.len() - FOOTER_LEN;
    let footer = Footer::decode(&bytes[at..], STORE, ID, bytes.len() as u64)?;
    Manifest::decode(&bytes[block::index(footer.manifest_at)..at], &footer)
}

#[test]
fn what_was_packed_is_found_by_slot() {
    let (bytes, manifest) = object(&[32, 1, 7]);
    assert_eq!(decode(&bytes).unwrap(), manifest);
    assert_eq!(
        [0, 31, 32, 33, 39].map(|s| manifest.position(s).map(|at| manifest.region_of(at))),
        [0, 0, 1, 2, 2].map(Some)
    );
    assert_eq!(manifest.position(40), None);
    for (i, count) in [32, 1, 7].into_iter().enumerate() {
        let region = &manifest.regions[i];
        let from = region.offset as usize;
        let stored = &bytes[from..from + region.stored as usize];
        assert_eq!(open(&manifest, i, stored).unwrap(), chunks(count));
    }
}

#[test]
fn what_is_left_of_a_container_keeps_its_slots() {
    let slots: Vec<u16> = (0..40).chain([100, 101, 4095]).collect();
    let (bytes, manifest) = sparse(&slots);
    assert_eq!(
        check_whole(&bytes, STORE, ID, Some(&ChunkCodec::plain())).unwrap(),
        manifest
    );
    let found: Vec<u64> = manifest.chunks().map(|(slot, _)| slot).collect();
    assert!(found.iter().zip(&slots).all(|(a, b)| *a == u64::from(*b)));
    for slot in slots {
        let slot = usize::from(slot);
        let expected = Fingerprint::of_bytes(&chunk_of(u16::try_from(slot).unwrap()));
        assert_eq!(manifest.fingerprint(slot), Some(&expected));
    }
    assert!(
        [40, 99, 102, 4094, 4096]
            .iter()
            .all(|slot| manifest.fingerprint(*slot).is_none())
    );
    assert_eq!(manifest.fingerprints(100, 2).map(<[_]>::len), Some(2));
    assert!(manifest.fingerprints(39, 2).is_none() && manifest.fingerprints(100, 3).is_none());
    let together = |slot| manifest.together(manifest.position(slot).unwrap());
    assert_eq!([0, 39, 100, 101, 4095].map(together), [40, 1, 2, 1, 1]);
    assert_eq!(manifest.region_of(manifest.position(100).unwrap()), 1);
}

#[test]
fn slots_out_of_order_are_refused() {
    for slots in [[1, 1], [2, 1], [0, 4096]] {
        let (bytes, _) = sparse(&slots);
        assert!(decode(&bytes).is_err(), "{slots:?}");
    }
}

#[test]
fn another_container_or_another_store_is_refused() {
    let (bytes, _) = object(&[3]);
    let at = bytes.len() - FOOTER_LEN;
    let len = bytes.len() as u64;
    assert!(Footer::decode(&bytes[at..], STORE, ObjectId(2), len).is_err());
    assert!(Footer::decode(&bytes[at..], [8; 16], ID, len).is_err());
    assert!(check_header(&bytes, STORE, ObjectId(2)).is_err());
}

#[test]
fn a_region_whose_chunks_are_others_is_refused() {
    let (bytes, manifest) = object(&[4, 4]);
    let [first, second] = [0, 1].map(|i| {
        let region = &manifest.regions[i];
        &bytes[region.offset as usize..][..region.stored as usize]
    });
    assert!(open(&manifest, 0, first).is_ok());
    let mut lying = Manifest {
        fingerprints: manifest.fingerprints.clone(),
        slots: None,
        regions: manifest.regions.clone(),
    };
    lying.fingerprints[2] = lying.fingerprints[1];
    assert!(open(&lying, 0, first).is_err());
    assert!(open(&manifest, 1, &second[1..]).is_err());
}

proptest! {
    #[test]
    fn a_flipped_bit_is_noticed_by_some_check(at in 0_usize..3000, bit in 0_u8..8) {
        let (mut bytes, manifest) = object(&[20, 5]);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let intact = decode(&bytes).is_ok_and(|m| m == manifest) && (0..2).all(|i| {
            let region = &manifest.regions[i];
            let stored = &bytes[region.offset as usize..][..region.stored as usize];
            open(&manifest, i, stored).is_ok()
        });
        prop_assert!(!intact, "byte {at}");
    }
}
