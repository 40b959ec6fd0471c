//! Opening a group on whatever an earlier process left.
//!
//! | found | then |
//! |---|---|
//! | nothing | a new lineage |
//! | closed cleanly, disks unchanged since | go on; nothing is stale |
//! | killed, same boot | go on; stale is what was in flight at the kill |
//! | no clean close and another boot | recover: the page cache is gone, and with it what says which granules were written; all regions of the intent log are stale |
//! | the open map damaged, or writes that it could not mark | recover, as above |
//! | killed, and a map may have been lost in part on its way to the disk | recover, as above |
//! | killed, and the live state may be an old one, or the log was given up | a new lineage |
//! | killed while a cut wrote what its diffs had in memory | the cut is folded: the next point holds what it held |
//! | disks changed, or written to from outside | a new lineage |
//! | record or intent log missing, damaged or not complete | a new lineage |
//! | a sealed diff missing or damaged | the older ones are dropped as released; a ship that misses one finds the gap by `since` |
//!
//! A new lineage costs a copy of the disks, never a wrong point.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use block::{Dir, GRANULE, Name, UnixNanos};
use parking_lot::Mutex;

use crate::diff::OpenDiff;
use crate::gate::Epoch;
use crate::group::{DISKS_MAX, DiskSpec, Group, Surroundings};
use crate::held::maps_are_kept;
use crate::intent::IntentLog;
use crate::lineage::{DiskRecord, LineageRecord};
use crate::live::{LAST_WRITE_PRECISION, Live};
use crate::sealed::SealedGeneration;
use crate::tracked::TrackedDisk;
use crate::turns::{Tracking, Turns};
use crate::writer::WriterCall;
use crate::{Generation, Lineage, OpenError, files};
use sealed::find_sealed;

mod sealed;

/// How a group came to be open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The history that the next point belongs to.
    pub lineage: Lineage,
    /// Whether it goes on or is new.
    pub how: How,
    /// Sealed generations that still wait for a target.
    pub sealed: Vec<Generation>,
}

/// Whether a history goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// The first time.
    Fresh,
    /// It goes on. Some of the open diff may have to be read again from production.
    Resumed {
        /// How much, in bytes of whole granules.
        stale_bytes: u64,
    },
    /// It goes on from the intent log: what that names is read again from production. Cuts that no
    /// target has are lost.
    Recovered {
        /// Why no more than that was to be trusted, in words for a person.
        why: String,
        /// How much is read again, in bytes of whole granules.
        stale_bytes: u64,
    },
    /// It could not go on: the disks must be copied anew.
    Distrusted {
        /// Why, in words for a person.
        why: String,
    },
}

/// What is left of a lineage that can go on.
struct Found {
    lineage: Lineage,
    live: Arc<Live>,
    intent: Arc<IntentLog>,
    diffs: Vec<OpenDiff>,
    sealed: Vec<Arc<SealedGeneration>>,
    released: Generation,
}

impl Found {
    fn stale_bytes(&self) -> u64 {
        let stale = self.diffs.iter().map(|diff| diff.map.stale_count());
        stale.sum::<u64>() * GRANULE
    }
}

impl Group {
    /// Opens a group: goes on where an earlier process stopped, or begins anew where that cannot
    /// be trusted.
    ///
    /// # Errors
    /// Only what keeps the group from being tracked at all.
    pub fn open(
        name: Name,
        specs: Vec<DiskSpec>,
        around: Surroundings,
    ) -> Result<(Self, Opened), OpenError> {
        check_disks(&specs)?;
        let lock = take_lock(&name, &*around.state)?;
        let failed = |what, dir: &Arc<dyn Dir>| {
            let place = dir.describe();
            move |source| OpenError::Io {
                what,
                place,
                source,
            }
        };
        let (found, how) = match find(&name, &specs, &around) {
            Ok(found) => found,
            Err(why) => {
                clear(&around).map_err(failed("remove what an old lineage left", &around.state))?;
                let found = begin(&specs, &around)
                    .map_err(failed("create the files of a new lineage", &around.diffs))?;
                (found, why.map_or(How::Fresh, |why| How::Distrusted { why }))
            }
        };
        let group = assemble(name, specs, around, found, lock);
        group
            .settle_in(&how)
            .map_err(failed("record the lineage", &group.around.state))?;
        let tracking = group.tracking.lock();
        let sealed = tracking.sealed.iter().map(|s| s.generation).collect();
        let opened = Opened {
            lineage: tracking.lineage,
            how,
            sealed,
        };
        drop(tracking);
        Ok((group, opened))
    }

