//! One simulated file: what programs see, what the disk has, and what lies between.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{ByteRange, SharedWords, index};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::content::{Content, PAGE};

/// A disk writes at least this much at once, in bytes: the unit in which a write tears.
const TEAR: u64 = 512;

/// A change that is not yet on the disk.
#[derive(Clone, Debug)]
enum Pending {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Zero(ByteRange),
}

#[derive(Debug, Default)]
pub(crate) struct Inode {
    live: Content,
    durable: Content,
    pending: Vec<Pending>,
    words: Option<Arc<Words>>,
    /// Pages that a failed sync left clean in the cache, although the disk lacks them.
    lost: BTreeSet<u64>,
    /// What could not be brought to the disk, and whether anybody will be told.
    writeback: Writeback,
}

/// What the kernel knows of failures to write a file back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writeback {
    #[default]
    Fine,
    /// The next handle that asks is told, once.
    Untold,
    /// It has forgotten the file: no page of it is cached, and no failure will be told.
    Forgotten,
}

/// Mapped words. They live beside `live`, and are copied into it when the world ends.
#[derive(Debug)]
pub(crate) struct Words(Box<[AtomicU64]>);

impl SharedWords for Words {
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

impl Words {
    fn bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|w| w.load(Ordering::SeqCst).to_le_bytes())
            .collect()
    }
}

impl Inode {
    pub(crate) fn len(&self) -> u64 {
        self.live.len()
    }

    pub(crate) fn allocated(&self) -> u64 {
        self.live.allocated()
    }

    pub(crate) fn is_cached(&self) -> bool {
        self.writeback != Writeback::Forgotten
    }

    /// Whether something was lost that nobody was told of; tells it.
    pub(crate) fn tell_writeback(&mut self) -> bool {
        let untold = self.writeback == Writeback::Untold;
        if untold {
            self.writeback = Writeback::Fine;
        }
        untold
    }

    /// Any part of what was not synced does not reach the disk, and the cache lets go of it.
    pub(crate) fn fail_writeback(&mut self, forget: bool, rng: &mut ChaCha8Rng) {
        assert!(self.words.is_none(), "a file that somebody has mapped");
        let before = self.durable.clone();
        // Blocks were given to the file, and not filled: what they held before shows.
        let given = rng.random_bool(0.5);
        let len = self.live.len();
        let last = len.div_ceil(PAGE);
        // The device takes nothing any more, or it is a device that fails here and there.
        let lost = if rng.random_bool(0.3) { 1.0 } else { 0.5 };
        let differs = |page: &u64| !self.live.same_page(*page, &before);
        let differing: Vec<u64> = (0..last).filter(differs).collect();
        if differing.is_empty() && !forget {
            // There is nothing to write, and nothing to fail.
            return;
        }
        for page in differing {
            match (rng.random_bool(lost), given) {
                (true, true) => self.live.write(&[0x5a; index(PAGE)], page * PAGE),
                (true, false) => self.live.take_page(page, &before),
                (false, _) => {}
            }
        }
        self.live.set_len(len);
        self.pending.clear();
        self.durable = self.live.clone();
        self.writeback = if forget {
            Writeback::Forgotten
        } else {
            Writeback::Untold
        };
    }

    /// The kernel brings to the disk what it has, as it does now and then unasked.
    pub(crate) fn write_back(&mut self) {
        if self.words.is_none() && self.lost.is_empty() {
            self.durable = self.live.clone();
            self.pending.clear();
        }
    }

    /// Somebody reads or writes it: the kernel knows it again.
    pub(crate) fn touch(&mut self) {
        if self.writeback == Writeback::Forgotten {
            self.writeback = Writeback::Fine;
        }
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) {
        self.live.read(buf, offset);
        let Some(words) = &self.words else { return };
        // A file and its mapping are one: the mapped part is read from the words.
        let mapped = words.bytes();
        let range = ByteRange::of_buf(offset, buf);
        let whole = ByteRange::at(0, mapped.len() as u64).expect("starts at zero");
        if let Some(both) = range.intersect(whole) {
            let (from, to) = (index(both.start()), index(both.end()));
            let at = index(both.start() - offset);
            buf[at..at + (to - from)].copy_from_slice(&mapped[from..to]);
        }
    }

    pub(crate) fn write(&mut self, data: &[u8], offset: u64) {
        assert!(
            self.words
                .as_ref()
                .is_none_or(|w| offset >= 8 * w.0.len() as u64),
            "a mapped part of a file is written through its words only"
        );
        for page in pages(offset, data.len()) {
            self.lost.remove(&page);
        }
        self.live.write(data, offset);
        self.pending.push(Pending::Write {
            offset,
            data: data.to_vec(),
        });
    }

