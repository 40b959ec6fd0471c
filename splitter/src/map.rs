//! The dirty map of one disk in one generation: which granules were written, and whether the diff
//! holds them. It is mapped shared, so it survives the process at any instruction.
//!
//! ```text
//! byte 0     header   one page: magic, version, disk size, generation, since, sealed at, absorbed into,
//!                     asking, lineage, check, frames of the diff and what is staged for them
//! byte 4096  summary  one bit per body page, padded to a page: only pages whose bit is set are read
//!            body     pages of 512 words; a word is two bits for each of 32 granules, the data bits in
//!                     its low half, the zero bits in its high half   (a body page speaks of 64 MiB)
//! ```
//!
//! | data | zero | the granule is |
//! |---|---|---|
//! | 0 | 0 | clean: it was not written |
//! | 1 | 1 | dirty and stale: it was or is being written; the diff is not to be trusted |
//! | 0 | 1 | dirty: all zero |
//! | 1 | 0 | dirty: whole in the diff file |
//!
//! Rule: both bits are set by one store before the write, and one of them is taken back after the diff has
//! the granule: one that is dirty and not stale is in the diff, or named in `ledger.rs`, at every instruction.
//!
//! Rule: a body page is reserved on the disk, then its summary bit is set, then its words are
//! stored; so a full disk is an error here and not a signal, and a set word is never overlooked.
//! (Not on copy-on-write file systems: there a reserved page can still meet a full disk.)

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::{ByteRange, File, GranuleRange, SharedWords, UnixNanos, index};

use crate::error::damaged;
use crate::runs::{GranuleState, StateRun};
use crate::{Generation, Lineage};
use words::{GROUP_GRANULES, States, data, groups, zero};

const MAGIC: u64 = u64::from_le_bytes(*b"STDNMAP1");
/// 1 had a word each for dirty, stale and zero, and one that was empty; 2 knew nothing of frames; 3 had
/// four slots for them, and 4 had four more for frames that were not staged.
const VERSION: u64 = 5;

const PAGE: u64 = 4096;
const PAGE_WORDS: u64 = PAGE / 8;
/// Granules that one body page speaks of.
const PAGE_GRANULES: u64 = PAGE_WORDS * GROUP_GRANULES;

/// Header words.
mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const SIZE: usize = 2;
    pub(super) const GENERATION: usize = 3;
    pub(super) const LINEAGE_LOW: usize = 4;
    pub(super) const LINEAGE_HIGH: usize = 5;
    /// CRC-32C over the words before it; the ones after it change.
    pub(super) const CHECK: usize = 6;
    pub(super) const SINCE: usize = 7;
    pub(super) const SEALED_AT: usize = 8;
    /// The later generation that its granules move to; 0 if none.
    pub(super) const ABSORBED_INTO: usize = 9;
    /// How many are asking whether words of the map were lost, or were told so.
    pub(super) const ASKING: usize = 10;
    /// The next entry's; in a cache line of its own.
    pub(super) const ORDER: usize = 16;
    pub(super) const FIRST_FRAME: usize = 24;
    pub(super) const END_FRAME: usize = 25;
    /// See `ledger.rs`.
    pub(super) const SLOTS: usize = 64;
}

/// Which map a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapIdentity {
    pub(crate) size: u64,
    pub(crate) generation: Generation,
    pub(crate) lineage: Lineage,
}

pub(crate) struct DirtyMap {
    file: Arc<dyn File>,
    words: Arc<dyn SharedWords>,
    shape: Shape,
    /// A page could not be brought to the disk: words may come back old.
    unreliable: AtomicBool,
    dirty_count: AtomicU64,
    stale_count: AtomicU64,
    zero_count: AtomicU64,
    /// Body pages that are reserved; those that are entered need not be in it.
    ready: Box<[AtomicU64]>,
}

/// Where things lie in the map of a disk, in words.
#[derive(Clone, Copy, Debug)]
struct Shape {
    granule_count: u64,
    page_count: u64,
    summary_words: u64,
}

/// What settled a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Data,
    Zero,
}

impl DirtyMap {
    /// Makes an empty map in a new, empty file.
    pub(crate) fn create(
        file: Arc<dyn File>,
        identity: MapIdentity,
        since: Generation,
    ) -> io::Result<Self> {
        let shape = Shape::of(identity.size);
        file.set_len(shape.file_len())?;
        file.allocate(shape.fixed_part())?;
        let words = file.map(shape.file_len())?;
        let header = words.words();
        for (at, value) in identity.header().into_iter().enumerate() {
            header[at].store(value, Ordering::Relaxed);
        }
        header[word::SINCE].store(since.0, Ordering::Release);
        Ok(Self::with(file, words, shape))
    }