    /// Makes the lineage the one that counts, on this boot, before any write is served.
    fn settle_in(&self, how: &How) -> io::Result<()> {
        let tracking = self.tracking.lock();
        let record = self.record(tracking.lineage);
        // Not written again where it says the same: the directory may be full.
        if !matches!(LineageRecord::load(&*self.around.state), Ok(Some(found)) if found == record) {
            record.save(&*self.around.state)?;
        }
        if !matches!(how, How::Fresh | How::Distrusted { .. }) {
            tracking.live.clear_clean()?;
        }
        let mut kept: Vec<_> = tracking.sealed.iter().map(|s| s.generation).collect();
        let absorbed = tracking.sealed.iter().flat_map(|s| &s.absorbing);
        kept.extend(absorbed.map(|older| older.generation));
        kept.push(tracking.live.open_generation());
        remove_debris(&self.around, tracking.lineage, &kept)
    }
}

fn check_disks(specs: &[DiskSpec]) -> Result<(), OpenError> {
    let names: BTreeSet<_> = specs.iter().map(|spec| &spec.name).collect();
    if names.len() == specs.len() && (1..=DISKS_MAX).contains(&specs.len()) {
        return Ok(());
    }
    Err(OpenError::Disks {
        count: specs.len(),
        max: DISKS_MAX,
    })
}

fn take_lock(
    name: &Name,
    state: &dyn Dir,
) -> Result<Box<dyn std::any::Any + Send + Sync>, OpenError> {
    let place = state.describe();
    state
        .lock_exclusive(files::LOCK)
        .map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse {
                group: name.clone(),
                place,
            },
            _ => OpenError::Io {
                what: "lock the state",
                place,
                source,
            },
        })
}

/// `Err(None)`: nothing was tracked before. `Err(Some(why))`: it cannot go on.
fn find(
    name: &Name,
    specs: &[DiskSpec],
    around: &Surroundings,
) -> Result<(Found, How), Option<String>> {
    let record = LineageRecord::load(&*around.state)
        .map_err(|error| format!("the record of tracking is damaged: {error}"))?
        .ok_or(None)?;
    same_disks(name, specs, &record)?;
    let suspicions = files::old_suspicions(&*around.state, &around.boot)
        .map_err(|error| format!("the state directory cannot be read: {error}"))?;
    if !suspicions.is_empty() {
        let why = "a flush of a disk failed before the machine stopped";
        return Err(Some(why.into()));
    }
    let lineage = record.lineage;
    let same_boot = record.boot == around.boot;
    let live = Live::open(&*around.state, lineage, same_boot);
    if live.as_ref().is_ok_and(Live::is_forsaken) || files::is_forsaken(&*around.diffs, lineage) {
        return Err(Some("earlier writes went untracked".into()));
    }
    let found = match live {
        Ok(live) if live.is_doubtful() && record.boot == around.boot => {
            return Err(Some("the live state may be an old one".into()));
        }
        Ok(live) if live.is_clean() || record.boot == around.boot => {
            untouched(specs, &live)?;
            let live = Arc::new(live);
            match resume(specs, around, lineage, &live) {
                Ok(found) => {
                    let stale_bytes = found.stale_bytes();
                    return Ok((found, How::Resumed { stale_bytes }));
                }
                Err(why) => recover(specs, around, lineage, Some(live), why),
            }
        }
        Err(error) if record.boot == around.boot => {
            return Err(Some(format!("the live state cannot be read: {error}")));
        }
        Ok(_) | Err(_) => {
            let why = "the machine stopped before tracking was closed".into();
            recover(specs, around, lineage, None, why)
        }
    };
    found.map_err(Some)
}

/// Goes on with maps and diffs as they are.
fn resume(
    specs: &[DiskSpec],
    around: &Surroundings,
    lineage: Lineage,
    live: &Arc<Live>,
) -> Result<Found, String> {
    if live.is_lost() {
        return Err("earlier writes went untracked".into());
    }
    let killed = !live.is_clean();
    if killed {
        maps_are_kept(around, lineage, live)?;
    }
    let intent = open_intent(specs, around, lineage, live)?;
    let diffs = open_diffs(specs, around, lineage, (live, &intent))?;
    if !killed {
        diffs.iter().for_each(|diff| diff.map.forget_doubts());
    }
    let released = intent.trimmed_through();
    let sealed = find_sealed(specs, around, (lineage, killed), &diffs, released);
    Ok(Found {
        lineage,
        live: Arc::clone(live),
        intent,
        diffs,
        sealed,
        released,
    })
}

