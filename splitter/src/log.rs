//! The diff file of one disk and generation as it is written: granules are appended in frames, so that a
//! random write costs a copy in memory and its share of one write of many.
//!
//! ```text
//!  granules --> lane: staged in memory -- 84 of them --> a full frame waits --> one write
//! ```
//!
//! Full frames are written by whoever calls [`DiffLog::write_full`], beside the guests' writes, and by cuts, heals and
//! merges; see `buffers.rs`. Who fills frames faster waits for one, or does without, as he says.
//!
//! Rule: where somebody else writes frames, no guest's write calls the operating system for the file: whatever
//! holds that up, the device or the lock of the file, must not hold up a guest.
//!
//! | killed while | then |
//! |---|---|
//! | granules are staged | the map's ledger names them: stale, to be read again from production |
//! | a frame waits, or is written | the same; its place is a slot's, and does not count until it has a frame without granules |
//!
//! Rule: a granule is settled as data under the lock of its lane; so whoever holds all of them sees no
//! granule between its bytes and its state.
//!
//! Rule: what was ever written to a place is not written over by anything that counts: if the later bytes were
//! lost on their way to the disk, the earlier ones would be there, with all their checksums. A place whose
//! frame failed gets a frame without granules.
//!
//! Rule: a later entry has a higher order, whatever frame it is in: orders are given while the stripes of the
//! granule are held.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::{ByteRange, File, GRANULE, GranuleRange, Name, index};
use parking_lot::{Mutex, MutexGuard};

use crate::files;
use crate::frame::{Entry, FRAME_GRANULES, FrameIdentity, HEADER, STRIDE};
use crate::map::{DirtyMap, SLOTS, STAGED_MAX, Settled};
use crate::{Generation, Lineage};

use buffers::{Buffers, Frame, Taken, Writing};

pub(crate) use buffers::WithoutFrame;

mod buffers;

/// Frames that guests' writes fill at once.
const LANES: usize = 2;

/// Of a small disk no more is staged for one frame than one granule in so many, so that a kill costs little of it.
const STAGED_SHARE: u64 = 16;
/// Neighbours go to one lane, so that a sequential stream lies in sequence.
const NEIGHBOURS: u64 = 64;
/// Granules that a log may hold beyond twice what counts: 64 MiB, or as many as the disk has.
const OLD_MAX: u64 = 16_384;
/// Frames whose space is freed at once: 16 MiB.
const FREED_FRAMES: u64 = 32;
/// Frames that stay in the page cache, beside what was written in two turns: 16 to 64 MiB.
const CACHED_FRAMES: u64 = 128;

const _: () = assert!(STAGED_MAX as u64 <= FRAME_GRANULES);

pub(crate) struct DiffLog {
    map: Arc<DirtyMap>,
    file: Arc<dyn File>,
    identity: FrameIdentity,
    /// Staged granules that fill a frame.
    full_at: usize,
    lanes: [Mutex<Lane>; LANES],
    /// For what is read again: it would get no frame beside guests who fill them faster than they are written.
    heal_lane: Mutex<Lane>,
    buffers: Buffers,
    /// Held while a frame takes a position.
    positions: Mutex<()>,
    /// Somebody called for the one who writes frames.
    called: AtomicBool,
    /// Granules in frames that count, also those that were written again since.
    appended: AtomicU64,
    tended: Mutex<Tended>,
}

/// Up to which frame [`DiffLog::tend`] came.
#[derive(Default)]
struct Tended {
    freed: u64,
    written: u64,
    /// The same, in the two turns before.
    begun: [u64; 2],
    gone: u64,
}

/// How a frame is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Through,
    /// Once the log is long.
    Past,
}

/// The frame that it fills.
type Lane = Option<Frame>;

/// For whom granules are appended.
#[derive(Clone, Copy)]
pub(crate) enum For<'a> {
    /// A guest's write; what to do where no frame is free.
    Guest(&'a dyn Fn() -> WithoutFrame),
    /// A heal, after [`DiffLog::make_room`].
    Heal,
}

/// Why granules were not appended. Those that were not are stale.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// No frame was free, and the caller did without.
    NoFrame,
    Io(io::Error),
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Bytes of granules, one after the other, in parts of whole granules.
pub(crate) type Parts<'a> = [&'a [u8]];

