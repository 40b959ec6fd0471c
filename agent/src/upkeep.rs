//! Looking after a target: points removed, brought back, held and locked; garbage collected; bytes scrubbed.
//!
//! ```text
//! command --> a protection of that target runs here? it is asked, over its control API, to do the chore
//!         --> none does? this process opens the store itself, as its writer, for this chore
//! ```
//!
//! Rule: a chore says what it did in a [`Done`], the same whoever did it.

use std::time::Duration;

use block::{Clock, Name, UnixNanos};
use serde::{Deserialize, Serialize};
use store::{
    GcOptions, GcReport, HealedObject, Keep, LostObject, PointId, PointRef, Policy, ScrubOptions,
    ScrubReport, Store, StoreError, Verdict,
};

use crate::places::StateRoot;
use crate::points::Progress;
use crate::rate::{Bucket, Rate};
use crate::world::World;
use crate::{Error, Kind, Result, Target, client};

/// A time in whole seconds; what is left over is one more.
#[must_use]
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Something to do on a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Chore {
    /// Take points off the list; they can be brought back for a while.
    Remove {
        /// GROUP@NUMBER.
        points: Vec<String>,
        /// For how long.
        delay_s: u64,
    },
    /// List a point again that was removed.
    BringBack {
        /// GROUP@NUMBER.
        point: String,
    },
    /// Hold a point, or lift its hold.
    Hold {
        /// GROUP@NUMBER or GROUP@latest.
        point: String,
        /// Why; none lifts it.
        reason: Option<String>,
    },
    /// Lock a point.
    Lock {
        /// GROUP@NUMBER or GROUP@latest.
        point: String,
        /// Until then, ns since 1970.
        until_unix_ns: u64,
    },
    /// Remove what rules do not keep.
    Apply {
        /// Of this group; of all if left out.
        group: Option<String>,
        /// The rules.
        rules: Policy,
        /// For how long the removed ones can be brought back.
        delay_s: u64,
    },
    /// Collect garbage.
    Collect {
        /// Only say what would be done.
        dry_run: bool,
        /// How long an object that nothing needs is kept before it is removed.
        quarantine_s: u64,
        /// What is copied to be rid of the rest: containers of which less than this part is needed.
        compact_below: f64,
        /// Bytes per second.
        rate: Option<u64>,
    },
    /// Read and check every object, and heal what is damaged.
    Scrub {
        /// Hash every chunk, too.
        deep: bool,
        /// Change what is damaged; else only say.
        heal: bool,
        /// Bytes per second.
        rate: Option<u64>,
    },
}

/// What a chore did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum Done {
    /// Points, removed or brought back.
    Points {
        /// GROUP@NUMBER.
        points: Vec<String>,
    },
    /// A point, held, released or locked.
    Protection(ProtectionFigures),
    /// A collection.
    Collected(GcFigures),
    /// A scrub.
    Scrubbed(ScrubFigures),
}

/// What protects a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionFigures {
    /// GROUP@NUMBER.
    pub point: String,
    /// Why somebody holds it.
    pub hold: Option<String>,
    /// Until when it is locked, ns since 1970; null if it never was.
    pub locked_until_unix_ns: Option<u64>,
}

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcFigures {
    /// Whether it was only said.
    pub dry_run: bool,
    /// The rest.
    #[serde(flatten)]
    pub report: GcReport,
    /// What the store takes now.
    pub stored_bytes: u64,
}

/// What a scrub found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFigures {
    /// Whether everything that points need is there and right, perhaps after healing.
    pub whole: bool,
    /// Whether damage was put right, not only found.
    pub healing: bool,
    /// Objects that were checked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was healed, or could be.
    pub healed: Vec<HealedObject>,
    /// What is lost.
    pub lost: Vec<LostObject>,
    /// What points lose by it.
    pub hits: Vec<Hit>,
    /// Whether it was stopped early.
    pub stopped: bool,
}

/// Bytes of a point that cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// GROUP@NUMBER; null for a group's unfinished first copy.
    pub point: Option<String>,
    /// The group.
    pub group: String,
    /// The disk.
    pub disk: String,
    /// Offset and length of each range.
    pub ranges: Vec<(u64, u64)>,
}

/// What the rules say of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// GROUP@NUMBER.
    pub point: String,
    /// When it was cut, ns since 1970.
    pub at_unix_ns: u64,
    /// Why it is kept; it would be removed if there is nothing here.
    pub keep: Vec<String>,
}

impl Judged {
    fn of(verdict: &Verdict) -> Self {
        Self {
            point: verdict.point.id.to_string(),
            at_unix_ns: verdict.point.at.0,
            keep: verdict.keep.iter().map(Keep::to_string).collect(),
        }
    }
}

