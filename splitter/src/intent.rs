//! The intent log: a durable, coarse record of the regions in which production may differ from the
//! newest point at a target. It is what a power cut, or a lost dirty map, is recovered from.
//!
//! ```text
//!   guest's write --> bit of its region durable? --yes--> production, diff     (nearly always)
//!                        | no: the region is cold
//!                        +--> set it, one fdatasync for all who wait --> production, diff
//!
//!   a bit is taken back when   every write to its region is of generation G or before,
//!                              a point of G or later is at the target, and
//!                              production was flushed since
//! ```
//!
//! Rule: a region's bit is durable before the first write to it goes to production. So whatever a
//! power cut made of production, what has no bit is as the newest point has it.
//!
//! Rule: the header says *trimmed through* G, durably, before a bit is taken back because of it. So a
//! recovered diff says of itself that it builds on the cut of G, and no older base is used.
//!
//! Rule: the header says *written until* T, durably, before a write of ours begins at T. So a disk that
//! was changed later than that, whenever the machine was started since, was changed from outside.
//!
//! Bits are taken back in *rounds*, by two bitmaps like the hands of a clock: a round begins by
//! forgetting who is active; when it ends, who is still not active goes. Bits that are taken back
//! reach the disk with the next sync, whenever that is: until then they cost a re-read, no more.

mod layout;
mod reach;
mod read;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use block::{Dir, File, GranuleRange, UnixNanos, index};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::damaged;
use crate::group::Surroundings;
use crate::lineage::LineageRecord;
use crate::live::Live;
use crate::{Generation, Lineage, files};
use layout::{HEADERS, Header, Layout};
use reach::{Extent, Reach};
#[cfg(feature = "fuzzing")]
pub(crate) use read::fuzz;
use read::parse;

/// Generations that are opened before the header is written again.
const CEILING_STEP: u64 = 4096;
/// Cold regions that are marked at once when writes go from one region to the next.
const AHEAD: u64 = 16;
/// Regions that a round takes back, or one word more. Each may cost a sync when it is written again: so
/// writes all over a large disk, each region once in a few minutes, wait for 17 syncs in a second at most.
const TAKEN_BACK_MAX: u64 = 512;
/// How far ahead of the clock the header promises that we may write: one sync in so much time. A disk
/// that somebody else changes within it after a crash, and not later, goes unnoticed.
const LEASE: Duration = Duration::from_secs(120);
/// A write may take so long until its disk shows its time.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// Time between rounds: regions stay for one or two of them after their last write. Each costs a
/// flush of production, about as often as the kernel would write it back anyway.
pub(crate) const ROUND_INTERVAL: Duration = Duration::from_secs(30);

/// The log of one lineage, for all disks of its group.
pub(crate) struct IntentLog {
    state: Arc<dyn Dir>,
    diffs: Arc<dyn Dir>,
    boot: String,
    live: Arc<Live>,
    file: Arc<dyn File>,
    lineage: Lineage,
    layout: Layout,
    /// Bits that are on the disk.
    durable: Box<[AtomicU64]>,
    /// Regions written since the round began.
    active: Box<[AtomicU64]>,
    /// As the header says, durably.
    written_until: AtomicU64,
    suspected: AtomicBool,
    commit: Mutex<Commit>,
    ended: Condvar,
}

/// One disk's part of the log.
#[derive(Clone)]
pub(crate) struct DiskIntent {
    log: Arc<IntentLog>,
    disk: usize,
}

/// What goes to the disk, one after the other.
struct Commit {
    header: Header,
    /// What the file shall say.
    words: Vec<u64>,
    /// Sectors in which the file does not say so yet.
    unwritten: BTreeSet<u64>,
    /// Somebody writes, without the lock.
    running: bool,
    /// A sync failed: what is durable is unknown.
    broken: Option<String>,
    round: Option<Round>,
    round_began: Duration,
    rounds: u64,
    /// Where the last round left off.
    taken_back_to: usize,
    /// Of each disk.
    reach: Vec<Reach>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    number: u64,
    /// Who is not active was last written in this generation or before.
    through: Generation,
}

