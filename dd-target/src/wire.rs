//! What both ends of a connection agree on. `docs/formats/wire.md` draws the bytes.
//!
//! ```text
//! ask:     entries: granule u64 | fingerprint 32           answer: a bit for each entry, 1 where the vault lacks the chunk
//! regions: frames:  encoding u8 | chunks u8 | 0 u16 | length u32 | chunks entries | length bytes
//! ```
//! Integers are little-endian.
//!
//! Rule: a length from outside is checked before anything is taken by it.

use bytes::Bytes;
use store::{Fingerprint, PackedRegion};

/// Bytes of a frame of HTTP/2, at most: the 16 KiB of its default cost a turn of the loop each.
pub(crate) const FRAME_BYTES: u32 = 256 << 10;

/// Most bytes of an object that are sent in one answer.
pub(crate) const RANGE_MAX: u64 = 6 << 20;

/// The folder of commits.
pub(crate) const CATALOG: &str = "catalog";

/// The folder of what opens an encrypted store; its objects are worth nothing without a key or passphrase.
pub(crate) const KEYS: &str = "keys";

/// Folders whose objects lie in folders of numbers.
const NUMBERED: [&str; 3] = ["containers", "trees", "bundles"];

/// Whether it is the name of an object that readers may ask for.
pub(crate) fn is_object(name: &str) -> bool {
    match name.rsplit_once('/') {
        None => name == "format",
        Some((folder, plain)) => is_folder(folder) && is_plain(plain),
    }
}

/// Whether it is a folder with such objects.
pub(crate) fn is_folder(folder: &str) -> bool {
    match folder.split_once('/') {
        None => folder == CATALOG || folder == KEYS,
        Some((kind, number)) => {
            let digits = number.bytes().all(|byte| byte.is_ascii_hexdigit());
            NUMBERED.contains(&kind) && digits && (1..=16).contains(&number.len())
        }
    }
}

fn is_plain(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(legal)
}

/// Bytes of an entry: a granule and the fingerprint of what it holds.
const ENTRY: usize = 8 + 32;
/// The granule of a chunk that is a part of its region, and of no granule.
pub(crate) const NOWHERE: u64 = u64::MAX;
/// Bytes of a frame before its entries.
const FRAME_HEAD: usize = 8;
/// Most entries that are asked for at once.
pub(crate) const ASKED_MAX: usize = 8192;
/// Longest body of an ask.
pub(crate) const ASK_BYTES_MAX: usize = ASKED_MAX * ENTRY;
/// Longest body of regions.
pub(crate) const REGIONS_BYTES_MAX: usize = 4 << 20;

/// A granule, and the fingerprint of what it is to hold.
pub(crate) type Entry = (u64, Fingerprint);

/// A region on its way. What it holds is not known to be right.
pub(crate) struct Frame {
    pub(crate) entries: Vec<Entry>,
    pub(crate) region: PackedRegion,
}

/// Bytes that are no entries or frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(&'static str);

pub(crate) fn put_entry(out: &mut Vec<u8>, (granule, fingerprint): &Entry) {
    out.extend_from_slice(&granule.to_le_bytes());
    out.extend_from_slice(fingerprint.as_bytes());
}

/// The entries of an ask.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let (all, rest) = bytes.as_chunks::<ENTRY>();
    match rest.is_empty() && all.len() <= ASKED_MAX {
        true => Ok(all.iter().map(entry).collect()),
        false => Err(Malformed("it is not whole entries, or there are too many")),
    }
}

fn entry(bytes: &[u8; ENTRY]) -> Entry {
    let (granule, fingerprint) = bytes.split_first_chunk::<8>().expect("it is longer");
    let fingerprint = fingerprint.first_chunk::<32>().expect("it is as long");
    (
        u64::from_le_bytes(*granule),
        Fingerprint::from_bytes(*fingerprint),
    )
}

pub(crate) fn put_frame(out: &mut Vec<u8>, entries: &[Entry], region: &PackedRegion) {
    let chunks = u8::try_from(entries.len()).expect("a region has 32 chunks at most");
    let stored = region.stored();
    let len = u32::try_from(stored.len()).expect("a region is far shorter");
    out.extend_from_slice(&[region.encoding(), chunks, 0, 0]);
    out.extend_from_slice(&len.to_le_bytes());
    entries.iter().for_each(|entry| put_entry(out, entry));
    out.extend_from_slice(stored);
}

/// The frames of a body. Their regions are parts of it.
pub(crate) fn frames(body: &Bytes) -> Result<Vec<Frame>, Malformed> {
    let mut found = Vec::new();
    let mut bytes = &**body;
    while !bytes.is_empty() {
        let (frame, rest) = frame(body, bytes)?;
        found.push(frame);
        bytes = rest;
    }
    Ok(found)
}

