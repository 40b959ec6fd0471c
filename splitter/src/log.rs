//! The diff file of one disk and generation as it is written: granules are appended in frames, so that a
//! random write costs a copy in memory and its share of one write of many.
//!
//! ```text
//!  few granules --> lane: staged in memory -- 84 of them --> a full frame waits --> one write
//!  many granules --> wide lane --------------------------------------------------> one write
//! ```
//!
//! Full frames are written by whoever calls [`DiffLog::write_full`], beside the guests' writes; see `buffers.rs`.
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
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{ByteRange, File, GRANULE, GranuleRange, Name, index};
use parking_lot::{Mutex, MutexGuard};

use crate::files;
use crate::frame::{Entry, FRAME_GRANULES, FrameIdentity, HEADER, STRIDE};
use crate::map::{DirtyMap, SLOTS, STAGED_MAX, STAGED_SLOTS, Settled, WIDE_SLOTS};
use crate::{Generation, Lineage};

use buffers::{Buffers, Frame, Taken, Writing};

mod buffers;

/// Frames that are filled at once.
const LANES: usize = 2;

/// Granules of one write that are staged; more are written at once.
const STAGED_AT_ONCE_MAX: u64 = 32;
/// Of a small disk no more is staged for one frame than one granule in so many, so that a kill costs little of it.
const STAGED_SHARE: u64 = 16;
/// Neighbours go to one lane, so that a sequential stream lies in sequence.
const NEIGHBOURS: u64 = 64;
/// Granules that a log may hold beyond twice what counts: 64 MiB, or as many as the disk has.
const OLD_MAX: u64 = 16_384;
/// Frames that go through the page cache after somebody waited for the file.
const NOT_PAST: u64 = 16;
/// Frames whose space is freed at once: 16 MiB.
const FREED_FRAMES: u64 = 32;
/// Frames that stay in the page cache, beside what was written in two turns: 16 to 64 MiB.
const CACHED_FRAMES: u64 = 128;

const _: () = assert!(STAGED_MAX as u64 + STAGED_AT_ONCE_MAX <= FRAME_GRANULES);

pub(crate) struct DiffLog {
    map: Arc<DirtyMap>,
    file: Arc<dyn File>,
    identity: FrameIdentity,
    /// Staged granules that fill a frame.
    full_at: usize,
    lanes: [Mutex<Lane>; LANES],
    buffers: Buffers,
    wide: [Mutex<WideLane>; WIDE_SLOTS],
    /// So many frames are written through the page cache although they could go past it: guests, or a cut, write
    /// to the file themselves.
    not_past: AtomicU64,
    /// Held while a frame takes a position.
    positions: Mutex<()>,
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

/// Who writes a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Somebody for whom nobody waits.
    Helper,
    /// A guest, or a cut.
    Waited,
}

/// The frame that it fills.
type Lane = Option<Frame>;