    /// Opens a map that may have been damaged; `Err(InvalidData)` says how.
    pub(crate) fn open(file: Arc<dyn File>, identity: MapIdentity) -> io::Result<Self> {
        let shape = Shape::of(identity.size);
        let len = file.len()?;
        if len != shape.file_len() {
            return Err(damaged(format!(
                "the map has {len} bytes, not {}",
                shape.file_len()
            )));
        }
        let words = file.map(len)?;
        for (at, expected) in identity.header().into_iter().enumerate() {
            let found = words.words()[at].load(Ordering::Acquire);
            if found != expected {
                return Err(damaged(format!(
                    "word {at} of the map is {found:#x}, not {expected:#x}"
                )));
            }
        }
        let map = Self::with(file, words, shape);
        // A file that was copied or moved may have lost what was reserved.
        map.file.allocate(shape.fixed_part())?;
        map.check_frames()?;
        map.recount()?;
        Ok(map)
    }

    /// Before it is opened: fails if somebody was told that words were lost, or was killed while he asked.
    pub(crate) fn check_doubt(file: &dyn File) -> io::Result<()> {
        let mut doubt = [0; 8];
        file.read_exact_at(&mut doubt, 8 * word::ASKING as u64)?;
        match u64::from_le_bytes(doubt) {
            0 => Ok(()),
            _ => Err(damaged("whoever asked for failed writes was killed")),
        }
    }