fn frame<'a>(body: &Bytes, bytes: &'a [u8]) -> Result<(Frame, &'a [u8]), Malformed> {
    let short = Malformed("a frame ends before its end");
    let (head, rest) = bytes.split_first_chunk::<FRAME_HEAD>().ok_or(short)?;
    let [encoding, chunks, reserved @ .., a, b, c, d] = *head;
    if reserved != [0, 0] {
        return Err(Malformed("what is reserved in a frame is not zero"));
    }
    let (chunks, stored) = (usize::from(chunks), u32::from_le_bytes([a, b, c, d]));
    let (entries, rest) = rest.split_at_checked(chunks * ENTRY).ok_or(short)?;
    let (stored, rest) = rest.split_at_checked(stored as usize).ok_or(short)?;
    let impossible = Malformed("there can be no such region");
    let stored = body.slice_ref(stored);
    let region = PackedRegion::from_parts(encoding, chunks, stored).ok_or(impossible)?;
    let (entries, _) = entries.as_chunks::<ENTRY>();
    let entries = entries.iter().map(entry).collect();
    Ok((Frame { entries, region }, rest))
}

/// A bit for each entry.
pub(crate) fn bitmap(lacking: &[bool]) -> Vec<u8> {
    let mut bytes = vec![0; lacking.len().div_ceil(8)];
    for (at, _) in lacking.iter().enumerate().filter(|(_, lacks)| **lacks) {
        bytes[at / 8] |= 1 << (at % 8);
    }
    bytes
}

/// The bits of so many entries; `None` if it is another length.
pub(crate) fn lacking(bitmap: &[u8], count: usize) -> Option<Vec<bool>> {
    let bit = |at: usize| bitmap[at / 8] >> (at % 8) & 1 == 1;
    (bitmap.len() == count.div_ceil(8)).then(|| (0..count).map(bit).collect())
}

/// Parses what a stranger may send; what it says goes over the wire again unharmed.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(frames) = frames(&Bytes::copy_from_slice(bytes)) {
        let mut again = Vec::new();
        for frame in &frames {
            put_frame(&mut again, &frame.entries, &frame.region);
        }
        assert_eq!(again, bytes);
    }
    if let Ok(entries) = entries(bytes) {
        let mut again = Vec::new();
        entries
            .iter()
            .for_each(|entry| put_entry(&mut again, entry));
        assert_eq!(again, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_readers_need_has_a_name() {
        for name in [
            "format",
            "catalog/commit-0000000000000001",
            "keys/0123456789abcdef0123456789abcdef-0000000000000001.copy",
            "containers/000000/00000000000a.con",
            "trees/000000/000000000001.tre",
            "bundles/000001/000000001001.bun",
        ] {
            assert!(is_object(name), "{name}");
        }
        for name in [
            "",
            "/",
            "lease/lock",
            "lease/epoch-0000000000000001",
            "headroom",
            "format/x",
            "catalog",
            "catalog/../format",
            "catalog/..",
            "containers/../lease/lock",
            "containers/000000/..",
            "containers/000000/x/y",
            "containers//x",
            "/containers/000000/x",
            "containers/000000/a b",
            "containers/000000/\u{e9}",
        ] {
            assert!(!is_object(name), "{name}");
        }
    }

    #[test]
    fn frames_come_back_as_they_were_sent_and_torn_ones_do_not() {
        let codec = store::ChunkCodec::plain();
        let content: Vec<u8> = (0..8192_u32).map(|at| at.to_le_bytes()[0] ^ 7).collect();
        let fingerprints = codec.fingerprints(&content);
        let entries: Vec<Entry> = [5, 9].into_iter().zip(fingerprints).collect();
        let mut bytes = Vec::new();
        let region = codec.pack(content);
        put_frame(&mut bytes, &entries, &region);
        put_frame(&mut bytes, &entries, &region);
        let bytes = Bytes::from(bytes);
        let back = frames(&bytes).unwrap();
        assert_eq!(back.len(), 2);
        assert_eq!(back[1].entries, entries);
        assert_eq!(back[1].region.stored(), region.stored());
        for len in 1..bytes.len() {
            let torn = frames(&bytes.slice(..len));
            assert!(torn.is_err() || len == bytes.len() / 2, "{len}");
        }
        for (at, byte) in [(1, 33), (2, 1)] {
            let mut wrong = bytes.to_vec();
            wrong[at] = byte;
            assert!(frames(&wrong.into()).is_err(), "{at}");
        }
    }

    #[test]
    fn bits_come_back_as_they_were_sent() {
        let bits = [true, false, false, true, true, false, false, false, true];
        assert_eq!(lacking(&bitmap(&bits), 9), Some(bits.to_vec()));
        assert_eq!(lacking(&bitmap(&bits), 8), None);
    }
}
