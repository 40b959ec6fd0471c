//! Garbage collection: beside writers and readers, in steps of which each is one commit.
//!
//! ```text
//! begin: whatever is pinned from now on is left alone
//! mark:  which chunks and records do the images need that the catalog, and writers, hold?        (mark.rs)
//! sweep: containers and tree objects that nothing needs: let go of            -- a commit for some thousand
//!        sparse and small ones: what is needed of them goes into bundles      -- a commit for each bundle   (compact.rs)
//! purge: objects that were let go of, after their time in quarantine: removed -- a commit
//! ```
//!
//! A kill at any moment leaves the store as after the last commit; the next collection marks anew (seconds) and
//! goes on from there. Rule: an object is removed only after a commit, which fences every earlier writer, has said
//! that nothing refers to it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::armor::Kind;
use crate::catalog::Change;
use crate::error::{ErrorKind, Result, StoreError};
use crate::place::ObjectId;
use crate::store::{Inner, Writer};
use crate::sweep::{self, Sweep};
use crate::tree::ImageRef;

use compact::Step;
use mark::{BYTES_PER_CONTAINER, Marker, Marks, Wanted};
use plan::{Below, Moving, Plan};

mod compact;
pub(crate) mod mark;
mod plan;
mod section;

/// Objects let go of in one commit.
const GONE_PER_COMMIT: usize = 4096;

/// Bytes of records that are moved in one collection.
const TREE_BYTES_PER_COLLECTION: u64 = 64 << 20;

/// How a collection is to go about it.
#[derive(Clone, Copy)]
pub struct GcOptions<'a> {
    /// Only say what would be done.
    pub dry_run: bool,
    /// How long an object that nothing refers to is kept before it is removed. Ignored while the place is full.
    pub quarantine: Duration,
    /// Containers of which less than this part is needed are copied without the rest; 1: whatever holds any garbage.
    pub compact_below: f64,
    /// Bytes of memory for marks. With less the catalog's images are walked several times.
    pub memory: usize,
    /// Told of bytes that were read or written; may sleep.
    pub pace: &'a (dyn Fn(u64) + Sync),
    /// Asked now and then whether to stop; what was done by then stays done.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl Default for GcOptions<'_> {
    fn default() -> Self {
        Self {
            dry_run: false,
            quarantine: Duration::from_hours(24),
            compact_below: 0.7,
            memory: 64 << 20,
            pace: &|_| (),
            stop: &|| false,
        }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Images that were walked.
    pub images: u64,
    /// Chunks that they need.
    pub live_chunks: u64,
    /// Chunks that there were.
    pub chunks: u64,
    /// Containers that nothing needed.
    pub containers_gone: u64,
    /// Containers that were moved, without what nothing needed of them.
    pub containers_moved: u64,
    /// Tree objects that nothing needed.
    pub trees_gone: u64,
    /// Tree objects that were moved.
    pub trees_moved: u64,
    /// Bytes written to move things.
    pub written_bytes: u64,
    /// Bytes of objects that were let go of. A dry run says how much at least.
    pub freed_bytes: u64,
    /// Bytes of objects that were removed.
    pub removed_bytes: u64,
    /// Bytes of objects that wait in quarantine.
    pub quarantined_bytes: u64,
    /// Bytes of garbage that stay, since too much would have to be copied to be rid of them.
    pub left_bytes: u64,
    /// Bytes of garbage that share regions with what is needed: only who has the store's key can be rid of them.
    #[serde(default)]
    pub sealed_bytes: u64,
    /// Damaged containers that had to be left as they are.
    pub damaged: u64,
    /// Whether it was stopped early.
    pub stopped: bool,
}

/// One collection.
pub(crate) struct Collection<'a> {
    inner: &'a Inner,
    writer: &'a Writer,
    options: &'a GcOptions<'a>,
    report: GcReport,
    /// The place had no room once.
    full: bool,
    /// Nor was there any for a bundle.
    no_room: bool,
}

