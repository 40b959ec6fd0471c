//! A protected group at work: what its threads share.
//!
//! ```text
//!  cutter (schedule) --+                          +--> status
//!  control API --------+--> Engine::cut --> Group +--> stage two (seed, ship) --> target
//! ```
//!
//! Rule: no thread that serves a guest ever takes a lock of this file.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use block::{Name, UnixNanos};
use parking_lot::{Condvar, Mutex, MutexGuard};
use splitter::{CutError, Generation, Group, Lineage, SealedGeneration};
use store::PointRecord;
use tracing::{info, warn};

use crate::api::{Cause, CutFigures, ShipFigures};
use crate::audit::Audit;
use crate::base::{self, Held};
use crate::crew::{Crew, Standing};
use crate::gaps::GapLedger;
use crate::hooks::{HookOptions, Hooks};
use crate::ladder::{self, Ladder};
use crate::limits::Limits;
use crate::made_here::MadeHere;
use crate::open_target::OpenTarget;
use crate::places::{GroupPlace, Record};
use crate::recent::Recent;
use crate::schedule::Every;
use crate::seed::SeedProgress;
use crate::target::Target;
use crate::target_writer::TargetWriter;
use crate::trouble::{Step, Troubles};
use crate::world::World;
use crate::{Error, Result};
use dd_target::KeepOptions;
use dd_target::{Bucket, Rate};

mod cuts;
pub(crate) mod gaps;
mod waiting;
pub(crate) use cuts::SCHEDULED_TRIES;

/// Fates of generations that are remembered for who waits for them.
const FATES_MAX: usize = 4096;

/// What the threads of a protected group share.
pub(crate) struct Engine {
    pub(crate) name: Name,
    pub(crate) group: Group,
    pub(crate) world: World,
    pub(crate) target: Target,
    pub(crate) every: Every,
    hooks: Option<Hooks>,
    pub(crate) audit_rate: Option<Rate>,
    pub(crate) audit: Audit,
    pub(crate) ship_rate: Option<Rate>,
    ship_bucket: Option<Bucket>,
    pub(crate) limits: Limits,
    pub(crate) keep: KeepOptions,
    pub(crate) open_target: OpenTarget,
    pub(crate) ladder: Ladder,
    pub(crate) gaps: GapLedger,
    ledger_fails: AtomicBool,
    pub(crate) crew: Arc<Crew>,
    pub(crate) place: GroupPlace,
    /// NBD URIs of the disks, once they are served.
    pub(crate) exports: OnceLock<Vec<String>>,
    pub(crate) seed: SeedProgress,
    pub(crate) shared: Mutex<Shared>,
    changed: Condvar,
    reread: AtomicU64,
    /// What the next start finds.
    record: Mutex<Record>,
    pub(crate) made_here: Arc<MadeHere>,
    /// Held through a cut or a restart of tracking, so that a cut and its lineage belong together.
    cutting: Mutex<()>,
}

/// What the user decided.
pub(crate) struct Policy {
    pub(crate) every: Every,
    pub(crate) hooks: HookOptions,
    pub(crate) audit_rate: Option<Rate>,
    pub(crate) ship_rate: Option<Rate>,
    pub(crate) limits: Limits,
    pub(crate) keep: KeepOptions,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// It runs.
    No,
    /// The exports are being closed: no cuts but the last one, no seed.
    Closing,
    /// The last cut is made: ship what is sealed.
    Draining,
    /// Leave everything as it is.
    Now,
}

/// What became of a sealed generation.
#[derive(Clone, Debug)]
enum Fate {
    Point(String),
    Lost(String),
}

/// The newest point.
#[derive(Clone, Debug)]
pub(crate) struct Newest {
    pub(crate) id: String,
    pub(crate) at: UnixNanos,
}

