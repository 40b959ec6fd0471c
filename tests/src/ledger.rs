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
    torn: bool,
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
                torn: false,
            });
            book.entries.len() as WriteId - 1
        })
    }

    /// The server acknowledged `id`.
    pub fn ack(&self, id: WriteId) {
        self.with(|book| {
            let now = book.tick();
            book.at(id).acked = now;
        });
    }

    /// The connection died with `id` in flight.
    pub fn lose(&self, id: WriteId) {
        self.with(|book| book.at(id).torn = true);
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
            let covers = sent.is_some_and(|entry| (entry.first..entry.end).contains(&sector));
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

    /// Whether each word of a sector is zero or of a write that was sent there, and one was in flight.
    fn may_be_torn(&self, sector: usize, bytes: &[u8; SECTOR], asked: u64) -> bool {
        let sent: Vec<_> = self.with(|book| {
            let all = book.entries.iter().zip(0..);
            let there = all.filter(|(entry, _)| (entry.first..entry.end).contains(&sector));
            there.map(|(entry, id)| (id, entry.acked > asked)).collect()
        });
        let mut known = [false; SECTOR / 8];
        for (id, _) in &sent {
            let stamp = stamp(*id, sector);
            let words = bytes.chunks_exact(8).zip(stamp.chunks_exact(8));
            for (known, (found, written)) in known.iter_mut().zip(words) {
                *known |= found == written || *found == [0; 8];
            }
        }
        sent.iter().any(|(_, in_flight)| *in_flight) && known.iter().all(|known| *known)
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
    if !(entry.first..entry.end).contains(&sector) || entry.kind != Kind::Stamped {
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
mod tests {
    use super::*;

    fn image(held: &[Option<WriteId>]) -> Vec<u8> {
        let sectors = held.iter().enumerate();
        sectors
            .flat_map(|(sector, id)| id.map_or([0; SECTOR], |id| stamp(id, sector)))
            .collect()
    }

    /// A on sectors 0-1, acknowledged; then B on 1-2, acknowledged; then a zeroing of 3 in flight.
    fn story() -> Ledger {
        let ledger = Ledger::new(4, Origin::Stamps);
        let (a, _) = ledger.issue_write(0, 2);
        ledger.ack(a);
        let (b, _) = ledger.issue_write(1, 2);
        ledger.ack(b);
        ledger.issue_zero(3, 1);
        ledger
    }

    fn check(held: [Option<WriteId>; 4], window: Window) -> bool {
        story().check(&*image(&held), None, window).is_ok()
    }

    #[test]
    fn every_prefix_of_the_acknowledged_writes_is_one_instant() {
        assert!(check([Some(0), Some(0), Some(0), Some(0)], Window::ANY));
        assert!(check([Some(1), Some(1), Some(0), Some(0)], Window::ANY));
        assert!(check([Some(1), Some(2), Some(2), Some(0)], Window::ANY));
        assert!(check([Some(1), Some(2), Some(2), None], Window::ANY));
    }

    #[test]
    fn a_point_with_b_but_without_a_is_wrong() {
        assert!(!check([Some(0), Some(2), Some(2), Some(0)], Window::ANY));
    }

    #[test]
    fn a_torn_write_is_wrong() {
        assert!(!check([Some(1), Some(0), Some(0), Some(0)], Window::ANY));
        assert!(!check([Some(1), Some(1), Some(2), Some(0)], Window::ANY));
    }

    #[test]
    fn a_cut_asked_after_an_acknowledgement_holds_the_write() {
        let ledger = story();
        let now = ledger.tick();
        let late = Window {
            asked: now,
            answered: now,
        };
        assert!(!check([Some(1), Some(1), Some(0), Some(0)], late));
        assert!(check([Some(1), Some(2), Some(2), Some(0)], late));
    }

    #[test]
    fn a_write_issued_after_the_cut_was_answered_is_not_in_it() {
        assert!(!check(
            [Some(1), Some(2), Some(2), Some(0)],
            Window {
                asked: 0,
                answered: 3
            }
        ));
    }

    #[test]
    fn disks_of_a_group_are_of_one_instant() -> Result<()> {
        let (one, other) = {
            let one = Ledger::new(1, Origin::Stamps);
            let other = one.beside(1, Origin::Stamps);
            (one, other)
        };
        let (a, _) = one.issue_write(0, 1);
        one.ack(a);
        let (b, _) = other.issue_write(0, 1);
        other.ack(b);
        let survey = |ledger: &Ledger, id| ledger.survey(&stamp(id, 0)[..], None, Window::ANY);
        let horizon = survey(&other, b)?.horizon;
        // By itself the disk may be of before A; beside one that holds B it may not.
        let without = survey(&one, 0)?;
        assert!(without.judge(without.horizon).is_ok());
        assert!(without.judge(horizon).is_err());
        assert!(survey(&one, a)?.judge(horizon).is_ok());
        Ok(())
    }

    #[test]
    fn a_read_gives_zeroes_or_what_was_sent_there() {
        let ledger = story();
        let now = ledger.tick();
        assert!(ledger.check_read(0, &stamp(1, 0), now).is_ok());
        assert!(ledger.check_read(0, &[0; SECTOR], now).is_ok());
        assert!(ledger.check_read(0, &stamp(2, 0), now).is_err());
        assert!(ledger.check_read(1, &stamp(1, 0), now).is_err());
        assert!(ledger.check_read(0, &[7; SECTOR], now).is_err());
    }

    /// An hour of the soak ended with a sector whose first words were of a write that was under way, and the rest
    /// of the one before.
    #[test]
    fn a_read_beside_a_write_may_be_torn_and_no_other() {
        let ledger = story();
        let (id, _) = ledger.issue_write(0, 1);
        let mut torn = stamp(1, 0);
        torn[..24].copy_from_slice(&stamp(id, 0)[..24]);
        let before = ledger.tick();
        assert!(ledger.check_read(0, &torn, before).is_ok());
        ledger.ack(id);
        assert!(ledger.check_read(0, &torn, before).is_ok());
        assert!(ledger.check_read(0, &torn, ledger.tick()).is_err());
        torn[200] ^= 1;
        assert!(ledger.check_read(0, &torn, before).is_err());
    }

    #[test]
    fn bytes_that_nobody_wrote_are_wrong() {
        assert!(!check([Some(7), Some(0), Some(0), Some(0)], Window::ANY));
        assert!(!check([None, Some(0), Some(0), Some(0)], Window::ANY));
        let mut image = image(&[Some(0); 4]);
        image[700] ^= 1;
        assert!(story().check(&*image, None, Window::ANY).is_err());
    }

    #[test]
    fn a_disk_may_start_with_any_content() {
        let ledger = Ledger::new(3, Origin::File);
        let mut original = [[7; SECTOR], [0; SECTOR], [9; SECTOR]];
        let (a, _) = ledger.issue_write(0, 1);
        ledger.ack(a);
        let check = |sectors: [[u8; SECTOR]; 3], original: [[u8; SECTOR]; 3], window| {
            let mut original = original.as_flattened();
            ledger
                .check(sectors.as_flattened(), Some(&mut original), window)
                .is_ok()
        };
        let now = ledger.tick();
        let late = Window {
            asked: now,
            answered: now,
        };
        assert!(check(original, original, Window::ANY));
        assert!(!check(original, original, late));
        let mut written = original;
        written[0] = stamp(a, 0);
        assert!(check(written, original, late));
        written[2] = [0; SECTOR];
        assert!(!check(written, original, late));
        original[1] = [1; SECTOR];
        assert!(!check(written, original, late));
    }
}
