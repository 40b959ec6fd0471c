//! Where the bits of an intent log lie in its file, and what makes them believable.
//!
//! ```text
//! byte 0, 4096   header, two of them, written in turn: magic "STDNINT1" | lineage 16 | sequence u64
//!                | trimmed through u64 | ceiling u64 | written until u64 | sectors u64 | crc32c u32 of all before
//! byte 8192      sectors of 512 bytes, disk after disk: 63 words of bits | sector number u32
//!                | crc32c u32 of the lineage and all before
//! ```
//! Little-endian. A bit speaks of a region of its disk: from 64 KiB of a small one to 4 MiB.
//!
//! Rule: a sector whose checksum is wrong was torn or has rotted: all its regions may differ.

use std::ops::Range;

use block::{GRANULE, GranuleRange, UnixNanos, index};

use crate::{Generation, Lineage};

const MAGIC: &[u8; 8] = b"STDNINT1";
/// What a disk writes whole or not at all, or at least not silently in part: the checksum tells.
pub(crate) const SECTOR: u64 = 512;
const SECTOR_WORDS: u64 = 63;
/// Where the two headers are: a write to one never touches the other.
pub(crate) const HEADERS: [u64; 2] = [0, 4096];
const BODY: u64 = 8192;

const REGION_MIN: u64 = 64 << 10;
const REGION_MAX: u64 = 4 << 20;
/// A disk has about so many regions, until they are of the greatest size.
const REGIONS: u64 = 4096;

/// The part of a log that changes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The higher one of two counts.
    pub(crate) sequence: u64,
    /// Regions without a bit were last written in this generation or before; it is at a target.
    pub(crate) trimmed_through: Generation,
    /// No generation above this was ever opened.
    pub(crate) ceiling: Generation,
    /// No write of ours began later than this.
    pub(crate) written_until: UnixNanos,
}

/// What one of the two places of a header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A header of this log.
    Valid(Header),
    /// Nothing was ever written there.
    Empty,
    /// A header that was torn, or has rotted.
    Damaged,
}

/// One disk's part.
#[derive(Clone, Copy, Debug)]
struct DiskLayout {
    first_word: u64,
    granules_per_region: u64,
    region_count: u64,
    granule_count: u64,
}

/// All disks' parts.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    disks: Vec<DiskLayout>,
    sector_count: u64,
}

impl Layout {
    pub(crate) fn of(sizes: &[u64]) -> Self {
        let mut sector_count = 0;
        let disk = |size: &u64| {
            let region = (size / REGIONS).next_power_of_two();
            let granules_per_region = region.clamp(REGION_MIN, REGION_MAX) / GRANULE;
            let granule_count = GranuleRange::of_size(*size).end;
            let region_count = granule_count.div_ceil(granules_per_region);
            let first_word = sector_count * SECTOR_WORDS;
            sector_count += region_count.div_ceil(SECTOR_WORDS * 64);
            DiskLayout {
                first_word,
                granules_per_region,
                region_count,
                granule_count,
            }
        };
        let disks = sizes.iter().map(disk).collect();
        Self {
            disks,
            sector_count,
        }
    }

    pub(crate) fn file_len(&self) -> u64 {
        BODY + self.sector_count * SECTOR
    }

    pub(crate) fn sector_count(&self) -> u64 {
        self.sector_count
    }

    pub(crate) fn word_count(&self) -> usize {
        index(self.sector_count * SECTOR_WORDS)
    }

    pub(crate) fn disk_count(&self) -> usize {
        self.disks.len()
    }

    /// The regions that granules lie in.
    pub(crate) fn regions(&self, disk: usize, granules: GranuleRange) -> Range<u64> {
        let per_region = self.disks[disk].granules_per_region;
        granules.start / per_region..granules.end.div_ceil(per_region)
    }

    pub(crate) fn region_count(&self, disk: usize) -> u64 {
        self.disks[disk].region_count
    }

    pub(crate) fn region_bytes(&self, disk: usize) -> u64 {
        self.disks[disk].granules_per_region * GRANULE
    }

    pub(crate) fn granules(&self, disk: usize, region: u64) -> GranuleRange {
        let disk = &self.disks[disk];
        let start = region * disk.granules_per_region;
        GranuleRange {
            start,
            end: (start + disk.granules_per_region).min(disk.granule_count),
        }
    }

    /// The word and the bit of a region.
    pub(crate) fn place(&self, disk: usize, region: u64) -> (usize, u64) {
        let word = self.disks[disk].first_word + region / 64;
        (index(word), 1 << (region % 64))
    }

    /// The words and masks of a run of regions.
    pub(crate) fn masks(
        &self,
        disk: usize,
        regions: Range<u64>,
    ) -> impl Iterator<Item = (usize, u64)> {
        let first_word = self.disks[disk].first_word;
        let words = regions.start / 64..regions.end.div_ceil(64);
        words.map(move |word| {
            let from = regions.start.max(word * 64) % 64;
            let count = regions.end.min((word + 1) * 64) - regions.start.max(word * 64);
            let mask = (u64::MAX >> (64 - count)) << from;
            (index(first_word + word), mask)
        })
    }
}

