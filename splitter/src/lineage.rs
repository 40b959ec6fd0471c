//! The record of a lineage: which disks it tracks, and on which boot of the machine.
//!
//! ```text
//! magic "STDNLIN1" | lineage 16 | boot: text | group: text | disk count u16
//!   | disk: name text, size u64, identity text ...  | crc32c u32 of all before
//! ```
//! Little-endian; a text is a length u16 and that many bytes of UTF-8. Written to a new file,
//! synced, renamed over `tracking`: what a crash leaves is the old record or the new one.
//!
//! The note of a cut is a file of the same make: magic "STDNCUT2" | consistency u8 (0 crash, 1 application)
//! | count of labels u16 | key, value ... | crc. A cut without it has no labels and is crash-consistent.

use std::collections::BTreeMap;
use std::io;

use block::{Dir, Name};

use crate::files;
use crate::group::DISKS_MAX;
use crate::{Consistency, CutNote, Generation, Lineage};

const MAGIC: &[u8; 8] = b"STDNLIN1";
const NOTE_MAGIC: &[u8; 8] = b"STDNCUT2";
/// More than the largest legal record; a longer file is not read.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// Labels of one cut.
const LABELS_MAX: usize = 64;
/// Bytes of a label's key or value.
const LABEL_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineageRecord {
    pub(crate) lineage: Lineage,
    pub(crate) boot: String,
    pub(crate) group: String,
    pub(crate) disks: Vec<DiskRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskRecord {
    pub(crate) name: Name,
    pub(crate) size: u64,
    pub(crate) identity: String,
}

/// Bytes that are no record; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotARecord(&'static str);

impl LineageRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.lineage.0);
        put_text(&mut out, &self.boot);
        put_text(&mut out, &self.group);
        let count = u16::try_from(self.disks.len()).expect("DISKS_MAX is far below");
        out.extend(count.to_le_bytes());
        for disk in &self.disks {
            put_text(&mut out, disk.name.as_str());
            out.extend(disk.size.to_le_bytes());
            put_text(&mut out, &disk.identity);
        }
        seal(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NotARecord> {
        let mut reader = Reader::unseal(bytes, MAGIC)?;
        let lineage = Lineage(reader.array()?);
        let boot = reader.text()?;
        let group = reader.text()?;
        let count = usize::from(u16::from_le_bytes(reader.array()?));
        if count > DISKS_MAX {
            return Err(NotARecord("it names more disks than a group can have"));
        }
        let disks = (0..count)
            .map(|_| reader.disk())
            .collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self {
            lineage,
            boot,
            group,
            disks,
        })
    }

    /// Puts this record in the place of the former one.
    pub(crate) fn save(&self, dir: &dyn Dir) -> io::Result<()> {
        files::remove(dir, files::TRACKING_NEW)?;
        let file = dir.create(files::TRACKING_NEW)?;
        file.write_all_at(&self.encode(), 0)?;
        file.sync_data()?;
        dir.rename(files::TRACKING_NEW, files::TRACKING)?;
        dir.sync()
    }

    /// `Ok(None)`: nothing was ever tracked here. `InvalidData`: the record is damaged.
    pub(crate) fn load(dir: &dyn Dir) -> io::Result<Option<Self>> {
        match read_whole(dir, files::TRACKING)? {
            None => Ok(None),
            Some(bytes) => Self::decode(&bytes).map(Some).map_err(invalid),
        }
    }
}

/// Whether a cut can carry these labels; if not, why.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), &'static str> {
    if labels.len() > LABELS_MAX {
        return Err("a cut has at most 64 labels");
    }
    let long = |text: &&String| text.len() > LABEL_BYTES_MAX;
    match labels
        .iter()
        .flat_map(|(key, value)| [key, value])
        .find(long)
    {
        Some(_) => Err("a label's key and value have at most 4096 bytes each"),
        None => Ok(()),
    }
}

/// Crash: the note of an earlier attempt at the same cut goes first, so it is never taken for this one's.
pub(crate) fn save_note(
    dir: &dyn Dir,
    lineage: Lineage,
    generation: Generation,
    note: &CutNote,
) -> io::Result<()> {
    let name = files::note(lineage, generation);
    files::remove(dir, &name)?;
    if *note == CutNote::default() {
        return Ok(());
    }
    let file = dir.create(&name)?;
    file.write_all_at(&encode_note(note), 0)?;
    // Notes are rare and small; unlike a diff they cannot be rebuilt.
    file.sync_data()
}

