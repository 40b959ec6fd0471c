use block::UnixNanos;
use proptest::prelude::*;

use super::*;
use crate::records::{Consistency, PointDisk, PointId, SeedDiskRecord};
use crate::tree::ImageRef;

const STORE: [u8; 16] = [7; 16];

fn state() -> State {
    let group: Name = "web".parse().unwrap();
    let mut state = State::empty();
    let image = ImageRef::empty(1 << 30);
    state.apply(Change::AddPoint(Arc::new(PointRecord {
        id: PointId {
            group: group.clone(),
            sequence: 17,
        },
        at: UnixNanos(5),
        lineage: [1; 16],
        generation: 3,
        labels: [("k".into(), "v".into())].into(),
        consistency: Consistency::Crash,
        disks: vec![PointDisk {
            name: "root".parse().unwrap(),
            size: image.size(),
            image: image.clone(),
        }],
        stored_new_bytes: 1000,
        changed_bytes: 4096,
    })));
    state.apply(Change::SaveSeed(Arc::new(SeedRecord {
        group,
        lineage: [2; 16],
        generation: 0,
        disks: vec![SeedDiskRecord {
            name: "root".parse().unwrap(),
            size: image.size(),
            cursor_granule: 99,
            image,
        }],
    })));
    state.sequence = 2;
    state.checkpoint = 2;
    state.epoch = 1;
    state
}

#[test]
fn a_checkpoint_is_the_whole_state() {
    let state = state();
    let bytes = encode_checkpoint(&state, STORE);
    assert_eq!(decode_checkpoint(&bytes, STORE), Ok(state));
    assert!(decode_checkpoint(&bytes, [8; 16]).is_err());
}

/// Written by version 1; read forever.
#[test]
fn the_checkpoint_of_version_1_is_read_and_written_the_same() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/checkpoint-v1");
    if std::env::var_os("STANDIN_WRITE_FIXTURES").is_some() {
        std::fs::write(path, encode_checkpoint(&state(), STORE)).unwrap();
    }
    let golden = std::fs::read(path).unwrap();
    assert_eq!(decode_checkpoint(&golden, STORE), Ok(state()));
    assert_eq!(encode_checkpoint(&state(), STORE), golden);
}

#[test]
fn numbers_of_points_go_on_after_a_checkpoint() {
    let group: Name = "web".parse().unwrap();
    let bytes = encode_checkpoint(&state(), STORE);
    let read = decode_checkpoint(&bytes, STORE).unwrap();
    assert_eq!(read.next_number(&group), 18);
    assert_eq!(read.next_number(&"mail".parse().unwrap()), 1);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_an_error(bytes: Vec<u8>) {
        let sealed = codec::seal([&codec::begin(COMMIT_MAGIC), &bytes[..]].concat());
        let _ = decode_commit(&sealed, STORE);
        let sealed = codec::seal([&codec::begin(CHECKPOINT_MAGIC), &STORE[..], &bytes].concat());
        let _ = decode_checkpoint(&sealed, STORE);
        prop_assert!(decode_commit(&bytes, STORE).is_err());
    }
}
