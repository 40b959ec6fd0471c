//! The diff file of one disk and generation as it is written: granules are appended in frames, so that a
//! random write costs a copy in memory and its share of one write of many.
//!
//! ```text
//!  few granules --> lane: staged in memory -- 32 of them --> one frame, one write
//!  many granules --------------------------> one frame, with what its lane had staged
//! ```
//!
//! | killed while | then |
//! |---|---|
//! | granules are staged | the map's ledger names them: stale, to be read again from production |
//! | a frame is written | the same; its place is a lane's, and does not count until it has a frame without granules |
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
use crate::map::{DirtyMap, LANES, STAGED_MAX, Settled};
use crate::{Generation, Lineage};

/// Granules of one write that are staged; more are written at once.
const STAGED_AT_ONCE_MAX: u64 = 8;
/// Neighbours go to one lane, so that a sequential stream lies in sequence.
const NEIGHBOURS: u64 = 64;
/// Granules that a log may hold beyond twice what counts: 64 MiB, or as many as the disk has.
const OLD_MAX: u64 = 16_384;
/// Frames whose space is freed at once: 16 MiB.
const FREED_FRAMES: u64 = 32;
/// Frames that stay in the page cache, beside what was written in two turns: 16 to 64 MiB.
const CACHED_FRAMES: u64 = 128;

const _: () = assert!(STAGED_MAX as u64 + STAGED_AT_ONCE_MAX <= FRAME_GRANULES);

pub(crate) struct DiffLog {
    map: Arc<DirtyMap>,
    file: Arc<dyn File>,
    identity: FrameIdentity,
    lanes: [Mutex<Lane>; LANES],
    /// Held while a lane takes a position.
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

/// A frame in the making.
struct Lane {
    number: usize,
    /// The place that it has and nobody wrote to.
    place: Option<u64>,
    entries: Vec<Entry>,
    /// The header page, and the staged granules after it.
    frame: Vec<u8>,
}

/// Bytes of granules, one after the other, in parts of whole granules.
pub(crate) type Parts<'a> = [&'a [u8]];