fn encode_note(note: &CutNote) -> Vec<u8> {
    let mut out = NOTE_MAGIC.to_vec();
    out.push(match note.consistency {
        Consistency::Crash => 0,
        Consistency::Application => 1,
    });
    let labels = &note.labels;
    let count = u16::try_from(labels.len()).expect("checked against LABELS_MAX");
    out.extend(count.to_le_bytes());
    for text in labels.iter().flat_map(|(key, value)| [key, value]) {
        put_text(&mut out, text);
    }
    seal(out)
}

/// What was said of a cut; nothing if it has no note. A damaged note is an error: it has the user's
/// words.
pub(crate) fn load_note(
    dir: &dyn Dir,
    lineage: Lineage,
    generation: Generation,
) -> io::Result<CutNote> {
    match read_whole(dir, &files::note(lineage, generation))? {
        None => Ok(CutNote::default()),
        Some(bytes) => decode_note(&bytes).map_err(invalid),
    }
}

pub(crate) fn decode_note(bytes: &[u8]) -> Result<CutNote, NotARecord> {
    let mut reader = Reader::unseal(bytes, NOTE_MAGIC)?;
    let consistency = match reader.array()? {
        [0] => Consistency::Crash,
        [1] => Consistency::Application,
        _ => return Err(NotARecord("its consistency is unknown")),
    };
    let count = usize::from(u16::from_le_bytes(reader.array()?));
    if count > LABELS_MAX {
        return Err(NotARecord("it has more labels than a cut can have"));
    }
    let labels = (0..count)
        .map(|_| Ok((reader.text()?, reader.text()?)))
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(CutNote {
        labels,
        consistency,
    })
}

fn read_whole(dir: &dyn Dir, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match dir.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let len = file.len()?;
    if len > RECORD_BYTES_MAX {
        return Err(invalid(NotARecord("it is longer than any record")));
    }
    let mut bytes = vec![0; block::index(len)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

fn invalid(error: NotARecord) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // A path could be longer; what is cut does not match later, and the disks are copied anew.
    let len = text.floor_char_boundary(usize::from(u16::MAX));
    out.extend(u16::try_from(len).expect("just bounded").to_le_bytes());
    out.extend(&text.as_bytes()[..len]);
}

fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let check = crc32c::crc32c(&out);
    out.extend(check.to_le_bytes());
    out
}

/// Reads a sealed record; never past its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn unseal(bytes: &'a [u8], magic: &[u8; 8]) -> Result<Self, NotARecord> {
        let (body, check) = bytes
            .split_last_chunk::<4>()
            .ok_or(NotARecord("it is too short"))?;
        let rest = body
            .strip_prefix(magic)
            .ok_or(NotARecord("its magic is wrong"))?;
        // The fuzzer gets past the checksum: what lies behind must hold on its own.
        let passes = cfg!(fuzzing) || crc32c::crc32c(body) == u32::from_le_bytes(*check);
        if !passes {
            return Err(NotARecord("its checksum does not match"));
        }
        Ok(Self(rest))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NotARecord> {
        let (head, rest) = self
            .0
            .split_first_chunk()
            .ok_or(NotARecord("it ends too soon"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn text(&mut self) -> Result<String, NotARecord> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        let (head, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(NotARecord("it ends too soon"))?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).map_err(|_| NotARecord("a text is not UTF-8"))
    }

    fn disk(&mut self) -> Result<DiskRecord, NotARecord> {
        let name = self
            .text()?
            .parse()
            .map_err(|_| NotARecord("a disk's name is not a name"))?;
        let size = u64::from_le_bytes(self.array()?);
        Ok(DiskRecord {
            name,
            size,
            identity: self.text()?,
        })
    }

    fn end(self) -> Result<(), NotARecord> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(NotARecord("it has bytes past its end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> LineageRecord {
        LineageRecord {
            lineage: Lineage([7; 16]),
            boot: "b-1".into(),
            group: "web".into(),
            disks: vec![DiskRecord {
                name: "root".parse().unwrap(),
                size: 1 << 40,
                identity: "8:1:77".into(),
            }],
        }
    }

    #[test]
    fn a_record_is_read_back_and_any_flipped_bit_is_noticed() {
        let bytes = record().encode();
        assert_eq!(LineageRecord::decode(&bytes).unwrap(), record());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(LineageRecord::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(LineageRecord::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_note_is_read_back_and_any_flipped_bit_is_noticed() {
        for consistency in [Consistency::Crash, Consistency::Application] {
            let note = CutNote {
                labels: [("why".into(), "before the upgrade".into())].into(),
                consistency,
            };
            let bytes = encode_note(&note);
            assert_eq!(decode_note(&bytes).unwrap(), note);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_note(&bad).is_err(), "bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_with_a_good_checksum_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(&body);
            let _ = LineageRecord::decode(&seal(bytes));
            let mut bytes = NOTE_MAGIC.to_vec();
            bytes.extend(&body);
            let _ = decode_note(&seal(bytes));
        }
    }
}
