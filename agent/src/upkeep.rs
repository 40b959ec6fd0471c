//! Looking after a target: points removed, brought back, held and locked; garbage collected; bytes scrubbed.
//!
//! ```text
//! command --> the target has no writer? this process becomes it, for this chore
//!         --> a protection writes to it? it is asked, over its control API, to do the chore
//! ```
//!
//! Rule: a chore says what it did in a [`Done`], the same whoever did it.

use std::time::Duration;

use block::{Clock, Name, UnixNanos};
use serde::{Deserialize, Serialize};
use store::{
    GcOptions, Keep, PointId, PointRef, Policy, ScrubOptions, ScrubReport, Store, StoreError,
    Verdict,
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
        rules: Rules,
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

/// How many points each rule keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The newest points.
    pub last: u32,
    /// One for each hour.
    pub hourly: u32,
    /// One for each day.
    pub daily: u32,
    /// One for each week.
    pub weekly: u32,
    /// One for each month.
    pub monthly: u32,
    /// One for each year.
    pub yearly: u32,
}

impl Rules {
    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn policy(self) -> Policy {
        let Self {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        } = self;
        Policy {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        }
    }
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
#[allow(missing_docs, reason = "the names are those of store::GcReport")]
pub struct GcFigures {
    pub dry_run: bool,
    pub images: u64,
    pub live_chunks: u64,
    pub chunks: u64,
    pub containers_gone: u64,
    pub containers_moved: u64,
    pub trees_gone: u64,
    pub trees_moved: u64,
    pub written_bytes: u64,
    pub freed_bytes: u64,
    pub removed_bytes: u64,
    pub quarantined_bytes: u64,
    pub left_bytes: u64,
    pub damaged: u64,
    pub stored_bytes: u64,
    pub stopped: bool,
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

/// An object that was healed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealedObject {
    /// Its name.
    pub object: String,
    /// Bytes of it that were damaged.
    pub damaged_bytes: u64,
}

/// An object that is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostObject {
    /// Its name.
    pub object: String,
    /// What is wrong.
    pub what: String,
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
    target.create()
}

/// What rules say of the points on a target. Nothing is removed.
///
/// # Errors
/// If the target cannot be read.
pub fn preview(
    target: &Target,
    group: Option<&Name>,
    rules: Rules,
    world: &World,
) -> Result<Vec<Judged>> {
    let store = target.reader(&world.clock)?;
    let zone = jiff::tz::TimeZone::system();
    let verdicts = store.verdicts(group, &rules.policy(), &zone);
    Ok(verdicts.iter().map(Judged::of).collect())
}

/// What doing a chore needs of its surroundings.
pub(crate) struct Context<'a> {
    pub(crate) clock: &'a dyn Clock,
    pub(crate) progress: Progress<'a>,
    pub(crate) stop: &'a (dyn Fn() -> bool + Sync),
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
            let verdicts = store.verdicts(group.as_ref(), &rules.policy(), &zone);
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
            Ok(Done::Collected(gc_figures(store, *dry_run, report)))
        }
        Chore::Scrub { deep, heal, rate } => {
            let pace = Pace::new(*rate, context);
            let report = store.scrub(&ScrubOptions {
                deep: *deep,
                heal: *heal,
                pace: &|bytes| pace.keep(bytes),
                stop: context.stop,
                progress: context.progress,
                ..ScrubOptions::default()
            })?;
            Ok(Done::Scrubbed(scrub_figures(*heal, &report)))
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

fn gc_figures(store: &Store, dry_run: bool, report: store::GcReport) -> GcFigures {
    GcFigures {
        dry_run,
        images: report.images,
        live_chunks: report.live_chunks,
        chunks: report.chunks,
        containers_gone: report.containers_gone,
        containers_moved: report.containers_moved,
        trees_gone: report.trees_gone,
        trees_moved: report.trees_moved,
        written_bytes: report.written_bytes,
        freed_bytes: report.freed_bytes,
        removed_bytes: report.removed_bytes,
        quarantined_bytes: report.quarantined_bytes,
        left_bytes: report.left_bytes,
        damaged: report.damaged,
        stored_bytes: store.figures().stored_bytes,
        stopped: report.stopped,
    }
}

fn scrub_figures(healing: bool, report: &ScrubReport) -> ScrubFigures {
    let hit = |hit: &store::Hit| Hit {
        point: hit.point.as_ref().map(PointId::to_string),
        group: hit.group.to_string(),
        disk: hit.disk.to_string(),
        ranges: hit.ranges.iter().map(|r| (r.start(), r.len())).collect(),
    };
    let healed = report.healed.iter().map(|healed| HealedObject {
        object: healed.object.clone(),
        damaged_bytes: healed.damaged_bytes,
    });
    let lost = report.lost.iter().map(|lost| LostObject {
        object: lost.object.clone(),
        what: lost.what.clone(),
    });
    ScrubFigures {
        whole: report.is_whole(),
        healing,
        objects: report.objects,
        bytes: report.bytes,
        healed: healed.collect(),
        lost: lost.collect(),
        hits: report.hits.iter().map(hit).collect(),
        stopped: report.reached.is_some(),
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
