use proptest::prelude::*;

use super::*;
use crate::place::Place;

fn node(i: u64) -> NodeRef {
    let record = RecordRef {
        object: ObjectId(1 + i * 7919 % 1000),
        offset: 40 + u32::try_from(i).unwrap() * 100,
        len: 17,
        crc: 0xdead_beef,
    };
    let hash = Fingerprint::of_bytes(&i.to_le_bytes());
    NodeRef { record, hash }
}

proptest! {
    #[test]
    fn inner_nodes_survive_their_bytes(taken in prop::collection::btree_set(0_usize..256, 1..256), level in 1_u8..6) {
        let mut children: Children = [None; FANOUT];
        for i in taken {
            children[i] = Some(node(i as u64));
        }
        let bytes = encode_inner(level, &children);
        let Ok(Record::Inner(read)) = Record::decode_node(&bytes, level) else {
            return Err(TestCaseError::fail("not an inner node"));
        };
        prop_assert_eq!(*read, children);
        prop_assert!(Record::decode_node(&bytes, level + 1).is_err());
        prop_assert!(Record::decode_node(&bytes, 0).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_a_record_or_an_error(bytes: Vec<u8>, level in 0_u8..6) {
        let _ = Record::decode_node(&bytes, level);
        let _ = Record::decode_node(&[&[level], &bytes[..]].concat(), level);
        let _ = Record::decode_list(&[&[KIND_LIST], &bytes[..]].concat(), 1 << 30);
        let _ = ImageRef::decode(&mut Decoder::new(&bytes));
    }

    #[test]
    fn references_to_images_survive_their_bytes(size in 0_u64..SIZE_MAX, root: bool, lists in 0_u64..=16) {
        let list = |i| ListRef { record: node(i).record, runs: 9 };
        let image = ImageRef {
            size,
            root: root.then(|| node(1)),
            lists: (0..lists).map(list).collect(),
        };
        let mut bytes = Vec::new();
        image.put(&mut bytes);
        let mut d = Decoder::new(&bytes);
        prop_assert_eq!(ImageRef::decode(&mut d), Ok(image));
        prop_assert_eq!(d.end(), Ok(()));
    }
}

#[test]
fn trees_are_as_high_as_their_disks_need() {
    let height = |size| Shape::of(size).height();
    let mib = 1 << 20;
    assert_eq!(
        [0, mib, mib + 1, 256 * mib, 257 * mib].map(height),
        [0, 0, 1, 1, 2]
    );
    assert_eq!([64 << 30, (64 << 30) + 1, SIZE_MAX].map(height), [2, 3, 5]);
    let shape = Shape::of(257 * mib);
    assert_eq!(
        shape.under(1, 1),
        GranuleRange {
            start: 65_536,
            end: 65_792
        }
    );
    assert_eq!(shape.under(2, 0).count(), 65_792);
}

#[test]
fn zeroes_in_a_leaf_are_refused() {
    let zeroes = Run {
        start: 0,
        count: 1,
        place: None,
    };
    assert!(Record::decode_node(&encode_leaf(&[zeroes]), 0).is_err());
    let data = Run {
        place: Place::new(ObjectId(1), 0),
        ..zeroes
    };
    assert!(Record::decode_node(&encode_leaf(&[data]), 0).is_ok());
    let outside = Run { start: 256, ..data };
    assert!(Record::decode_node(&encode_leaf(&[outside]), 0).is_err());
}
