//! The ledger against stories whose seconds are known.

use sim::SimWorld;

use super::*;
use crate::gap_file;

const L1: Lineage = Lineage([1; 16]);
const L2: Lineage = Lineage([2; 16]);

/// A process that cuts every second and whose points follow at once.
struct Story {
    world: SimWorld,
    ledger: GapLedger,
    /// Seconds that the wall clock is ahead.
    ahead: u64,
}

fn beat(second: u64, ahead: u64) -> Beat {
    Beat {
        monotonic: Duration::from_secs(second),
        wall: UnixNanos((1_000_000 + second + ahead) * 1_000_000_000),
    }
}

impl Story {
    fn new() -> Self {
        let world = SimWorld::new(1);
        let ledger = open(&world, (L1, Generation(1)));
        Self {
            world,
            ledger,
            ahead: 0,
        }
    }

    fn moment(&self, lineage: Lineage, generation: u64, second: u64) -> Moment {
        Moment {
            lineage,
            generation: Generation(generation),
            at: beat(second, self.ahead).wall,
            monotonic: Some(Duration::from_secs(second)),
        }
    }

    fn cut(&self, generation: u64, second: u64) {
        self.ledger.cut(self.moment(L1, generation, second));
    }

    fn point(&self, lineage: Lineage, generation: u64, second: u64) {
        let of = Moment {
            monotonic: None,
            ..self.moment(lineage, generation, second)
        };
        self.ledger
            .point(of, &format!("g@{generation}"))
            .expect("noted");
    }

    fn cut_and_point(&self, generation: u64, second: u64) {
        self.cut(generation, second);
        self.point(L1, generation, second);
    }

    fn gaps(&self) -> Vec<(f64, Vec<Cause>, u64)> {
        let contents = gap_file::read(&*self.world.dir()).expect("read");
        let gaps = contents.gaps.into_iter();
        gaps.map(|gap| (gap.seconds, gap.causes, gap.cuts_lost))
            .collect()
    }
}

fn open(world: &SimWorld, at: (Lineage, Generation)) -> GapLedger {
    let every = "1s".parse().expect("an interval");
    GapLedger::open(world.dir(), every, beat(0, 0), at, &[]).expect("opened")
}

#[test]
fn a_point_in_time_leaves_no_gap() {
    let story = Story::new();
    for second in 1..10 {
        story.cut_and_point(second, second);
    }
    // One moment of the schedule was missed.
    story.cut_and_point(10, 11);
    assert_eq!(story.gaps(), []);
}

#[test]
fn a_gap_lasts_from_point_to_point_and_has_the_causes_in_between() {
    let story = Story::new();
    story.cut_and_point(1, 1);
    // Of before the gap.
    story.ledger.note(Cause::Production).expect("noted");
    story.cut_and_point(2, 2);
    story.ledger.note(Cause::DiffSpace).expect("noted");
    story.ledger.note(Cause::DiffSpace).expect("noted");
    let open = story.ledger.open_gap(beat(8, 0)).expect("it is open");
    assert_eq!((open.seconds, open.until_unix_ns), (6.0, None));
    assert_eq!(story.ledger.open_gap(beat(4, 0)), None);
    story.cut_and_point(3, 9);
    story.cut_and_point(4, 20);
    let expected = [
        (7.0, vec![Cause::DiffSpace], 0),
        (11.0, vec![Cause::Late], 0),
    ];
    assert_eq!(story.gaps(), expected);
    assert_eq!(story.ledger.open_gap(beat(21, 0)), None);
}

/// Cuts that wait for the target are no gap while they may become points; those that were merged are.
#[test]
fn cuts_that_are_merged_leave_a_gap_once_the_later_one_is_a_point() {
    let story = Story::new();
    story.cut_and_point(1, 1);
    for second in 2..10 {
        story.cut(second, second);
    }
    story.ledger.note(Cause::TargetBehind).expect("noted");
    for lost in [3, 4, 5, 8] {
        story
            .ledger
            .lost(L1, Generation(lost), Cause::TargetBehind)
            .expect("noted");
    }
    for kept in [2, 6, 7, 9] {
        story.point(L1, kept, kept);
    }
    // 2 to 6; 7 to 9 is within what is owed.
    assert_eq!(story.gaps(), [(4.0, vec![Cause::TargetBehind], 3)]);
}

