//! The tracked device: production, with a copy of every write in the open diff.
//!
//! Invariant: a write holds its disk's gate from before its mark until after its diff is settled, so a cut, which waits
//! until all who entered before it have left, seals no write half done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::{
    BlockDevice, ByteRange, Clock, DirtyBitmap, DirtyExtent, Error, ErrorKind, Extent, Features,
    Fua, GRANULE, GranuleRange, Hole, Name, Op, Result, Speed, ZeroOptions,
};

use crate::diff::{HealError, OpenDiff};
use crate::gate::{Entered, Epoch, Gate};
use crate::log::{DiffLog, For, WithoutFrame};
use crate::pace::Pace;
use crate::runs::GranuleState;
use crate::stripes::{Held, Stripes};
use crate::trouble::Trouble;
use crate::writer::WriterCall;

/// Zeroing a longer range goes in pieces, so that a cut need not wait for all of it.
const ZERO_BYTES_MAX: u64 = 256 << 20;

/// How long a cut waits for writes after it, where it lacks what they may write over.
const OLDER_MAX: Duration = Duration::from_millis(100);

/// A protected disk, as the guest sees it.
pub struct TrackedDisk {
    pub(crate) name: Name,
    pub(crate) production: Arc<dyn BlockDevice>,
    pub(crate) gate: Gate,
    pub(crate) stripes: Stripes,
    /// Writes are only marked; see `map_only.rs`.
    pub(crate) copies_paused: AtomicBool,
    pub(crate) pace: Pace,
    writer: Arc<WriterCall>,
    clock: Arc<dyn Clock>,
    trouble: Arc<Trouble>,
}

