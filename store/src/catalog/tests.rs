use block::{Name, UnixNanos};
use proptest::prelude::*;
use sim::SimWorld;

use super::*;
use crate::Directory;
use crate::codec;
use crate::locations::Spot;
use crate::place::ObjectId;
use crate::protection::Protection;
use crate::records::{Consistency, PointDisk, PointId, PointRecord, SeedDiskRecord, SeedRecord};
use crate::relocation::Relocation;
use crate::scrub::LastScrub;
use crate::sweep::Sweep;
use crate::tree::ImageRef;

const STORE: [u8; 16] = [7; 16];

fn state() -> State {
    let group: Name = "web".parse().unwrap();
    let mut state = State::empty();
    let image = ImageRef::empty(1 << 30);
    let point = Change::AddPoint(Arc::new(PointRecord {
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
    }));
    state.apply(point, 100);
    let seed = Change::SaveSeed(Arc::new(SeedRecord {
        group,
        lineage: [2; 16],
        generation: 0,
        disks: vec![SeedDiskRecord {
            name: "root".parse().unwrap(),
            size: image.size(),
            cursor_granule: 99,
            image,
        }],
    }));
    state.apply(seed, 101);
    state.sequence = 2;
    state.checkpoint = 2;
    state.epoch = 1;
    state
}

fn spot(bundle: u64, at: u32) -> Spot {
    Spot {
        bundle: ObjectId(bundle),
        at,
        len: 1000,
    }
}

fn sweep() -> Sweep {
    Sweep {
        next_bundle: 9,
        moved_containers: vec![(ObjectId(3), spot(8, 40)), (ObjectId(70), spot(8, 1040))],
        moved_trees: vec![(ObjectId(5), spot(7, 40))],
        gone_containers: vec![ObjectId(2), ObjectId(1)],
        gone_trees: vec![ObjectId(4)],
        freed: vec![
            (Kind::Container, ObjectId(3), 5_000_000),
            (Kind::Bundle, ObjectId(1), 7),
            (Kind::Tree, ObjectId(4), 300),
        ],
    }
}

/// One thing goes back to where it was before that sweep, and one is found in another bundle.
fn relocation() -> Relocation {
    Relocation {
        moved_containers: vec![(ObjectId(70), spot(1, 40))],
        moved_trees: Vec::new(),
        own_containers: vec![ObjectId(3)],
        own_trees: vec![ObjectId(5)],
        kept: vec![(Kind::Container, ObjectId(3)), (Kind::Bundle, ObjectId(1))],
    }
}

fn scrub() -> LastScrub {
    LastScrub {
        ended_at: UnixNanos(335),
        deep: true,
        objects: 7,
        healed: 2,
        lost: 1,
    }
}

fn protection() -> Protection {
    Protection {
        hold: Some("court".into()),
        locked_until: 1 << 60,
    }
}

/// What version 2 has and version 1 had not.
fn swept() -> State {
    let mut state = state();
    state.apply(Change::Sweep(sweep()), 200);
    state.apply(Change::Purge(vec![(Kind::Tree, ObjectId(4))]), 300);
    let mut second = PointRecord::clone(&state.points[0]);
    second.id.sequence = 18;
    let first = state.points[0].id.clone();
    state.apply(Change::AddPoint(Arc::new(second)), 310);
    state.apply(Change::RemovePoints(vec![first], 1000), 320);
    let second = state.points[0].id.clone();
    state.apply(Change::Protect(second, protection()), 330);
    state.apply(Change::Scrubbed(scrub()), 340);
    state
}

#[test]
fn a_point_is_brought_back_to_its_place() {
    let mut state = swept();
    let first = state.removed.keys().next().unwrap().clone();
    state.apply(Change::BringBack(vec![first]), 400);
    let numbers: Vec<u64> = state.points.iter().map(|p| p.id.sequence).collect();
    assert_eq!(numbers, [17, 18]);
    assert!(state.removed.is_empty());
    let second = state.points[1].id.clone();
    state.apply(Change::RemovePoints(vec![second.clone()], 1000), 410);
    assert!(state.protections.is_empty());
    state.apply(Change::Forget(vec![second]), 420);
    assert!(state.removed.is_empty());
}