impl IntentLog {
    /// Makes an empty log, durable but for its name. Production was flushed before.
    pub(crate) fn create(
        around: &Surroundings,
        live: &Arc<Live>,
        lineage: Lineage,
        sizes: &[u64],
    ) -> io::Result<Arc<Self>> {
        let layout = Layout::of(sizes);
        let name = files::intent(lineage);
        files::remove(&*around.state, &name)?;
        let file = around.state.create(&name)?;
        let header = Header {
            sequence: 1,
            trimmed_through: Generation::NONE,
            ceiling: Generation(CEILING_STEP),
            // What was written before is no sign of somebody else.
            written_until: around.clock.wall(),
        };
        // Written in full, not reserved: a later sync then changes no metadata of the file system.
        file.write_all_at(&vec![0; index(layout.file_len())], 0)?;
        let words = vec![0; layout.word_count()];
        let log = Self::assemble(around, live, file, lineage, layout, header, words);
        log.rewrite()?;
        Ok(Arc::new(log))
    }

    /// Opens what an earlier process left. Every bit that it finds is durable when this returns.
    pub(crate) fn open(
        around: &Surroundings,
        live: &Arc<Live>,
        lineage: Lineage,
        sizes: &[u64],
    ) -> io::Result<Arc<Self>> {
        let log = Self::read(around, live, lineage, sizes)?;
        // The process before may have been killed between a write and its sync; or its sync failed,
        // and the bits that are read here are in the cache only, where no sync would look for them.
        log.rewrite()?;
        // Who wrote when is forgotten: all that is known is that it was before the first round.
        for (active, durable) in log.active.iter().zip(&log.durable) {
            active.store(durable.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(Arc::new(log))
    }

    fn read(
        around: &Surroundings,
        live: &Arc<Live>,
        lineage: Lineage,
        sizes: &[u64],
    ) -> io::Result<Self> {
        let layout = Layout::of(sizes);
        let file = around.state.open(&files::intent(lineage))?;
        let len = file.len()?;
        if len != layout.file_len() {
            return Err(damaged(format!(
                "it has {len} bytes, not {}",
                layout.file_len()
            )));
        }
        let mut bytes = vec![0; index(len)];
        file.read_exact_at(&mut bytes, 0)?;
        let (header, words) = parse(&bytes, lineage, &layout)?;
        Ok(Self::assemble(
            around, live, file, lineage, layout, header, words,
        ))
    }

    /// Writes everything, and makes it durable.
    fn rewrite(&self) -> io::Result<()> {
        let mut commit = self.own()?;
        commit.unwritten = (0..self.layout.sector_count()).collect();
        let header = commit.header;
        drop(self.write(commit, Some(header))?);
        Ok(())
    }

    fn assemble(
        around: &Surroundings,
        live: &Arc<Live>,
        file: Arc<dyn File>,
        lineage: Lineage,
        layout: Layout,
        header: Header,
        words: Vec<u64>,
    ) -> Self {
        let durable = words.iter().map(|word| AtomicU64::new(*word)).collect();
        let active = words.iter().map(|_| AtomicU64::new(0)).collect();
        let commit = Commit {
            header,
            words,
            unwritten: BTreeSet::new(),
            running: false,
            broken: None,
            round: None,
            round_began: Duration::ZERO,
            rounds: 0,
            taken_back_to: 0,
            reach: vec![Reach::new(); layout.disk_count()],
        };
        Self {
            written_until: AtomicU64::new(header.written_until.0),
            suspected: AtomicBool::new(false),
            state: Arc::clone(&around.state),
            diffs: Arc::clone(&around.diffs),
            boot: around.boot.clone(),
            live: Arc::clone(live),
            file,
            lineage,
            layout,
            durable,
            active,
            commit: Mutex::new(commit),
            ended: Condvar::new(),
        }
    }

    /// One disk's part.
    pub(crate) fn disk(self: &Arc<Self>, disk: usize) -> DiskIntent {
        DiskIntent {
            log: Arc::clone(self),
            disk,
        }
    }

    /// The cut that a diff builds on which holds all that the log names.
    pub(crate) fn trimmed_through(&self) -> Generation {
        self.commit.lock().header.trimmed_through
    }

    /// No write of ours began later than this.
    pub(crate) fn written_until(&self) -> UnixNanos {
        UnixNanos(self.written_until.load(Ordering::Acquire))
    }

    /// A number for a generation that no generation ever had, if nothing but the log is to be trusted.
    pub(crate) fn skip(&self) -> io::Result<Generation> {
        let next = self.commit.lock().header.ceiling.next();
        self.allow(next)?;
        Ok(next)
    }

    /// Before a generation opens: after a power cut nobody else remembers how far they went.
    pub(crate) fn allow(&self, generation: Generation) -> io::Result<()> {
        {
            let commit = self.commit.lock();
            if generation <= commit.header.ceiling && commit.broken.is_none() {
                return Ok(());
            }
        }
        let commit = self.own()?;
        let header = Header {
            ceiling: commit
                .header
                .ceiling
                .max(Generation(generation.0.saturating_add(CEILING_STEP))),
            ..commit.header
        };
        drop(self.write(commit, Some(header))?);
        Ok(())
    }

    /// Begins a round while `open` is the open generation, and no cut can seal it meanwhile. `false`
    /// if one is under way or the last one began too recently.
    pub(crate) fn begin_round(&self, open: Generation, now: Duration) -> bool {
        let mut commit = self.commit.lock();
        let early = now.saturating_sub(commit.round_began) < ROUND_INTERVAL;
        if commit.round.is_some() || early || commit.broken.is_some() {
            return false;
        }
        // A write that sets its bit before this holds its gate in `open` or an earlier generation.
        for active in &self.active {
            active.store(0, Ordering::SeqCst);
        }
        commit.rounds += 1;
        commit.round = Some(Round {
            number: commit.rounds,
            through: open,
        });
        commit.round_began = now;
        true
    }

    /// The round that waits for no more than a flush of production, given what the target has.
    pub(crate) fn due_round(&self, released: Generation) -> Option<Round> {
        let round = self.commit.lock().round;
        round.filter(|round| round.through <= released)
    }

    /// Ends a round that was due when production was flushed. Returns how many regions it took back.
    pub(crate) fn end_round(&self, round: Round) -> io::Result<u64> {
        let mut commit = self.own()?;
        let goes_on = |commit: &Commit| commit.round.is_some_and(|now| now.number == round.number);
        if commit.header.trimmed_through < round.through && goes_on(&commit) {
            let header = Header {
                trimmed_through: round.through,
                ..commit.header
            };
            commit = self.write(commit, Some(header))?;
        }
        if !goes_on(&commit) {
            return Ok(0);
        }
        commit.round = None;
        let mut taken_back = 0;
        let count = self.durable.len();
        let from = std::mem::take(&mut commit.taken_back_to);
        for word in (from..count).chain(0..from) {
            if taken_back >= TAKEN_BACK_MAX {
                commit.taken_back_to = word;
                break;
            }
            let (durable, active) = (&self.durable[word], &self.active[word]);
            let idle = durable.load(Ordering::Relaxed) & !active.load(Ordering::SeqCst);
            if idle == 0 {
                continue;
            }
            durable.fetch_and(!idle, Ordering::SeqCst);
            // A write that became active meanwhile saw its bit, or sees that it is gone: where it
            // became active before we look, it may have seen it.
            let again = active.load(Ordering::SeqCst) & idle;
            durable.fetch_or(again, Ordering::SeqCst);
            let gone = idle & !again;
            commit.words[word] &= !gone;
            commit.unwritten.insert(layout::sector_of(word));
            taken_back += u64::from(gone.count_ones());
        }
        Ok(taken_back)
    }

    /// Waits until nobody writes.
    fn own(&self) -> io::Result<MutexGuard<'_, Commit>> {
        let mut commit = self.commit.lock();
        while commit.running {
            self.ended.wait(&mut commit);
        }
        match &commit.broken {
            None => Ok(commit),
            Some(why) => Err(io::Error::other(why.clone())),
        }
    }

    /// Writes all that is unwritten, and a header, and syncs, without the lock.
    fn write<'a>(
        &'a self,
        mut commit: MutexGuard<'a, Commit>,
        header: Option<Header>,
    ) -> io::Result<MutexGuard<'a, Commit>> {
        debug_assert!(!commit.running);
        commit.running = true;
        let sectors: Vec<_> = std::mem::take(&mut commit.unwritten)
            .into_iter()
            .map(|sector| (sector, commit.words[layout::words_of(sector)].to_vec()))
            .collect();
        let header = header.map(|header| Header {
            sequence: commit.header.sequence + 1,
            ..header
        });
        drop(commit);
        let written = self.write_out(&sectors, header);
        if let Err(error) = &written {
            self.forsake(error);
        }
        let mut commit = self.commit.lock();
        commit.running = false;
        self.ended.notify_all();
        match written {
            Ok(()) => {
                for (sector, words) in sectors {
                    for (at, word) in layout::words_of(sector).zip(words) {
                        self.durable[at].fetch_or(word, Ordering::SeqCst);
                    }
                }
                commit.header = header.unwrap_or(commit.header);
                self.written_until
                    .store(commit.header.written_until.0, Ordering::Release);
                Ok(commit)
            }
            Err(error) => {
                commit.broken = Some(format!("the intent log could not be written: {error}"));
                Err(error)
            }
        }
    }

    fn write_out(&self, sectors: &[(u64, Vec<u64>)], header: Option<Header>) -> io::Result<()> {
        if let Some(header) = header {
            let at = HEADERS[index(header.sequence % 2)];
            let bytes = header.encode(self.lineage, &self.layout);
            self.file.write_all_at(&bytes, at)?;
        }
        for (sector, words) in sectors {
            let bytes = layout::encode_sector(self.lineage, *sector, words);
            self.file.write_all_at(&bytes, layout::offset_of(*sector))?;
        }
        self.file.sync_data()
    }

    /// The log cannot be relied on from here on: nobody must recover from it. Where even the record
    /// cannot be removed, the live state says so to whoever comes before the next power cut.
    fn forsake(&self, error: &io::Error) {
        tracing::error!(%error, "the intent log cannot be written; the disks will be copied anew");
        self.live.forsake();
        self.revoke();
        // The state directory fails: what was just said there may not last.
        if let Err(error) = files::forsake(&*self.diffs, self.lineage) {
            tracing::error!(%error, "nor can that be noted beside the diffs");
        }
    }

    /// Removes the record of tracking, if it is this lineage's. Worth another attempt at every cut.
    pub(crate) fn revoke(&self) {
        let removed = match LineageRecord::load(&*self.state) {
            Ok(Some(record)) if record.lineage != self.lineage => Ok(()),
            _ => files::remove(&*self.state, files::TRACKING).and_then(|()| self.state.sync()),
        };
        if let Err(error) = removed {
            tracing::error!(%error, "the record of tracking cannot be removed");
        }
    }

    /// A flush of production failed. The kernel says so once, and then counts the bytes as written:
    /// a later process would be told that all is well. So nothing is gone on from after the next
    /// power cut, whatever the log says.
    fn suspect(&self) {
        if self.suspected.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = files::suspect(&*self.state, &self.boot) {
            tracing::error!(%error, "that a flush of production failed cannot be noted");
            self.forsake(&error);
        }
    }

    /// Makes the bits of regions durable, and the time up to which we write, together with whatever
    /// else waits.
    fn require(
        &self,
        disk: usize,
        regions: std::ops::Range<u64>,
        now: UnixNanos,
    ) -> io::Result<()> {
        let mut wide = None;
        let mut commit = self.commit.lock();
        loop {
            if let Some(why) = &commit.broken {
                return Err(io::Error::other(why.clone()));
            }
            if self.has(disk, regions.clone()) && self.leases(now) {
                return Ok(());
            }
            let wide = match &wide {
                Some(wide) => wide,
                None => wide.insert(self.widen(&mut commit, disk, regions.clone(), now)),
            };
            let wanted = self.with_ahead(disk, wide.clone());
            for (word, mask) in self.layout.masks(disk, wanted) {
                if commit.words[word] & mask != mask {
                    commit.words[word] |= mask;
                    commit.unwritten.insert(layout::sector_of(word));
                }
            }
            // While a sync runs, all who come ask for the next one together.
            if commit.running {
                self.ended.wait(&mut commit);
            } else {
                let header = Header {
                    written_until: now + LEASE,
                    ..commit.header
                };
                let header = (!self.leases(now)).then_some(header);
                commit = self.write(commit, header)?;
            }
        }
    }

    fn widen(
        &self,
        commit: &mut Commit,
        disk: usize,
        regions: std::ops::Range<u64>,
        now: UnixNanos,
    ) -> std::ops::Range<u64> {
        if self.has(disk, regions.clone()) {
            // It waits for the header.
            return regions;
        }
        let count = self.layout.region_count(disk);
        let masks = self.layout.masks(disk, 0..count);
        let hot = masks.map(|(word, mask)| (commit.words[word] & mask).count_ones());
        let extent = Extent {
            region_bytes: self.layout.region_bytes(disk),
            region_count: count,
            hot_count: hot.map(u64::from).sum(),
        };
        commit.reach[disk].widen(regions, extent, now)
    }

    /// More regions where writes came from the one before: a stream.
    fn with_ahead(&self, disk: usize, regions: std::ops::Range<u64>) -> std::ops::Range<u64> {
        let streams = regions.start > 0 && self.has(disk, regions.start - 1..regions.start);
        let ahead = if streams { AHEAD } else { 0 };
        regions.start..(regions.end + ahead).min(self.layout.region_count(disk))
    }

    /// Whether the header allows a write that begins now. A clock that was far ahead when it was
    /// written does not allow everything from then on.
    fn leases(&self, now: UnixNanos) -> bool {
        let until = self.written_until();
        now + WRITE_MAX <= until && until <= now + 2 * LEASE
    }

    fn has(&self, disk: usize, regions: std::ops::Range<u64>) -> bool {
        let mut masks = self.layout.masks(disk, regions);
        masks.all(|(word, mask)| self.durable[word].load(Ordering::SeqCst) & mask == mask)
    }
}

