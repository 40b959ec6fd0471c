//! Retention: which points of a group are kept, by rules of the calendar. Pure: it only says.
//!
//! | rule | keeps |
//! |---|---|
//! | last n | the n newest points |
//! | hourly, daily, weekly, monthly, yearly n | the newest point of each of the n newest hours, days, ISO weeks, months, years that have one |
//!
//! A point is kept if any rule keeps it, if it is held or locked, or if it is its group's newest: the next
//! point of the group builds on that one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block::{Name, UnixNanos};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::protection::Protection;
use crate::records::{PointId, PointRecord};

/// How many points to keep, by each rule. All zero: whatever is neither newest nor protected goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The newest points.
    pub last: u32,
    /// One for each hour.
    pub hourly: u32,
    /// One for each day.
    pub daily: u32,
    /// One for each week, Monday to Sunday.
    pub weekly: u32,
    /// One for each month.
    pub monthly: u32,
    /// One for each year.
    pub yearly: u32,
}

impl Policy {
    /// Whether no rule was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a point is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Keep {
    /// It is the newest of its group.
    Newest,
    /// It is among the last ones.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// Somebody holds it.
    Held,
    /// It is locked.
    Locked,
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Newest => "newest",
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
            Self::Held => "held",
            Self::Locked => "locked",
        })
    }
}

/// What becomes of a point.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The point.
    pub point: Arc<PointRecord>,
    /// Why it is kept; it goes if there is nothing here.
    pub keep: BTreeSet<Keep>,
}

impl Verdict {
    /// Whether the point goes.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.keep.is_empty()
    }
}

/// What `policy` says of `points`, group by group, newest first. Hours, days and so on are those of `zone`; `now` decides
/// which locks still hold.
#[must_use]
pub(crate) fn verdicts(
    points: &[Arc<PointRecord>],
    protections: &BTreeMap<PointId, Protection>,
    policy: &Policy,
    zone: &TimeZone,
    now: u64,
) -> Vec<Verdict> {
    let mut groups: BTreeMap<&Name, Vec<&Arc<PointRecord>>> = BTreeMap::new();
    for point in points {
        groups.entry(point.group()).or_default().push(point);
    }
    let mut all = Vec::new();
    for mut group in groups.into_values() {
        let by_clock = kept_by_clock(&group, policy, zone);
        // Numbers say what came after what. A clock that ran ahead for a while made points of times to come: they
        // are taken for as old as the next one that was made with the right time. One that was behind would make all
        // older ones as old as that; so what the rules keep by either reckoning is kept.
        group.sort_by_key(|point| point.id.sequence);
        let newest = group.last().map(|point| point.id.sequence);
        let mut rules = Rules::new(policy, zone);
        let mut at = UnixNanos(u64::MAX);
        for point in group.into_iter().rev() {
            at = at.min(point.at);
            let mut keep = rules.keep(at);
            keep.extend(by_clock.get(&point.id.sequence).into_iter().flatten());
            if Some(point.id.sequence) == newest {
                keep.insert(Keep::Newest);
            }
            let protection = protections.get(&point.id);
            if protection.is_some_and(|protection| protection.hold.is_some()) {
                keep.insert(Keep::Held);
            }
            if protection.is_some_and(|protection| protection.is_locked(now)) {
                keep.insert(Keep::Locked);
            }
            let point = Arc::clone(point);
            all.push(Verdict { point, keep });
        }
    }
    all
}

/// What the rules of the calendar keep of a group by the times that its clock gave, by number.
fn kept_by_clock(
    group: &[&Arc<PointRecord>],
    policy: &Policy,
    zone: &TimeZone,
) -> BTreeMap<u64, BTreeSet<Keep>> {
    let calendar = Policy { last: 0, ..*policy };
    let mut rules = Rules::new(&calendar, zone);
    let mut sorted = group.to_vec();
    sorted.sort_by_key(|point| (point.at, point.id.sequence));
    let newest_first = sorted.into_iter().rev();
    newest_first
        .map(|point| (point.id.sequence, rules.keep(point.at)))
        .collect()
}

/// The rules, while they are told of points from the newest on.
struct Rules<'a> {
    zone: &'a TimeZone,
    left: [(Keep, u32); 6],
    /// The period in which each rule has kept a point last.
    periods: [Option<[i32; 4]>; 6],
}

impl<'a> Rules<'a> {
    fn new(policy: &Policy, zone: &'a TimeZone) -> Self {
        let left = [
            (Keep::Last, policy.last),
            (Keep::Hourly, policy.hourly),
            (Keep::Daily, policy.daily),
            (Keep::Weekly, policy.weekly),
            (Keep::Monthly, policy.monthly),
            (Keep::Yearly, policy.yearly),
        ];
        Self {
            zone,
            left,
            periods: [None; 6],
        }
    }

    fn keep(&mut self, at: UnixNanos) -> BTreeSet<Keep> {
        let mut keep = BTreeSet::new();
        let pairs = self.left.iter_mut().zip(&mut self.periods);
        for ((rule, left), last) in pairs {
            let period = period(*rule, at, self.zone);
            if *left > 0 && (*rule == Keep::Last || *last != Some(period)) {
                *left -= 1;
                *last = Some(period);
                keep.insert(*rule);
            }
        }
        keep
    }
}

/// The hour, day, week ... that a time is in.
fn period(rule: Keep, at: UnixNanos, zone: &TimeZone) -> [i32; 4] {
    // Later than the year 9999 nothing is told apart.
    let time = Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(Timestamp::MAX);
    let time = time.to_zoned(zone.clone());
    let [year, month, day, hour] = [
        i32::from(time.year()),
        i32::from(time.month()),
        i32::from(time.day()),
        i32::from(time.hour()),
    ];
    match rule {
        // The same hour comes twice when summer time ends.
        Keep::Hourly => [year, month * 100 + day, hour, time.offset().seconds()],
        Keep::Daily => [year, month, day, 0],
        Keep::Weekly => {
            let week = time.date().iso_week_date();
            [i32::from(week.year()), i32::from(week.week()), 0, 0]
        }
        Keep::Monthly => [year, month, 0, 0],
        _ => [year, 0, 0, 0],
    }
}

#[cfg(test)]
mod tests;
