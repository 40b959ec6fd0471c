//! What was written, when it was asked for, when it was acknowledged; and whether a disk's content
//! can be that of one instant.
//!
//! Every write fills its sectors with stamps that name the write, so a point tells for each sector
//! which write it holds. One counter orders all events:
//!
//! ```text
//! counter  ...  A.issued  A.acked  B.issued  cut asked  B.acked  cut answered  C.issued  ...
//! ```
//!
//! A disk may start with any content, given as a file: what is not a stamp is then that file's.
//!
//! The rules checked for a point, where `H` is the write that a sector holds:
//! 1. `H` was issued before the cut was answered.
//! 2. If the point holds any write issued after `A` was acknowledged, or the cut was asked for after
//!    that, then no sector of `A` holds an `H` that was acknowledged before `A` was issued.
//! 3. A write is whole: if one sector holds `A`, no other sector of `A` holds such an `H`. Not asked
//!    of a write whose connection died: the kernel may tear what is killed.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};

/// Bytes per stamp.
pub const SECTOR: usize = 512;
const MAGIC: u64 = 0x5354_414d_5045_4453;
/// Not yet, or never.
const NEVER: u64 = u64::MAX;

/// One write's number; 0 is the content before the first write.
pub type WriteId = u64;

/// What a disk holds before the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// [`stamp`]s of write 0.
    Stamps,
    /// Zeroes.
    Zeroes,
    /// Whatever a file holds that every check is given.
    File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Original,
    Stamped,
    Zeroed,
    Trimmed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    first: usize,
    end: usize,
    issued: u64,
    acked: u64,
    /// When it was acknowledged, or its connection died.
    ended: u64,
    torn: bool,
}

impl Entry {
    fn covers(&self, sector: usize) -> bool {
        (self.first..self.end).contains(&sector)
    }

    /// What it left in `sector`, if it left a stamp, as write `id`.
    fn content(&self, id: WriteId, sector: usize) -> [u8; SECTOR] {
        match self.kind {
            Kind::Stamped => stamp(id, sector),
            Kind::Original | Kind::Zeroed | Kind::Trimmed => [0; SECTOR],
        }
    }
}

/// Events between which a cut fell.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The counter when the cut was asked for.
    pub asked: u64,
    /// The counter when it was answered.
    pub answered: u64,
}

impl Window {
    /// Some time.
    pub const ANY: Self = Self {
        asked: 0,
        answered: NEVER,
    };
}

#[derive(Debug)]
struct Book {
    /// Counts events; shared by the disks of a group.
    clock: Arc<AtomicU64>,
    entries: Vec<Entry>,
}

/// All writes to one disk.
#[derive(Debug)]
pub struct Ledger {
    sectors: usize,
    book: Mutex<Book>,
}

/// The content of sector `sector` after write `id`.
#[must_use]
pub fn stamp(id: WriteId, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let mut x = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (sector as u64) | 1;
    for word in bytes[24..].chunks_exact_mut(8) {
        // xorshift: cheap, and no two sectors look alike to the deduplication.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes());
    }
    bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    bytes[16..24].copy_from_slice(&(sector as u64).to_le_bytes());
    bytes
}

impl Ledger {
    /// A disk of `sectors` sectors.
    #[must_use]
    pub fn new(sectors: usize, origin: Origin) -> Self {
        Self::counting(sectors, origin, Arc::new(AtomicU64::new(1)))
    }

    /// Another disk of the same group: its events are ordered among those of this one.
    #[must_use]
    pub fn beside(&self, sectors: usize, origin: Origin) -> Self {
        Self::counting(sectors, origin, self.with(|book| Arc::clone(&book.clock)))
    }

    fn counting(sectors: usize, origin: Origin, clock: Arc<AtomicU64>) -> Self {
        let kind = match origin {
            Origin::Stamps => Kind::Stamped,
            Origin::Zeroes => Kind::Zeroed,
            Origin::File => Kind::Original,
        };
        let first = Entry {
            kind,
            first: 0,
            end: sectors,
            issued: 0,
            acked: 0,
            ended: 0,
            torn: false,
        };
        Self {
            sectors,
            book: Mutex::new(Book {
                clock,
                entries: vec![first],
            }),
        }
    }

    /// The moment.
    pub fn tick(&self) -> u64 {
        self.with(|book| book.tick())
    }

    /// A write is about to be sent.
    pub fn issue_write(&self, first: usize, count: usize) -> (WriteId, Vec<u8>) {
        let id = self.issue(Kind::Stamped, first, count);
        let mut data = Vec::with_capacity(count * SECTOR);
        for sector in first..first + count {
            data.extend(stamp(id, sector));
        }
        (id, data)
    }