/// Does `chore` on a target: as its writer, or through the protection that is.
///
/// # Errors
/// `Retry` if a process writes to the target that no state directory knows; whatever the chore meets.
pub fn upkeep(
    target: &Target,
    chore: &Chore,
    state: &StateRoot,
    world: &World,
    progress: Progress<'_>,
) -> Result<Done> {
    let end = world.clock.monotonic() + PATIENCE;
    let store = loop {
        // Asked first: who opens the target beside a protection keeps it from shipping.
        let busy = match ask(target, chore, state) {
            Ok(Some(done)) => return Ok(done),
            Ok(None) => match target.writer_of_existing(&world.clock) {
                Err(error) if error.kind() == Kind::Retry => error,
                opened => break opened?,
            },
            Err(error) if error.kind() == Kind::Retry => error,
            Err(error) => return Err(error),
        };
        if world.clock.monotonic() >= end {
            return Err(busy);
        }
        nap(NAP);
    };
    let context = Context {
        clock: &*world.clock,
        progress,
        stop: &|| false,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    perform(&store, chore, &context).map_err(target.failed("look after the store"))
}

/// Points that are removed by one commit.
const POINTS_AT_ONCE: usize = 10_000;
/// How long a target may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody waits longer without looking again.
const NAP: Duration = Duration::from_millis(200);

fn nap(time: Duration) {
    // Nobody signals this channel: receiving from it is a sleep.
    let (_open, quiet) = std::sync::mpsc::channel::<()>();
    let _ = quiet.recv_timeout(time);
}

/// Through a protection that writes to the target; `None` if none does that is known here.
fn ask(target: &Target, chore: &Chore, state: &StateRoot) -> Result<Option<Done>> {
    let mut busy = None;
    for place in state.groups().unwrap_or_default() {
        let theirs = place.record().and_then(|record| record.target.parse().ok());
        let same = theirs.is_some_and(|theirs: Target| theirs.is_same_place(target));
        if !same || !client::is_running(&place) {
            continue;
        }
        match client::upkeep(&place, chore) {
            // Another group's protection may have it open.
            Err(error) if error.kind() == Kind::Retry => busy = Some(error),
            Err(Error::NotRunning { .. }) => {}
            done => return done.map(Some),
        }
    }
    match busy {
        None => Ok(None),
        Some(error) => Err(error),
    }
}

/// Makes a store of an empty directory.
///
/// # Errors
/// If there is anything in it.
pub fn init(target: &Target) -> Result<()> {
    if target.secret_file().is_some() {
        return Err(Error::usage(
            "a key is named for a store that would not be encrypted",
            "add --encrypt, or leave the key out",
        ));
    }
    target.create()
}

/// What rules say of the points on a target. Nothing is removed.
///
/// # Errors
/// If the target cannot be read.
pub fn preview(
    target: &Target,
    group: Option<&Name>,
    rules: Policy,
    world: &World,
) -> Result<Vec<Judged>> {
    let store = target.reader(&world.clock)?;
    let zone = jiff::tz::TimeZone::system();
    let verdicts = store.verdicts(group, &rules, &zone);
    Ok(verdicts.iter().map(Judged::of).collect())
}

/// What doing a chore needs of its surroundings.
pub(crate) struct Context<'a> {
    pub(crate) clock: &'a dyn Clock,
    pub(crate) progress: Progress<'a>,
    pub(crate) stop: &'a (dyn Fn() -> bool + Sync),
    /// Objects that a scrub checks at once: guests come first.
    pub(crate) threads: usize,
}

