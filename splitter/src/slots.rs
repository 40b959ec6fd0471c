//! Where a sealed diff file holds each granule, and the granules themselves, checked.
//!
//! The headers of all frames are read for a window of granules at a time, so that what this costs in memory
//! does not grow with the diff.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use block::{ByteRange, File, GRANULE, GranuleRange, index};
use parking_lot::Mutex;

use crate::error::damaged;
use crate::files;
use crate::frame::{FRAME_GRANULES, FrameIdentity, HEADER, STRIDE};
use crate::map::{DirtyMap, SLOTS};
use crate::runs::GranuleState;

/// Granules of a window: 4 GiB of data; 64 MiB of memory, 128 for a moment.
const WINDOW_GRANULES: u64 = 1 << 20;

pub(crate) struct Slots {
    map: Arc<DirtyMap>,
    file: Arc<dyn File>,
    identity: FrameIdentity,
    window: Mutex<Window>,
}

/// Granules that are fetched before they are asked for: they are scattered over the file.
const AHEAD_GRANULES: usize = 2048;

/// Headers that are fetched at once.
const AHEAD_HEADERS: u64 = 256;

/// The granules that are known at the moment.
#[derive(Default)]
struct Window {
    granules: GranuleRange,
    /// So many of the slots were asked of the device.
    fetched: usize,
    /// In the order of granules, each once.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    granule: u64,
    order: u64,
    /// Byte in the file.
    offset: u64,
    check: u32,
}

impl Slots {
    pub(crate) fn new(map: Arc<DirtyMap>, file: Arc<dyn File>, identity: FrameIdentity) -> Self {
        Self {
            map,
            file,
            identity,
            window: Mutex::default(),
        }
    }

