//! A file of a device: reading and changing it, its records included.
//!
//! | lock | held while | protects |
//! |---|---|---|
//! | `record` | the device is written, for this file | one change at a time; the file's slot |
//! | `extents` | memory is looked at or changed, never across the device's work | what the file has |
//! | `readers` | they are counted | segments that are still read: they are nobody else's until that ends |
//!
//! Rule: what a record says on the device is changed before its segment can be another's. Where such a change failed,
//! and nobody can say what the device has, the segment stays this file's, and is written about again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::disk::Disk;
use super::extents::{Extents, Piece, Run, pages_within, positions, positions_around};
use super::layout::{ENTRY, Entry, LEN_MAX, Layout, PAGE, SEGMENT, Slot};
use super::record::{FreeSlot, Record};
use crate::{ByteRange, index};

/// A file, as long as it has a name or somebody has it open.
pub(super) struct Inode {
    disk: Arc<Disk>,
    id: u64,
    record: Mutex<Option<Record>>,
    extents: RwLock<Extents>,
    readers: Mutex<Readers>,
    /// Failures of the device that were passed on.
    told: AtomicU64,
    /// The slot may not have reached the device.
    length_is_doubtful: AtomicBool,
}

/// Says that nobody else changes the file.
pub(super) struct Alone<'a>(MutexGuard<'a, Option<Record>>);

#[derive(Default)]
struct Readers {
    count: usize,
    /// Segments that were given up meanwhile.
    left: Vec<u32>,
}

/// A segment that says it is a file's.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub(super) segment: u32,
    pub(super) position: u32,
    pub(super) pages: u32,
}

impl Inode {
    /// A file that has nothing yet.
    fn of(disk: Arc<Disk>, record: Record) -> Self {
        let extents = Extents {
            len: record.says.len,
            ..Extents::default()
        };
        Self {
            id: record.says.id,
            told: AtomicU64::new(disk.failures()),
            disk,
            record: Mutex::new(Some(record)),
            extents: RwLock::new(extents),
            readers: Mutex::default(),
            length_is_doubtful: AtomicBool::new(false),
        }
    }