impl DiskIntent {
    /// Notes a write of the open generation, whose gate is held. `false`: the log must first be
    /// made to [`require`](Self::require) it, without the gate.
    pub(crate) fn covers(&self, granules: GranuleRange, now: UnixNanos) -> bool {
        let log = &*self.log;
        if !log.leases(now) {
            return false;
        }
        let regions = log.layout.regions(self.disk, granules);
        let mut masks = log.layout.masks(self.disk, regions);
        masks.all(|(word, mask)| {
            // In this order: see `end_round`.
            let active = &log.active[word];
            if active.load(Ordering::SeqCst) & mask != mask {
                active.fetch_or(mask, Ordering::SeqCst);
            }
            log.durable[word].load(Ordering::SeqCst) & mask == mask
        })
    }

    /// Makes the regions of `granules` part of the log. Fails, from then on always, if the log
    /// cannot be written.
    pub(crate) fn require(&self, granules: GranuleRange, now: UnixNanos) -> io::Result<()> {
        let regions = self.log.layout.regions(self.disk, granules);
        self.log.require(self.disk, regions, now)
    }

    /// A flush of production failed.
    pub(crate) fn suspect(&self) {
        self.log.suspect();
    }

    pub(crate) fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.log, &other.log)
    }

    /// Every region in the log, as granules, in order, adjacent ones together.
    pub(crate) fn regions(&self) -> Vec<GranuleRange> {
        let commit = self.log.commit.lock();
        let mut found: Vec<GranuleRange> = Vec::new();
        for region in 0..self.log.layout.region_count(self.disk) {
            let (word, bit) = self.log.layout.place(self.disk, region);
            if commit.words[word] & bit == 0 {
                continue;
            }
            let granules = self.log.layout.granules(self.disk, region);
            match found.last_mut() {
                Some(last) if last.end == granules.start => last.end = granules.end,
                _ => found.push(granules),
            }
        }
        found
    }
}