/// Does a chore on an open store.
pub(crate) fn perform(
    store: &Store,
    chore: &Chore,
    context: &Context<'_>,
) -> std::result::Result<Done, StoreError> {
    let points = |points: Vec<PointId>| Done::Points {
        points: points.iter().map(PointId::to_string).collect(),
    };
    match chore {
        Chore::Remove {
            points: ids,
            delay_s,
        } => {
            let ids: Vec<PointId> = ids
                .iter()
                .map(|id| find(store, id))
                .collect::<std::result::Result<_, _>>()?;
            store.remove_points(&ids, Duration::from_secs(*delay_s))?;
            Ok(points(ids))
        }
        Chore::BringBack { point } => {
            let id = point
                .parse()
                .map_err(|_| StoreError::NoPoint(point.clone()))?;
            store.bring_back(&id)?;
            Ok(points(vec![id]))
        }
        Chore::Hold { point, reason } => {
            let id = find(store, point)?;
            store.hold(&id, reason.as_deref())?;
            Ok(protection(store, &id))
        }
        Chore::Lock {
            point,
            until_unix_ns,
        } => {
            let id = find(store, point)?;
            store.lock_until(&id, UnixNanos(*until_unix_ns))?;
            Ok(protection(store, &id))
        }
        Chore::Apply {
            group,
            rules,
            delay_s,
        } => {
            let group: Option<Name> = match group {
                None => None,
                Some(name) => Some(
                    name.parse()
                        .map_err(|_| StoreError::NoPoint(name.clone()))?,
                ),
            };
            let zone = jiff::tz::TimeZone::system();
            let verdicts = store.verdicts(group.as_ref(), rules, &zone);
            let going = verdicts.iter().filter(|verdict| verdict.goes());
            let ids: Vec<PointId> = going.map(|verdict| verdict.point.id.clone()).collect();
            for some in ids.chunks(POINTS_AT_ONCE) {
                store.remove_points(some, Duration::from_secs(*delay_s))?;
            }
            Ok(points(ids))
        }
        Chore::Collect {
            dry_run,
            quarantine_s,
            compact_below,
            rate,
        } => {
            let pace = Pace::new(*rate, context);
            let report = store.collect_garbage(&GcOptions {
                dry_run: *dry_run,
                quarantine: Duration::from_secs(*quarantine_s),
                compact_below: compact_below.clamp(0.0, 1.0),
                pace: &|bytes| pace.keep(bytes),
                stop: context.stop,
                ..GcOptions::default()
            })?;
            Ok(Done::Collected(GcFigures {
                dry_run: *dry_run,
                report,
                stored_bytes: store.figures().stored_bytes,
            }))
        }
        Chore::Scrub { deep, heal, rate } => {
            let pace = Pace::new(*rate, context);
            let report = store.scrub(&ScrubOptions {
                deep: *deep,
                heal: *heal,
                // Whoever wants it slow wants it quiet.
                threads: rate.map_or(context.threads, |_| 1),
                pace: &|bytes| pace.keep(bytes),
                stop: context.stop,
                progress: context.progress,
                ..ScrubOptions::default()
            })?;
            Ok(Done::Scrubbed(scrub_figures(*heal, report)))
        }
    }
}

fn find(store: &Store, point: &str) -> std::result::Result<PointId, StoreError> {
    let named: PointRef = point
        .parse()
        .map_err(|_| StoreError::NoPoint(point.to_owned()))?;
    Ok(store.point(&named)?.id.clone())
}

fn protection(store: &Store, id: &PointId) -> Done {
    Done::Protection(protection_of(store, id))
}

/// What protects a point.
pub(crate) fn protection_of(store: &Store, id: &PointId) -> ProtectionFigures {
    let protection = store.protection(id);
    ProtectionFigures {
        point: id.to_string(),
        hold: protection.hold,
        locked_until_unix_ns: Some(protection.locked_until).filter(|until| *until > 0),
    }
}

fn scrub_figures(healing: bool, report: ScrubReport) -> ScrubFigures {
    let hit = |hit: &store::Hit| Hit {
        point: hit.point.as_ref().map(PointId::to_string),
        group: hit.group.to_string(),
        disk: hit.disk.to_string(),
        ranges: hit.ranges.iter().map(|r| (r.start(), r.len())).collect(),
    };
    ScrubFigures {
        whole: report.is_whole(),
        healing,
        objects: report.objects,
        bytes: report.bytes,
        hits: report.hits.iter().map(hit).collect(),
        stopped: report.reached.is_some(),
        healed: report.healed,
        lost: report.lost,
    }
}

/// Keeps to a rate by waiting.
pub(crate) struct Pace<'a> {
    bucket: Option<Bucket>,
    context: &'a Context<'a>,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(rate: Option<u64>, context: &'a Context<'a>) -> Self {
        let bucket = rate.and_then(Rate::new).map(Bucket::new);
        Self { bucket, context }
    }

    pub(crate) fn keep(&self, bytes: u64) {
        let Some(bucket) = &self.bucket else { return };
        let mut wait = bucket.take(bytes, self.context.clock.monotonic());
        while !wait.is_zero() && !(self.context.stop)() {
            let now = wait.min(NAP);
            nap(now);
            wait -= now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs read these names, and another process's answer is read by them: `docs/operate/target.md` lists them.
    #[test]
    fn a_collection_is_told_in_one_flat_document_that_reads_back() {
        let figures = GcFigures {
            dry_run: true,
            report: GcReport {
                freed_bytes: u64::MAX,
                ..GcReport::default()
            },
            stored_bytes: 7,
        };
        let told = serde_json::to_value(figures).unwrap();
        let names: Vec<&str> = told
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let documented = [
            "chunks",
            "containers_gone",
            "containers_moved",
            "damaged",
            "dry_run",
            "freed_bytes",
            "images",
            "left_bytes",
            "live_chunks",
            "quarantined_bytes",
            "removed_bytes",
            "stopped",
            "stored_bytes",
            "trees_gone",
            "trees_moved",
            "written_bytes",
        ];
        assert_eq!(names, documented);
        let text = serde_json::to_string(&Done::Collected(figures)).unwrap();
        let back: Done = serde_json::from_str(&text).unwrap();
        assert!(
            matches!(back, Done::Collected(back) if back == figures),
            "{text}"
        );
    }
}