#[test]
fn a_sweep_moves_forgets_and_puts_into_quarantine() {
    let state = swept();
    assert_eq!(state.locations.containers[&ObjectId(70)], spot(8, 1040));
    assert_eq!(state.next(), [1, 1, 9]);
    let left: Vec<_> = state.quarantine.keys().copied().collect();
    assert_eq!(
        left,
        [(Kind::Container, ObjectId(3)), (Kind::Bundle, ObjectId(1))]
    );
    assert_eq!(state.quarantine[&left[0]].since, 200);
    let mut later = state;
    let gone = Sweep {
        gone_containers: vec![ObjectId(70)],
        ..Sweep::default()
    };
    later.apply(Change::Sweep(gone), 400);
    assert!(!later.locations.containers.contains_key(&ObjectId(70)));
    assert_eq!(later.next_bundle, 9);
}

#[test]
fn a_relocation_uses_other_copies_and_keeps_them() {
    let mut state = swept();
    let relocated = state.relocated(&relocation());
    state.apply(Change::Relocate(relocation()), 350);
    assert_eq!(state.locations, relocated.locations);
    assert_eq!(state.locations.containers[&ObjectId(70)], spot(1, 40));
    assert_eq!(state.locations.containers.len(), 1);
    assert!(state.locations.trees.is_empty());
    assert!(state.quarantine.is_empty() && relocated.quarantine.is_empty());
}

#[test]
fn every_kind_of_commit_survives_its_bytes() {
    let id = |sequence| PointId {
        group: "web".parse().unwrap(),
        sequence,
    };
    for change in [
        Change::AddPoint(Arc::clone(&state().points[0])),
        Change::RemovePoints(vec![id(3), id(1)], 99),
        Change::BringBack(vec![id(3)]),
        Change::Forget(vec![id(3), id(9)]),
        Change::Protect(id(3), protection()),
        Change::Protect(id(3), Protection::default()),
        Change::Scrubbed(scrub()),
        Change::Sweep(sweep()),
        Change::Sweep(Sweep::default()),
        Change::Purge(vec![(Kind::Bundle, ObjectId(1)), (Kind::Tree, ObjectId(9))]),
        Change::Relocate(relocation()),
        Change::Relocate(Relocation::default()),
        Change::BeginAnew(vec![3, 4, u64::MAX]),
        Change::DropSeed("web".parse().unwrap()),
        Change::ReturnPoint(Arc::clone(&state().points[0])),
    ] {
        let commit = Commit {
            sequence: 7,
            epoch: 2,
            previous: Fingerprint::ZERO,
            at: 5,
            held: Held::default(),
            change,
        };
        let bytes = commit.encode(STORE);
        assert_eq!(decode_commit(&bytes, STORE), Ok(commit));
    }
}

#[test]
fn points_that_were_removed_leave_their_numbers() {
    let mut state = state();
    let id = state.points[0].id.clone();
    let group = id.group.clone();
    state.apply(Change::RemovePoints(vec![id.clone()], 0), 5);
    assert!(state.points.is_empty() && state.removed.is_empty());
    assert_eq!(state.next_number(&group), 18);
}

#[test]
fn a_seed_that_is_dropped_holds_no_image() {
    let mut state = state();
    let group: Name = "web".parse().unwrap();
    let image = state.seeds[&group].disks[0].image.clone();
    state.apply(Change::DropSeed("other".parse().unwrap()), 102);
    assert!(state.seeds.contains_key(&group));
    state.points.clear();
    assert!(state.holds_image(&image));
    state.apply(Change::DropSeed(group), 103);
    assert!(!state.holds_image(&image));
}