pub(crate) fn sector_of(word: usize) -> u64 {
    word as u64 / SECTOR_WORDS
}

pub(crate) fn words_of(sector: u64) -> Range<usize> {
    index(sector * SECTOR_WORDS)..index((sector + 1) * SECTOR_WORDS)
}

pub(crate) fn offset_of(sector: u64) -> u64 {
    BODY + sector * SECTOR
}

pub(crate) fn encode_sector(lineage: Lineage, sector: u64, words: &[u64]) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes[504..508].copy_from_slice(&number(sector));
    let check = check_of(lineage, &bytes[..508]);
    bytes[508..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// `None`: torn, rotten, or of another place.
pub(crate) fn decode_sector(lineage: Lineage, sector: u64, bytes: &[u8]) -> Option<Vec<u64>> {
    let check = check_of(lineage, &bytes[..508]).to_le_bytes();
    if bytes[508..] != check || bytes[504..508] != number(sector) {
        return None;
    }
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    Some(bytes[..504].chunks_exact(8).map(word).collect())
}

fn number(sector: u64) -> [u8; 4] {
    // A disk of an exbibyte is far below.
    let [a, b, c, d, ..] = sector.to_le_bytes();
    [a, b, c, d]
}

fn check_of(lineage: Lineage, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&lineage.0), bytes)
}

impl Header {
    pub(crate) fn encode(&self, lineage: Lineage, layout: &Layout) -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&lineage.0);
        let words = [
            self.sequence,
            self.trimmed_through.0,
            self.ceiling.0,
            self.written_until.0,
            layout.sector_count,
        ];
        for (slot, word) in bytes[24..64].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let check = crc32c::crc32c(&bytes[..64]);
        bytes[64..68].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; 512], lineage: Lineage, layout: &Layout) -> Slot {
        let word = |at: usize| {
            let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let check = crc32c::crc32c(&bytes[..64]).to_le_bytes();
        let ours = bytes[64..68] == check
            && bytes[..8] == *MAGIC
            && bytes[8..24] == lineage.0
            && word(56) == layout.sector_count;
        if ours {
            return Slot::Valid(Self {
                sequence: word(24),
                trimmed_through: Generation(word(32)),
                ceiling: Generation(word(40)),
                written_until: UnixNanos(word(48)),
            });
        }
        match bytes.iter().all(|byte| *byte == 0) {
            true => Slot::Empty,
            false => Slot::Damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINEAGE: Lineage = Lineage([3; 16]);

    #[test]
    fn every_region_has_its_own_bit() {
        let layout = Layout::of(&[300 * GRANULE + 512, 1 << 40, GRANULE, 17 << 30]);
        let mut seen = std::collections::BTreeSet::new();
        for disk in 0..layout.disk_count() {
            for region in 0..layout.region_count(disk) {
                let (word, bit) = layout.place(disk, region);
                assert!(word < layout.word_count());
                assert!(seen.insert((word, bit)), "disk {disk}, region {region}");
                let granules = layout.granules(disk, region);
                assert_eq!(layout.regions(disk, granules), region..region + 1);
            }
        }
    }

    #[test]
    fn the_masks_of_a_run_are_the_bits_of_its_regions() {
        let layout = Layout::of(&[1 << 40]);
        for regions in [0..1, 3..64, 60..70, 0..64, 64..200, 4000..4100] {
            let mut expected = std::collections::BTreeMap::<usize, u64>::new();
            for region in regions.clone() {
                let (word, bit) = layout.place(0, region);
                *expected.entry(word).or_default() |= bit;
            }
            let found: std::collections::BTreeMap<_, _> = layout.masks(0, regions).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_sector_is_read_back_and_any_flipped_bit_is_noticed() {
        let words: Vec<u64> = (0..SECTOR_WORDS).map(|w| w * 0x1234_5678_9abc).collect();
        let bytes = encode_sector(LINEAGE, 7, &words);
        assert_eq!(decode_sector(LINEAGE, 7, &bytes), Some(words));
        assert_eq!(decode_sector(LINEAGE, 8, &bytes), None);
        assert_eq!(decode_sector(Lineage([4; 16]), 7, &bytes), None);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_sector(LINEAGE, 7, &bad), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn a_header_is_read_back_and_damage_is_noticed(words: [u64; 4], at in 0_usize..68, with: u8) {
            let layout = Layout::of(&[1 << 30]);
            let [sequence, trimmed_through, ceiling, written_until] = words;
            let header = Header {
                sequence,
                trimmed_through: Generation(trimmed_through),
                ceiling: Generation(ceiling),
                written_until: UnixNanos(written_until),
            };
            let mut bytes = header.encode(LINEAGE, &layout);
            prop_assert_eq!(Header::decode(&bytes, LINEAGE, &layout), Slot::Valid(header));
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            prop_assert_eq!(Header::decode(&bytes, LINEAGE, &layout), Slot::Damaged);
            prop_assert_eq!(Header::decode(&[0; 512], LINEAGE, &layout), Slot::Empty);
        }
    }
}