    /// A write-zeroes is about to be sent.
    pub fn issue_zero(&self, first: usize, count: usize) -> WriteId {
        self.issue(Kind::Zeroed, first, count)
    }

    /// A trim is about to be sent.
    pub fn issue_trim(&self, first: usize, count: usize) -> WriteId {
        self.issue(Kind::Trimmed, first, count)
    }

    fn issue(&self, kind: Kind, first: usize, count: usize) -> WriteId {
        assert!(first + count <= self.sectors, "inside the disk");
        self.with(|book| {
            let issued = book.tick();
            let end = first + count;
            book.entries.push(Entry {
                kind,
                first,
                end,
                issued,
                acked: NEVER,
                ended: NEVER,
                torn: false,
            });
            book.entries.len() as WriteId - 1
        })
    }

    /// The server acknowledged `id`.
    pub fn ack(&self, id: WriteId) {
        self.with(|book| {
            let now = book.tick();
            let entry = book.at(id);
            (entry.acked, entry.ended) = (now, now);
        });
    }

    /// The connection died with `id` in flight.
    pub fn lose(&self, id: WriteId) {
        self.with(|book| {
            let now = book.tick();
            let entry = book.at(id);
            (entry.torn, entry.ended) = (true, now);
        });
    }

    /// Sectors of the disk.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.sectors
    }

    /// Writes issued so far.
    pub fn writes(&self) -> usize {
        self.with(|book| book.entries.len() - 1)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Book) -> T) -> T {
        f(&mut self.book.lock().expect("no holder panics"))
    }

    /// Checks a disk's content against the rules. `original`: what it held at first, for
    /// [`Origin::File`].
    ///
    /// # Errors
    /// The first broken rule, with the sector and the writes; an image that is too long or short.
    pub fn check(
        &self,
        image: impl Read,
        original: Option<&mut dyn Read>,
        window: Window,
    ) -> Result<()> {
        let survey = self.survey(image, original, window)?;
        survey.judge(survey.horizon)
    }

    /// Whether what a guest read can be there at all: each sector is zero, or was stamped by a write that
    /// was sent, there. Says nothing about when. Where a write was in flight at any time since `asked`, the
    /// read may have met it half way, also within a sector: a page cache has no sectors. For disks that began
    /// as stamps or zeroes.
    ///
    /// # Errors
    /// The sector that cannot.
    pub fn check_read(&self, first: usize, data: &[u8], asked: u64) -> Result<()> {
        for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR)) {
            let bytes: &[u8; SECTOR] = bytes.try_into().expect("chunks are exact");
            if *bytes == [0; SECTOR] {
                continue;
            }
            let id = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
            let sent = self.with(|book| book.entries.get(usize::try_from(id).ok()?).copied());
            let covers = sent.is_some_and(|entry| entry.covers(sector));
            let whole = covers && *bytes == stamp(id, sector);
            if !whole && !self.may_be_torn(sector, bytes, asked) {
                bail!(
                    "sector {sector} was read as what nobody wrote there: {:02x?}",
                    &bytes[..24]
                );
            }
        }
        Ok(())
    }

    /// Whether each word of a sector is of one write that was sent there, or of one that was in flight at any
    /// time since `asked`.
    fn may_be_torn(&self, sector: usize, bytes: &[u8; SECTOR], asked: u64) -> bool {
        let sent: Vec<(u64, [u8; SECTOR])> = self.with(|book| {
            let all = book.entries.iter().zip(0..);
            let there = all.filter(|(entry, _)| entry.covers(sector));
            let content = |(entry, id): (&Entry, _)| (entry.ended, entry.content(id, sector));
            there.map(content).collect()
        });
        let mut foreign: Vec<usize> = (0..SECTOR).step_by(8).collect();
        for (_, beside) in sent.iter().filter(|(ended, _)| *ended > asked) {
            foreign.retain(|at| bytes[*at..at + 8] != beside[*at..at + 8]);
        }
        let is_rest = |before: &[u8; SECTOR]| {
            let mut foreign = foreign.iter();
            foreign.all(|at| bytes[*at..at + 8] == before[*at..at + 8])
        };
        foreign.len() < SECTOR / 8 && sent.iter().any(|(_, before)| is_rest(before))
    }

    /// The first half of [`check`](Self::check): which write each sector holds.
    ///
    /// # Errors
    /// A sector that holds what was never written there, or only after the cut.
    pub fn survey(
        &self,
        mut image: impl Read,
        mut original: Option<&mut dyn Read>,
        window: Window,
    ) -> Result<Survey> {
        let entries = self.with(|book| book.entries.clone());
        let zeroed = last_zeroing(&entries, self.sectors, window);
        let mut held = Vec::with_capacity(self.sectors);
        let (mut bytes, mut before) = ([0; SECTOR], [0; SECTOR]);
        for (sector, zeroed) in zeroed.into_iter().enumerate() {
            image.read_exact(&mut bytes).context("the image is short")?;
            if let Some(original) = &mut original {
                original
                    .read_exact(&mut before)
                    .context("the original is short")?;
            }
            let original = original.is_some().then_some(&before);
            held.push(held_write(
                &entries, sector, &bytes, original, zeroed, window,
            )?);
        }
        if image.read(&mut bytes)? > 0 {
            bail!("the image is longer than the disk");
        }
        let mut present = vec![false; entries.len()];
        let mut horizon = window.asked;
        for id in held.iter().filter_map(|held| held.stamped) {
            present[index(id)] = true;
            horizon = horizon.max(entries[index(id)].issued);
        }
        Ok(Survey {
            entries,
            held,
            present,
            horizon,
        })
    }
}

