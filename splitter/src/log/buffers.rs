//! The frames of a log that are in memory: a lane fills one, then it waits to be written, is written, and is free
//! again.
//!
//! | killed while it | then what it has |
//! |---|---|
//! | is filled, waits, or is written | is stale: the map's ledger names it until the frame is written |
//!
//! One that could not be written waits again, without granules: its place may hold part of it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use block::{GRANULE, PageBuf, index};
use parking_lot::{Condvar, Mutex};

use crate::frame::{Entry, FrameIdentity, HEADER};
use crate::map::STAGED_MAX;

use super::AppendError;

const BYTES: usize = offset_of(STAGED_MAX);
/// How long who waits for a frame does not ask whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A frame in the making. Its slot is the ledger's: what it has in memory is named there.
pub(super) struct Frame {
    pub(super) slot: usize,
    /// The place that it has and nobody wrote to, or not all of it.
    pub(super) place: Option<u64>,
    pub(super) entries: Vec<Entry>,
    /// The header page, and room for granules after it.
    bytes: PageBuf,
}

impl Frame {
    fn new(slot: usize, place: Option<u64>) -> Self {
        Self {
            slot,
            place,
            entries: Vec::new(),
            bytes: PageBuf::default(),
        }
    }

    /// Memory comes with the first use.
    fn bytes(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = PageBuf::zeroed(BYTES);
        }
        &mut self.bytes
    }

    /// Adds a granule.
    pub(super) fn push(&mut self, entry: Entry, bytes: &[u8]) {
        let offset = offset_of(self.entries.len());
        self.bytes()[offset..offset + index(GRANULE)].copy_from_slice(bytes);
        self.entries.push(entry);
    }

    /// The frame as it is written to `place`.
    pub(super) fn seal(&mut self, identity: FrameIdentity, place: u64) -> &[u8] {
        let mut entries = std::mem::take(&mut self.entries);
        let bytes = self.bytes();
        let (header, granules) = bytes.split_at_mut(index(HEADER));
        for (entry, granule) in entries
            .iter_mut()
            .zip(granules.chunks_exact(index(GRANULE)))
        {
            entry.check = crc32c::crc32c(granule);
        }
        identity.encode(place, &entries, header);
        let len = offset_of(entries.len());
        self.entries = entries;
        &self.bytes()[..len]
    }
}

/// Where a granule begins in the bytes of its frame.
const fn offset_of(at: usize) -> usize {
    index(HEADER) + at * index(GRANULE)
}

/// What to do where no frame is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutFrame {
    /// Wait for the thread that writes them, and ask again; not while what it writes fails.
    Wait,
    /// Write one.
    Write,
    /// Do without.
    GiveUp,
}

pub(super) struct Buffers {
    inner: Mutex<Inner>,
    /// A frame was written, is full, or is free.
    changed: Condvar,
    /// As many as wait.
    waiting: AtomicUsize,
}

struct Inner {
    /// Oldest first.
    full: VecDeque<Frame>,
    /// The last one that was used is used next: its memory is at hand.
    free: Vec<Frame>,
    /// Frames that somebody took to write, and those that were written or failed.
    begun: u64,
    ended: u64,
    failed: u64,
    /// Why the last that ended failed.
    failing: Option<Failure>,
}

#[derive(Clone)]
struct Failure {
    kind: io::ErrorKind,
    why: String,
}

impl Failure {
    fn new(error: &io::Error) -> Self {
        let (kind, why) = (error.kind(), error.to_string());
        Self { kind, why }
    }
}

/// A frame for a lane, or one that must be written first.
pub(super) enum Taken<'a> {
    Free(Frame),
    Full(Writing<'a>),
}

/// A frame that its holder writes. Dropped without a word, as in a panic, it counts as failed, and its slot is used
/// no more: the ledger goes on naming what it had.
pub(super) struct Writing<'a> {
    buffers: &'a Buffers,
    frame: Option<Frame>,
}

impl Writing<'_> {
    pub(super) fn frame(&mut self) -> &mut Frame {
        self.frame.as_mut().expect("only the end takes it")
    }

    /// The frame, of whose granules the ledger names none any more.
    pub(super) fn end(mut self, written: &io::Result<()>) -> Frame {
        let frame = self.frame.take().expect("only the end takes it");
        let failure = written.as_ref().err().map(Failure::new);
        self.buffers.note_ended(failure);
        frame
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.frame.is_some() {
            let dropped = io::Error::other("the thread that wrote to the diff has ended");
            self.buffers.note_ended(Some(Failure::new(&dropped)));
        }
    }
}