/// State under the lock.
pub(crate) struct Shared {
    pub(crate) stop: Stop,
    /// The first attempt to open the target has ended.
    pub(crate) target_seen: bool,
    /// There is something that a cut can build on.
    pub(crate) seeded: bool,
    /// Somebody else has taken over the target.
    pub(crate) fenced: bool,
    pub(crate) newest: Option<Newest>,
    pub(crate) troubles: Troubles,
    pub(crate) last_cut: Option<CutFigures>,
    pub(crate) last_ship: Option<ShipFigures>,
    /// In microseconds.
    pub(crate) pauses: Recent,
    pub(crate) lateness: Recent,
    pub(crate) ticks_skipped: u64,
    /// The seed is complete, and no cut has followed.
    first_cut_due: bool,
    /// The seed is complete, and no point builds on it.
    pub(crate) first_point_due: bool,
    /// A cut was made that cannot be listed yet.
    cut_waits: bool,
    /// Counts cuts, so that stage two notices one.
    pub(crate) cuts: u64,
    lineage: Lineage,
    fates: VecDeque<(Lineage, Generation, Fate)>,
    waiters: usize,
    /// Counts callers that began to wait for a point: for them a failed step is tried at once.
    pub(crate) hurries: u64,
    /// Callers that wait for the seed to end, to cut then.
    waiting_to_cut: usize,
}

impl Engine {
    pub(crate) fn new(
        group: Group,
        world: World,
        target: Target,
        policy: Policy,
        place: GroupPlace,
        record: Record,
    ) -> Result<Self> {
        let gaps = gaps::open(&group, &world, policy.every, &place)?;
        let made_here = MadeHere::of(&place)?;
        let total = group
            .disks()
            .iter()
            .map(|disk| block::BlockDevice::size(&**disk))
            .sum();
        let shared = Shared {
            stop: Stop::No,
            target_seen: false,
            seeded: false,
            fenced: false,
            newest: None,
            troubles: Troubles::default(),
            last_cut: None,
            last_ship: None,
            pauses: Recent::default(),
            lateness: Recent::default(),
            ticks_skipped: 0,
            first_cut_due: false,
            first_point_due: false,
            cut_waits: false,
            cuts: 0,
            lineage: group.lineage(),
            fates: VecDeque::new(),
            waiters: 0,
            hurries: 0,
            waiting_to_cut: 0,
        };
        Ok(Self {
            name: group.name().clone(),
            hooks: Hooks::new(group.name(), policy.hooks, place.owed_hook()),
            group,
            world,
            target,
            every: policy.every,
            audit_rate: policy.audit_rate,
            audit: Audit::default(),
            ship_rate: policy.ship_rate,
            keep: policy.keep,
            open_target: OpenTarget::default(),
            ship_bucket: policy.ship_rate.map(Bucket::new),
            limits: policy.limits,
            ladder: Ladder::default(),
            gaps,
            ledger_fails: AtomicBool::new(false),
            crew: Arc::new(Crew::new()),
            place,
            exports: OnceLock::new(),
            seed: SeedProgress::new(total),
            shared: Mutex::new(shared),
            changed: Condvar::new(),
            reread: AtomicU64::new(0),
            record: Mutex::new(record),
            made_here: Arc::new(made_here),
            cutting: Mutex::new(()),
        })
    }

    /// Time since the process started.
    pub(crate) fn now(&self) -> Duration {
        self.world.clock.monotonic()
    }

    pub(crate) fn audit_status(&self) -> Option<crate::api::AuditStatus> {
        let total = self.disk_sizes().iter().map(|(_, size)| size).sum();
        self.audit_rate.map(|rate| self.audit.status(rate, total))
    }

    /// Bytes re-read from production to complete diffs.
    pub(crate) fn reread_bytes(&self) -> u64 {
        self.reread.load(Ordering::Relaxed)
    }

    // ---- how stage two goes about its work ----

    /// Lets those who ship step back as far as points allow.
    pub(crate) fn adjust_priority(&self) {
        let sealed = self.group.sealed().len();
        let wall = self.world.clock.wall();
        let shared = self.shared.lock();
        let standing = Standing {
            seeded: shared.seeded,
            sealed,
            age: shared.newest.as_ref().map(|newest| wall.since(newest.at)),
            every: self.every,
            awaited: shared.waiters > 0,
        };
        drop(shared);
        self.crew.set(standing.priority());
    }