impl DiffLog {
    pub(crate) fn new(
        map: Arc<DirtyMap>,
        file: Arc<dyn File>,
        (lineage, generation, disk): (Lineage, Generation, &Name),
    ) -> Self {
        let lane = |number| {
            Mutex::new(Lane {
                number,
                place: None,
                entries: Vec::new(),
                frame: Vec::new(),
            })
        };
        // What an earlier process wrote, about.
        let appended = file.allocated().unwrap_or(0) / GRANULE;
        Self {
            identity: FrameIdentity::new(lineage, generation, disk),
            lanes: std::array::from_fn(lane),
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
        let mut lane = self.lane_of(granules.start);
        if granules.count() > STAGED_AT_ONCE_MAX {
            return self.write_frame(&mut lane, granules.start..granules.end, parts);
        }
        if lane.entries.len() + index(granules.count()) > STAGED_MAX {
            self.write_staged(&mut lane)?;
        }
        self.stage(&mut lane, granules, parts)?;
        self.map.settle(granules, Settled::Data);
        if lane.entries.len() == STAGED_MAX {
            self.write_staged(&mut lane)?;
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
        let mut lane = self.lane_of(0);
        self.write_frame(&mut lane, granules.iter().copied(), &[bytes])
    }

    /// Writes what is in memory only.
    pub(crate) fn write_all_staged(&self) -> io::Result<()> {
        self.lanes
            .iter()
            .try_for_each(|lane| self.write_staged(&mut lane.lock()))
    }

    /// The same, of a diff that nobody writes to any more.
    pub(crate) fn end(&self) -> io::Result<()> {
        for lane in &self.lanes {
            let mut lane = lane.lock();
            self.write_staged(&mut lane)?;
            lane.frame = Vec::new();
        }
        Ok(())
    }

    /// Makes all that is in frames stale, and forgets them: they are lost, or most of what they hold is old.
    pub(crate) fn begin_anew(&self) {
        let mut lanes: Vec<_> = self.lanes.iter().map(Mutex::lock).collect();
        self.map.mark_all_data();
        // Crash: nothing is said to be in a frame, so none is needed.
        for lane in &mut lanes {
            lane.entries.clear();
            lane.place = None;
        }
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
        let held: Vec<_> = (0..LANES).filter_map(|n| self.map.position(n)).collect();
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

    /// A place for the frame of a lane.
    fn place_of(&self, lane: &mut Lane) -> io::Result<u64> {
        if let Some(place) = lane.place {
            return Ok(place);
        }
        if let Some(tried) = self.map.position(lane.number) {
            let mut page = vec![0; index(HEADER)];
            self.identity.encode(tried, &[], &mut page);
            self.file.write_all_at(&page, tried * STRIDE)?;
            self.map.note_written(lane.number);
        }
        let _one = self.positions.lock();
        let place = self.map.take_position(lane.number);
        lane.place = Some(place);
        Ok(place)
    }

    fn stage(&self, lane: &mut Lane, granules: GranuleRange, parts: &Parts<'_>) -> io::Result<()> {
        self.place_of(lane)?;
        lane.make_ready();
        for (entry, bytes) in self.entries(granules.start..granules.end, parts) {
            let at = lane.entries.len();
            self.map.stage(lane.number, at, entry.granule);
            let offset = index(HEADER) + at * index(GRANULE);
            lane.frame[offset..offset + index(GRANULE)].copy_from_slice(bytes);
            lane.entries.push(entry);
        }
        Ok(())
    }

    /// The entries of granules, each with its bytes.
    fn entries<'a>(
        &self,
        granules: impl Iterator<Item = u64>,
        parts: &'a Parts<'a>,
    ) -> impl Iterator<Item = (Entry, &'a [u8])> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let orders = self.map.next_orders(len as u64 / GRANULE);
        let pages = parts
            .iter()
            .flat_map(|part| part.chunks_exact(index(GRANULE)));
        let both = granules.zip(orders..).zip(pages);
        both.map(|((granule, order), bytes)| {
            let check = crc32c::crc32c(bytes);
            let entry = Entry {
                granule,
                order,
                check,
            };
            (entry, bytes)
        })
    }

    fn write_staged(&self, lane: &mut Lane) -> io::Result<()> {
        if lane.entries.is_empty() {
            return Ok(());
        }
        let written = self.write_header(lane, lane.entries.len());
        self.note_frame(lane, written)
    }

    /// Writes a frame of what is staged and of `granules`, and settles these.
    fn write_frame(
        &self,
        lane: &mut Lane,
        granules: impl Iterator<Item = u64> + Clone,
        parts: &Parts<'_>,
    ) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let count = len / index(GRANULE);
        if lane.entries.len() + count > index(FRAME_GRANULES) {
            self.write_staged(lane)?;
        }
        lane.make_ready();
        let place = self.place_of(lane)?;
        let staged = lane.entries.len();
        let mut offset = place * STRIDE + HEADER + staged as u64 * GRANULE;
        let written = parts.iter().try_for_each(|part| {
            self.file.write_all_at(part, offset)?;
            offset += part.len() as u64;
            io::Result::Ok(())
        });
        let entries = self.entries(granules.clone(), parts);
        lane.entries.extend(entries.map(|(entry, _)| entry));
        let written = written.and_then(|()| self.write_header(lane, staged));
        if let Err(error) = written {
            lane.entries.truncate(staged);
            return self.note_frame(lane, Err(error));
        }
        self.note_frame(lane, Ok(()))?;
        for run in runs_of(granules) {
            self.map.settle(run, Settled::Data);
        }
        Ok(())
    }

    /// Writes the header of all entries, and the granules of those that are staged.
    fn write_header(&self, lane: &mut Lane, staged: usize) -> io::Result<()> {
        let place = self.place_of(lane)?;
        let header = &mut lane.frame[..index(HEADER)];
        self.identity.encode(place, &lane.entries, header);
        let len = index(HEADER) + staged * index(GRANULE);
        self.file.write_all_at(&lane.frame[..len], place * STRIDE)
    }

    /// A frame is written, or its staged granules are stale again.
    fn note_frame(&self, lane: &mut Lane, written: io::Result<()>) -> io::Result<()> {
        lane.place = None;
        let entries = std::mem::take(&mut lane.entries);
        // Also of a frame that failed: it takes space until the log is begun anew.
        self.appended
            .fetch_add(entries.len() as u64, Ordering::Relaxed);
        let noted = match &written {
            Ok(()) => {
                self.map.note_written(lane.number);
                Ok(())
            }
            Err(_) => {
                let mut granules = entries.iter().map(|entry| entry.granule);
                let marked = granules.try_for_each(|start| {
                    self.map.mark(GranuleRange {
                        start,
                        end: start + 1,
                    })
                });
                self.map.unstage(lane.number);
                marked
            }
        };
        lane.entries = entries;
        lane.entries.clear();
        noted.and(written)
    }
}

impl Lane {
    fn make_ready(&mut self) {
        if self.frame.is_empty() {
            self.frame = vec![0; index(HEADER) + STAGED_MAX * index(GRANULE)];
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