impl DiffLog {
    pub(crate) fn new(
        map: Arc<DirtyMap>,
        file: Arc<dyn File>,
        (lineage, generation, disk): (Lineage, Generation, &Name),
    ) -> Self {
        // What an earlier process wrote, about.
        let appended = file.allocated().unwrap_or(0) / GRANULE;
        Self {
            identity: FrameIdentity::new(lineage, generation, disk),
            full_at: index(map.granule_count() / STAGED_SHARE).clamp(1, STAGED_MAX),
            lanes: Default::default(),
            heal_lane: Mutex::default(),
            buffers: Buffers::new((0..SLOTS).map(|slot| map.position(slot))),
            positions: Mutex::new(()),
            called: AtomicBool::new(false),
            appended: AtomicU64::new(appended),
            tended: Mutex::default(),
            map,
            file,
        }
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Appends granules side by side, and settles them. Their stripes are held, and they are stale.
    pub(crate) fn append(
        &self,
        granules: GranuleRange,
        parts: &Parts<'_>,
        whose: For<'_>,
    ) -> Result<(), AppendError> {
        let mut pages = parts
            .iter()
            .flat_map(|part| part.chunks_exact(index(GRANULE)));
        let (mut lane, without): (_, &dyn Fn() -> WithoutFrame) = match whose {
            For::Guest(without) => (self.lane_of(granules.start), without),
            For::Heal => (self.heal_lane.lock(), &|| WithoutFrame::GiveUp),
        };
        let mut start = granules.start;
        while start < granules.end {
            let frame = self.frame_of(&mut lane, without)?;
            let room = (self.full_at - frame.entries.len()) as u64;
            let end = granules.end.min(start + room);
            self.stage(frame, start..end, &mut pages);
            self.map.settle(GranuleRange { start, end }, Settled::Data);
            start = end;
            if frame.entries.len() == self.full_at {
                self.pass_on(&mut lane);
            }
        }
        Ok(())
    }

    /// Appends granules in any order, few enough for a frame, as one frame; settles them once it is written. They
    /// are stale.
    pub(crate) fn append_frame(&self, granules: &[u64], bytes: &[u8]) -> io::Result<()> {
        let mut frame = self.frame_or_write()?;
        self.place_of(&mut frame);
        let pages = bytes.chunks_exact(index(GRANULE));
        let all = granules.iter().copied();
        for (entry, bytes) in self.entries(all.clone(), granules.len() as u64, pages) {
            frame.push(entry, bytes);
        }
        let written = self.write_begun(self.buffers.begin(frame), Cache::Through)?;
        for run in runs_of(all) {
            self.map.settle(run, Settled::Data);
        }
        self.buffers.put_free(written);
        Ok(())
    }

    /// Notes whether the one who writes frames is called; returns whether he was.
    pub(crate) fn note_called(&self, called: bool) -> bool {
        self.called.swap(called, Ordering::AcqRel)
    }

    /// Gives back what [`Self::make_room`] took and nobody used.
    pub(crate) fn end_heal(&self) {
        let mut lane = self.heal_lane.lock();
        if let Some(frame) = lane.take_if(|frame| frame.entries.is_empty()) {
            self.buffers.put_free(frame);
        }
    }

    /// Sees to it that a heal has a frame; waits for the device. Returns how many granules it takes.
    pub(crate) fn make_room(&self) -> io::Result<u64> {
        loop {
            if let Some(frame) = &*self.heal_lane.lock() {
                return Ok((self.full_at - frame.entries.len()) as u64);
            }
            // Without the lane: who begins a log anew takes all of them, and guests wait for that.
            let frame = self.frame_or_write()?;
            let mut lane = self.heal_lane.lock();
            match *lane {
                None => *lane = Some(frame),
                Some(_) => self.buffers.put_free(frame),
            }
        }
    }

    /// Whether a frame waits for [`Self::write_full`].
    pub(crate) fn has_full(&self) -> bool {
        self.buffers.has_full()
    }

    /// Writes the frame that has waited longest. `None`: none waits.
    pub(crate) fn write_full(&self) -> Option<io::Result<()>> {
        self.write_next(Cache::Past)
    }

    fn write_next(&self, cache: Cache) -> Option<io::Result<()>> {
        let written = self.write_begun(self.buffers.take_full()?, cache);
        Some(written.map(|frame| self.buffers.put_free(frame)))
    }

    /// Writes what is in memory only.
    pub(crate) fn write_all_staged(&self) -> io::Result<()> {
        let failed = self.buffers.failed();
        self.all_lanes()
            .for_each(|lane| self.pass_on(&mut lane.lock()));
        // As many as there are: guests may fill more meanwhile.
        let written: io::Result<()> = std::iter::from_fn(|| self.write_next(Cache::Through))
            .take(SLOTS)
            .collect();
        self.buffers.wait();
        written?;
        if self.buffers.failed() != failed {
            return Err(io::Error::other(
                "what was copied could not be written to the diff",
            ));
        }
        Ok(())
    }

    /// The same, of a diff that nobody writes to any more.
    pub(crate) fn end(&self) -> io::Result<()> {
        let written = self.write_all_staged();
        self.buffers.end();
        written?;
        if !self.map.is_complete() {
            // A frame failed when the guests were about to go on to the next diff.
            return Err(io::Error::other("the diff lacks what could not be written"));
        }
        Ok(())
    }

    /// Makes all that is in frames stale, and forgets them: they are lost, or most of what they hold is old.
    pub(crate) fn begin_anew(&self) {
        let mut lanes: Vec<_> = self.all_lanes().map(Mutex::lock).collect();
        self.map.mark_all_data();
        // Crash: nothing is said to be in a frame, so none is needed. One that is being written has a
        // place that does not count; if it fails, what it has is stale once more.
        self.map.forget_frames();
        self.buffers
            .forget(lanes.iter_mut().filter_map(|lane| lane.take()));
        self.appended.store(0, Ordering::Relaxed);
    }

    /// Frees what frames that do not count occupy, and keeps what is not on the device yet, and what the page
    /// cache holds, from growing with the log: memory that is used again is cheaper than more of it. Waits for the
    /// device, a little at a time: the file system may keep writes to the file waiting meanwhile.
    pub(crate) fn tend(&self) -> io::Result<()> {
        let Some(mut tended) = self.tended.try_lock() else {
            return Ok(());
        };
        let frames = self.map.frames();
        let range = |from: u64, to: u64| ByteRange::new(from * STRIDE, to.max(from) * STRIDE);
        let freed = frames.start.min(tended.freed + FREED_FRAMES);
        if let Some(old) = range(tended.freed, freed).filter(|old| !old.is_empty()) {
            files::free(&*self.file, old)?;
            tended.freed = freed;
        }
        let written = frames.end.saturating_sub(CACHED_FRAMES);
        if let Some(piece) = range(tended.written.max(frames.start), written) {
            self.file.start_writeback(piece)?;
            tended.written = tended.written.max(written);
        }
        // What was begun in the turns before has reached the device by now; what has not stays where it is.
        if let Some(piece) = range(tended.gone.max(frames.start), tended.begun[1]) {
            self.file.let_go(piece)?;
            tended.gone = tended.gone.max(tended.begun[1]);
        }
        tended.begun = [tended.written, tended.begun[0]];
        Ok(())
    }

    /// Whether the file reaches as far as what an earlier process wrote.
    pub(crate) fn is_long_enough(&self) -> io::Result<bool> {
        let held: Vec<_> = (0..SLOTS).filter_map(|n| self.map.position(n)).collect();
        let written = self.map.frames().rev().find(|at| !held.contains(at));
        let needed = written.map_or(0, |position| position * STRIDE + HEADER);
        Ok(self.file.len()? >= needed)
    }

    /// Whether more than half of the log is old: a guest that writes the same blocks again and again must
    /// not fill the device.
    pub(crate) fn is_mostly_old(&self) -> bool {
        let appended = self.appended.load(Ordering::Relaxed);
        appended > 2 * self.map.written_count() + OLD_MAX.min(self.map.granule_count())
    }

    /// Whether beginning anew would free more than it takes to read again what counts.
    pub(crate) fn is_worth_renewing(&self) -> bool {
        self.appended.load(Ordering::Relaxed) > self.map.written_count()
    }

    fn all_lanes(&self) -> impl Iterator<Item = &Mutex<Lane>> {
        self.lanes.iter().chain([&self.heal_lane])
    }

    /// The lane of a granule, or one that is free.
    fn lane_of(&self, granule: u64) -> MutexGuard<'_, Lane> {
        let first = index(granule / NEIGHBOURS % LANES as u64);
        let free = (0..LANES).find_map(|n| self.lanes[(first + n) % LANES].try_lock());
        free.unwrap_or_else(|| self.lanes[first].lock())
    }