impl Buffers {
    /// One frame for each slot, with the place that an earlier process left it.
    pub(super) fn new(places: impl Iterator<Item = Option<u64>>) -> Self {
        let frames = places.enumerate();
        let (full, free): (Vec<_>, _) = frames
            .map(|(slot, place)| Frame::new(slot, place))
            .partition(|frame| frame.place.is_some());
        Self {
            waiting: AtomicUsize::new(full.len()),
            inner: Mutex::new(Inner {
                full: full.into(),
                free,
                begun: 0,
                ended: 0,
                failed: 0,
                failing: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// A frame to fill; `without` is asked where none is free.
    pub(super) fn take(
        &self,
        without: &dyn Fn() -> WithoutFrame,
    ) -> Result<Taken<'_>, AppendError> {
        let mut inner = self.inner.lock();
        loop {
            if let Some(frame) = inner.free.pop() {
                return Ok(Taken::Free(frame));
            }
            match without() {
                WithoutFrame::GiveUp => return Err(AppendError::NoFrame),
                WithoutFrame::Wait => {
                    if let Some(Failure { kind, why }) = inner.failing.clone() {
                        return Err(io::Error::new(kind, why).into());
                    }
                }
                WithoutFrame::Write => {
                    if let Some(frame) = self.pop_full(&mut inner) {
                        return Ok(Taken::Full(self.writing(frame)));
                    }
                }
            }
            self.changed.wait_for(&mut inner, ASK_EVERY);
        }
    }

    pub(super) fn put_full(&self, frame: Frame) {
        let mut inner = self.inner.lock();
        inner.full.push_back(frame);
        self.waiting.store(inner.full.len(), Ordering::Release);
        self.changed.notify_all();
    }

    /// The oldest frame that waits; its taker writes it, and gives it back.
    pub(super) fn take_full(&self) -> Option<Writing<'_>> {
        let mut inner = self.inner.lock();
        let frame = self.pop_full(&mut inner)?;
        Some(self.writing(frame))
    }

    /// A frame that nobody else knew of, to be written by its holder.
    pub(super) fn begin(&self, frame: Frame) -> Writing<'_> {
        self.inner.lock().begun += 1;
        self.writing(frame)
    }

    fn writing(&self, frame: Frame) -> Writing<'_> {
        let (buffers, frame) = (self, Some(frame));
        Writing { buffers, frame }
    }

    pub(super) fn has_full(&self) -> bool {
        self.waiting.load(Ordering::Acquire) != 0
    }

    fn pop_full(&self, inner: &mut Inner) -> Option<Frame> {
        let frame = inner.full.pop_front()?;
        inner.begun += 1;
        self.waiting.store(inner.full.len(), Ordering::Release);
        Some(frame)
    }

    fn note_ended(&self, failure: Option<Failure>) {
        let mut inner = self.inner.lock();
        inner.ended += 1;
        inner.failed += u64::from(failure.is_some());
        inner.failing = failure;
        self.changed.notify_all();
    }

    /// A frame that has nothing is free.
    pub(super) fn put_free(&self, frame: Frame) {
        self.inner.lock().free.push(frame);
        self.changed.notify_all();
    }

    /// Frames that could not be written, so far.
    pub(super) fn failed(&self) -> u64 {
        self.inner.lock().failed
    }

    /// Waits until as many frames were written as had been begun when it was called: these, if nobody begins
    /// another meanwhile.
    pub(super) fn wait(&self) {
        let mut inner = self.inner.lock();
        let begun = inner.begun;
        while inner.ended < begun {
            self.changed.wait(&mut inner);
        }
    }

    /// What waits, and what `filled` have, does not count any more.
    pub(super) fn forget(&self, filled: impl IntoIterator<Item = Frame>) {
        let mut inner = self.inner.lock();
        inner.failing = None;
        let waiting = std::mem::take(&mut inner.full);
        self.waiting.store(0, Ordering::Release);
        for mut frame in waiting.into_iter().chain(filled) {
            frame.entries.clear();
            frame.place = None;
            inner.free.push(frame);
        }
        self.changed.notify_all();
    }

    /// Frees their memory: nobody will fill a frame any more.
    pub(super) fn end(&self) {
        let mut inner = self.inner.lock();
        let free = inner.free.iter_mut();
        free.for_each(|frame| frame.bytes = PageBuf::default());
    }
}
