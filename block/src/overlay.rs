//! A disk that may be written although what it shows may not: changes go to a sparse file, at
//! their own offsets, and are forgotten with it.
//!
//! ```text
//!   base   | A | B | C | D |        state of a granule   bytes come from
//!   file   |   | x |   |   |        Base                 base
//!   state    -   F   Z   -          File                 file
//!   shown  | A | x | 0 | D |        Zero                 nowhere (a hole of the file)
//! ```
//!
//! A write that covers a granule in part first completes it from the base, under the lock of its
//! megabyte; readers take no lock: bytes are in the file before the state says so.
//!
//! Rule: nothing survives the process (the states are in memory), so flush and FUA promise nothing
//! and cost nothing.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, File, Fua, GRANULE, Hole, Op,
    Result, ZeroOptions, index,
};

/// A writable view of a disk that is never written.
pub struct Overlay {
    base: Arc<dyn BlockDevice>,
    file: Arc<dyn File>,
    size: u64,
    states: States,
    /// Whoever changes granules holds the lock of their megabyte, by number modulo the count.
    locks: Box<[Mutex<()>]>,
}

/// Changes are made in pieces of at most this, so that one lock covers a piece.
const PIECE: u64 = 1 << 20;
const LOCKS: usize = 64;

impl Overlay {
    /// Changes to `base` in `file`, whose former content is dropped.
    ///
    /// # Errors
    /// The operating system's, about `file`.
    pub fn new(base: Arc<dyn BlockDevice>, file: Arc<dyn File>) -> io::Result<Self> {
        let size = base.size();
        file.set_len(0)?;
        file.set_len(size)?;
        Ok(Self {
            states: States::new(size),
            base,
            file,
            size,
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
        })
    }

    fn lock(&self, piece: ByteRange) -> MutexGuard<'_, ()> {
        let lock = &self.locks[index(piece.start() / PIECE) % LOCKS];
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granule(&self, granule: u64) -> ByteRange {
        let start = granule * GRANULE;
        ByteRange::new(start, (start + GRANULE).min(self.size)).expect("granules are ordered")
    }

    /// Writes one piece. Its lock is held.
    fn write_piece(&self, data: &[u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        let touched = range.granules_touched();
        // A granule covered in part is only at the edges.
        self.complete(touched.start, range)?;
        if touched.count() > 1 {
            self.complete(touched.end - 1, range)?;
        }
        let written = self
            .file
            .write_all_at(data, offset)
            .map_err(|e| Error::io(Op::Write, range, e));
        for granule in touched.start..touched.end {
            // After a failure, what reads from the file holds old and new bytes. What reads as
            // zeroes does so no longer; what reads from the base goes on.
            if written.is_ok() || self.states.get(granule) != State::Base {
                self.states.set(granule, State::File);
            }
        }
        written
    }

    /// Makes the file hold the bytes of a granule that a write of `range` would leave mixed.
    fn complete(&self, granule: u64, range: ByteRange) -> Result<()> {
        let whole = self.granule(granule);
        let covered = range.start() <= whole.start() && whole.end() <= range.end();
        if covered || self.states.get(granule) != State::Base {
            return Ok(());
        }
        let mut bytes = [0; index(GRANULE)];
        let bytes = &mut bytes[..index(whole.len())];
        self.base.read_at(bytes, whole.start())?;
        self.file
            .write_all_at(bytes, whole.start())
            .map_err(|e| Error::io(Op::Write, whole, e))
    }

    /// Zeroes one piece. Its lock is held.
    fn zero_piece(&self, range: ByteRange, hole: Hole) -> Result<()> {
        let covered = range.granules_covered();
        let inner = covered.bytes(self.size).intersect(range);
        let inner = inner.filter(|_| hole == Hole::Allowed);
        let Some(inner) = inner.filter(|inner| !inner.is_empty()) else {
            return self.write_zero_bytes(range);
        };
        if !self.punch(inner)? {
            return self.write_zero_bytes(range);
        }
        let edges = [
            ByteRange::new(range.start(), inner.start()),
            ByteRange::new(inner.end(), range.end()),
        ];
        let mut edges = edges.into_iter().flatten();
        edges.try_for_each(|edge| self.write_zero_bytes(edge))
    }

    fn write_zero_bytes(&self, range: ByteRange) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.write_piece(&vec![0; index(range.len())], range.start())
    }

    /// `granules` are whole ones. `false` if the file cannot have holes.
    fn punch(&self, granules: ByteRange) -> Result<bool> {
        match self.file.punch_hole(granules) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(false),
            Err(e) => return Err(Error::io(Op::WriteZeroes, granules, e)),
        }
        let touched = granules.granules_touched();
        for granule in touched.start..touched.end {
            self.states.set(granule, State::Zero);
        }
        Ok(true)
    }

    /// Appends what the base says of `range`; `false` once there is no room.
    fn base_status(
        &self,
        range: ByteRange,
        extents: &mut Vec<Extent>,
        extents_max: usize,
    ) -> Result<bool> {
        let mut rest = range;
        while !rest.is_empty() {
            // One more than fits, since the first may join the last that is there.
            let room = extents_max.saturating_sub(extents.len()).saturating_add(1);
            let below = self.base.block_status(rest, room)?;
            for Extent { range, state } in below {
                if !Extent::append(extents, state, range.start(), range.end(), extents_max) {
                    return Ok(false);
                }
                rest = ByteRange::new(range.end(), rest.end()).expect("extents stay inside");
            }
        }
        Ok(true)
    }

    /// Runs of granules in one state, each with its bytes inside `range`.
    fn runs(&self, range: ByteRange) -> impl Iterator<Item = (State, ByteRange)> + '_ {
        let mut at = range.start();
        std::iter::from_fn(move || {
            if at >= range.end() {
                return None;
            }
            let state = self.states.get(at / GRANULE);
            let mut end = self.states.skip(at / GRANULE);
            while end * GRANULE < range.end() && self.states.get(end) == state {
                end = self.states.skip(end);
            }
            let stop = (end * GRANULE).min(range.end());
            let run = ByteRange::new(at, stop).expect("runs go forward");
            at = stop;
            Some((state, run))
        })
    }
}