    fn with(file: Arc<dyn File>, words: Arc<dyn SharedWords>, shape: Shape) -> Self {
        Self {
            file,
            words,
            shape,
            unreliable: AtomicBool::new(false),
            dirty_count: AtomicU64::new(0),
            stale_count: AtomicU64::new(0),
            zero_count: AtomicU64::new(0),
            ready: (0..shape.page_count.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    /// Before a write: the granules are dirty, and stale until [`Self::settle`].
    pub(crate) fn mark(&self, granules: GranuleRange) -> io::Result<()> {
        for (group, mask) in groups(granules) {
            self.enter_page(self.shape.page_of(group))?;
            let was = States(
                self.group(group)
                    .fetch_or(data(mask) | zero(mask), Ordering::AcqRel),
            );
            count_up(&self.stale_count, mask & !was.stale());
            count_up(&self.dirty_count, mask & !was.dirty());
            let zero = mask & was.dirty() & !was.data();
            if zero != 0 {
                self.zero_count
                    .fetch_sub(u64::from(zero.count_ones()), Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// After the diff holds what production holds. The granules must have been marked.
    pub(crate) fn settle(&self, granules: GranuleRange, settled: Settled) {
        for (group, mask) in groups(granules) {
            let gone = match settled {
                Settled::Data => zero(mask),
                Settled::Zero => data(mask),
            };
            let was = States(self.group(group).fetch_and(!gone, Ordering::AcqRel));
            let was_stale = was.stale() & mask;
            assert!(
                was_stale == mask,
                "settled {mask:#x}, marked were {was_stale:#x}"
            );
            self.stale_count
                .fetch_sub(u64::from(mask.count_ones()), Ordering::AcqRel);
            if settled == Settled::Zero {
                count_up(&self.zero_count, mask);
            }
        }
    }

    /// All that is in the diff file becomes stale. Nothing may be settled as data meanwhile.
    pub(crate) fn mark_all_data(&self) {
        let body = self.body();
        let mut page = self.next_entered_page(0);
        while let Some(entered) = page {
            let first = entered * PAGE_GRANULES / GROUP_GRANULES;
            for group in first..(first + PAGE_WORDS).min(self.shape.groups()) {
                let states = self.states_in(body, group);
                let in_file = states.data() & !states.stale();
                if in_file == 0 {
                    continue;
                }
                let was = States(body[index(group)].fetch_or(zero(in_file), Ordering::AcqRel));
                // Some may have been written, or zeroed, in between.
                count_up(&self.stale_count, in_file & was.data() & !was.stale());
            }
            page = self.next_entered_page(entered + 1);
        }
    }

    pub(crate) fn state(&self, granule: u64) -> GranuleState {
        let group = granule / GROUP_GRANULES;
        if !self.page_entered(self.shape.page_of(group)) {
            return GranuleState::Clean;
        }
        self.states(group).at(granule % GROUP_GRANULES)
    }

    /// The next run at or after `from` whose state is not clean, of at most `count_max` granules.
    pub(crate) fn next_run(&self, from: u64, count_max: u64) -> Option<StateRun> {
        let (start, state) = self.first_dirty(from)?;
        let limit = start
            .saturating_add(count_max)
            .min(self.shape.granule_count);
        let (body, mut end) = (self.body(), start);
        while end < limit {
            let group = end / GROUP_GRANULES;
            // A run may go on in a page that nobody entered: there the words are no one's.
            let new_page = end.is_multiple_of(PAGE_GRANULES) || end == start;
            if new_page && !self.page_entered(self.shape.page_of(group)) {
                break;
            }
            let more = self
                .states_in(body, group)
                .run_at(end % GROUP_GRANULES, state);
            if more == 0 {
                break;
            }
            end += more;
        }
        Some(StateRun {
            granules: GranuleRange {
                start,
                end: end.min(limit),
            },
            state,
        })
    }

    fn first_dirty(&self, from: u64) -> Option<(u64, GranuleState)> {
        let mut at = from;
        while at < self.shape.granule_count {
            let page = at / PAGE_GRANULES;
            if !self.page_entered(page) {
                at = self.next_entered_page(page + 1)? * PAGE_GRANULES;
                continue;
            }
            let states = self.states(at / GROUP_GRANULES);
            let rest = states.dirty() >> (at % GROUP_GRANULES);
            if rest != 0 {
                let found = at + u64::from(rest.trailing_zeros());
                let state = states.at(found % GROUP_GRANULES);
                return (found < self.shape.granule_count).then_some((found, state));
            }
            at = (at / GROUP_GRANULES + 1) * GROUP_GRANULES;
        }
        None
    }

    fn next_entered_page(&self, from: u64) -> Option<u64> {
        let mut page = from;
        while page < self.shape.page_count {
            let rest = self.summary(page).load(Ordering::Acquire) >> (page % 64);
            if rest != 0 {
                let found = page + u64::from(rest.trailing_zeros());
                return (found < self.shape.page_count).then_some(found);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }

    /// Granules of the disk.
    pub(crate) fn granule_count(&self) -> u64 {
        self.shape.granule_count
    }

    /// Granules written in this generation.
    pub(crate) fn dirty_count(&self) -> u64 {
        self.dirty_count.load(Ordering::Acquire)
    }

    /// Granules whose diff is not to be trusted. Exact while no write is in flight.
    pub(crate) fn stale_count(&self) -> u64 {
        self.stale_count.load(Ordering::Acquire)
    }

    /// Granules that are in the diff file, or are to come into it; about, while writes are in flight.
    pub(crate) fn written_count(&self) -> u64 {
        let zero = self.zero_count.load(Ordering::Acquire);
        self.dirty_count().saturating_sub(zero)
    }

    /// The cut whose content this generation builds on.
    pub(crate) fn since(&self) -> Generation {
        Generation(self.words.words()[word::SINCE].load(Ordering::Acquire))
    }

    /// Makes this generation build on an earlier cut: it took in what came in between.
    pub(crate) fn lower_since(&self, since: Generation) {
        self.words.words()[word::SINCE].fetch_min(since.0, Ordering::AcqRel);
    }

    pub(crate) fn seal(&self, at: UnixNanos) {
        self.words.words()[word::SEALED_AT].store(at.0.max(1), Ordering::Release);
    }

    /// When it was sealed; `None` while it is open.
    pub(crate) fn sealed_at(&self) -> Option<UnixNanos> {
        let at = self.words.words()[word::SEALED_AT].load(Ordering::Acquire);
        (at != 0).then_some(UnixNanos(at))
    }

    /// Notes, before the first granule moves, that this generation becomes part of a later one.
    pub(crate) fn absorb_into(&self, later: Generation) {
        self.words.words()[word::ABSORBED_INTO].store(later.0, Ordering::Release);
    }

    /// The later generation that this one is or becomes a part of.
    pub(crate) fn absorbed_into(&self) -> Option<Generation> {
        let later = self.words.words()[word::ABSORBED_INTO].load(Ordering::Acquire);
        (later != 0).then_some(Generation(later))
    }

    /// Fails, from then on always, if words may be lost.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.ask(|| self.file.check_writeback())?;
        match self.unreliable.load(Ordering::Acquire) {
            true => Err(damaged("part of the map could not be written to the disk")),
            false => Ok(()),
        }
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.ask(|| self.file.sync_data())
    }

    /// The system tells a failure once. Crash: whoever is killed between the answer and what must follow
    /// from it leaves a doubt, for the next open.
    fn ask(&self, question: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let doubt = &self.words.words()[word::ASKING];
        doubt.fetch_add(1, Ordering::AcqRel);
        question().inspect_err(|_| self.unreliable.store(true, Ordering::Release))?;
        doubt.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// After a clean close, which asked and heard that all is well: that it was answered need not have
    /// reached the disk.
    pub(crate) fn forget_doubts(&self) {
        self.words.words()[word::ASKING].store(0, Ordering::Release);
    }

    /// Bytes the map occupies.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    fn recount(&self) -> io::Result<()> {
        let (mut dirty, mut stale, mut zero) = (0, 0, 0);
        let body = self.body();
        let mut page = self.next_entered_page(0);
        while let Some(entered) = page {
            self.file.allocate(self.shape.body_page(entered))?;
            let first = entered * PAGE_GRANULES / GROUP_GRANULES;
            for group in first..(first + PAGE_WORDS).min(self.shape.groups()) {
                let states = self.states_in(body, group);
                dirty += u64::from(states.dirty().count_ones());
                stale += u64::from(states.stale().count_ones());
                zero += u64::from((states.dirty() & !states.data()).count_ones());
            }
            page = self.next_entered_page(entered + 1);
        }
        self.dirty_count.store(dirty, Ordering::Release);
        self.stale_count.store(stale, Ordering::Release);
        self.zero_count.store(zero, Ordering::Release);
        Ok(())
    }

    fn enter_page(&self, page: u64) -> io::Result<()> {
        if self.page_entered(page) {
            return Ok(());
        }
        if !self.is_ready(page) {
            self.file.allocate(self.shape.body_page(page))?;
        }
        self.summary(page)
            .fetch_or(1 << (page % 64), Ordering::AcqRel);
        Ok(())
    }

    fn page_entered(&self, page: u64) -> bool {
        self.summary(page).load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    fn summary(&self, page: u64) -> &AtomicU64 {
        &self.words.words()[index(PAGE_WORDS + page / 64)]
    }

    fn group(&self, group: u64) -> &AtomicU64 {
        &self.body()[index(group)]
    }

    /// The words of all groups. Whoever goes through many of them asks once.
    fn body(&self) -> &[AtomicU64] {
        let first = PAGE_WORDS + self.shape.summary_words;
        &self.words.words()[index(first)..]
    }

    fn states(&self, group: u64) -> States {
        self.states_in(self.body(), group)
    }

    fn states_in(&self, body: &[AtomicU64], group: u64) -> States {
        let word = body[index(group)].load(Ordering::Acquire);
        let end = self.shape.granule_count;
        if (group + 1) * GROUP_GRANULES <= end {
            return States(word);
        }
        // Bits past the end of the disk are nobody's: a damaged map must not invent granules.
        let valid = (1 << end.saturating_sub(group * GROUP_GRANULES)) - 1;
        States(word & (data(valid) | zero(valid)))
    }
}

impl Shape {
    fn of(size: u64) -> Self {
        let granule_count = GranuleRange::of_size(size).end;
        let page_count = granule_count.div_ceil(PAGE_GRANULES);
        let summary_words = page_count.div_ceil(64).next_multiple_of(PAGE_WORDS);
        Self {
            granule_count,
            page_count,
            summary_words,
        }
    }

    fn file_len(self) -> u64 {
        PAGE + self.summary_words * 8 + self.page_count * PAGE
    }

    fn fixed_part(self) -> ByteRange {
        ByteRange::at(0, PAGE + self.summary_words * 8).expect("a map is far below 2^64 bytes")
    }

    fn body_page(self, page: u64) -> ByteRange {
        ByteRange::at(self.fixed_part().end() + page * PAGE, PAGE).expect("inside the map")
    }

    fn page_of(self, group: u64) -> u64 {
        group * GROUP_GRANULES / PAGE_GRANULES
    }

    fn groups(self) -> u64 {
        self.granule_count.div_ceil(GROUP_GRANULES)
    }
}

impl MapIdentity {
    fn header(&self) -> [u64; word::CHECK + 1] {
        let (low, high) = self.lineage.0.split_at(8);
        let half = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("half of sixteen bytes"));
        let mut header = [0; word::CHECK + 1];
        header[word::MAGIC] = MAGIC;
        header[word::VERSION] = VERSION;
        header[word::SIZE] = self.size;
        header[word::GENERATION] = self.generation.0;
        header[word::LINEAGE_LOW] = half(low);
        header[word::LINEAGE_HIGH] = half(high);
        let checked: Vec<u8> = header[..word::CHECK]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        header[word::CHECK] = u64::from(crc32c::crc32c(&checked));
        header
    }
}

fn count_up(counter: &AtomicU64, bits: u32) {
    if bits != 0 {
        counter.fetch_add(u64::from(bits.count_ones()), Ordering::AcqRel);
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) use fuzz::fuzz;

#[cfg(feature = "fuzzing")]
mod fuzz;

mod ledger;
mod prepare;
mod words;

pub(crate) use ledger::{SLOTS, STAGED_MAX};
pub(crate) use prepare::pages_of_each;

#[cfg(test)]
mod tests;
