//! What lies where on a device that is a directory; `docs/formats/device-dir.md` has it in words.
//!
//! ```text
//! byte 0      superblock, one sector: magic "STDNDEV1" | segments u32 | owner's length u32 | owner | ...
//!             | crc32c u32 of all before
//! byte 4096   slots of two halves of 512 bytes, one for each file: id u64 | sequence u64 | length u64
//!             | name's length u32 | name | ... | crc32c u32 of all before
//! after them  entries of 32 bytes, one for each segment: id of its file u64 | position in it u32
//!             | crc32c u32 of both | pages u32 | zero
//! after them, at a whole segment   segments of 128 KiB
//! ```
//! Little-endian. All zero is a free slot, and a free segment. Of two halves the one with the higher sequence counts;
//! the other is written next, so that a write that is torn leaves what was. A bit of `pages` speaks of 4 KiB that were
//! written: what was not reads as zeroes, whatever an earlier file left there. Only `pages` of an entry ever changes
//! while its file is there, and any mixture of old and new bits is harmless.
//!
//! Rule: nothing here is believed further than it is harmless to. A record that is damaged is a file, or a part of
//! one, that is gone; who keeps files here knows their content by its checksums.

use crate::index;

const MAGIC: &[u8; 8] = b"STDNDEV1";
pub(super) const PAGE: u64 = 4096;
/// As many pages as a word has bits.
pub(super) const SEGMENT: u64 = 32 * PAGE;
/// Files that a device can have.
pub(super) const SLOTS: u32 = 8192;
const HALF_BYTES: usize = 512;
pub(super) const HALF: u64 = HALF_BYTES as u64;
pub(super) const SLOT: u64 = 2 * HALF;
const ENTRY_BYTES: usize = 32;
pub(super) const ENTRY: u64 = ENTRY_BYTES as u64;
const SUPERBLOCK_BYTES: usize = 512;
pub(super) const SUPERBLOCK: u64 = SUPERBLOCK_BYTES as u64;
/// Where slots begin.
pub(super) const RECORDS: u64 = 4096;
/// Longest name of a file, in bytes.
pub(super) const NAME_MAX: usize = 255;
/// Least bytes of a device.
pub(super) const SIZE_MIN: u64 = 64 << 20;
/// 32 TiB: beyond it the rest is not used.
const SEGMENTS_MAX: u64 = 1 << 28;
/// No id or sequence above this is believed, and none above half of it is used.
pub(super) const COUNT_MAX: u64 = 1 << 62;
/// Longest file, in bytes.
pub(super) const LEN_MAX: u64 = u32::MAX as u64 * SEGMENT;

/// Where things are, given the number of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) segments: u32,
}

/// Of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    First,
    Second,
}

impl Half {
    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// What the first page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) layout: Layout,
    /// Whose files these are.
    pub(super) owner: String,
}

/// A file, as half a slot says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Never that of an earlier file. Of none where one was removed.
    pub(super) id: u64,
    /// Counts all that is written to slots: of two that claim a slot, a name or an id, the higher one is meant.
    pub(super) sequence: u64,
    pub(super) len: u64,
    /// Empty where a file was removed: what is left counts on.
    pub(super) name: String,
}

/// A segment of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: u64,
    /// Which segment of the file it is.
    pub(super) position: u32,
    /// Those that were written.
    pub(super) pages: u32,
}

impl Layout {
    /// As many segments as fit; `None` if the device is too small.
    pub(super) fn fitting(size: u64) -> Option<Self> {
        if size < SIZE_MIN {
            return None;
        }
        let room = size - RECORDS - u64::from(SLOTS) * SLOT - SEGMENT;
        let segments = (room / (SEGMENT + ENTRY)).min(SEGMENTS_MAX);
        Some(Self {
            segments: u32::try_from(segments).expect("limited"),
        })
    }

    pub(super) fn slot_at(slot: u32) -> u64 {
        RECORDS + u64::from(slot) * SLOT
    }