/// Goes on from the intent log alone: all that it names is read again.
/// Crash: the lineage counts as lost until the maps say all that the log says, so whoever is killed
/// here recovers once more.
fn recover(
    specs: &[DiskSpec],
    around: &Surroundings,
    lineage: Lineage,
    live: Option<Arc<Live>>,
    why: String,
) -> Result<(Found, How), String> {
    let failed = |error: io::Error| format!("{why}, and recovering from it failed: {error}");
    let stopped = live.is_none();
    let live = match live {
        Some(live) => live,
        None => {
            let now = around.clock.wall();
            Arc::new(Live::create(&*around.state, lineage, now).map_err(failed)?)
        }
    };
    let intent = open_intent(specs, around, lineage, &live)
        .map_err(|error| format!("{why}, and {error}"))?;
    if stopped {
        untouched_since(specs, intent.written_until().min(around.booted_at))?;
    }
    let since = intent.trimmed_through();
    let next = intent.skip().map_err(failed)?;
    live.lose();
    // Durable: a power cut must not find the word of the next generation and believe its map.
    live.clear_clean().map_err(failed)?;
    live.set_open_generation(next);
    // They do not count any more, and the directory may be full.
    remove_debris(around, lineage, &[next]).map_err(failed)?;
    let diffs = create_diffs(specs, around, lineage, next, (&live, &intent)).map_err(failed)?;
    for diff in &diffs {
        diff.map.lower_since(since);
        let mut regions = diff.intent.regions().into_iter();
        regions
            .try_for_each(|granules| diff.map.mark(granules))
            .map_err(failed)?;
    }
    live.trust();
    let found = Found {
        lineage,
        live,
        intent,
        diffs,
        sealed: Vec::new(),
        released: since,
    };
    let stale_bytes = found.stale_bytes();
    Ok((found, How::Recovered { why, stale_bytes }))
}

fn open_intent(
    specs: &[DiskSpec],
    around: &Surroundings,
    lineage: Lineage,
    live: &Arc<Live>,
) -> Result<Arc<IntentLog>, String> {
    IntentLog::open(around, live, lineage, &sizes(specs))
        .map_err(|error| format!("the intent log cannot be read: {error}"))
}

fn sizes(specs: &[DiskSpec]) -> Vec<u64> {
    specs.iter().map(|spec| spec.production.size()).collect()
}

fn same_disks(name: &Name, specs: &[DiskSpec], record: &LineageRecord) -> Result<(), String> {
    if record.group != name.as_str() {
        return Err(format!("the state is of group {}", record.group));
    }
    let describe = |spec: &DiskSpec| DiskRecord {
        name: spec.name.clone(),
        size: spec.production.size(),
        identity: spec.identity.clone(),
    };
    let disks: Vec<_> = specs.iter().map(describe).collect();
    if disks == record.disks {
        return Ok(());
    }
    let other = disks.iter().find(|disk| !record.disks.contains(disk));
    Err(match other {
        Some(disk) => format!("disk {} is not the disk that was tracked", disk.name),
        None => "the group had other disks".into(),
    })
}

/// Whether somebody else wrote to a disk while nobody tracked it.
fn untouched(specs: &[DiskSpec], live: &Live) -> Result<(), String> {
    for (at, spec) in specs.iter().enumerate() {
        let Some(stamp) = spec.stamp else { continue };
        let touched = if live.is_clean() {
            stamp != live.stamp(at)
        } else {
            let latest = UnixNanos(stamp.mtime_ns);
            latest.since(live.last_write()) > 2 * LAST_WRITE_PRECISION
        };
        if touched {
            return Err(format!(
                "disk {} was changed while it was not protected",
                spec.name
            ));
        }
    }
    Ok(())
}

/// Whether somebody else wrote to a disk: later than we may have.
fn untouched_since(specs: &[DiskSpec], ours: UnixNanos) -> Result<(), String> {
    let touched = |spec: &&DiskSpec| {
        let changed_at = spec.stamp.map(|stamp| UnixNanos(stamp.mtime_ns));
        changed_at.is_some_and(|at| at > ours)
    };
    match specs.iter().find(touched) {
        None => Ok(()),
        Some(spec) => Err(format!(
            "disk {} was changed while it was not protected",
            spec.name
        )),
    }
}

fn open_diffs(
    specs: &[DiskSpec],
    around: &Surroundings,
    lineage: Lineage,
    (live, intent): (&Arc<Live>, &Arc<IntentLog>),
) -> Result<Vec<OpenDiff>, String> {
    let generation = live.open_generation();
    let open = |(at, spec): (usize, &DiskSpec)| {
        let (size, history) = (spec.production.size(), (live, intent.disk(at)));
        OpenDiff::open(around, &spec.name, size, lineage, generation, history)
            .map_err(|error| format!("the open diff of disk {} is damaged: {error}", spec.name))
    };
    specs.iter().enumerate().map(open).collect()
}

