use block::GRANULE;
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;

use super::*;

const SIZE: u64 = 200 * 1024 * 1024 + 512;

fn identity(size: u64) -> MapIdentity {
    MapIdentity {
        size,
        generation: Generation(3),
        lineage: Lineage([9; 16]),
    }
}

fn fresh(size: u64) -> (SimWorld, DirtyMap) {
    let world = SimWorld::new(1);
    let file = world.dir().create("map").unwrap();
    (
        world,
        DirtyMap::create(file, identity(size), Generation(2)).unwrap(),
    )
}

fn all_runs(map: &DirtyMap) -> Vec<StateRun> {
    let mut at = 0;
    std::iter::from_fn(|| {
        let run = map.next_run(at, u64::MAX - at)?;
        at = run.granules.end;
        Some(run)
    })
    .collect()
}

/// The same runs, from a plain list of states.
fn runs_of(states: &[GranuleState]) -> Vec<StateRun> {
    let mut runs: Vec<StateRun> = Vec::new();
    for (granule, state) in (0..).zip(states) {
        if *state == GranuleState::Clean {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.granules.end == granule && run.state == *state => {
                run.granules.end += 1
            }
            _ => runs.push(StateRun {
                granules: GranuleRange {
                    start: granule,
                    end: granule + 1,
                },
                state: *state,
            }),
        }
    }
    runs
}

#[test]
fn the_map_is_a_list_of_states_across_reopen() {
    let mut rng = ChaCha8Rng::seed_from_u64(sim::seed_from_env(7));
    let (mut world, mut map) = fresh(SIZE);
    let mut states = vec![GranuleState::Clean; index(GranuleRange::of_size(SIZE).end)];
    for step in 0..400 {
        let start = rng.random_range(0..states.len());
        let len = if rng.random_bool(0.1) {
            20_000
        } else {
            rng.random_range(1..200)
        };
        let end = (start + len).min(states.len());
        let granules = GranuleRange {
            start: start as u64,
            end: end as u64,
        };
        map.mark(granules).unwrap();
        states[start..end].fill(GranuleState::Stale);
        match rng.random_range(0..3) {
            0 => {}
            1 => {
                map.settle(granules, Settled::Data);
                states[start..end].fill(GranuleState::Data);
            }
            _ => {
                map.settle(granules, Settled::Zero);
                states[start..end].fill(GranuleState::Zero);
            }
        }
        if step % 50 == 0 {
            world = world.kill();
            map = DirtyMap::open(world.dir().open("map").unwrap(), identity(SIZE)).unwrap();
        }
        let count = |wanted: fn(&GranuleState) -> bool| states.iter().filter(|s| wanted(s)).count();
        assert_eq!(
            map.dirty_count(),
            count(|s| *s != GranuleState::Clean) as u64
        );
        assert_eq!(
            map.stale_count(),
            count(|s| *s == GranuleState::Stale) as u64
        );
    }
    assert_eq!(all_runs(&map), runs_of(&states));
    let from = states.len() / 2;
    let later = map.next_run(from as u64, 5).unwrap();
    let first = (from..)
        .find(|g| states[*g] != GranuleState::Clean)
        .unwrap();
    assert_eq!(
        (later.granules.start, later.state),
        (first as u64, states[first])
    );
    assert!(later.granules.count() <= 5);
}

#[test]
fn a_map_of_another_disk_generation_or_length_is_refused() {
    let (world, map) = fresh(SIZE);
    drop(map);
    let open = |identity| DirtyMap::open(world.dir().open("map").unwrap(), identity);
    assert!(open(identity(SIZE)).is_ok());
    let other = MapIdentity {
        generation: Generation(4),
        ..identity(SIZE)
    };
    assert!(open(other).is_err());
    assert!(open(identity(SIZE * 2)).is_err());
}

#[test]
fn a_full_disk_is_an_error_and_marks_nothing_beyond_it() {
    let (world, map) = fresh(SIZE);
    map.mark(GranuleRange { start: 0, end: 1 }).unwrap();
    world.set_fault(Some(Arc::new(|_| Some(io::ErrorKind::StorageFull))));
    // The same page is reserved already; the next one is not.
    map.mark(GranuleRange { start: 5, end: 6 }).unwrap();
    let next_page = GranuleRange {
        start: PAGE_GRANULES,
        end: PAGE_GRANULES + 1,
    };
    assert_eq!(
        map.mark(next_page).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    assert_eq!(map.state(PAGE_GRANULES), GranuleState::Clean);
}

/// Two bits per granule: a terabyte of which a tenth is written costs a tenth of 64 MiB, in memory and on
/// the disk.
#[test]
fn a_map_is_64_mib_per_terabyte_and_only_what_was_written_of_it() {
    let (_world, map) = fresh(1 << 40);
    let empty = map.allocated().unwrap();
    assert!(empty <= 64 << 10, "{empty}");
    let (piece, apart) = ((64_u64 << 20) / GRANULE, (640_u64 << 20) / GRANULE);
    for at in (0..(1_u64 << 40) / GRANULE / apart).map(|at| at * apart) {
        map.mark(GranuleRange {
            start: at,
            end: at + piece,
        })
        .unwrap();
    }
    let written = map.allocated().unwrap() - empty;
    assert!(written <= 7 << 20, "{written}");
    assert_eq!(map.dirty_count() * GRANULE / (64 << 20), 1638);
}

/// The map of an earlier release says nothing that this one could misread.
#[test]
fn a_map_of_another_version_is_refused() {
    let (world, map) = fresh(SIZE);
    map.words.words()[word::VERSION].store(1, Ordering::SeqCst);
    drop(map);
    let opened = DirtyMap::open(world.dir().open("map").unwrap(), identity(SIZE));
    assert!(opened.is_err());
}

#[test]
#[should_panic = "marked were 0x0"]
fn what_was_not_marked_cannot_be_settled() {
    let (_world, map) = fresh(SIZE);
    map.settle(GranuleRange { start: 0, end: 1 }, Settled::Zero);
}

/// A page that is made ready costs the guest's write nothing that can fail or wait, and says nothing.
#[test]
fn a_map_is_made_ready_for_what_was_written_before() {
    let ((_, before), (world, next)) = (fresh(SIZE), fresh(SIZE));
    let in_page = |page: u64| GranuleRange {
        start: page * PAGE_GRANULES + 3,
        end: page * PAGE_GRANULES + 5,
    };
    before.mark(in_page(0)).unwrap();
    before.mark(in_page(2)).unwrap();
    next.prepare_like(&before, 8).unwrap();
    assert_eq!(all_runs(&next), []);
    world.set_fault(Some(Arc::new(|_| Some(io::ErrorKind::StorageFull))));
    next.mark(in_page(2)).unwrap();
    next.mark(in_page(0)).unwrap();
    assert!(next.mark(in_page(1)).is_err());
    assert_eq!(next.dirty_count(), 4);
}

/// 64 disks of which each made 512 pages ready took 12 s for a cut, and half as much memory again.
#[test]
fn a_group_of_many_disks_makes_no_more_pages_ready_than_one_of_few() {
    assert_eq!([1, 8, 64, 1000].map(pages_of_each), [512, 512, 64, 32]);
}