    pub(super) fn half_at(slot: u32, half: Half) -> u64 {
        let half = match half {
            Half::First => 0,
            Half::Second => HALF,
        };
        Self::slot_at(slot) + half
    }

    pub(super) fn entry_at(segment: u32) -> u64 {
        Self::slot_at(SLOTS) + u64::from(segment) * ENTRY
    }

    /// Where records end and segments begin.
    pub(super) fn data(self) -> u64 {
        Self::entry_at(self.segments).next_multiple_of(SEGMENT)
    }

    pub(super) fn segment_at(self, segment: u32) -> u64 {
        self.data() + u64::from(segment) * SEGMENT
    }

    /// Bytes of the device that are used.
    pub(super) fn end(self) -> u64 {
        self.segment_at(self.segments)
    }
}

impl Superblock {
    /// `None` if the owner's name is too long.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        let owner = self.owner.as_bytes();
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.layout.segments.to_le_bytes());
        put_text(&mut bytes, 12, owner)?;
        seal(&mut bytes);
        Some(bytes)
    }

    /// `Ok(None)` if it is none, `Err` if it is one and damaged.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, Damaged> {
        if !bytes.starts_with(MAGIC) {
            return Ok(None);
        }
        let whole = bytes.len() == SUPERBLOCK_BYTES && is_sealed(bytes);
        let segments = u32_at(bytes, 8).filter(|count| u64::from(*count) <= SEGMENTS_MAX);
        let owner = text_at(bytes, 12);
        match (whole, segments, owner) {
            (true, Some(segments), Some(owner)) => Ok(Some(Self {
                layout: Layout { segments },
                owner,
            })),
            _ => Err(Damaged),
        }
    }
}

/// A superblock whose bytes do not match their checksum, or say what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

impl Slot {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HALF_BYTES];
        for (at, word) in [self.id, self.sequence, self.len].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        put_text(&mut bytes, 24, self.name.as_bytes()).expect("names are checked");
        seal(&mut bytes);
        bytes
    }

    /// What is left of a file.
    pub(super) fn gone() -> Self {
        Self {
            id: 0,
            sequence: 0,
            len: 0,
            name: String::new(),
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.name.is_empty()
    }

    /// What a slot says, and which half says it; `None` if nothing ever was there, or both are damaged.
    pub(super) fn of_halves(bytes: &[u8]) -> Option<(Half, Self)> {
        let (first, second) = bytes.split_at_checked(HALF_BYTES)?;
        let first = Self::decode(first).map(|slot| (Half::First, slot));
        let second = Self::decode(second).map(|slot| (Half::Second, slot));
        let both = first.into_iter().chain(second);
        both.max_by_key(|(_, slot)| slot.sequence)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != HALF_BYTES || !is_sealed(bytes) {
            return None;
        }
        let slot = Self {
            id: u64_at(bytes, 0)?,
            sequence: u64_at(bytes, 8)?,
            len: u64_at(bytes, 16)?,
            name: text_at(bytes, 24)?,
        };
        // Both are counted on from the highest.
        let countable = slot.id.max(slot.sequence) <= COUNT_MAX && (slot.id > 0 || slot.is_gone());
        let short = slot.name.len() <= NAME_MAX && slot.len <= LEN_MAX;
        (countable && short).then_some(slot)
    }
}

impl Entry {
    pub(super) const FREE: Self = Self {
        id: 0,
        position: 0,
        pages: 0,
    };

    pub(super) fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        if self == Self::FREE {
            return bytes;
        }
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.position.to_le_bytes());
        let check = crc32c::crc32c(&bytes[..12]);
        bytes[12..16].copy_from_slice(&check.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.pages.to_le_bytes());
        bytes
    }

    /// In their order; those that are damaged are free.
    pub(super) fn decode_all(bytes: &[u8]) -> impl Iterator<Item = Self> {
        let decode = |bytes: &[u8]| {
            let entry = Self {
                id: u64_at(bytes, 0)?,
                position: u32_at(bytes, 8)?,
                pages: u32_at(bytes, 16)?,
            };
            let whole = u32_at(bytes, 12)? == crc32c::crc32c(&bytes[..12]);
            (whole && entry.id <= COUNT_MAX).then_some(entry)
        };
        bytes
            .chunks_exact(ENTRY_BYTES)
            .map(move |bytes| decode(bytes).unwrap_or(Self::FREE))
    }
}