    /// Waits as the limit of ships asks, after `bytes` of a diff. At the end, when no guest is served
    /// any more, there is no limit.
    pub(crate) fn slow_ship(&self, bytes: u64) {
        let pause = self
            .ship_bucket
            .as_ref()
            .map(|bucket| bucket.take(bytes, self.now()));
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            drop(self.wait(Some(pause), Stop::No, |_| false));
        }
    }

    /// Whether a ship of that history is to no purpose.
    pub(crate) fn is_over(&self, lineage: Lineage) -> bool {
        let shared = self.shared.lock();
        shared.stop == Stop::Now || shared.lineage != lineage
    }

    // ---- what stage two tells ----

    /// There is a base for the next cut of `lineage`. If `first_cut` is due and nobody waits to make
    /// it, the cutter does. `first_point`: none builds on it.
    pub(crate) fn seeded(&self, lineage: Lineage, first_cut: bool, first_point: bool) {
        let mut shared = self.shared.lock();
        if shared.lineage != lineage {
            return;
        }
        self.seed.complete();
        shared.seeded = true;
        shared.first_point_due |= first_point;
        shared.first_cut_due = first_cut && shared.waiting_to_cut == 0;
        drop(shared);
        self.changed.notify_all();
    }

    /// A point is durable and listed.
    pub(crate) fn committed(
        &self,
        target: &TargetWriter,
        point: &Arc<PointRecord>,
        figures: Option<ShipFigures>,
    ) {
        if let Some(store) = target.store() {
            self.audit.follow(Arc::clone(point), store.images());
        }
        self.noted(
            self.gaps
                .point(gaps::moment_of(point), &point.id.to_string()),
        );
        let mut shared = self.shared.lock();
        let fate = Fate::Point(point.id.to_string());
        shared.remember(Lineage(point.lineage), Generation(point.generation), fate);
        shared.newest = Some(Newest {
            id: point.id.to_string(),
            at: point.at,
        });
        shared.first_point_due = false;
        if figures.is_some() {
            shared.last_ship = figures;
        }
        drop(shared);
        self.changed.notify_all();
        self.remember_lineage(Lineage(point.lineage));
    }

    /// Lets the next start cut before it has seen the target.
    fn remember_lineage(&self, lineage: Lineage) {
        let mut record = self.record.lock();
        let lineage = Some(lineage.to_string());
        if record.lineage != lineage {
            record.lineage = lineage;
            if let Err(error) = self.place.save_record(&record) {
                warn!(group = %self.name, error = error.chain(), "the next start will need the target to begin");
            }
        }
    }

    /// Whether the target ever had a point of this group, as far as is remembered here.
    pub(crate) fn had_point(&self) -> bool {
        self.record.lock().lineage.is_some()
    }

    /// The newest point of the group on the target, whatever its history.
    pub(crate) fn note_target(&self, target: &TargetWriter) -> Result<()> {
        let failed = self.target.unwritten("see what the target has");
        let found = target.newest(&self.name, &self.group.lineage().0);
        let found = found.map_err(failed)?;
        if let (Some(point), Some(store)) = (self.held(target)?.point, target.store()) {
            self.audit.follow(point, store.images());
        }
        self.note_found(&found);
        let newest = found.into_iter().next();
        let mut shared = self.shared.lock();
        shared.newest = newest.map(|point| Newest {
            id: point.id.to_string(),
            at: point.at,
        });
        shared.target_seen = true;
        drop(shared);
        self.changed.notify_all();
        Ok(())
    }

    /// A damaged diff: its cut, and those after it, will not be points. The next one is exact.
    pub(crate) fn give_up_from(&self, damaged: &SealedGeneration, why: &str) -> Result<()> {
        let cutting = self.cutting.lock();
        let (lineage, from) = (damaged.lineage, damaged.generation);
        let lost = self.group.sealed();
        warn!(group = %self.name, generation = %from, why, "cuts are given up; the next point is exact");
        self.ladder.doubt();
        let folded = self.group.fold_from(damaged);
        let kept = self.group.sealed();
        let is_gone = |s: &Arc<SealedGeneration>| !kept.iter().any(|kept| Arc::ptr_eq(kept, s));
        let lost: Vec<_> = lost.into_iter().filter(is_gone).collect();
        let mut shared = self.shared.lock();
        for sealed in lost
            .iter()
            .filter(|s| s.lineage == lineage && s.generation >= from)
        {
            shared.remember(lineage, sealed.generation, Fate::Lost(why.to_owned()));
        }
        drop(shared);
        for sealed in lost
            .iter()
            .filter(|s| s.lineage == lineage && s.generation >= from)
        {
            self.noted(self.gaps.lost(lineage, sealed.generation, Cause::DiffError));
        }
        drop(cutting);
        self.changed.notify_all();
        match folded {
            Err(CutError::Distrusted) => self.relearn(lineage, why),
            folded => Ok(folded?),
        }
    }

    /// Merges two cuts that wait for the target into one; the earlier will not be a point. `false` if
    /// there are no two that nobody reads.
    pub(crate) fn coalesce(&self) -> Result<bool> {
        let lineage = self.group.lineage();
        let Some(merged) = self.group.coalesce()? else {
            return Ok(false);
        };
        info!(group = %self.name, lost = %merged.lost, into = %merged.into, "two cuts that wait for the target became one");
        let cause = self.ladder.cause().unwrap_or(Cause::TargetBehind);
        self.noted(self.gaps.lost(lineage, merged.lost, cause));
        let why = format!("it was merged into the cut of generation {}", merged.into);
        let mut shared = self.shared.lock();
        shared.remember(lineage, merged.lost, Fate::Lost(why));
        drop(shared);
        self.changed.notify_all();
        Ok(true)
    }

    /// Goes on from the intent log when nobody knows any more what was written; where that cannot be, begins
    /// a new history.
    pub(crate) fn relearn(&self, lineage: Lineage, why: &str) -> Result<()> {
        let cutting = self.cutting.lock();
        // Somebody else may have done it meanwhile.
        if self.group.lineage() != lineage || !self.group.is_lost() {
            return Ok(());
        }
        let lost = self.group.sealed();
        let relearned = self.group.relearn(why);
        let mut shared = self.shared.lock();
        for sealed in &lost {
            shared.remember(lineage, sealed.generation, Fate::Lost(why.to_owned()));
        }
        drop(shared);
        drop(cutting);
        self.changed.notify_all();
        match relearned {
            Ok(bytes) => {
                let open = (lineage, self.group.open_generation());
                self.noted(self.gaps.began_anew(open, Cause::MarksLost));
                ladder::marks_again(self);
                info!(group = %self.name, bytes, "tracking goes on from the intent log");
                Ok(())
            }
            Err(CutError::Distrusted) => self.restart_tracking(lineage, why),
            // The state directory may be full: it is tried again with the next cut.
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a new history, unless that has happened since `lineage`: the disks are copied anew.
    pub(crate) fn restart_tracking(&self, lineage: Lineage, why: &str) -> Result<()> {
        let cutting = self.cutting.lock();
        if self.group.lineage() != lineage {
            return Ok(());
        }
        self.shared.lock().seeded = false;
        self.seed.reset();
        let restarted = self.group.restart_tracking(why);
        let open = (self.group.lineage(), self.group.open_generation());
        if restarted.is_ok() {
            ladder::marks_again(self);
        }
        self.noted(self.gaps.began_anew(open, Cause::CopiedAnew));
        self.shared.lock().lineage = self.group.lineage();
        drop(cutting);
        self.changed.notify_all();
        restarted?;
        Ok(())
    }

    /// What the target has that concerns the history that counts.
    pub(crate) fn held(&self, target: &TargetWriter) -> Result<Held> {
        let held = target.held(&self.name, &self.group.lineage().0);
        let held = held.map_err(self.target.unwritten("see what the target has"))?;
        if held.foreign {
            self.note_cause(Cause::ForeignPoint);
        }
        Ok(held)
    }

    /// Whether the next cut, or the oldest that is sealed, can be laid on what the target has. The
    /// ship asks again.
    pub(crate) fn has_base(&self, held: &Held) -> bool {
        let lineage = self.group.lineage();
        let disks = self.disk_sizes();
        let sealed = self.group.sealed();
        let open = self.group.open_generation();
        let next = base::Sealed {
            lineage,
            since: self.group.since(),
            generation: sealed.first().map_or(open, |first| first.generation),
            open,
            disks: &disks,
        };
        !matches!(base::plan(held, &next), base::Plan::Missing(_))
    }

    pub(crate) fn disk_sizes(&self) -> Vec<(Name, u64)> {
        let size = |disk: &Arc<splitter::TrackedDisk>| {
            (disk.name().clone(), block::BlockDevice::size(&**disk))
        };
        self.group.disks().iter().map(size).collect()
    }

    // ---- waiting, stopping, failing ----

    /// Notes that a step failed.
    pub(crate) fn fails(&self, step: Step, error: &Error) {
        self.fails_while(step, error, |_| true);
    }

    /// The same, if what failed still does.
    pub(crate) fn fails_while(&self, step: Step, error: &Error, still: impl Fn(&Shared) -> bool) {
        let now = self.now();
        let mut shared = self.shared.lock();
        if !still(&shared) {
            return;
        }
        if shared.troubles.note(step, error.chain(), now) {
            warn!(group = %self.name, step = %step, error = error.chain(), "a step of protection fails; guests are served, and it is tried again");
        }
        shared.target_seen |= step == Step::OpenTarget;
        shared.fenced |= error.kind() == crate::Kind::Fenced && self.target.has_locks();
        drop(shared);
        self.changed.notify_all();
    }

    pub(crate) fn works(&self, step: Step) {
        self.shared.lock().troubles.clear(step);
    }

    pub(crate) fn set_stop(&self, stop: Stop) {
        let mut shared = self.shared.lock();
        shared.stop = shared.stop.max(stop);
        drop(shared);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) -> Stop {
        self.shared.lock().stop
    }

    /// Waits, at most `limit`, until `ready` or the end has come closer than `stop`.
    pub(crate) fn wait(
        &self,
        limit: Option<Duration>,
        stop: Stop,
        ready: impl Fn(&Shared) -> bool,
    ) -> MutexGuard<'_, Shared> {
        let end = limit.map(|limit| self.now() + limit);
        let mut shared = self.shared.lock();
        while shared.stop <= stop && !ready(&shared) {
            match end {
                None => self.changed.wait(&mut shared),
                Some(end) => {
                    let left = end.saturating_sub(self.now());
                    if left.is_zero() || self.changed.wait_for(&mut shared, left).timed_out() {
                        break;
                    }
                }
            }
        }
        shared
    }
}

impl Shared {
    /// Whether the first cut after a seed is to be made.
    pub(crate) fn first_cut_due(&self) -> bool {
        self.seeded && self.first_cut_due && !self.cut_waits
    }

    /// Whether a cut was made that cannot be listed yet.
    pub(crate) fn cut_waits(&self) -> bool {
        self.cut_waits
    }

    fn fate(&self, lineage: Lineage, generation: Generation) -> Option<Fate> {
        let newest_first = self.fates.iter().rev();
        let mut found = newest_first.filter(|(l, g, _)| *l == lineage && *g == generation);
        found.next().map(|(_, _, fate)| fate.clone())
    }

    fn remember(&mut self, lineage: Lineage, generation: Generation, fate: Fate) {
        if self.fates.len() == FATES_MAX {
            self.fates.pop_front();
        }
        self.fates.push_back((lineage, generation, fate));
    }
}

/// Whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