/// Collects the garbage of a store.
pub(crate) fn collect(inner: &Inner, options: &GcOptions<'_>) -> Result<GcReport> {
    collecting(inner, options, Collection::run)
}

/// Lets objects go that nothing needs, and neither moves nor removes any.
pub(crate) fn let_go(inner: &Inner) -> Result<()> {
    collecting(inner, &GcOptions::default(), Collection::let_go).map(drop)
}

fn collecting<'a>(
    inner: &'a Inner,
    options: &'a GcOptions<'_>,
    act: impl FnOnce(&mut Collection<'a>) -> Result<()>,
) -> Result<GcReport> {
    let writer = inner.writer()?;
    writer.check_latch()?;
    let Some(_only_one) = writer.collecting.try_lock() else {
        return Err(StoreError::Collecting);
    };
    let mut collection = Collection {
        inner,
        writer,
        options,
        report: GcReport::default(),
        full: false,
        no_room: false,
    };
    let done = match act(&mut collection) {
        Err(StoreError::Stopped) => Ok(()),
        done => done,
    };
    writer.engine.pins.end_collection();
    if !options.dry_run {
        inner.restore_some_headroom();
    }
    done?;
    let state = inner.state.lock();
    collection.report.quarantined_bytes = sweep::bytes(&state.quarantine);
    Ok(collection.report)
}

