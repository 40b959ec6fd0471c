//! What the bytes of an intent log say, whoever wrote them: what is lost of them counts as set.

use std::io;

#[cfg(feature = "fuzzing")]
use block::UnixNanos;
use block::index;

use super::CEILING_STEP;
use super::layout::{self, HEADERS, Header, Layout, SECTOR, Slot};
#[cfg(feature = "fuzzing")]
use crate::Generation;
use crate::Lineage;
use crate::error::damaged;

/// What the bytes of a whole file say: the header that counts, and all words.
pub(super) fn parse(
    bytes: &[u8],
    lineage: Lineage,
    layout: &Layout,
) -> io::Result<(Header, Vec<u64>)> {
    let (header, header_is_lost) = newest_header(bytes, lineage, layout)?;
    let mut words = Vec::with_capacity(layout.word_count());
    for sector in 0..layout.sector_count() {
        let at = index(layout::offset_of(sector));
        let bytes = &bytes[at..at + index(SECTOR)];
        match layout::decode_sector(lineage, sector, bytes) {
            Some(found) if !header_is_lost => words.extend(found),
            _ => words.extend(layout::words_of(sector).map(|_| u64::MAX)),
        }
    }
    mask(layout, &mut words);
    Ok((header, words))
}

/// Arbitrary bytes as the log of two disks.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (lineage, layout) = (Lineage([7; 16]), Layout::of(&[1 << 20, 100 << 30]));
    let mut file = bytes.to_vec();
    file.resize(index(layout.file_len()), 0);
    let _ = parse(&file, lineage, &layout);
    // The same with a header that is ours: most inputs would not come further.
    let header = Header {
        sequence: 1,
        trimmed_through: Generation::NONE,
        ceiling: Generation(CEILING_STEP),
        written_until: UnixNanos(0),
    };
    file[..index(SECTOR)].copy_from_slice(&header.encode(lineage, &layout));
    let (_, words) = parse(&file, lineage, &layout).expect("it has a header");
    assert_eq!(words.len(), layout.word_count());
}

/// The header that counts, and whether one that may have counted is lost. A torn one never did; but it
/// looks like one that has rotted, whose ceiling may have been used.
fn newest_header(bytes: &[u8], lineage: Lineage, layout: &Layout) -> io::Result<(Header, bool)> {
    let slots = HEADERS.map(|at| {
        let bytes = &bytes[index(at)..index(at + SECTOR)];
        Header::decode(bytes.try_into().expect("a sector"), lineage, layout)
    });
    let valid = slots.iter().filter_map(|slot| match slot {
        Slot::Valid(header) => Some(*header),
        Slot::Empty | Slot::Damaged => None,
    });
    let newest = valid.max_by_key(|header| header.sequence);
    let mut newest = newest.ok_or_else(|| damaged("it has no header"))?;
    let is_lost = slots.contains(&Slot::Damaged);
    if is_lost {
        newest.ceiling.0 = newest.ceiling.0.saturating_add(2 * (CEILING_STEP + 1));
    }
    Ok((newest, is_lost))
}

/// Takes away the bits that speak of no region.
fn mask(layout: &Layout, words: &mut [u64]) {
    let mut legal = vec![0; words.len()];
    for disk in 0..layout.disk_count() {
        for (word, mask) in layout.masks(disk, 0..layout.region_count(disk)) {
            legal[word] = mask;
        }
    }
    for (word, legal) in words.iter_mut().zip(legal) {
        *word &= legal;
    }
}
