use jiff::civil::date;
use proptest::prelude::*;

use super::*;
use crate::records::{Consistency, PointDisk};
use crate::tree::ImageRef;

fn point(group: &str, sequence: u64, at: &str) -> Arc<PointRecord> {
    let at: Timestamp = at.parse().expect("a time");
    point_at(
        group,
        sequence,
        u64::try_from(at.as_nanosecond()).expect("after 1970"),
    )
}

fn point_at(group: &str, sequence: u64, at: u64) -> Arc<PointRecord> {
    let image = ImageRef::empty(4096);
    Arc::new(PointRecord {
        id: PointId {
            group: group.parse().expect("a name"),
            sequence,
        },
        at: UnixNanos(at),
        lineage: [0; 16],
        generation: sequence,
        labels: BTreeMap::new(),
        consistency: Consistency::Crash,
        disks: vec![PointDisk {
            name: "root".parse().expect("a name"),
            size: 4096,
            image,
        }],
        stored_new_bytes: 0,
        changed_bytes: 0,
    })
}

/// Number, and why it is kept.
fn judged(points: &[Arc<PointRecord>], policy: Policy, zone: &TimeZone) -> Vec<(u64, String)> {
    let found = verdicts(points, &BTreeMap::new(), &policy, zone, 0);
    let words = |v: &Verdict| {
        v.keep
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    found
        .iter()
        .map(|v| (v.point.id.sequence, words(v)))
        .collect()
}

#[test]
fn each_rule_keeps_the_newest_of_its_periods() {
    let points = [
        point("web", 1, "2025-12-31T23:00:00Z"),
        point("web", 2, "2026-03-01T10:00:00Z"),
        point("web", 3, "2026-03-02T10:00:00Z"),
        point("web", 4, "2026-03-02T10:30:00Z"),
        point("web", 5, "2026-03-02T11:10:00Z"),
        point("web", 6, "2026-03-02T11:20:00Z"),
    ];
    let policy = Policy {
        hourly: 2,
        daily: 2,
        yearly: 2,
        ..Policy::default()
    };
    let expected = [
        (6, "newest hourly daily yearly"),
        (5, ""),
        (4, "hourly"),
        (3, ""),
        (2, "daily"),
        (1, "yearly"),
    ];
    let expected = expected.map(|(n, why)| (n, why.to_owned()));
    assert_eq!(judged(&points, policy, &TimeZone::UTC), expected);
}

#[test]
fn days_are_those_of_the_zone_and_weeks_begin_on_monday() {
    // 2026-03-01 is a Sunday.
    let points = [
        point("web", 1, "2026-03-01T12:00:00Z"),
        point("web", 2, "2026-03-01T23:30:00Z"),
        point("web", 3, "2026-03-02T00:30:00Z"),
    ];
    let policy = Policy {
        weekly: 9,
        ..Policy::default()
    };
    let kept = |zone: &TimeZone| {
        let judged = judged(&points, policy, zone);
        judged
            .into_iter()
            .filter(|(_, why)| !why.is_empty())
            .map(|(n, _)| n)
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(&TimeZone::UTC), [3, 2]);
    let berlin = TimeZone::fixed(jiff::tz::offset(1));
    assert_eq!(kept(&berlin), [3, 1]);
    assert_eq!(date(2026, 3, 1).weekday(), jiff::civil::Weekday::Sunday);
}

#[test]
fn groups_do_not_share_what_they_keep_and_each_keeps_its_newest() {
    let points = [
        point("web", 1, "2026-03-01T12:00:00Z"),
        point("mail", 1, "2026-03-01T12:00:00Z"),
        point("mail", 2, "2020-03-01T12:00:00Z"),
    ];
    let found = verdicts(
        &points,
        &BTreeMap::new(),
        &Policy::default(),
        &TimeZone::UTC,
        0,
    );
    let kept: Vec<_> = found
        .iter()
        .filter(|v| !v.goes())
        .map(|v| v.point.id.to_string())
        .collect();
    // The newest is the one that was committed last, whatever its clock said.
    assert_eq!(kept, ["mail@2", "web@1"]);
}

/// A clock ran ahead for a while: the points of those days would have taken every place for years to come, and the
/// right ones after them would have been removed.
#[test]
fn points_of_a_clock_that_ran_ahead_do_not_take_the_places_of_later_ones() {
    let mut points: Vec<_> = (1..=4).map(|i| point_at("web", i, i * 1000)).collect();
    points.extend((5..=7).map(|i| point_at("web", i, u64::MAX - 9 + i)));
    points.extend((8..=20).map(|i| point_at("web", i, i * 1000)));
    let policy = Policy {
        last: 3,
        ..Policy::default()
    };
    let judged = judged(&points, policy, &TimeZone::UTC);
    let kept = judged.iter().filter(|(_, why)| !why.is_empty());
    assert_eq!(kept.map(|(n, _)| *n).collect::<Vec<_>>(), [20, 19, 18]);
}

/// One cut was made before the clock was set: everything older was taken for as old as that, one hour, and all but one
/// of it was removed. Found by review.
#[test]
fn a_point_of_a_clock_that_was_behind_does_not_take_older_ones_along() {
    let hour = 3_600_000_000_000;
    let mut points: Vec<_> = (1..=10)
        .map(|i| point_at("web", i, (1000 + i) * hour))
        .collect();
    points.push(point_at("web", 11, 5));
    points.push(point_at("web", 12, 1012 * hour));
    let policy = Policy {
        hourly: 8,
        ..Policy::default()
    };
    let judged = judged(&points, policy, &TimeZone::UTC);
    let kept: Vec<u64> = judged
        .iter()
        .filter(|(_, why)| !why.is_empty())
        .map(|(n, _)| *n)
        .collect();
    assert!((4..=10).all(|n| kept.contains(&n)), "{kept:?}");
}

#[test]
fn what_is_held_or_locked_stays() {
    let points: Vec<_> = (1..=4).map(|i| point_at("web", i, i)).collect();
    let held = Protection {
        hold: Some("court".into()),
        locked_until: 0,
    };
    let locked = Protection {
        hold: None,
        locked_until: 100,
    };
    let protections = [(points[0].id.clone(), held), (points[1].id.clone(), locked)];
    let goes = |now| {
        let protections = protections.clone().into();
        let found = verdicts(
            &points,
            &protections,
            &Policy::default(),
            &TimeZone::UTC,
            now,
        );
        let gone = found.iter().filter(|v| v.goes());
        gone.map(|v| v.point.id.sequence).collect::<Vec<_>>()
    };
    assert_eq!(goes(99), [3]);
    assert_eq!(goes(100), [3, 2]);
}

proptest! {
    /// Applying a policy twice removes nothing the second time, and no rule keeps more than it may.
    #[test]
    fn what_was_kept_is_kept_again(
        ats in prop::collection::vec(0_u64..200_000_000_000_000_000, 1..60),
        last in 0_u32..4, hourly in 0_u32..4, daily in 0_u32..4, weekly in 0_u32..4, monthly in 0_u32..4, yearly in 0_u32..4,
    ) {
        let policy = Policy { last, hourly, daily, weekly, monthly, yearly };
        let points: Vec<_> = (1..).zip(&ats).map(|(i, at)| point_at("web", i, *at)).collect();
        let first = verdicts(&points, &BTreeMap::new(), &policy, &TimeZone::UTC, 0);
        // By either reckoning of time.
        for (rule, most) in [(Keep::Last, last), (Keep::Hourly, 2 * hourly), (Keep::Daily, 2 * daily), (Keep::Yearly, 2 * yearly)] {
            let kept = first.iter().filter(|v| v.keep.contains(&rule)).count();
            prop_assert!(kept <= most as usize);
        }
        let kept: Vec<_> = first.into_iter().filter(|v| !v.goes()).map(|v| v.point).collect();
        prop_assert!(!kept.is_empty());
        let again = verdicts(&kept, &BTreeMap::new(), &policy, &TimeZone::UTC, 0);
        prop_assert!(again.iter().all(|v| !v.goes()));
    }
}
