//! A frame of a diff file: a page that says which granules follow, and their bytes. A diff is an array of
//! frames, each at a multiple of [`STRIDE`].
//!
//! ```text
//! byte 0   magic        "STDNFRM1"
//!      8   lineage      16 bytes
//!     24   generation   u64
//!     32   position     u64, of the frame in its file
//!     40   disk         u32, CRC-32C of its name
//!     44   count        u32, granules that follow
//!     48   check        u32, CRC-32C of bytes 0 to 48 and of the entries
//!     64   entries      24 bytes each: granule u64, order u64, CRC-32C of its bytes u32, zero u32
//!   4096   granules     4096 bytes each, in the order of the entries
//! ```
//!
//! Rule: of all entries for a granule the one with the highest order counts.

use std::io;

use block::{GRANULE, Name, index};

use crate::error::damaged;
use crate::{Generation, Lineage};

/// Granules of a frame, at most.
pub(crate) const FRAME_GRANULES: u64 = 127;
/// The header page.
pub(crate) const HEADER: u64 = GRANULE;
/// From frame to frame; what a frame does not fill is a hole.
pub(crate) const STRIDE: u64 = HEADER + FRAME_GRANULES * GRANULE;

const MAGIC: &[u8; 8] = b"STDNFRM1";
const CHECK_AT: usize = 48;
const ENTRIES_AT: usize = 64;
const ENTRY: usize = 24;

const _: () = assert!(ENTRIES_AT as u64 + ENTRY as u64 * FRAME_GRANULES <= HEADER);

/// Which diff a frame must be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameIdentity {
    lineage: Lineage,
    generation: Generation,
    disk: u32,
}

/// A granule in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) granule: u64,
    pub(crate) order: u64,
    pub(crate) check: u32,
}

impl FrameIdentity {
    pub(crate) fn new(lineage: Lineage, generation: Generation, disk: &Name) -> Self {
        let disk = crc32c::crc32c(disk.as_str().as_bytes());
        Self {
            lineage,
            generation,
            disk,
        }
    }

    /// Writes the header of the frame at `position` into `page`.
    ///
    /// # Panics
    /// If there are more entries than a frame has room for.
    pub(crate) fn encode(self, position: u64, entries: &[Entry], page: &mut [u8]) {
        assert!(entries.len() <= index(FRAME_GRANULES), "{}", entries.len());
        page.fill(0);
        page[..8].copy_from_slice(MAGIC);
        page[8..24].copy_from_slice(&self.lineage.0);
        page[24..32].copy_from_slice(&self.generation.0.to_le_bytes());
        page[32..40].copy_from_slice(&position.to_le_bytes());
        page[40..44].copy_from_slice(&self.disk.to_le_bytes());
        let count = u32::try_from(entries.len()).expect("a frame has few entries");
        page[44..48].copy_from_slice(&count.to_le_bytes());
        let slots = page[ENTRIES_AT..].chunks_exact_mut(ENTRY);
        for (entry, slot) in entries.iter().zip(slots) {
            slot[..8].copy_from_slice(&entry.granule.to_le_bytes());
            slot[8..16].copy_from_slice(&entry.order.to_le_bytes());
            slot[16..20].copy_from_slice(&entry.check.to_le_bytes());
        }
        let check = check_of(page, entries.len());
        page[CHECK_AT..CHECK_AT + 4].copy_from_slice(&check.to_le_bytes());
    }

    /// The entries of the frame at `position`, from its header page.
    ///
    /// # Errors
    /// `InvalidData` if it is not that frame, or damaged.
    pub(crate) fn decode(
        self,
        position: u64,
        page: &[u8],
    ) -> io::Result<impl Iterator<Item = Entry> + '_> {
        let wrong = |what: &str| {
            let why = format!("frame {position} of the diff has lost its header ({what})");
            Err(damaged(why))
        };
        if page.len() < index(HEADER) || page[..8] != *MAGIC {
            return wrong("it is none");
        }
        let count = index(u64::from(u32_at(page, 44)));
        if count > index(FRAME_GRANULES) {
            return wrong("it is too long");
        }
        if u32_at(page, CHECK_AT) != check_of(page, count) {
            return wrong("its check does not match");
        }
        let ours = page[8..24] == self.lineage.0
            && u64_at(page, 24) == self.generation.0
            && u64_at(page, 32) == position
            && u32_at(page, 40) == self.disk;
        if !ours {
            return wrong("it is another frame");
        }
        let slots = page[ENTRIES_AT..].chunks_exact(ENTRY).take(count);
        Ok(slots.map(|slot| Entry {
            granule: u64_at(slot, 0),
            order: u64_at(slot, 8),
            check: u32_at(slot, 16),
        }))
    }
}

fn check_of(page: &[u8], count: usize) -> u32 {
    let entries = &page[ENTRIES_AT..ENTRIES_AT + ENTRY * count];
    crc32c::crc32c_append(crc32c::crc32c(&page[..CHECK_AT]), entries)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Arbitrary bytes as a frame: reading it must end, and name no more than a frame holds.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let disk: Name = "disk".parse().expect("a name");
    let identity = FrameIdentity::new(Lineage([7; 16]), Generation(3), &disk);
    let mut page = vec![0; index(HEADER)];
    let len = bytes.len().min(page.len());
    page[..len].copy_from_slice(&bytes[..len]);
    // Half of them with a check that matches, so that what comes after it is reached.
    if bytes.first().is_some_and(|byte| byte & 1 == 1) {
        let count = index(u64::from(u32_at(&page, 44))).min(index(FRAME_GRANULES));
        page[..8].copy_from_slice(MAGIC);
        let check = check_of(&page, count);
        page[CHECK_AT..CHECK_AT + 4].copy_from_slice(&check.to_le_bytes());
    }
    if let Ok(entries) = identity.decode(0, &page) {
        assert!(entries.count() <= index(FRAME_GRANULES), "too many");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> FrameIdentity {
        FrameIdentity::new(Lineage([7; 16]), Generation(3), &"disk".parse().unwrap())
    }

    fn entries(count: u64) -> Vec<Entry> {
        let entry = |n: u64| Entry {
            granule: n * 11,
            order: 1000 + n,
            check: 77,
        };
        (0..count).map(entry).collect()
    }

    #[test]
    fn a_frame_is_read_back() {
        for count in [0, 1, 32, FRAME_GRANULES] {
            let mut page = vec![0xff; index(HEADER)];
            identity().encode(9, &entries(count), &mut page);
            let read: Vec<_> = identity().decode(9, &page).unwrap().collect();
            assert_eq!(read, entries(count));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let mut page = vec![0; index(HEADER)];
        identity().encode(9, &entries(3), &mut page);
        for bit in 0..8 * (ENTRIES_AT + 3 * ENTRY) {
            // Between the check and the entries nothing is said.
            if (CHECK_AT + 4..ENTRIES_AT).contains(&(bit / 8)) {
                continue;
            }
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(identity().decode(9, &page).is_err(), "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_frame_of_another_diff_or_place_is_none_of_ours() {
        let mut page = vec![0; index(HEADER)];
        identity().encode(9, &entries(3), &mut page);
        assert!(identity().decode(8, &page).is_err());
        let other = |lineage, generation, disk: &str| {
            let other = FrameIdentity::new(lineage, Generation(generation), &disk.parse().unwrap());
            other.decode(9, &page).is_err()
        };
        assert!(other(Lineage([8; 16]), 3, "disk"));
        assert!(other(Lineage([7; 16]), 4, "disk"));
        assert!(other(Lineage([7; 16]), 3, "disk2"));
    }
}
