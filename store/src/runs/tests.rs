use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const DISK: GranuleRange = GranuleRange { start: 0, end: 500 };

/// Chunk -> place (`None`: zeroes); chunks that no run names are absent.
type Model = BTreeMap<u64, Option<Place>>;

fn model_of(runs: &[Run]) -> Model {
    let mut model = Model::new();
    for run in runs {
        for i in 0..run.count {
            let place = run.place.map(|place| place.after(i).unwrap());
            model.insert(run.start + i, place);
        }
    }
    model
}

fn well_formed(runs: &[Run]) -> bool {
    let apart = runs.windows(2).all(|w| w[0].end() <= w[1].start);
    apart && runs.iter().all(|run| run.count > 0)
}

prop_compose! {
    fn any_run()(start in 0_u64..490, count in 1_u64..40, id in 0_u64..4, slot in 0_u64..4050) -> Run {
        let count = count.min(500 - start);
        Run { start, count, place: Place::new(ObjectId(id), slot) }
    }
}

/// Ascending runs that do not overlap.
fn any_runs() -> impl Strategy<Value = Vec<Run>> {
    prop::collection::vec(any_run(), 0..20).prop_map(|runs| {
        let mut changes = Changes::default();
        runs.into_iter().for_each(|run| changes.set(run));
        changes.take()
    })
}

proptest! {
    #[test]
    fn the_last_change_of_a_chunk_wins(runs in prop::collection::vec(any_run(), 0..40)) {
        let mut changes = Changes::default();
        let mut model = Model::new();
        for run in &runs {
            changes.set(*run);
            model.extend(model_of(&[*run]));
        }
        let taken = changes.take();
        prop_assert!(well_formed(&taken));
        prop_assert_eq!(model_of(&taken), model);
        prop_assert_eq!(changes.count(), 0);
    }

    #[test]
    fn newer_runs_cover_older_ones(older in any_runs(), newer in any_runs()) {
        let mut model = model_of(&older);
        model.extend(model_of(&newer));
        let laid = overlay(&older, &newer);
        prop_assert!(well_formed(&laid));
        prop_assert_eq!(model_of(&laid), model);
    }

    #[test]
    fn runs_survive_their_bytes(runs in any_runs()) {
        let mut bytes = Vec::new();
        encode(&runs, 0, &mut bytes);
        let mut d = Decoder::new(&bytes);
        prop_assert_eq!(decode(&mut d, DISK), Ok(runs));
        prop_assert_eq!(d.end(), Ok(()));
    }

    #[test]
    fn arbitrary_bytes_are_well_formed_runs_or_an_error(bytes: Vec<u8>) {
        if let Ok(runs) = decode(&mut Decoder::new(&bytes), DISK) {
            prop_assert!(well_formed(&runs));
            prop_assert!(runs.last().is_none_or(|run| run.end() <= DISK.end));
            model_of(&runs);
        }
    }

    #[test]
    fn touching_finds_what_a_search_finds(runs in any_runs(), start in 0_u64..500, count in 1_u64..50) {
        let range = GranuleRange { start, end: start + count };
        let searched: Vec<Run> = runs.iter().filter(|run| run.clip(range).is_some()).copied().collect();
        prop_assert_eq!(touching(&runs, range), &searched[..]);
    }
}

#[test]
fn a_count_beyond_the_bytes_allocates_nothing() {
    let mut bytes = Vec::new();
    bytes.put_varint(u64::MAX);
    assert!(decode(&mut Decoder::new(&bytes), DISK).is_err());
}

#[test]
fn the_bytes_are_the_documented_ones() {
    let place = |slot| Place::new(ObjectId(2), slot);
    let runs = [
        Run {
            start: 3,
            count: 2,
            place: place(300),
        },
        Run {
            start: 5,
            count: 1,
            place: None,
        },
        Run {
            start: 10,
            count: 4,
            place: place(302),
        },
    ];
    let mut bytes = Vec::new();
    encode(&runs, 0, &mut bytes);
    let expected = [
        3, // runs
        3,
        2 << 2 | 2,
        4,
        0xac,
        0x02, // gap 3, two chunks at container +2 (zigzag), slot 300
        0,
        1 << 2, // right after it, one chunk of zeroes
        4,
        4 << 2 | 1, // gap 4, four chunks in the slots that follow
    ];
    assert_eq!(bytes, expected);
}