fn seal(bytes: &mut [u8]) {
    let at = bytes.len() - 4;
    let check = crc32c::crc32c(&bytes[..at]);
    bytes[at..].copy_from_slice(&check.to_le_bytes());
}

/// Zeroes are not.
fn is_sealed(bytes: &[u8]) -> bool {
    let at = bytes.len() - 4;
    u32_at(bytes, at) == Some(crc32c::crc32c(&bytes[..at])) && bytes.iter().any(|b| *b != 0)
}

/// A length and so many bytes.
fn put_text(bytes: &mut [u8], at: usize, text: &[u8]) -> Option<()> {
    let len = u32::try_from(text.len()).ok()?;
    let room = bytes.len() - 4;
    let place = bytes[..room].get_mut(at + 4..at + 4 + text.len())?;
    place.copy_from_slice(text);
    bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
    Some(())
}

fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let len = index(u32_at(bytes, at)?.into());
    let end = (at + 4).checked_add(len)?;
    if end > bytes.len() - 4 {
        return None;
    }
    let text = bytes.get(at + 4..end)?;
    Some(std::str::from_utf8(text).ok()?.to_owned())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back() {
        let superblock = Superblock {
            layout: Layout { segments: 77 },
            owner: "web".into(),
        };
        let mut bytes = superblock.encode().expect("short");
        assert_eq!(Superblock::decode(&bytes), Ok(Some(superblock)));
        bytes[100] ^= 1;
        assert_eq!(Superblock::decode(&bytes), Err(Damaged));
        assert_eq!(Superblock::decode(&[0; 512]), Ok(None));

        let slot = Slot {
            id: 9,
            sequence: 10,
            len: 4097,
            name: "web.3.abababab.diff".into(),
        };
        let mut bytes = slot.encode();
        assert_eq!(Slot::decode(&bytes), Some(slot.clone()));
        let later = Slot {
            sequence: 11,
            ..slot.clone()
        };
        let mut both = [later.encode(), bytes.clone()].concat();
        assert_eq!(Slot::of_halves(&both), Some((Half::First, later)));
        both[20] ^= 1;
        assert_eq!(Slot::of_halves(&both), Some((Half::Second, slot)));
        bytes[24] ^= 1;
        assert_eq!(Slot::decode(&bytes), None);
        assert_eq!(Slot::of_halves(&[0; 1024]), None);

        let entry = Entry {
            id: 1,
            position: 2,
            pages: 3,
        };
        let bytes = [entry.encode(), Entry::FREE.encode()].concat();
        let read: Vec<_> = Entry::decode_all(&bytes).collect();
        assert_eq!(read, [entry, Entry::FREE]);
        for torn in 1..12 {
            let mut bytes = Entry {
                id: 0x0201,
                ..entry
            }
            .encode();
            bytes[..torn].copy_from_slice(&[0xff; 12][..torn]);
            assert_eq!(Entry::decode_all(&bytes).next(), Some(Entry::FREE));
        }
    }

    #[test]
    fn what_fits_does_not_reach_past_the_end() {
        assert_eq!(Layout::fitting(SIZE_MIN - 1), None);
        for size in [
            SIZE_MIN,
            SIZE_MIN + 512,
            100 << 30,
            (100 << 30) + 12_345 * 512,
            1 << 50,
        ] {
            let layout = Layout::fitting(size).expect("large enough");
            assert!(layout.end() <= size, "{size}");
            let unused = size - layout.end();
            assert!(unused < 3 * SEGMENT || size == 1 << 50, "{size}: {unused}");
        }
    }
}