    /// Part of a write, as a process that is killed inside the call leaves it.
    pub(crate) fn write_torn(&mut self, data: &[u8], offset: u64, rng: &mut ChaCha8Rng) {
        let kept = tear(data.len(), rng);
        if kept > 0 {
            self.write(&data[..kept], offset);
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        self.live.set_len(len);
        self.pending.push(Pending::SetLen(len));
    }

    pub(crate) fn zero(&mut self, range: ByteRange) {
        self.live.zero(range);
        self.pending.push(Pending::Zero(range));
    }

    pub(crate) fn sync(&mut self) {
        self.absorb_words();
        let before = std::mem::replace(&mut self.durable, self.live.clone());
        for page in &self.lost {
            self.durable.take_page(*page, &before);
        }
        self.pending.clear();
    }

    /// As the kernel does: what could not be written counts as written from now on, so that a later
    /// sync succeeds without it.
    pub(crate) fn fail_sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Pending::Write { offset, data } => self.lost.extend(pages(offset, data.len())),
                Pending::Zero(range) => {
                    self.lost.extend(pages(range.start(), index(range.len())));
                }
                Pending::SetLen(len) => self.durable.set_len(len),
            }
        }
    }

    pub(crate) fn map(&mut self, len: u64) -> Arc<Words> {
        if let Some(words) = &self.words {
            assert_eq!(words.0.len() as u64 * 8, len, "one mapping length per file");
            return Arc::clone(words);
        }
        let mut bytes = vec![0; index(len)];
        self.live.read(&mut bytes, 0);
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("chunks of eight"));
        let words: Arc<Words> = Arc::new(Words(
            bytes
                .chunks_exact(8)
                .map(|b| AtomicU64::new(word(b)))
                .collect(),
        ));
        self.words = Some(Arc::clone(&words));
        words
    }

    /// A frozen copy; the mapping goes on in the copy as a mapping of its own.
    pub(crate) fn freeze(&mut self) -> Self {
        let mapped = self.words.as_ref().map(|words| words.0.len() as u64 * 8);
        let mut copy = self.after_kill();
        if let Some(len) = mapped {
            copy.map(len);
        }
        copy
    }

    /// What a process that is killed here leaves: everything that it did.
    pub(crate) fn after_kill(&mut self) -> Self {
        self.absorb_words();
        Self {
            live: self.live.clone(),
            durable: self.durable.clone(),
            pending: self.pending.clone(),
            words: None,
            lost: self.lost.clone(),
            writeback: self.writeback,
        }
    }

    /// What an orderly restart of the machine leaves: everything, but for what only the cache had.
    pub(crate) fn after_restart(&mut self) -> Self {
        let mut disk = self.after_kill();
        disk.sync();
        Self {
            live: disk.durable.clone(),
            durable: disk.durable,
            ..Self::default()
        }
    }

    /// What a power cut leaves: what was synced, and any part of the rest.
    pub(crate) fn after_power_cut(&mut self, rng: &mut ChaCha8Rng) -> Self {
        let mut disk = self.durable.clone();
        for change in &self.pending {
            if rng.random_bool(0.5) {
                apply_part(change, &mut disk, rng);
            }
        }
        if let Some(words) = self.words.clone() {
            let pages = words.0.len() as u64 * 8 / PAGE;
            self.absorb_words();
            for page in 0..pages {
                if rng.random_bool(0.5) {
                    disk.take_page(page, &self.live);
                }
            }
        }
        Self {
            live: disk.clone(),
            durable: disk,
            pending: Vec::new(),
            words: None,
            lost: BTreeSet::new(),
            writeback: Writeback::Fine,
        }
    }

    fn absorb_words(&mut self) {
        if let Some(words) = &self.words {
            let len = self.live.len();
            self.live.write(&words.bytes(), 0);
            assert_eq!(
                len,
                self.live.len(),
                "a mapping never reaches past its file"
            );
        }
    }
}

fn apply_part(change: &Pending, disk: &mut Content, rng: &mut ChaCha8Rng) {
    match change {
        Pending::SetLen(len) => disk.set_len(*len),
        Pending::Zero(range) => disk.zero(*range),
        Pending::Write { offset, data } if rng.random_bool(0.7) => disk.write(data, *offset),
        Pending::Write { offset, data } => {
            // Torn: any subset of its sectors.
            let mut at = 0;
            while at < data.len() {
                let sector_end = (*offset + at as u64) / TEAR * TEAR + TEAR;
                let to = usize::try_from(sector_end - offset)
                    .expect("in memory")
                    .min(data.len());
                if rng.random_bool(0.5) {
                    disk.write(&data[at..to], offset + at as u64);
                }
                at = to;
            }
        }
    }
}

/// The pages that `len` bytes at `offset` touch.
fn pages(offset: u64, len: usize) -> Range<u64> {
    offset / PAGE..(offset + len as u64).div_ceil(PAGE)
}

fn tear(len: usize, rng: &mut ChaCha8Rng) -> usize {
    match rng.random_range(0..3) {
        0 => 0,
        1 => len,
        _ => rng.random_range(0..=len),
    }
}