/// Which write each sector of a point holds.
#[derive(Debug)]
pub struct Survey {
    entries: Vec<Entry>,
    held: Vec<Held>,
    present: Vec<bool>,
    /// The point is of this event or later: when the newest write that it holds was issued.
    pub horizon: u64,
}

impl Survey {
    /// Rules 2 and 3, for a point of `horizon` or later: the greatest of all disks of the group, since they
    /// are cut at one instant.
    ///
    /// # Errors
    /// The first broken rule, with the sector and the writes.
    pub fn judge(&self, horizon: u64) -> Result<()> {
        let Self {
            entries,
            held,
            present,
            ..
        } = self;
        for (id, a) in entries
            .iter()
            .enumerate()
            .filter(|(_, a)| a.kind != Kind::Trimmed)
        {
            let whole = present[id] && !a.torn;
            if a.acked >= horizon && !whole {
                continue;
            }
            let lacking = (a.first..a.end).find(|sector| held[*sector].acked < a.issued);
            if let Some(sector) = lacking {
                let part = if whole {
                    ", and holds another part of it"
                } else {
                    ""
                };
                let held = held[sector];
                bail!(
                    "sector {sector} lacks write {id} ({a:?}) but the point is of {horizon} or \
                     later{part}; it holds {held:?}"
                );
            }
        }
        Ok(())
    }
}

impl Book {
    fn tick(&mut self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn at(&mut self, id: WriteId) -> &mut Entry {
        &mut self.entries[index(id)]
    }
}

/// What a sector holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// The write that stamped it; `None` if it is zero or as it was at first.
    stamped: Option<WriteId>,
    /// When that write was acknowledged; of all that may have zeroed it, the latest.
    acked: u64,
}

/// For each sector, the latest acknowledgement among those who may have zeroed it.
fn last_zeroing(entries: &[Entry], sectors: usize, window: Window) -> Vec<Option<u64>> {
    let mut zeroed: Vec<Option<u64>> = vec![None; sectors];
    let zeroing = |entry: &&Entry| matches!(entry.kind, Kind::Zeroed | Kind::Trimmed);
    for entry in entries.iter().filter(zeroing) {
        if entry.issued < window.answered {
            for slot in &mut zeroed[entry.first..entry.end] {
                *slot = Some(slot.map_or(entry.acked, |acked| acked.max(entry.acked)));
            }
        }
    }
    zeroed
}

fn held_write(
    entries: &[Entry],
    sector: usize,
    bytes: &[u8; SECTOR],
    original: Option<&[u8; SECTOR]>,
    zeroed: Option<u64>,
    window: Window,
) -> Result<Held> {
    let is_original = original == Some(bytes);
    if *bytes == [0; SECTOR] {
        // Of two who may have left zeroes there, the later one.
        let Some(acked) = zeroed.max(is_original.then_some(0)) else {
            bail!("sector {sector} is zero and nobody zeroed it")
        };
        return Ok(Held {
            stamped: None,
            acked,
        });
    }
    if is_original {
        return Ok(Held {
            stamped: None,
            acked: 0,
        });
    }
    let id = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
    let entry = usize::try_from(id).ok().and_then(|id| entries.get(id));
    let Some(entry) = entry.filter(|_| *bytes == stamp(id, sector)) else {
        bail!(
            "sector {sector} holds what nobody wrote there: {:02x?}",
            &bytes[..24]
        );
    };
    if !entry.covers(sector) || entry.kind != Kind::Stamped {
        bail!("sector {sector} holds write {id}, which went elsewhere: {entry:?}");
    }
    if entry.issued >= window.answered {
        bail!("sector {sector} holds write {id}, issued after the cut was answered: {entry:?}");
    }
    Ok(Held {
        stamped: Some(id),
        acked: entry.acked,
    })
}

fn index(id: WriteId) -> usize {
    usize::try_from(id).expect("ids are indices")
}

#[cfg(test)]
mod tests;