fn create_diffs(
    specs: &[DiskSpec],
    around: &Surroundings,
    lineage: Lineage,
    generation: Generation,
    (live, intent): (&Arc<Live>, &Arc<IntentLog>),
) -> io::Result<Vec<OpenDiff>> {
    let create = |(at, spec): (usize, &DiskSpec)| {
        let (size, history) = (spec.production.size(), (live, intent.disk(at)));
        OpenDiff::create(around, &spec.name, size, lineage, generation, history)
    };
    specs.iter().enumerate().map(create).collect()
}

fn begin(specs: &[DiskSpec], around: &Surroundings) -> io::Result<Found> {
    // What was written before is in no log: the seed must not read what a power cut takes back.
    for spec in specs {
        if let Err(error) = spec.production.flush() {
            files::suspect(&*around.state, &around.boot)?;
            return Err(io::Error::other(error));
        }
    }
    let lineage = Lineage((around.random)());
    let live = Arc::new(Live::create(&*around.state, lineage, around.clock.wall())?);
    let intent = IntentLog::create(around, &live, lineage, &sizes(specs))?;
    let diffs = create_diffs(specs, around, lineage, Generation::FIRST, (&live, &intent))?;
    Ok(Found {
        lineage,
        live,
        intent,
        diffs,
        sealed: Vec::new(),
        released: Generation::NONE,
    })
}

fn assemble(
    name: Name,
    specs: Vec<DiskSpec>,
    around: Surroundings,
    found: Found,
    lock: Box<dyn std::any::Any + Send + Sync>,
) -> Group {
    let identities = specs.iter().map(|spec| spec.identity.clone()).collect();
    let (writer, epoch) = (Arc::new(WriterCall::default()), Arc::<Epoch>::default());
    let track = |(spec, diff): (DiskSpec, OpenDiff)| {
        Arc::new(TrackedDisk::new(
            spec.name,
            spec.production,
            diff,
            (&writer, &epoch),
            Arc::clone(&around.clock),
        ))
    };
    let disks = specs.into_iter().zip(found.diffs).map(track).collect();
    let tracking = Turns::new(Tracking {
        lineage: found.lineage,
        live: found.live,
        intent: found.intent,
        sealed: found.sealed,
        released: found.released,
        ending: None,
    });
    Group {
        name,
        around,
        disks,
        identities,
        tracking,
        writer,
        epoch,
        logs_kept: AtomicUsize::new(0),
        renewing: Mutex::new(()),
        merging: Mutex::new(()),
        _lock: lock,
    }
}

/// Removes everything that a lineage which cannot go on left, so that a directory it filled cannot
/// keep the next one from beginning.
/// Crash: the record goes first; without it there is nothing to go on from.
fn clear(around: &Surroundings) -> io::Result<()> {
    files::remove(&*around.state, files::TRACKING)?;
    files::remove(&*around.state, files::TRACKING_NEW)?;
    for name in files::old_suspicions(&*around.state, &around.boot)? {
        files::remove(&*around.state, &name)?;
    }
    around.state.sync()?;
    for dir in [&around.maps, &around.diffs] {
        for name in dir.list()? {
            if files::parse(&name).is_some() || files::parse_forsaken(&name).is_some() {
                files::remove(&**dir, &name)?;
            }
        }
    }
    for name in around.state.list()? {
        if files::parse_state(&name).is_some() {
            files::remove(&*around.state, &name)?;
        }
    }
    Ok(())
}

/// Removes the files of other lineages, and of generations that are not `kept`.
pub(crate) fn remove_debris(
    around: &Surroundings,
    lineage: Lineage,
    kept: &[Generation],
) -> io::Result<()> {
    let short = lineage.short();
    for dir in [&around.maps, &around.diffs] {
        for name in dir.list()? {
            let debris = files::parse(&name).is_some_and(|(g, l)| l != short || !kept.contains(&g))
                || files::parse_forsaken(&name).is_some_and(|l| l != short);
            if debris {
                files::remove(&**dir, &name)?;
            }
        }
    }
    for name in around.state.list()? {
        let debris = files::parse_state(&name)
            .is_some_and(|(g, l)| l != short || g.is_some_and(|g| !kept.contains(&g)));
        if debris {
            files::remove(&*around.state, &name)?;
        }
    }
    Ok(())
}