impl TrackedDisk {
    pub(crate) fn new(
        name: Name,
        production: Arc<dyn BlockDevice>,
        diff: OpenDiff,
        (writer, epoch): (&Arc<WriterCall>, &Arc<Epoch>),
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            trouble: Arc::new(Trouble::new(name.clone())),
            name,
            production,
            gate: Gate::new(Arc::clone(epoch), diff),
            stripes: Stripes::new(),
            copies_paused: AtomicBool::new(false),
            pace: Pace::default(),
            writer: Arc::clone(writer),
            clock,
        }
    }

    /// The disk's name in its group.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Bytes written in the open generation, in whole granules.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.gate.enter().map.dirty_count() * GRANULE
    }

    /// Bytes whose copy is missing or in the making.
    #[must_use]
    pub fn stale_bytes(&self) -> u64 {
        // Marks and settlements of writes in flight may be counted in another order.
        self.gate.enter().map.stale_count().saturating_mul(GRANULE)
    }

    /// Why copies are missing, in words for a person; `None` while all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.why()
    }

    /// Whether a granule was written in the open generation. A copy of the disk that runs beside
    /// the guest may skip it: the diff brings it.
    #[must_use]
    pub fn is_dirty(&self, granule: u64) -> bool {
        self.gate.enter().map.state(granule) != GranuleState::Clean
    }

    pub(crate) fn copies_are_paused(&self) -> bool {
        self.copies_paused.load(Ordering::Acquire)
    }

    /// Marks, runs `request` on production, calls `answered` if it succeeded, and copies what it did.
    /// Returns `request`'s answer: whatever goes wrong with the copy is protection's trouble, not the
    /// guest's. So the guest may have its answer before the copy: its granules are marked, and until the
    /// copy is there they are stale, which outlives us; stripes are held and the gate not left, so no
    /// overlapping write comes in between, and no cut is listed.
    fn tracked(
        &self,
        range: ByteRange,
        request: impl FnOnce(&dyn BlockDevice) -> Result<()>,
        answered: impl FnOnce(),
        copy: impl FnOnce(&OpenDiff, For<'_>) -> std::result::Result<(), HealError>,
    ) -> Result<()> {
        let touched = range.granules_touched();
        let (_held, diff) = self.admit(touched);
        let noted = |production: &dyn BlockDevice| {
            diff.live.note_write(self.clock.wall());
            let answer = request(production);
            // Again: a slow device sets the file's time when the write ends.
            diff.live.note_write(self.clock.wall());
            answer
        };
        if diff.live.is_lost() {
            // Only the log goes on until tracking restarts; copies would only take space.
            return noted(&*self.production);
        }
        if let Err(error) = diff.map.mark(touched) {
            diff.live.lose();
            self.note_trouble(&format!("the dirty map cannot be written: {error}"));
            return noted(&*self.production);
        }
        // A request that fails may have changed part of its range: it stays stale.
        noted(&*self.production)?;
        answered();
        if self.copies_are_paused() {
            return Ok(());
        }
        let _copying = self.pace.visit();
        match copy(&diff, For::Guest(&|| self.without_frame(&diff))) {
            Err(HealError::NoFrame) if self.copies_are_paused() => {}
            Err(error) => self.note_trouble(&error.to_string()),
            Ok(()) => {}
        }
        if diff.log.has_full() {
            self.writer.call(&diff.log, &self.trouble);
        }
        Ok(())
    }

    /// For a guest's write whose copy finds no frame free: it waits as long as copies are made at all.
    fn without_frame(&self, diff: &OpenDiff) -> WithoutFrame {
        if self.copies_are_paused() || diff.live.is_lost() {
            return WithoutFrame::GiveUp;
        }
        self.writer.call(&diff.log, &self.trouble);
        match self.writer.is_there() {
            true => WithoutFrame::Wait,
            false => WithoutFrame::Write,
        }
    }

    /// Takes the stripes of `touched`, and enters the gate once the intent log has their regions. A log that
    /// cannot be written gives up the lineage: the guest must not wait for it for ever.
    pub(crate) fn admit(&self, touched: GranuleRange) -> (Held<'_>, Entered<'_>) {
        loop {
            let inside = (self.stripes.lock(touched), self.gate.enter());
            let (_, diff) = &inside;
            let now = self.clock.wall();
            if diff.intent.covers(touched, now) {
                return inside;
            }
            let intent = diff.intent.clone();
            // Outside: a sync takes long, and neither a cut nor another write must wait for it.
            drop(inside);
            let Err(error) = intent.require(touched, now) else {
                continue;
            };
            let inside = (self.stripes.lock(touched), self.gate.enter());
            if inside.1.intent.is_of(&intent) {
                self.note_trouble(&format!("the intent log cannot be written: {error}"));
                return inside;
            }
        }
    }

    /// Durability comes after the gate: a sync takes long, and a cut must not wait for it.
    fn settle(&self, fua: Fua) -> Result<()> {
        match fua {
            Fua::Yes => self.flush_production(),
            Fua::No => Ok(()),
        }
    }

    /// Flushes production; that it failed must outlive this process.
    pub(crate) fn flush_production(&self) -> Result<()> {
        let flushed = self.production.flush();
        if flushed.is_err() {
            self.gate.enter().intent.suspect();
        }
        flushed
    }

    fn write_tracked(&self, data: &[u8], offset: u64, answered: impl FnOnce()) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        Error::check_range(Op::Write, range, self.size())?;
        if range.is_empty() {
            return Ok(());
        }
        self.tracked(
            range,
            |production| production.write_at(data, offset, Fua::No),
            answered,
            |diff, whose| diff.copy_write(&*self.production, (data, offset), whose),
        )
    }

    fn zero_piece(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.tracked(
            range,
            |production| production.write_zeroes(range, options),
            || (),
            |diff, whose| diff.copy_zeroes(&*self.production, range, whose),
        )
    }

    /// Re-reads the granules that are stale, a little at a time, between the guest's writes; not while
    /// copies are paused. Returns the bytes re-read.
    pub(crate) fn heal(&self) -> std::result::Result<u64, HealError> {
        self.heal_while(&|| !self.copies_are_paused(), &|| Duration::ZERO)
    }

    /// The same, and waits for writes in flight where they may leave something, until a time of the monotonic
    /// clock.
    pub(crate) fn heal_until(&self, until: Duration) -> std::result::Result<u64, HealError> {
        let left = || until.saturating_sub(self.clock.monotonic());
        self.heal_while(&|| !self.copies_are_paused(), &left)
    }

    /// The same, for as long as `go_on` says so; it is asked before each little. What a write in flight may settle
    /// is left to it where nothing is `left` of the time to wait for that.
    pub(crate) fn heal_while(
        &self,
        go_on: &dyn Fn() -> bool,
        left: &dyn Fn() -> Duration,
    ) -> std::result::Result<u64, HealError> {
        let (mut at, mut healed) = (0, 0);
        loop {
            if !go_on() {
                return Ok(healed);
            }
            let diff = self.gate.enter();
            let Some(run) = crate::heal::next_stale(&diff.map, at, u64::MAX) else {
                break;
            };
            at = run.start;
            // Outside the gate, and without stripes: it waits for the device.
            let log = Arc::clone(&diff.log);
            drop(diff);
            let room = self.make_room(&log)?;
            let Some(run) = crate::heal::next_stale(&self.gate.enter().map, at, room) else {
                break;
            };
            let Some(_held) = self.stripes.lock_while(run, left) else {
                at = run.end;
                continue;
            };
            let diff = self.gate.enter();
            match self.heal_run(&diff, run) {
                // The log was begun anew, or there is another: from where it stands.
                Err(HealError::NoFrame) => at = run.start,
                Err(error) => return Err(error),
                Ok(read) => {
                    healed += read;
                    at = run.end;
                }
            }
            if diff.log.has_full() {
                self.writer.call(&diff.log, &self.trouble);
            }
        }
        self.gate.enter().log.end_heal();
        if self.gate.enter().map.stale_count() == 0 {
            self.trouble.clear();
        }
        Ok(healed)
    }

    /// Re-reads what is stale of granules whose stripes are held: the write that made them stale may have settled
    /// some since they were found. Returns the bytes.
    fn heal_run(&self, diff: &OpenDiff, run: GranuleRange) -> std::result::Result<u64, HealError> {
        let (mut still, mut read) = (run.start, 0);
        // All of them are dirty, unless there was a cut: few of these looks go further.
        while still < run.end
            && let Some(next) = diff.map.next_run(still, run.end - still)
            && next.granules.start < run.end
        {
            if next.state == GranuleState::Stale {
                diff.heal(&*self.production, next.granules, For::Heal)?;
                read += next.granules.count() * GRANULE;
            }
            still = next.granules.end;
        }
        Ok(read)
    }

    fn make_room(&self, log: &DiffLog) -> std::result::Result<u64, HealError> {
        let _at_device = self.writer.device.visit();
        log.make_room().map_err(HealError::Diff)
    }

    /// Completes a diff whose writes have ended, and into which none goes any more: production still is what it
    /// was at the cut where nothing was written since.
    pub(crate) fn heal_older(&self, older: &OpenDiff) -> std::result::Result<(), HealError> {
        let until = self.clock.monotonic() + OLDER_MAX;
        // From the beginning: a frame that fails makes stale what lies before.
        while let Some(found) = crate::heal::next_stale(&older.map, 0, u64::MAX) {
            let room = self.make_room(&older.log)?;
            let run = GranuleRange {
                end: found.end.min(found.start + room),
                ..found
            };
            // A write that holds them is of the next generation, and may hang.
            let left = || until.saturating_sub(self.clock.monotonic());
            let held = self.stripes.lock_while(run, &left);
            let _held = held.ok_or(HealError::Overwritten)?;
            let open = self.gate.enter();
            if !(run.start..run.end).all(|at| open.map.state(at) == GranuleState::Clean) {
                return Err(HealError::Overwritten);
            }
            older.heal(&*self.production, run, For::Heal)?;
        }
        Ok(())
    }

    pub(crate) fn note_trouble(&self, why: &str) {
        self.trouble.note(why);
    }
}