    /// A file that was found on the device, and what says it is its own.
    ///
    /// Where two claim one place neither counts, and that is put down before they are anybody's. After a loss of power
    /// there may also be bytes past the end, of a write whose length was lost: they go, or the file would have them
    /// again once it grows.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn found(
        disk: Arc<Disk>,
        record: Record,
        mut claims: Vec<Claim>,
    ) -> io::Result<Self> {
        let inode = Self::of(disk, record);
        // What an earlier process was not told.
        inode.told.store(0, Ordering::Release);
        claims.sort_unstable_by_key(|claim| claim.position);
        for same in claims.chunk_by(|one, other| one.position == other.position) {
            if let [claim] = same {
                inode.disk.space.lock().take_at(claim.segment);
                let piece = Piece {
                    segment: claim.segment,
                    pages: claim.pages,
                    doubtful: false,
                };
                inode.extents.write().pieces.insert(claim.position, piece);
                continue;
            }
            for claim in same {
                let entry = Layout::entry_at(claim.segment);
                inode
                    .disk
                    .device
                    .write_all_at(&Entry::FREE.encode(), entry)?;
            }
        }
        inode.forget_past_end()?;
        Ok(inode)
    }

    /// What the device lost of what was to be written to it, if this file was not told yet. Whose bytes those were
    /// nobody says: so every file is told, once.
    ///
    /// # Errors
    /// That, and the operating system's.
    pub(super) fn check_writeback(&self) -> io::Result<()> {
        self.disk.ask();
        self.tell()
    }

    /// # Errors
    /// As [`Self::check_writeback`].
    pub(super) fn sync(&self) -> io::Result<()> {
        let synced = self.disk.sync();
        self.tell()?;
        synced
    }

    /// What the device says of this file may be lost as well: it is said again.
    fn tell(&self) -> io::Result<()> {
        self.disk.tell(&self.told).inspect_err(|_| {
            self.length_is_doubtful.store(true, Ordering::Release);
            let mut extents = self.extents.write();
            let pieces = extents.pieces.values_mut();
            pieces.for_each(|piece| piece.doubtful = true);
        })
    }

    /// Gives a new file the slot.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn create(disk: Arc<Disk>, slot: FreeSlot, name: &str) -> io::Result<Self> {
        let FreeSlot { number, half } = slot;
        let says = Slot::gone();
        let mut record = Record {
            number,
            half,
            says,
            replaced: false,
        };
        let says = Slot {
            id: disk.next_sequence(),
            sequence: 0,
            len: 0,
            name: name.to_owned(),
        };
        record.say(&disk, says)?;
        Ok(Self::of(disk, record))
    }

    /// # Errors
    /// The operating system's.
    pub(super) fn rename(&self, name: &str) -> io::Result<()> {
        let mut alone = self.alone();
        let Some(record) = &mut *alone.0 else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut says = record.says.clone();
        name.clone_into(&mut says.name);
        record.say_twice(&self.disk, says)
    }

    /// Takes its name away. Returns the slot, which is free now.
    ///
    /// # Errors
    /// `NotFound` if it has none; the operating system's.
    pub(super) fn unlink(&self, alone: &mut Alone<'_>) -> io::Result<FreeSlot> {
        let Some(record) = alone.0.clone() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let slot = record.remove(&self.disk)?;
        *alone.0 = None;
        Ok(slot)
    }

    pub(super) fn len(&self) -> u64 {
        self.extents.read().len
    }

    /// Bytes of the segments that it has.
    pub(super) fn allocated(&self) -> u64 {
        self.extents.read().pieces.len() as u64 * SEGMENT
    }

    /// Waits until nobody else changes the file.
    pub(super) fn alone(&self) -> Alone<'_> {
        Alone(self.record.lock())
    }

    /// Calls `each` for the parts of `range`, in order. None of them is another's meanwhile.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; those of `each`.
    pub(super) fn read(
        &self,
        range: ByteRange,
        each: impl FnMut(Run) -> io::Result<()>,
    ) -> io::Result<()> {
        let _reading = Reading::begin(self);
        let runs: Vec<Run> = {
            let extents = self.extents.read();
            if range.end() > extents.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            extents.runs(self.disk.layout, range).collect()
        };
        runs.into_iter().try_for_each(each)
    }

    /// The parts of `range` that lie on the device, as far as the file goes.
    pub(super) fn written(&self, range: ByteRange) -> Vec<ByteRange> {
        let extents = self.extents.read();
        let end = range.end().min(extents.len);
        let Some(range) = ByteRange::new(range.start(), end) else {
            return Vec::new();
        };
        let runs = extents.runs(self.disk.layout, range);
        runs.filter_map(|run| ByteRange::at(run.at?, run.range.len()))
            .collect()
    }

    /// Calls `write` for the places of whole pages `range`, and counts them as written if it succeeds; the file
    /// reaches to `len` at least then.
    ///
    /// # Errors
    /// `StorageFull`; those of `write` and of the records.
    pub(super) fn write(
        &self,
        alone: &mut Alone<'_>,
        range: ByteRange,
        len: u64,
        write: impl FnMut(Run) -> io::Result<()>,
    ) -> io::Result<()> {
        let new = self.reserve(range)?;
        let places = self.extents.read().places(self.disk.layout, range);
        let written = places
            .into_iter()
            .try_for_each(write)
            .and_then(|()| self.set_len(alone, len.max(self.len())))
            .and_then(|()| {
                let marked = |position, piece: Piece| piece.pages | pages_within(position, range);
                self.put(alone, range, marked)
            });
        if written.is_err() {
            self.give_back(&new);
        }
        written
    }

    /// Whole pages `range` were never written.
    ///
    /// # Errors
    /// Those of the records.
    pub(super) fn forget(&self, alone: &Alone<'_>, range: ByteRange) -> io::Result<()> {
        let kept = |position, piece: Piece| piece.pages & !pages_within(position, range);
        self.put(alone, range, kept)
    }

    /// The file ends at `len`. What lies past it was never written, or was forgotten.
    ///
    /// # Errors
    /// Those of the records.
    pub(super) fn set_len(&self, alone: &mut Alone<'_>, len: u64) -> io::Result<()> {
        let doubtful = self.length_is_doubtful.swap(false, Ordering::AcqRel);
        if len == self.len() && !doubtful {
            return Ok(());
        }
        alone.save_len(&self.disk, len).inspect_err(|_| {
            self.length_is_doubtful.store(true, Ordering::Release);
        })?;
        self.extents.write().len = len;
        Ok(())
    }

    fn forget_past_end(&self) -> io::Result<()> {
        let len = self.len();
        let end = len.next_multiple_of(PAGE);
        if let Some(past) = ByteRange::new(end, LEN_MAX) {
            self.forget(&self.alone(), past)?;
        }
        let rest = ByteRange::new(len, end).expect("rounded up");
        let runs: Vec<Run> = self.extents.read().runs(self.disk.layout, rest).collect();
        for Run { range, at } in runs {
            let mut bytes = vec![0; index(range.len())];
            if let Some(at) = at {
                self.disk.device.read_exact_at(&mut bytes, at)?;
                if bytes.iter().any(|byte| *byte != 0) {
                    bytes.fill(0);
                    self.disk.device.write_all_at(&bytes, at)?;
                }
            }
        }
        Ok(())
    }

    /// Segments for all of `range`. Returns the positions that had none.
    fn reserve(&self, range: ByteRange) -> io::Result<Vec<u32>> {
        let mut extents = self.extents.write();
        let new: Vec<u32> = positions(range)
            .filter(|position| !extents.pieces.contains_key(position))
            .collect();
        let segments = self.disk.space.lock().take(new.len())?;
        for (position, segment) in new.iter().zip(segments) {
            let piece = Piece {
                segment,
                pages: 0,
                doubtful: false,
            };
            extents.pieces.insert(*position, piece);
        }
        Ok(new)
    }

    /// Those without a page, of which the device says nothing.
    fn give_back(&self, positions: &[u32]) {
        let mut extents = self.extents.write();
        for position in positions {
            if let Some(piece) = extents.pieces.get(position).copied()
                && piece.pages == 0
                && !piece.doubtful
            {
                extents.pieces.remove(position);
                self.disk.space.lock().give_back(piece.segment);
            }
        }
    }

    /// Gives the pieces of `range` other pages, on the device first: those that lie side by side there at once.
    fn put(
        &self,
        _alone: &Alone<'_>,
        range: ByteRange,
        pages: impl Fn(u32, Piece) -> u32,
    ) -> io::Result<()> {
        let Some((first, last)) = positions_around(range) else {
            return Ok(());
        };
        let changed: Vec<(u32, Piece)> = {
            let extents = self.extents.read();
            let there = extents.pieces.range(first..=last);
            let change = |(position, piece): (&u32, &Piece)| {
                let pages = pages(*position, *piece);
                (pages != piece.pages || piece.doubtful)
                    .then_some((*position, Piece { pages, ..*piece }))
            };
            there.filter_map(change).collect()
        };
        let beside = |(_, one): &(u32, Piece), (_, next): &(u32, Piece)| {
            one.segment.checked_add(1) == Some(next.segment)
        };
        changed
            .chunk_by(beside)
            .try_for_each(|group| self.put_group(group))
    }

    fn put_group(&self, group: &[(u32, Piece)]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(group.len() * index(ENTRY));
        for (position, piece) in group {
            let entry = match piece.pages {
                0 => Entry::FREE,
                pages => Entry {
                    id: self.id,
                    position: *position,
                    pages,
                },
            };
            bytes.extend(entry.encode());
        }
        let at = Layout::entry_at(group[0].1.segment);
        let put = self.disk.device.write_all_at(&bytes, at);
        let mut extents = self.extents.write();
        for (position, piece) in group {
            let known = extents.pieces.get_mut(position).expect("changed alone");
            if put.is_err() {
                known.doubtful = true;
            } else if piece.pages == 0 {
                extents.pieces.remove(position);
                self.leave(piece.segment);
            } else {
                *known = Piece {
                    doubtful: false,
                    ..*piece
                };
            }
        }
        put
    }

    /// A segment is not this file's any more, once nobody reads it.
    fn leave(&self, segment: u32) {
        let mut readers = self.readers.lock();
        if readers.count > 0 {
            readers.left.push(segment);
        } else {
            self.disk.space.lock().give_back(segment);
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let mut space = self.disk.space.lock();
        for piece in self.extents.get_mut().pieces.values() {
            space.give_back(piece.segment);
        }
    }
}

impl Alone<'_> {
    /// Another file takes the name: this one's slot says nothing more until it is freed.
    pub(super) fn replace(&mut self) {
        if let Some(record) = &mut *self.0 {
            record.replaced = true;
        }
    }

    fn save_len(&mut self, disk: &Disk, len: u64) -> io::Result<()> {
        match &mut *self.0 {
            // Nobody will find it any more.
            None | Some(Record { replaced: true, .. }) => Ok(()),
            Some(record) => {
                let says = record.says.clone();
                record.say(disk, Slot { len, ..says })
            }
        }
    }
}

/// A read of the device that has not ended.
struct Reading<'a>(&'a Inode);

impl<'a> Reading<'a> {
    fn begin(inode: &'a Inode) -> Self {
        inode.readers.lock().count += 1;
        Self(inode)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut readers = self.0.readers.lock();
        readers.count -= 1;
        if readers.count == 0 && !readers.left.is_empty() {
            let mut space = self.0.disk.space.lock();
            readers
                .left
                .drain(..)
                .for_each(|left| space.give_back(left));
        }
    }
}
