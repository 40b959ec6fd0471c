//! What is done on a store beside writing points: points removed, brought back, held and locked; garbage collected; bytes
//! scrubbed.
//!
//! Rule: a chore says what it did in a [`Done`], the same whoever did it.

use std::collections::BTreeMap;
use std::time::Duration;

use block::{Clock, Name, UnixNanos};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store::{
    GcOptions, GcReport, HealedObject, LostObject, PointId, PointRef, Policy, ScrubOptions,
    ScrubReport, Store, StoreError,
};

use crate::api::SeedFigures;
use crate::rate::{Bucket, Rate};

/// Told how far something is: what is done, what there is in all. From several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// A time in whole seconds; what is left over is one more.
#[must_use]
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Something to do on a target.
// A field that nobody knows may be a misspelt one that was to keep something from being done.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
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
    /// Give up a group's first copy that is under way.
    DropSeed {
        /// The group.
        group: String,
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
        #[schemars(with = "BTreeMap<String, u64>")]
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
    /// A first copy, given up.
    SeedDropped {
        /// Of this group.
        group: String,
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

/// Points that are removed by one commit.
const POINTS_AT_ONCE: usize = 10_000;
/// Nobody waits longer without looking again.
const NAP: Duration = Duration::from_millis(200);

fn nap(time: Duration) {
    // Nobody signals this channel: receiving from it is a sleep.
    let (_open, quiet) = std::sync::mpsc::channel::<()>();
    let _ = quiet.recv_timeout(time);
}

/// What doing a chore needs of its surroundings.
pub struct Context<'a> {
    /// Time.
    pub clock: &'a dyn Clock,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Whether to end early.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Objects that a scrub checks at once: guests come first.
    pub threads: usize,
}

/// Does a chore on an open store.
///
/// # Errors
/// Whatever the chore meets.
pub fn perform(
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
        Chore::DropSeed { group } => {
            let name = group
                .parse()
                .map_err(|_| StoreError::NoSeed(group.clone()))?;
            store.drop_seed(&name)?;
            let group = group.clone();
            Ok(Done::SeedDropped { group })
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

/// The first copies that are under way in a store, by group.
#[must_use]
pub fn seeds_of(store: &Store) -> Vec<SeedFigures> {
    let seeds = store.seeds().into_iter();
    let figures = seeds.map(|seed| SeedFigures {
        group: seed.group.to_string(),
        disks: seed.disks.len() as u64,
        copied_bytes: seed.copied_bytes(),
    });
    figures.collect()
}

/// What protects a point.
#[must_use]
pub fn protection_of(store: &Store, id: &PointId) -> ProtectionFigures {
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
pub struct Pace<'a> {
    bucket: Option<Bucket>,
    context: &'a Context<'a>,
}

impl<'a> Pace<'a> {
    /// `rate`: bytes per second; no limit if there is none.
    #[must_use]
    pub fn new(rate: Option<u64>, context: &'a Context<'a>) -> Self {
        let bucket = rate.and_then(Rate::new).map(Bucket::new);
        Self { bucket, context }
    }

    /// Waits as long as that many bytes may take.
    pub fn keep(&self, bytes: u64) {
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
            "sealed_bytes",
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