impl BlockDevice for TrackedDisk {
    fn size(&self) -> u64 {
        self.production.size()
    }

    fn features(&self) -> Features {
        let features = self.production.features();
        Features {
            trim: features.trim || features.fast_zero,
            ..features
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.production.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()> {
        self.write_tracked(data, offset, || ())?;
        self.settle(fua)
    }

    fn write_and_answer(
        &self,
        data: &[u8],
        offset: u64,
        fua: Fua,
        answer: &mut dyn FnMut(Result<()>),
    ) {
        if fua == Fua::Yes {
            return answer(self.write_at(data, offset, fua));
        }
        let mut early = false;
        let outcome = self.write_tracked(data, offset, || {
            early = true;
            answer(Ok(()));
        });
        if !early {
            answer(outcome);
        }
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        Error::check_range(Op::WriteZeroes, range, self.size())?;
        if options.speed == Speed::FastOnly && !self.production.features().fast_zero {
            let why = "production zeroes no faster than it writes";
            return Err(Error::because(
                Op::WriteZeroes,
                range,
                ErrorKind::Unsupported,
                why,
            ));
        }
        let relaxed = ZeroOptions {
            fua: Fua::No,
            ..options
        };
        pieces(range).try_for_each(|piece| self.zero_piece(piece, relaxed))?;
        self.settle(options.fua)
    }

    /// Trim becomes a zeroing that frees space, so that what the disk reads as afterwards, and so
    /// what the point must hold, is certain. Where that is not cheap it is ignored.
    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()> {
        Error::check_range(Op::Trim, range, self.size())?;
        let inside = range.granules_covered().bytes(self.size());
        if !self.production.features().fast_zero || inside.is_empty() {
            return Ok(());
        }
        let options = ZeroOptions {
            fua: Fua::No,
            hole: Hole::Allowed,
            speed: Speed::FastOnly,
        };
        match pieces(inside).try_for_each(|piece| self.zero_piece(piece, options)) {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            Ok(()) => self.settle(fua),
            other => other,
        }
    }

    fn flush(&self) -> Result<()> {
        self.flush_production()
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        self.production.block_status(range, extents_max)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.production.prefetch(range)
    }
}

impl DirtyBitmap for TrackedDisk {
    fn dirty_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<DirtyExtent>> {
        Error::check_range(Op::BlockStatus, range, self.size())?;
        let diff = self.gate.enter();
        Ok(crate::heal::dirty_extents(
            &diff.map,
            range,
            self.size(),
            extents_max,
        ))
    }
}

fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut start = range.start();
    std::iter::from_fn(move || {
        let end = (start + ZERO_BYTES_MAX).min(range.end());
        let piece = ByteRange::new(start, end).filter(|piece| !piece.is_empty())?;
        start = end;
        Some(piece)
    })
}
