use proptest::prelude::*;

use super::*;

const OWNER: Owner = Owner {
    store: [7; 16],
    kind: Kind::Container,
    id: 9,
};

fn payload(len: usize) -> Vec<u8> {
    let byte = |i: usize| ((i * 131 + (i >> 8) * 7 + 3) % 256).to_le_bytes()[0];
    (0..len).map(byte).collect()
}

fn plate_of(object: &[u8]) -> Plate {
    Plate::decode(&object[..PLATE_LEN], OWNER).expect("a plate")
}

#[test]
fn the_payload_lies_where_both_plates_say() {
    for len in [
        0,
        1,
        63,
        64,
        65,
        4095,
        4096,
        4097,
        100_000,
        600_000,
        4 << 20,
    ] {
        let payload = payload(len);
        let object = wrap(OWNER, &payload);
        let plate = plate_of(&object);
        let back = Plate::decode(&object[object.len() - PLATE_LEN..], OWNER);
        assert_eq!(back, Ok(plate));
        assert!(plate.fits(object.len() as u64));
        assert_eq!(object[plate.payload()], payload);
        let healed = heal(&object, OWNER).expect("heals");
        assert_eq!(healed.damaged_bytes, 0);
        assert!(healed.payload == payload, "{len}");
    }
}

/// What armor costs: 8 KiB and a 98th of a container; the rest is small.
#[test]
fn it_is_light() {
    let object = wrap(OWNER, &payload(4 << 20));
    let weight = object.len() - (4 << 20);
    assert!(weight < (4 << 20) / 90, "{weight}");
    assert!(wrap(OWNER, &payload(300)).len() < 850);
}

#[test]
fn as_many_sectors_as_it_has_recovery_shards_are_healed_wherever_they_lie() {
    let payload = payload(1_000_000);
    let object = wrap(OWNER, &payload);
    let plate = plate_of(&object);
    assert_eq!(plate.recovery, 2);
    let sectors = object.len() / SHARD;
    for first in 0..sectors {
        let second = (first * 7 + 13) % sectors;
        let mut bad = object.clone();
        for sector in [first, second] {
            bad[sector * SHARD..][..SHARD].fill(0xa5);
        }
        let healed = heal(&bad, OWNER).unwrap_or_else(|e| panic!("{first} {second}: {e}"));
        assert!(healed.payload == payload && healed.damaged_bytes > 0);
    }
    let mut bad = object;
    for sector in [5, 50, 150] {
        bad[sector * SHARD..][..SHARD].fill(0xa5);
    }
    assert!(heal(&bad, OWNER).is_err());
}

#[test]
fn what_was_cut_off_is_healed_within_reach() {
    let payload = payload(1_000_000);
    let object = wrap(OWNER, &payload);
    let plate = plate_of(&object);
    let reach = plate.recovery * plate.shard + plate.table_len() + PLATE_LEN;
    for cut in [1, 63, 64, 65, 1000, 5000, reach] {
        let healed = heal(&object[..object.len() - cut], OWNER).expect("heals");
        assert!(healed.payload == payload, "{cut}");
    }
    // One shard of the payload, with the recovery shards that could have healed it.
    assert!(heal(&object[..object.len() - reach - SHARD], OWNER).is_err());
    let longer = [&object[..], &[1, 2, 3]].concat();
    assert_eq!(heal(&longer, OWNER).expect("heals").damaged_bytes, 3);
}

#[test]
fn another_objects_armor_is_not_taken_for_this_ones() {
    let object = wrap(OWNER, &payload(10_000));
    for other in [
        Owner { id: 8, ..OWNER },
        Owner {
            kind: Kind::Tree,
            ..OWNER
        },
        Owner {
            store: [8; 16],
            ..OWNER
        },
    ] {
        assert!(heal(&object, other).is_err(), "{other:?}");
    }
}

/// Both tables are hit, and nothing else: nothing can be computed, and nothing needs to be.
#[test]
fn a_payload_is_found_by_a_plate_alone() {
    let payload = payload(10_000);
    let object = wrap(OWNER, &payload);
    let mut bad = object.clone();
    bad[PLATE_LEN] ^= 1;
    let behind = bad.len() - PLATE_LEN - 1;
    bad[behind] ^= 1;
    let healed = heal(&bad, OWNER).expect("heals");
    assert!(healed.payload == payload && !healed.by_checksums);
    assert_eq!(healed.damaged_bytes, 2);
}

#[test]
fn every_flipped_bit_of_a_small_object_is_healed() {
    let payload = payload(300);
    let object = wrap(OWNER, &payload);
    assert!(is_intact(&object, OWNER));
    for bit in 0..object.len() * 8 {
        let mut bad = object.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!is_intact(&bad, OWNER), "bit {bit}");
        let healed = heal(&bad, OWNER).unwrap_or_else(|e| panic!("bit {bit}: {e}"));
        assert_eq!(healed.damaged_bytes, 1);
        assert_eq!(healed.payload, payload);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_heal_or_fail(bytes: Vec<u8>) {
        let _ = heal(&bytes, OWNER);
    }

    /// A hostile object: armor that is right in itself, with anything done to it.
    #[test]
    fn mangled_armor_heals_to_what_it_was_or_fails(
        len in 0..20_000_usize,
        marks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        cut in 0..400_usize,
    ) {
        let payload = payload(len);
        let mut object = wrap(OWNER, &payload);
        for (at, byte) in marks {
            let at = at.index(object.len());
            object[at] = byte;
        }
        object.truncate(object.len().saturating_sub(cut));
        if let Ok(healed) = heal(&object, OWNER) {
            prop_assert!(healed.payload == payload || !healed.by_checksums);
        }
    }
}
