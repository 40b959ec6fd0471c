use std::collections::BTreeMap;

use block::{Dir, OsDir, SystemClock, UnixNanos};
use store::{
    Around, Base, Consistency, Directory, FinishedImage, PointDraft, SeedDisk, SeedDraft, Store,
};

use super::*;

const OURS: Lineage = Lineage([1; 16]);
const THEIRS: Lineage = Lineage([2; 16]);
const SIZE: u64 = 1 << 20;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

struct World {
    store: Store,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let dir: Arc<dyn Dir> = Arc::new(OsDir::open(home.path()).expect("opens"));
        Store::create(&Directory::backend(&dir)).expect("created");
        let around = Around::new(Arc::new(SystemClock::new()));
        let store = Store::open_writer(&Directory::backend(&dir), around).expect("opens");
        Self { store, _dir: home }
    }

    fn image(&self, size: u64) -> FinishedImage {
        let writer = self
            .store
            .image_writer(Base::Empty { size })
            .expect("begins");
        writer.finish().expect("finishes")
    }

    fn point(&self, lineage: Lineage, generation: u64, disks: &[(&str, u64)]) -> Arc<PointRecord> {
        let draft = PointDraft {
            group: name("g"),
            disks: disks
                .iter()
                .map(|(n, size)| (name(n), self.image(*size)))
                .collect(),
            at: UnixNanos(1),
            lineage: lineage.0,
            generation,
            labels: BTreeMap::new(),
            consistency: Consistency::Crash,
        };
        self.store.commit_point(draft).expect("commits")
    }

    fn seed(&self, lineage: Lineage, generation: u64, complete: bool) -> Arc<SeedRecord> {
        let draft = SeedDraft {
            group: name("g"),
            lineage: lineage.0,
            generation,
            disks: vec![SeedDisk {
                name: name("a"),
                cursor_granule: if complete { SIZE / 4096 } else { 3 },
                image: self.image(SIZE),
            }],
        };
        self.store.save_seed(draft).expect("saves");
        self.store.seed(&name("g")).expect("saved")
    }
}

/// The generation that takes the guest's writes.
const OPEN: u64 = 10;

/// What is planned for `since..=generation` of disk `a`: "over", "there" or "missing".
fn planned(held: &Held, since: u64, generation: u64) -> &'static str {
    let disks = [(name("a"), SIZE)];
    let sealed = Sealed {
        lineage: OURS,
        since: Generation(since),
        generation: Generation(generation),
        open: Generation(OPEN),
        disks: &disks,
    };
    match plan(held, &sealed) {
        Plan::AlreadyThere(_) => "there",
        Plan::Over(images) => {
            assert_eq!(images.len(), 1);
            "over"
        }
        Plan::Missing(_) => "missing",
    }
}

#[test]
fn only_a_point_between_since_and_generation_is_a_base() {
    let world = World::new();
    let held = |lineage, generation| Held {
        point: Some(world.point(lineage, generation, &[("a", SIZE)])),
        seed: None,
        foreign: false,
    };
    for (point, since, generation, plan) in [
        (5, 5, 6, "over"),
        (5, 4, 6, "over"),
        (5, 0, 6, "over"),
        // Folded generations: since reaches back, and the base may lie anywhere behind it.
        (5, 3, 9, "over"),
        // What was written in generation 6 is in no diff and in no point.
        (5, 6, 7, "missing"),
        (4, 5, 6, "missing"),
        // A crash after the commit, before the release.
        (6, 5, 6, "there"),
        (7, 5, 6, "there"),
    ] {
        let found = planned(&held(OURS, point), since, generation);
        assert_eq!(
            found, plan,
            "point {point}, since {since}, generation {generation}"
        );
    }
    // Whoever can add points made one of a cut that is still to come: had it counted as ours, every diff before it would
    // have been released without a point.
    for forged in [OPEN, OPEN + 1, u64::MAX] {
        assert_eq!(planned(&held(OURS, forged), 5, 6), "missing", "{forged}");
    }
    // The same numbers of another history say nothing, not even that the point is there.
    for point in [4, 5, 6, 7] {
        assert_eq!(planned(&held(THEIRS, point), 5, 6), "missing");
    }
    assert_eq!(planned(&Held::default(), 0, 1), "missing");
}

#[test]
fn only_a_complete_seed_of_the_same_history_is_a_base() {
    let world = World::new();
    let held = |lineage, generation, complete| Held {
        point: None,
        seed: Some(world.seed(lineage, generation, complete)),
        foreign: false,
    };
    assert_eq!(planned(&held(OURS, 0, true), 0, 1), "over");
    assert_eq!(planned(&held(OURS, 0, false), 0, 1), "missing");
    assert_eq!(planned(&held(THEIRS, 0, true), 0, 1), "missing");
    // The seed began before generation 3, whose predecessors are gone.
    assert_eq!(planned(&held(OURS, 0, true), 2, 3), "missing");
    assert_eq!(planned(&held(OURS, 2, true), 2, 3), "over");
}

#[test]
fn a_point_of_other_disks_is_no_base() {
    let world = World::new();
    for disks in [
        &[("b", SIZE)][..],
        &[("a", SIZE * 2)],
        &[("a", SIZE), ("b", SIZE)],
    ] {
        let held = Held {
            point: Some(world.point(OURS, 5, disks)),
            seed: None,
            foreign: false,
        };
        assert_eq!(planned(&held, 5, 6), "missing", "{disks:?}");
    }
}