/// One that writes frames whose granules are not staged: the memory of their headers.
type WideLane = Vec<u8>;

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
            buffers: Buffers::default(),
            wide: Default::default(),
            not_past: AtomicU64::new(0),
            positions: Mutex::new(()),
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
    pub(crate) fn append(&self, granules: GranuleRange, parts: &Parts<'_>) -> io::Result<()> {
        if granules.count() > FRAME_GRANULES {
            return self.append_in_pieces(granules, parts);
        }
        if granules.count() > STAGED_AT_ONCE_MAX {
            return self.write_wide(granules.start..granules.end, parts);
        }
        let mut lane = self.lane_of(granules.start);
        if staged_in(&lane) + index(granules.count()) > STAGED_MAX {
            self.pass_on(&mut lane);
        }
        self.stage(self.frame_of(&mut lane)?, granules, parts)?;
        self.map.settle(granules, Settled::Data);
        if staged_in(&lane) >= self.full_at {
            self.pass_on(&mut lane);
        }
        Ok(())
    }

    fn append_in_pieces(&self, granules: GranuleRange, parts: &Parts<'_>) -> io::Result<()> {
        let mut start = granules.start;
        let pieces = parts
            .iter()
            .flat_map(|part| part.chunks(index(FRAME_GRANULES * GRANULE)));
        for piece in pieces {
            let end = start + piece.len() as u64 / GRANULE;
            self.append(GranuleRange { start, end }, &[piece])?;
            start = end;
        }
        Ok(())
    }

    /// Appends granules in any order, few enough for a frame, as one frame, and settles them. They are stale.
    pub(crate) fn append_frame(&self, granules: &[u64], bytes: &[u8]) -> io::Result<()> {
        self.write_wide(granules.iter().copied(), &[bytes])
    }

    /// Whether a frame waits for [`Self::write_full`].
    pub(crate) fn has_full(&self) -> bool {
        self.buffers.has_full()
    }

    /// Writes the frame that has waited longest. `None`: none waits.
    pub(crate) fn write_full(&self) -> Option<io::Result<()>> {
        self.write_next(By::Helper)
    }

    fn write_next(&self, by: By) -> Option<io::Result<()>> {
        let written = self.write_taken(self.buffers.take_full()?, by);
        Some(written.map(|frame| self.buffers.put_free(frame)))
    }

    /// Writes what is in memory only.
    pub(crate) fn write_all_staged(&self) -> io::Result<()> {
        let failed = self.buffers.failed();
        self.lanes
            .iter()
            .for_each(|lane| self.pass_on(&mut lane.lock()));
        let mut written = Ok(());
        // As many as there are: guests may fill more meanwhile.
        for one in std::iter::from_fn(|| self.write_next(By::Waited)).take(STAGED_SLOTS) {
            written = written.and(one);
        }
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
        if self.map.stale_count() != 0 || self.map.lacks_staged() {
            // A frame failed when the guests were about to go on to the next diff.
            return Err(io::Error::other("the diff lacks what could not be written"));
        }
        Ok(())
    }

    /// Makes all that is in frames stale, and forgets them: they are lost, or most of what they hold is old.
    pub(crate) fn begin_anew(&self) {
        // These first: who holds one may wait for the device, and the many small writes must not wait with it.
        let _wide: Vec<_> = self.wide.iter().map(Mutex::lock).collect();
        let mut lanes: Vec<_> = self.lanes.iter().map(Mutex::lock).collect();
        self.map.mark_all_data();
        // Crash: nothing is said to be in a frame, so none is needed. One that is being written has a
        // place that does not count; if it fails, what it has is stale once more.
        self.buffers
            .forget(lanes.iter_mut().filter_map(|lane| lane.take()));
        self.map.forget_frames();
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

    /// The lane of a granule, or one that is free.
    fn lane_of(&self, granule: u64) -> MutexGuard<'_, Lane> {
        let first = index(granule / NEIGHBOURS % LANES as u64);
        let free = (0..LANES).find_map(|n| self.lanes[(first + n) % LANES].try_lock());
        free.unwrap_or_else(|| self.lanes[first].lock())
    }

    /// A wide lane that is free, with its slot.
    fn wide_lane(&self) -> (usize, MutexGuard<'_, WideLane>) {
        let mut lanes = self.wide.iter().enumerate();
        let (number, lane) = lanes
            .find_map(|(number, lane)| Some((number, lane.try_lock()?)))
            .unwrap_or_else(|| (0, self.wide[0].lock()));
        (STAGED_SLOTS + number, lane)
    }

    /// The frame that a lane fills.
    fn frame_of<'a>(&self, lane: &'a mut Lane) -> io::Result<&'a mut Frame> {
        if lane.is_none() {
            *lane = Some(self.new_frame()?);
        }
        Ok(lane.as_mut().expect("it was just given one"))
    }

    fn new_frame(&self) -> io::Result<Frame> {
        match self.buffers.take() {
            Taken::Free(frame) => Ok(frame),
            Taken::Full(writing) => self.write_taken(writing, By::Waited),
        }
    }

    /// A lane's frame, if anything is in it, waits to be written.
    fn pass_on(&self, lane: &mut Lane) {
        if let Some(frame) = lane.take_if(|frame| !frame.entries.is_empty()) {
            self.buffers.put_full(frame);
        }
    }

    fn place_of(&self, frame: &mut Frame) -> io::Result<u64> {
        if frame.place.is_none() {
            frame.place = Some(self.take_place(frame.slot)?);
        }
        Ok(frame.place.expect("it was just given one"))
    }

    /// A place for the frame of a slot, which has none.
    fn take_place(&self, slot: usize) -> io::Result<u64> {
        if let Some(tried) = self.map.position(slot) {
            let mut page = vec![0; index(HEADER)];
            self.identity.encode(tried, &[], &mut page);
            self.file.write_all_at(&page, tried * STRIDE)?;
            self.map.note_written(slot);
        }
        let _one = self.positions.lock();
        Ok(self.map.take_position(slot))
    }

    fn stage(
        &self,
        frame: &mut Frame,
        granules: GranuleRange,
        parts: &Parts<'_>,
    ) -> io::Result<()> {
        self.place_of(frame)?;
        frame.make_ready();
        for (entry, bytes) in self.entries(granules.start..granules.end, parts) {
            let at = frame.entries.len();
            self.map.stage(frame.slot, at, entry.granule);
            frame.push(entry, bytes);
        }
        Ok(())
    }

    /// The entries of granules, each with its bytes, and unchecked.
    fn entries<'a>(
        &self,
        granules: impl Iterator<Item = u64>,
        parts: &'a Parts<'a>,
    ) -> impl Iterator<Item = (Entry, &'a [u8])> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let count = len as u64 / GRANULE;
        // Also those of a frame that will fail: it takes space until the log is begun anew.
        self.appended.fetch_add(count, Ordering::Relaxed);
        let orders = self.map.next_orders(count);
        let pages = parts
            .iter()
            .flat_map(|part| part.chunks_exact(index(GRANULE)));
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

    /// Writes a frame of `granules`, and settles them.
    fn write_wide(
        &self,
        granules: impl Iterator<Item = u64> + Clone,
        parts: &Parts<'_>,
    ) -> io::Result<()> {
        self.not_past.store(NOT_PAST, Ordering::Relaxed);
        let (slot, mut header) = self.wide_lane();
        // If it fails its place stays the slot's, and its granules stay stale.
        let place = self.take_place(slot)?;
        let mut offset = place * STRIDE + HEADER;
        for part in parts {
            self.file.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        let entries = self.entries(granules.clone(), parts);
        let entries = entries.map(|(entry, bytes)| Entry {
            check: crc32c::crc32c(bytes),
            ..entry
        });
        header.resize(index(HEADER), 0);
        self.identity
            .encode(place, &entries.collect::<Vec<_>>(), &mut header);
        self.file.write_all_at(&header, place * STRIDE)?;
        self.map.note_written(slot);
        for run in runs_of(granules) {
            self.map.settle(run, Settled::Data);
        }
        Ok(())
    }

    /// Writes a frame that a lane filled; it comes back with nothing in it. If that fails, what it had is stale again,
    /// and it is free.
    fn write_taken(&self, mut writing: Writing<'_>, by: By) -> io::Result<Frame> {
        let frame = writing.frame();
        let written = self.write_staged(frame, by);
        if written.is_ok() {
            self.map.note_written(frame.slot);
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
        frame.place = None;
        frame.entries.clear();
        let frame = writing.end(written.is_ok());
        match written {
            Ok(()) => Ok(frame),
            Err(error) => {
                self.buffers.put_free(frame);
                Err(error)
            }
        }
    }

    fn write_staged(&self, frame: &mut Frame, by: By) -> io::Result<()> {
        let place = self.place_of(frame)?;
        let bytes = frame.seal(self.identity, place);
        let is_much = place.saturating_sub(self.map.frames().start) > CACHED_FRAMES;
        // A write past the cache keeps others from the file until the device has it.
        let may_go_past = match by {
            By::Waited => {
                self.not_past.store(NOT_PAST, Ordering::Relaxed);
                false
            }
            By::Helper => {
                let one_less = |frames: u64| frames.checked_sub(1);
                (self.not_past)
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                    .is_err()
            }
        };
        if is_much && may_go_past {
            self.file.write_past_cache(bytes, place * STRIDE)
        } else {
            self.file.write_all_at(bytes, place * STRIDE)
        }
    }
}

fn staged_in(lane: &Lane) -> usize {
    lane.as_ref().map_or(0, |frame| frame.entries.len())
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