    /// Reads the headers of all frames.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn check(&self) -> io::Result<()> {
        let mut window = self.window.lock();
        *window = Window::default();
        *window = self.look_up(0)?;
        Ok(())
    }

    /// Fills `buf` with granules that the map says are in the file.
    ///
    /// # Errors
    /// The operating system's; `InvalidData` if any of them is lost.
    pub(crate) fn read(&self, granules: GranuleRange, buf: &mut [u8]) -> io::Result<()> {
        self.fetch_ahead(granules);
        self.each(granules, |slots, done| {
            let len = slots.len() * index(GRANULE);
            let start = index(done * GRANULE);
            self.read_slots(slots, &mut buf[start..start + len])
        })
    }

    /// Frees the space of granules that are not needed any more.
    ///
    /// # Errors
    /// The operating system's; none where the file system cannot.
    pub(crate) fn punch(&self, granules: GranuleRange) -> io::Result<()> {
        self.each(granules, |slots, _| {
            for run in neighbours(slots) {
                let len = run.len() as u64 * GRANULE;
                let range = ByteRange::at(run[0].offset, len).expect("inside the file");
                files::free(&*self.file, range)?;
            }
            Ok(())
        })
    }

    /// Calls `with` for the slots of all of `granules`, window by window.
    fn each(
        &self,
        granules: GranuleRange,
        mut with: impl FnMut(&[Slot], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut window = self.window.lock();
        let mut at = granules.start;
        while at < granules.end {
            if !(window.granules.start..window.granules.end).contains(&at) {
                *window = Window::default();
                *window = self.look_up(at)?;
            }
            let end = granules.end.min(window.granules.end);
            let first = window.slots.partition_point(|slot| slot.granule < at);
            let count = index(end - at);
            let found = window.slots.get(first..first + count);
            let found = found.filter(|slots| slots.last().is_some_and(|s| s.granule == end - 1));
            let Some(slots) = found else {
                return Err(damaged(format!(
                    "a granule of {at} to {end} is in no frame of the diff"
                )));
            };
            with(slots, at - granules.start)?;
            at = end;
        }
        Ok(())
    }

    fn read_slots(&self, slots: &[Slot], buf: &mut [u8]) -> io::Result<()> {
        let mut rest = buf;
        for run in neighbours(slots) {
            let (bytes, later) = rest.split_at_mut(run.len() * index(GRANULE));
            rest = later;
            self.file
                .read_exact_at(bytes, run[0].offset)
                .map_err(ends_early)?;
            for (slot, granule) in run.iter().zip(bytes.chunks_exact(index(GRANULE))) {
                if crc32c::crc32c(granule) != slot.check {
                    let granule = slot.granule;
                    return Err(damaged(format!(
                        "granule {granule} of the diff is not what was written"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Asks the device for what comes next, much of it at once and in the order of the file: one granule after
    /// the other would take the device's latency each.
    fn fetch_ahead(&self, granules: GranuleRange) {
        let mut window = self.window.lock();
        let read = window
            .slots
            .partition_point(|slot| slot.granule < granules.end);
        if read + AHEAD_GRANULES / 2 < window.fetched {
            return;
        }
        let from = window
            .fetched
            .max(read.saturating_sub(index(granules.count())));
        let to = window.slots.len().min(read + AHEAD_GRANULES);
        let Some(next) = window.slots.get(from..to).filter(|next| !next.is_empty()) else {
            return;
        };
        let mut next = next.to_vec();
        next.sort_unstable_by_key(|slot| slot.offset);
        for run in neighbours(&next) {
            let range = ByteRange::at(run[0].offset, run.len() as u64 * GRANULE);
            // What fails here is read when it is asked for.
            let _ = range.map(|range| self.file.fetch(range));
        }
        window.fetched = to;
    }

    /// Reads all headers.
    fn look_up(&self, from: u64) -> io::Result<Window> {
        let granules = self.window_from(from);
        let mut slots = Vec::new();
        let unwritten: BTreeSet<u64> = (0..SLOTS).filter_map(|n| self.map.position(n)).collect();
        let mut page = vec![0; index(HEADER)];
        for position in self.map.frames() {
            if position.is_multiple_of(AHEAD_HEADERS) {
                self.fetch_headers(position);
            }
            if unwritten.contains(&position) {
                continue;
            }
            let offset = position
                .checked_mul(STRIDE)
                .ok_or_else(|| damaged(format!("there is no frame {position}")))?;
            self.file
                .read_exact_at(&mut page, offset)
                .map_err(ends_early)?;
            let mut offset = offset + HEADER;
            for entry in self.identity.decode(position, &page)? {
                let wanted = (granules.start..granules.end).contains(&entry.granule)
                    && self.map.state(entry.granule) == GranuleState::Data;
                if wanted {
                    slots.push(Slot {
                        granule: entry.granule,
                        order: entry.order,
                        offset,
                        check: entry.check,
                    });
                }
                offset += GRANULE;
            }
            // Granules that were written again and again count once.
            if slots.len() > 2 * index(WINDOW_GRANULES) {
                keep_newest(&mut slots);
            }
        }
        keep_newest(&mut slots);
        slots.shrink_to_fit();
        let (end, len) = (
            slots.iter().map(|slot| slot.offset + GRANULE).max(),
            self.file.len()?,
        );
        if end.is_some_and(|end| len < end) {
            return Err(damaged(format!(
                "the diff has lost its end: it has {len} bytes"
            )));
        }
        Ok(Window {
            granules,
            fetched: 0,
            slots,
        })
    }

    /// Headers lie far from each other: they are asked of the device many at once.
    fn fetch_headers(&self, from: u64) {
        for position in from..from.saturating_add(AHEAD_HEADERS) {
            let header = position
                .checked_mul(STRIDE)
                .and_then(|at| ByteRange::at(at, HEADER));
            let _ = header.map(|header| self.file.fetch(header));
        }
    }

    /// As many granules from `from` on as a window has room for, if they are in the file.
    fn window_from(&self, from: u64) -> GranuleRange {
        let (mut at, mut room) = (from, WINDOW_GRANULES);
        while room > 0
            && let Some(run) = self.map.next_run(at, room)
        {
            at = run.granules.end;
            if run.state == GranuleState::Data {
                room -= run.granules.count();
            }
        }
        let end = if room > 0 {
            self.map.granule_count()
        } else {
            at
        };
        GranuleRange { start: from, end }
    }
}

/// In the order of granules, of each the newest.
fn keep_newest(slots: &mut Vec<Slot>) {
    slots.sort_unstable_by_key(|slot| (slot.granule, std::cmp::Reverse(slot.order)));
    slots.dedup_by_key(|slot| slot.granule);
}

/// Slots that lie side by side in the file.
fn neighbours(slots: &[Slot]) -> impl Iterator<Item = &[Slot]> {
    slots.chunk_by(|one, next| one.offset + GRANULE == next.offset)
}

fn ends_early(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(format!("the diff has lost its end: {error}")),
        _ => error,
    }
}

const _: () = assert!(FRAME_GRANULES < WINDOW_GRANULES);