#[test]
fn a_checkpoint_is_the_whole_state() {
    for state in [state(), swept()] {
        let bytes = encode_checkpoint(&state, STORE);
        assert_eq!(decode_checkpoint(&bytes, STORE), Ok(state));
    }
    let bytes = encode_checkpoint(&state(), STORE);
    assert!(decode_checkpoint(&bytes, [8; 16]).is_err());
}

/// Written by earlier versions; read forever.
#[test]
fn the_checkpoints_of_all_versions_are_read() {
    let fixture = |version: u32| {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
        std::path::PathBuf::from(format!("{dir}/checkpoint-v{version}"))
    };
    let newest = fixture(checkpoint::VERSION);
    if std::env::var_os("STANDIN_WRITE_FIXTURES").is_some() {
        std::fs::write(&newest, encode_checkpoint(&swept(), STORE)).unwrap();
    }
    let read = |version| std::fs::read(fixture(version)).unwrap();
    // Version 1 does not say when its last commit was.
    let first = State { at: 0, ..state() };
    assert_eq!(decode_checkpoint(&read(1), STORE), Ok(first));
    assert_eq!(decode_checkpoint(&read(2), STORE), Ok(swept()));
    assert_eq!(encode_checkpoint(&swept(), STORE), read(2));
}

#[test]
fn numbers_of_points_go_on_after_a_checkpoint() {
    let group: Name = "web".parse().unwrap();
    let bytes = encode_checkpoint(&state(), STORE);
    let read = decode_checkpoint(&bytes, STORE).unwrap();
    assert_eq!(read.next_number(&group), 18);
    assert_eq!(read.next_number(&"mail".parse().unwrap()), 1);
}

/// Labels of points made a catalog longer than a checkpoint may be: one was written that its own reader refused, and the store
/// did not open any more.
#[test]
fn a_catalog_that_is_too_long_for_a_checkpoint_goes_on_without_one() {
    let place = Directory::backend(&SimWorld::new(1).dir());
    let catalog = |checkpoint_len_max| Catalog {
        checkpoint_len_max,
        ..Catalog::open(&place, STORE)
    };
    let short = catalog(16 << 10);
    let mut written = State::empty();
    let point = Arc::clone(&state().points[0]);
    for number in 0..3 * CHECKPOINT_COMMITS_MIN {
        let mut point = (*point).clone();
        point.id.sequence = number + 1;
        let change = Change::AddPoint(Arc::new(point));
        let held = written.held;
        short
            .commit_alone(&mut written, 1, number, held, change)
            .unwrap();
        let failed = short.checkpoint_if_due(&mut written, 1).is_err();
        // Not tried again at once: it takes as long as it is long.
        let due = (number + 1).is_multiple_of(CHECKPOINT_COMMITS_MIN);
        assert_eq!(failed, due, "{number}");
    }
    assert_eq!(written.checkpoint, 0);
    assert_eq!(short.load().unwrap(), written);
    let before = written.sequence;
    let anew = short.begin_anew(written.clone(), 1, 1, written.held, vec![2]);
    assert!(anew.is_err());
    assert_eq!(
        short.load().unwrap().sequence,
        before,
        "nothing was committed"
    );
    // As soon as it fits there is one again.
    catalog(CHECKPOINT_LEN_MAX)
        .checkpoint_if_due(&mut written, 1)
        .unwrap();
    assert_eq!(written.checkpoint, before);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_an_error(bytes: Vec<u8>) {
        let sealed = codec::seal([&codec::begin(commit::MAGIC), &bytes[..]].concat());
        let _ = decode_commit(&sealed, STORE);
        let sealed = codec::seal([&codec::begin(checkpoint::MAGIC), &STORE[..], &bytes].concat());
        let _ = decode_checkpoint(&sealed, STORE);
        prop_assert!(decode_commit(&bytes, STORE).is_err());
    }
}