impl Collection<'_> {
    fn run(&mut self) -> Result<()> {
        self.forget_removed()?;
        self.purge()?;
        self.let_debris_go()?;
        let ends = self.begin();
        let engine = &self.writer.engine;
        let sums = engine.inventory.lock().sums();
        self.report.chunks = sums.chunks;
        let windows = self.windows(ends[0]);
        for (i, window) in windows.into_iter().enumerate() {
            let mut marks = self.mark(Wanted {
                containers: window.clone(),
                records: HashSet::new(),
            })?;
            self.count_live(&window, &marks);
            self.widen(&window, &mut marks)?;
            // First what only frees; what must be written before it frees comes after it.
            let trees = match i {
                0 => self.let_trees_go_by(ends[1], &marks)?,
                _ => Vec::new(),
            };
            self.sweep_containers(window, &marks)?;
            self.move_trees_by(trees)?;
            if self.is_stopped() {
                return Ok(());
            }
        }
        self.purge()?;
        self.report.stopped |= self.no_room;
        Ok(())
    }

    fn let_go(&mut self) -> Result<()> {
        let ends = self.begin();
        for (i, window) in self.windows(ends[0]).into_iter().enumerate() {
            let marks = self.mark(Wanted {
                containers: window.clone(),
                records: HashSet::new(),
            })?;
            if i == 0 {
                self.let_trees_go_by(ends[1], &marks)?;
            }
            self.let_containers_go_by(window, &marks)?;
        }
        Ok(())
    }

    /// The first numbers of containers and tree objects that are not looked at.
    fn begin(&self) -> [ObjectId; 2] {
        let engine = &self.writer.engine;
        let opener = &engine.objects.opener;
        // In this order: what gets its number after this is new; what had it before is pinned, or in the catalog.
        let ends = [opener.containers.next(), opener.trees.next()].map(ObjectId);
        engine.pins.begin_collection();
        ends
    }

    /// Points whose time to be brought back is over.
    fn forget_removed(&mut self) -> Result<()> {
        let now = self.inner.now();
        let mut state = self.inner.state.lock();
        if self.options.dry_run {
            return Ok(());
        }
        let over = state.removed.iter().filter(|(_, (_, until))| *until <= now);
        let over: Vec<_> = over.map(|(id, _)| id.clone()).collect();
        for some in over.chunks(GONE_PER_COMMIT) {
            let change = Change::Forget(some.to_vec());
            self.inner.commit(&mut state, change)?;
        }
        Ok(())
    }

    fn is_stopped(&mut self) -> bool {
        self.report.stopped |= (self.options.stop)();
        self.report.stopped
    }

    /// Ranges of containers whose marks fit into the memory.
    fn windows(&self, end: ObjectId) -> Vec<std::ops::Range<ObjectId>> {
        let inventory = self.writer.engine.inventory.lock();
        let at_once = (self.options.memory / BYTES_PER_CONTAINER).max(4);
        let ids: Vec<ObjectId> = inventory.containers().keys().copied().collect();
        let mut starts: Vec<ObjectId> = ids.chunks(at_once).map(|ids| ids[0]).collect();
        starts.retain(|start| *start < end);
        if starts.is_empty() {
            starts.push(end);
        }
        let ends = starts[1..].iter().copied().chain([end]);
        starts
            .iter()
            .copied()
            .zip(ends)
            .map(|(a, b)| a..b)
            .collect()
    }

    /// Marks what all images need that anybody holds.
    fn mark(&mut self, wanted: Wanted) -> Result<Marks> {
        let engine = &self.writer.engine;
        let mut images = self.inner.state.lock().images();
        if self.options.dry_run {
            // It forgets nothing, and counts as if it had.
            let now = self.inner.now();
            images.retain(|held| held.removed_until.is_none_or(|until| now < until));
        }
        // Taken after the catalog: what was pinned before and has left the catalog since is in here.
        let pinned = engine.pins.images_of_collection();
        let mut marker = Marker::new(Arc::clone(&engine.objects), wanted);
        self.report.images = 0;
        for held in &images {
            marker.held(held)?;
            self.report.images += 1;
            (self.options.pace)(4096);
            if self.is_stopped() {
                return Err(StoreError::Stopped);
            }
        }
        let mut seen: Vec<ImageRef> = Vec::new();
        for image in pinned {
            if !seen.contains(&image) {
                marker.image(&image)?;
                self.report.images += 1;
                seen.push(image);
            }
        }
        Ok(marker.finish())
    }

    fn count_live(&mut self, ids: &std::ops::Range<ObjectId>, marks: &Marks) {
        let inventory = self.writer.engine.inventory.lock();
        let held = inventory.containers().range(ids.clone());
        let live: u64 = held.map(|(id, _)| u64::from(marks.live(*id))).sum();
        self.report.live_chunks += live;
    }

    /// Who has no key cannot take a region apart: all of it is needed, where any of it is.
    fn widen(&mut self, ids: &std::ops::Range<ObjectId>, marks: &mut Marks) -> Result<()> {
        let objects = Arc::clone(&self.writer.engine.objects);
        if objects.opener.codec.is_some() {
            return Ok(());
        }
        let held = {
            let inventory = self.writer.engine.inventory.lock();
            let held = inventory.containers().range(ids.clone());
            held.map(|(id, held)| (*id, *held)).collect::<Vec<_>>()
        };
        for (id, held) in held {
            let live = marks.live(id);
            if live == 0 || live >= held.chunks {
                continue;
            }
            match objects.manifest(id) {
                Ok(manifest) => {
                    (self.options.pace)(manifest.footprint() as u64);
                    marks.widen(id, &manifest);
                }
                // It is left as it is when it comes to be moved.
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
            let more = marks.live(id) - live;
            self.report.sealed_bytes += held.bytes * u64::from(more) / u64::from(held.chunks);
            if self.is_stopped() {
                return Err(StoreError::Stopped);
            }
        }
        Ok(())
    }

    fn sweep_containers(&mut self, ids: std::ops::Range<ObjectId>, marks: &Marks) -> Result<()> {
        let moving = self.let_containers_go_by(ids, marks)?;
        if self.options.dry_run || self.is_stopped() {
            return Ok(());
        }
        if self.is_full() {
            self.purge()?;
        }
        for bundle in plan::bundles(moving, crate::bundle::TARGET as u64) {
            self.move_containers(&bundle, marks)?;
            if self.no_room || self.is_stopped() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Lets containers go that nothing needs. Returns those that are to be moved.
    fn let_containers_go_by(
        &mut self,
        ids: std::ops::Range<ObjectId>,
        marks: &Marks,
    ) -> Result<Vec<Moving>> {
        let plan = {
            let locations = Arc::clone(&self.inner.state.lock().locations);
            let inventory = self.writer.engine.inventory.lock();
            let below = Below(self.options.compact_below);
            plan::containers(ids, &inventory, &locations, marks, below)
        };
        self.report.left_bytes += plan.left_bytes;
        if self.options.dry_run {
            self.would(Kind::Container, &plan);
            return Ok(Vec::new());
        }
        for some in plan.gone.chunks(GONE_PER_COMMIT) {
            self.let_containers_go(some)?;
            if self.is_stopped() {
                return Ok(Vec::new());
            }
        }
        Ok(plan.moving)
    }

    /// Lets tree objects go that nothing needs. Returns those that are to be moved.
    fn let_trees_go_by(&mut self, end: ObjectId, marks: &Marks) -> Result<Vec<Moving>> {
        let mut plan = {
            let locations = Arc::clone(&self.inner.state.lock().locations);
            let inventory = self.writer.engine.inventory.lock();
            let below = Below(self.options.compact_below);
            plan::trees(end, &inventory, &locations, marks, below)
        };
        self.report.left_bytes += plan.left_bytes;
        if self.options.dry_run {
            self.would(Kind::Tree, &plan);
            return Ok(Vec::new());
        }
        for some in plan.gone.chunks(GONE_PER_COMMIT) {
            self.let_trees_go(some)?;
        }
        let mut budget = TREE_BYTES_PER_COLLECTION;
        plan.moving.retain(|one| {
            let fits = one.live_bytes <= budget;
            budget -= one.live_bytes.min(budget);
            fits
        });
        Ok(plan.moving)
    }

    fn move_trees_by(&mut self, moving: Vec<Moving>) -> Result<()> {
        let bundles = plan::bundles(moving, crate::bundle::TARGET as u64);
        if bundles.is_empty() || self.is_stopped() {
            return Ok(());
        }
        let records = bundles.iter().flatten().map(|one| one.id).collect();
        let nothing = ObjectId(0)..ObjectId(0);
        let marks = self.mark(Wanted {
            containers: nothing,
            records,
        })?;
        for bundle in bundles {
            self.move_trees(&bundle, &marks)?;
            if self.no_room || self.is_stopped() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What a dry run says.
    fn would(&mut self, kind: Kind, plan: &Plan) {
        let inventory = self.writer.engine.inventory.lock();
        let bytes = |id: &ObjectId| match kind {
            Kind::Tree => inventory.trees().get(id).map_or(0, |held| held.bytes),
            _ => inventory.containers().get(id).map_or(0, |held| held.bytes),
        };
        let gone: u64 = plan.gone.iter().map(bytes).sum();
        let bundles = plan::bundles(plan.moving.clone(), crate::bundle::TARGET as u64);
        let moving: Vec<_> = bundles.iter().flatten().collect();
        let before: u64 = moving.iter().map(|one| bytes(&one.id)).sum();
        let after: u64 = moving.iter().map(|one| one.live_bytes).sum();
        self.report.written_bytes += after;
        self.report.freed_bytes += gone + before.saturating_sub(after);
        let counts = [plan.gone.len() as u64, moving.len() as u64];
        let [gone, moved] = match kind {
            Kind::Tree => [&mut self.report.trees_gone, &mut self.report.trees_moved],
            _ => [
                &mut self.report.containers_gone,
                &mut self.report.containers_moved,
            ],
        };
        *gone += counts[0];
        *moved += counts[1];
    }

    fn let_containers_go(&mut self, ids: &[ObjectId]) -> Result<()> {
        let engine = &self.writer.engine;
        let (doomed, _) = engine.pins.doom(ids.iter().copied(), []);
        let mut step = Step::default();
        for id in &doomed {
            step.container_goes(engine, *id);
        }
        self.report.containers_gone += doomed.len() as u64;
        self.take(step)
    }

    fn let_trees_go(&mut self, ids: &[ObjectId]) -> Result<()> {
        let engine = &self.writer.engine;
        let (_, doomed) = engine.pins.doom([], ids.iter().copied());
        let mut step = Step::default();
        for id in &doomed {
            step.tree_goes(engine, *id);
        }
        self.report.trees_gone += doomed.len() as u64;
        self.take(step)
    }

    /// What crashes left goes into quarantine like anything that nothing refers to.
    fn let_debris_go(&mut self) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let engine = &self.writer.engine;
        let debris = engine.inventory.lock().take_debris();
        for some in debris.chunks(GONE_PER_COMMIT) {
            let mut step = Step::default();
            for (kind, id) in some {
                match engine.objects.opener.shelf(*kind).len(*id) {
                    Ok(bytes) => step.sweep.freed.push((*kind, *id, bytes)),
                    Err(e) if e.kind() == ErrorKind::Corrupt => {}
                    Err(e) => return Err(e),
                }
            }
            self.take(step)?;
        }
        Ok(())
    }

    /// Commits a step, and makes it so.
    fn take(&mut self, step: Step) -> Result<()> {
        if step.is_empty() {
            return Ok(());
        }
        let engine = &self.writer.engine;
        let freed: u64 = step.sweep.freed.iter().map(|(_, _, bytes)| bytes).sum();
        let mut sweep = step.sweep.clone();
        sweep.next_bundle = engine.objects.opener.bundles.next();
        let committed = {
            let mut state = self.inner.state.lock();
            let sums_after = step.sums_after(&engine.inventory.lock());
            let committed =
                self.inner
                    .commit_with(&mut state, Change::Sweep(sweep), Some(sums_after));
            if committed.is_ok() {
                let locations = Arc::clone(&state.locations);
                engine.objects.set_locations(state.sequence, locations);
                step.apply(engine);
            }
            committed
        };
        let Sweep {
            moved_containers,
            moved_trees,
            gone_containers,
            gone_trees,
            ..
        } = &step.sweep;
        let containers = moved_containers.iter().map(|(id, _)| id);
        let trees = moved_trees.iter().map(|(id, _)| id);
        engine
            .pins
            .reprieve(containers.chain(gone_containers), trees.chain(gone_trees));
        committed?;
        self.report.freed_bytes += freed;
        Ok(())
    }

    fn is_full(&mut self) -> bool {
        self.full = self.full || self.inner.is_full();
        self.full
    }

    /// Removes what has been in quarantine for long enough.
    fn purge(&mut self) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let now = self.inner.now();
        let wait = match self.is_full() {
            true => 0,
            false => u64::try_from(self.options.quarantine.as_nanos()).unwrap_or(u64::MAX),
        };
        let due: Vec<((Kind, ObjectId), u64)> = {
            let state = self.inner.state.lock();
            let due = state.quarantine.iter();
            // Without a wait no clock is asked: it may have been set back.
            let over = |since: u64| wait == 0 || since.saturating_add(wait) <= now;
            let due = due.filter(|(_, object)| over(object.since));
            due.map(|(id, object)| (*id, object.bytes)).collect()
        };
        let opener = &self.writer.engine.objects.opener;
        for some in due.chunks(GONE_PER_COMMIT) {
            // A scrub that heals one of them would bring it back.
            let no_healing = self.writer.healing.lock();
            for ((kind, id), bytes) in some {
                opener.shelf(*kind).remove(*id)?;
                opener.forget(*kind, *id);
                (self.options.pace)(4096);
                self.report.removed_bytes += bytes;
            }
            let objects = some.iter().map(|(object, _)| *object).collect();
            let mut state = self.inner.state.lock();
            // Syncs the folders first: what the catalog forgets does not come back.
            self.inner.commit(&mut state, Change::Purge(objects))?;
            drop((state, no_healing));
            if self.is_stopped() {
                return Ok(());
            }
        }
        Ok(())
    }
}