    /// The frame that a lane fills; it has room.
    fn frame_of<'a>(
        &self,
        lane: &'a mut Lane,
        without: &dyn Fn() -> WithoutFrame,
    ) -> Result<&'a mut Frame, AppendError> {
        if lane.is_none() {
            *lane = Some(self.ready(self.buffers.take(without)?)?);
        }
        Ok(lane.as_mut().expect("it was just given one"))
    }

    /// A frame to fill, for which others may have to be written.
    fn frame_or_write(&self) -> io::Result<Frame> {
        match self.buffers.take(&|| WithoutFrame::Write) {
            Ok(taken) => self.ready(taken),
            Err(AppendError::Io(error)) => Err(error),
            Err(AppendError::NoFrame) => unreachable!("it waits until it has one"),
        }
    }

    fn ready(&self, taken: Taken<'_>) -> io::Result<Frame> {
        match taken {
            Taken::Free(frame) => Ok(frame),
            Taken::Full(writing) => self.write_begun(writing, Cache::Through),
        }
    }

    /// A lane's frame, if anything is in it, waits to be written.
    fn pass_on(&self, lane: &mut Lane) {
        if let Some(frame) = lane.take_if(|frame| !frame.entries.is_empty()) {
            self.buffers.put_full(frame);
        }
    }

    /// The place of a frame, which may have none yet.
    fn place_of(&self, frame: &mut Frame) -> u64 {
        *frame.place.get_or_insert_with(|| {
            let _one = self.positions.lock();
            self.map.take_position(frame.slot)
        })
    }

    fn stage<'a>(
        &self,
        frame: &mut Frame,
        granules: Range<u64>,
        pages: &mut impl Iterator<Item = &'a [u8]>,
    ) {
        self.place_of(frame);
        let (before, count) = (frame.entries.len(), granules.end - granules.start);
        for (entry, bytes) in self.entries(granules, count, pages) {
            let at = frame.entries.len();
            self.map.stage(frame.slot, at, entry.granule);
            frame.push(entry, bytes);
        }
        assert_eq!((frame.entries.len() - before) as u64, count);
    }

    /// The entries of so many granules, each with its bytes, and unchecked.
    fn entries<'a>(
        &self,
        granules: impl Iterator<Item = u64>,
        count: u64,
        pages: impl Iterator<Item = &'a [u8]>,
    ) -> impl Iterator<Item = (Entry, &'a [u8])> {
        // Also those of a frame that will fail: it takes space until the log is begun anew.
        self.appended.fetch_add(count, Ordering::Relaxed);
        let orders = self.map.next_orders(count);
        let both = granules.zip(orders..).zip(pages);
        both.map(|((granule, order), bytes)| {
            let check = 0;
            let entry = Entry {
                granule,
                order,
                check,
            };
            (entry, bytes)
        })
    }

    /// Writes a frame; it comes back with nothing in it. If that fails, what it had is stale again, and it waits
    /// once more, to be written without granules: its place may hold part of it.
    fn write_begun(&self, mut writing: Writing<'_>, cache: Cache) -> io::Result<Frame> {
        let frame = writing.frame();
        let written = self.write_frame(frame, cache);
        if written.is_ok() {
            self.map.note_written(frame.slot);
            frame.place = None;
        } else {
            let mut granules = frame.entries.iter().map(|entry| entry.granule);
            // Where it cannot be said that they are stale, the ledger goes on naming them.
            granules.try_for_each(|start| {
                self.map.mark(GranuleRange {
                    start,
                    end: start + 1,
                })
            })?;
            self.map.unstage(frame.slot);
        }
        frame.entries.clear();
        let frame = writing.end(&written);
        match written {
            Ok(()) => Ok(frame),
            Err(error) => {
                self.buffers.put_full(frame);
                Err(error)
            }
        }
    }

    fn write_frame(&self, frame: &mut Frame, cache: Cache) -> io::Result<()> {
        let place = self.place_of(frame);
        let bytes = frame.seal(self.identity, place);
        let is_much = place.saturating_sub(self.map.frames().start) > CACHED_FRAMES;
        match cache {
            Cache::Past if is_much => self.file.write_past_cache(bytes, place * STRIDE),
            _ => self.file.write_all_at(bytes, place * STRIDE),
        }
    }
}

/// Neighbours among granules, as ranges.
fn runs_of(granules: impl Iterator<Item = u64>) -> impl Iterator<Item = GranuleRange> {
    let mut granules = granules.peekable();
    std::iter::from_fn(move || {
        let start = granules.next()?;
        let mut end = start + 1;
        while granules.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(GranuleRange { start, end })
    })
}

#[cfg(test)]
mod tests;