#[test]
fn a_moved_clock_makes_no_gap_and_hides_none() {
    let mut story = Story::new();
    story.cut_and_point(1, 1);
    story.ahead = 3_600;
    story.cut_and_point(2, 2);
    assert_eq!(story.gaps(), []);
    story.ahead = 0;
    story.cut_and_point(3, 7);
    assert_eq!(story.gaps(), [(5.0, vec![Cause::Late], 0)]);
}

#[test]
fn a_new_history_ends_the_gap_with_its_first_point() {
    let story = Story::new();
    story.cut_and_point(1, 1);
    story.cut(2, 2);
    let open = (L2, Generation::FIRST);
    story
        .ledger
        .began_anew(open, Cause::CopiedAnew)
        .expect("noted");
    story.ledger.cut(story.moment(L2, 1, 60));
    story.point(L2, 1, 60);
    assert_eq!(story.gaps(), [(59.0, vec![Cause::CopiedAnew], 1)]);
}

/// Whoever was killed leaves what it had noted; the time without a process counts.
#[test]
fn a_gap_goes_through_a_kill() {
    let mut story = Story::new();
    story.ledger.began(beat(0, 0).wall, false).expect("noted");
    story.cut_and_point(1, 1);
    story.ledger.note(Cause::DiffError).expect("noted");
    story.ledger = open(&story.world, (L1, Generation(2)));
    story.ledger.began(beat(10, 0).wall, true).expect("noted");
    let found = Moment {
        monotonic: None,
        ..story.moment(L1, 1, 1)
    };
    story.ledger.found(found, None, "g@1").expect("noted");
    story.cut_and_point(2, 13);
    assert_eq!(
        story.gaps(),
        [(12.0, vec![Cause::DiffError, Cause::NotRunning], 0)]
    );
}

#[test]
fn a_kill_between_the_point_and_the_note_of_its_gap_loses_no_gap() {
    let mut story = Story::new();
    story.ledger.began(beat(0, 0).wall, false).expect("noted");
    story.cut_and_point(1, 1);
    story.ledger.note(Cause::DiffSpace).expect("noted");
    let [older, newest] = [(1, 1), (2, 9)].map(|(generation, second)| Moment {
        monotonic: None,
        ..story.moment(L1, generation, second)
    });
    for _ in 0..2 {
        story.ledger = open(&story.world, (L1, Generation(3)));
        story.ledger.began(beat(10, 0).wall, true).expect("noted");
        story
            .ledger
            .found(newest, Some(older), "g@2")
            .expect("noted");
        assert_eq!(story.gaps(), [(8.0, vec![Cause::DiffSpace], 0)]);
    }
}

#[test]
fn where_cuts_are_made_when_told_only_a_lost_one_leaves_a_gap() {
    let world = SimWorld::new(1);
    let ledger = GapLedger::open(
        world.dir(),
        Every::Manual,
        beat(0, 0),
        (L1, Generation(1)),
        &[],
    );
    let story = Story {
        ledger: ledger.expect("opened"),
        world,
        ahead: 0,
    };
    story.cut_and_point(1, 1);
    story.cut_and_point(2, 1_000);
    assert_eq!(story.gaps(), []);
    story.cut(3, 1_001);
    story
        .ledger
        .lost(L1, Generation(3), Cause::DiffError)
        .expect("noted");
    story.cut_and_point(4, 1_005);
    assert_eq!(story.gaps(), [(5.0, vec![Cause::DiffError], 1)]);
}

/// A cut whose last write took long was made when it began: the time that passed until it was listed is of the next
/// point, and so is why.
#[test]
fn what_a_cut_waited_for_is_why_the_next_point_is_late() {
    let story = Story::new();
    story.cut_and_point(1, 1);
    story.ledger.opens(L1, Generation(3));
    story.ledger.note(Cause::Busy).expect("noted");
    story.cut_and_point(2, 2);
    story.cut_and_point(3, 31);
    story.cut_and_point(4, 32);
    assert_eq!(story.gaps(), [(29.0, vec![Cause::Busy], 0)]);
}