impl BlockDevice for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features {
            writable: true,
            trim: true,
            fast_zero: false,
            rotational: self.base.features().rotational,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        Error::check_range(Op::Read, range, self.size)?;
        let mut rest = buf;
        for (state, run) in self.runs(range) {
            let (part, behind) = rest.split_at_mut(index(run.len()));
            rest = behind;
            match state {
                State::Base => self.base.read_at(part, run.start())?,
                State::Zero => part.fill(0),
                State::File => self
                    .file
                    .read_exact_at(part, run.start())
                    .map_err(|e| Error::io(Op::Read, run, e))?,
            }
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        let range = ByteRange::of_buf(offset, data);
        Error::check_range(Op::Write, range, self.size)?;
        let mut rest = data;
        for piece in pieces(range) {
            let (part, behind) = rest.split_at(index(piece.len()));
            rest = behind;
            let _changing = self.lock(piece);
            self.write_piece(part, piece.start())?;
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let op = Op::WriteZeroes;
        Error::check_range(op, range, self.size)?;
        if options.speed == crate::Speed::FastOnly {
            return Err(crate::raw::no_fast_zero(op, range));
        }
        for piece in pieces(range) {
            let _changing = self.lock(piece);
            self.zero_piece(piece, options.hole)?;
        }
        Ok(())
    }

    fn trim(&self, range: ByteRange, _fua: Fua) -> Result<()> {
        Error::check_range(Op::Trim, range, self.size)?;
        let covered = range.granules_covered().bytes(self.size);
        for piece in pieces(covered) {
            let _changing = self.lock(piece);
            self.zero_piece(piece, Hole::Allowed)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let mut extents = Vec::new();
        for (state, run) in self.runs(range) {
            let state = match state {
                State::Base if !self.base_status(run, &mut extents, extents_max)? => break,
                State::Base => continue,
                State::File => ExtentState::Data,
                State::Zero => ExtentState::Hole,
            };
            if !Extent::append(&mut extents, state, run.start(), run.end(), extents_max) {
                break;
            }
        }
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.base.prefetch(range)
    }
}

/// `range` cut at every megabyte.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let stop = ((at / PIECE + 1) * PIECE).min(range.end());
        let piece = ByteRange::new(at, stop).filter(|piece| !piece.is_empty())?;
        at = stop;
        Some(piece)
    })
}

/// Where a granule's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Base,
    File,
    Zero,
}

/// The state of every granule; memory is taken for 128 MiB of disk at a time, when written.
struct States {
    leaves: Box<[OnceLock<Box<Leaf>>]>,
}

/// Granules of a leaf.
const LEAF: usize = 32_768;

/// One byte per granule would be the price of simplicity; two bits are a quarter of it.
type Leaf = [AtomicU8; LEAF / 4];

impl States {
    fn new(size: u64) -> Self {
        let leaves = size.div_ceil(GRANULE * LEAF as u64);
        Self {
            leaves: (0..leaves).map(|_| OnceLock::new()).collect(),
        }
    }

    fn get(&self, granule: u64) -> State {
        let (leaf, byte, shift) = place(granule);
        let Some(leaf) = self.leaves[leaf].get() else {
            return State::Base;
        };
        match leaf[byte].load(Ordering::Acquire) >> shift & 3 {
            0 => State::Base,
            1 => State::File,
            _ => State::Zero,
        }
    }

    /// The next granule behind `granule` that may be in another state: a leaf that was never
    /// written is passed in one step.
    fn skip(&self, granule: u64) -> u64 {
        let (leaf, ..) = place(granule);
        match self.leaves[leaf].get() {
            Some(_) => granule + 1,
            None => (leaf as u64 + 1) * LEAF as u64,
        }
    }

    /// Four granules share a byte, and all four the lock of their megabyte.
    fn set(&self, granule: u64, state: State) {
        let (leaf, byte, shift) = place(granule);
        let leaf =
            self.leaves[leaf].get_or_init(|| Box::new([const { AtomicU8::new(0) }; LEAF / 4]));
        let bits = match state {
            State::Base => 0,
            State::File => 1,
            State::Zero => 2,
        };
        let others = leaf[byte].load(Ordering::Relaxed) & !(3 << shift);
        leaf[byte].store(others | bits << shift, Ordering::Release);
    }
}

fn place(granule: u64) -> (usize, usize, u32) {
    let granule = index(granule);
    let shift = [0, 2, 4, 6][granule % 4];
    (granule / LEAF, granule % LEAF / 4, shift)
}
