//! What the catalog keeps: points and seeds, their names, and their bytes.
//!
//! ```text
//! point: group text | sequence u64 | at u64 ns | lineage 16 | generation u64 | consistency u8
//!        | stored new u64 | changed u64 | labels u32: key text, value text | disks u32: name text, image
//! seed:  group text | lineage 16 | generation u64 | disks u32: name text, cursor u64, image
//! ```
//! A text is a length u16 and that many bytes of UTF-8; an image is written by `tree.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use block::{GRANULE, Name, UnixNanos};

use crate::codec::{Decoded, Decoder, Encode};
use crate::error::{Result, StoreError};
use crate::image_writer::FinishedImage;
use crate::tree::ImageRef;

/// Most disks of a group.
pub(crate) const DISKS_MAX: usize = 256;

/// Most labels of a point.
pub(crate) const LABELS_MAX: usize = 64;

/// Most bytes of a label's key or value.
pub(crate) const LABEL_BYTES_MAX: usize = 4096;

/// A point's name: its group, and its number there. As text: `web@17`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PointId {
    /// The group.
    pub group: Name,
    /// 1 for the group's first point; never used twice.
    pub sequence: u64,
}

/// How a user names a point: `web@17`, or `web@latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointRef {
    /// One point.
    Id(PointId),
    /// The newest point of a group.
    Latest(Name),
}

/// A text that names no point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a point: use GROUP@NUMBER or GROUP@latest")]
pub struct InvalidPoint(String);

impl PointId {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_text(self.group.as_str());
        out.put_u64(self.sequence);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(Self {
            group: decode_name(d)?,
            sequence: d.u64()?,
        })
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.group, self.sequence))
    }
}

impl fmt::Display for PointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Latest(group) => f.pad(&format!("{group}@latest")),
        }
    }
}

impl FromStr for PointRef {
    type Err = InvalidPoint;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidPoint> {
        let parse = || {
            let (group, which) = text.split_once('@')?;
            let group: Name = group.parse().ok()?;
            if which == "latest" {
                return Some(Self::Latest(group));
            }
            let digits = which.bytes().all(|byte| byte.is_ascii_digit());
            let sequence = which.parse().ok().filter(|_| digits)?;
            Some(Self::Id(PointId { group, sequence }))
        };
        parse().ok_or_else(|| InvalidPoint(text.chars().take(100).collect()))
    }
}

impl FromStr for PointId {
    type Err = InvalidPoint;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidPoint> {
        match text.parse()? {
            PointRef::Id(id) => Ok(id),
            PointRef::Latest(_) => Err(InvalidPoint(text.to_owned())),
        }
    }
}

/// In which state a point caught its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// As after a power cut at that instant.
    Crash,
    /// Quiet: what runs in them had been asked to write down all that it held.
    Application,
}

/// A point to be committed.
#[derive(Clone, Debug)]
pub struct PointDraft {
    /// Its group.
    pub group: Name,
    /// Its disks with their images, in the group's order.
    pub disks: Vec<(Name, FinishedImage)>,
    /// When it was cut.
    pub at: UnixNanos,
    /// The tracking history it belongs to.
    pub lineage: [u8; 16],
    /// The generation that the cut sealed.
    pub generation: u64,
    /// What the user wrote on it.
    pub labels: BTreeMap<String, String>,
    /// How consistent it is.
    pub consistency: Consistency,
}

/// A restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// Its name.
    pub id: PointId,
    /// When it was cut.
    pub at: UnixNanos,
    /// The tracking history it belongs to.
    pub lineage: [u8; 16],
    /// The generation that the cut sealed.
    pub generation: u64,
    /// What the user wrote on it.
    pub labels: BTreeMap<String, String>,
    /// How consistent it is.
    pub consistency: Consistency,
    /// Its disks.
    pub disks: Vec<PointDisk>,
    /// Bytes of the objects that were created for it.
    pub stored_new_bytes: u64,
    /// Bytes, in whole granules, that were shipped for it.
    pub changed_bytes: u64,
}

/// A disk of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointDisk {
    /// Its name.
    pub name: Name,
    /// Its size in bytes.
    pub size: u64,
    /// Its content.
    pub image: ImageRef,
}

/// The progress of a first copy, to be saved.
#[derive(Clone, Debug)]
pub struct SeedDraft {
    /// Its group.
    pub group: Name,
    /// The tracking history it belongs to.
    pub lineage: [u8; 16],
    /// The generation before the one that was open when the seed began: the seed, once complete,
    /// is a base with this generation.
    pub generation: u64,
    /// The disks.
    pub disks: Vec<SeedDisk>,
}

/// A disk of a [`SeedDraft`].
#[derive(Clone, Debug)]
pub struct SeedDisk {
    /// Its name.
    pub name: Name,
    /// Granules below this one are copied.
    pub cursor_granule: u64,
    /// What is copied so far.
    pub image: FinishedImage,
}

/// The saved progress of a first copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedRecord {
    /// Its group.
    pub group: Name,
    /// The tracking history it belongs to.
    pub lineage: [u8; 16],
    /// The seed's generation as a base.
    pub generation: u64,
    /// The disks.
    pub disks: Vec<SeedDiskRecord>,
}

/// A disk of a [`SeedRecord`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedDiskRecord {
    /// Its name.
    pub name: Name,
    /// Its size in bytes.
    pub size: u64,
    /// Granules below this one are copied.
    pub cursor_granule: u64,
    /// What is copied so far.
    pub image: ImageRef,
}

impl PointDraft {
    pub(crate) fn to_record(&self, sequence: u64) -> Result<PointRecord> {
        let too_long = |(key, value): (&String, &String)| {
            key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX
        };
        if self.labels.len() > LABELS_MAX || self.labels.iter().any(too_long) {
            let sentence = "a point has at most 64 labels, each at most 4096 bytes long";
            return Err(StoreError::Invalid(sentence));
        }
        check_disks(self.disks.iter().map(|(name, _)| name))?;
        let sum = |of: fn(&FinishedImage) -> u64| self.disks.iter().map(|(_, i)| of(i)).sum();
        let disk = |(name, finished): &(Name, FinishedImage)| PointDisk {
            name: name.clone(),
            size: finished.image.size,
            image: finished.image.clone(),
        };
        Ok(PointRecord {
            id: PointId {
                group: self.group.clone(),
                sequence,
            },
            at: self.at,
            lineage: self.lineage,
            generation: self.generation,
            labels: self.labels.clone(),
            consistency: self.consistency,
            stored_new_bytes: sum(|image| image.stored_new_bytes),
            changed_bytes: sum(|image| image.changed_bytes),
            disks: self.disks.iter().map(disk).collect(),
        })
    }
}

impl SeedDraft {
    pub(crate) fn to_record(&self) -> Result<SeedRecord> {
        check_disks(self.disks.iter().map(|disk| &disk.name))?;
        let disks = self.disks.iter().map(|disk| SeedDiskRecord {
            name: disk.name.clone(),
            size: disk.image.image.size,
            cursor_granule: disk.cursor_granule,
            image: disk.image.image.clone(),
        });
        Ok(SeedRecord {
            group: self.group.clone(),
            lineage: self.lineage,
            generation: self.generation,
            disks: disks.collect(),
        })
    }
}

fn check_disks<'a>(names: impl Iterator<Item = &'a Name>) -> Result<()> {
    let mut names: Vec<_> = names.collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    if !(1..=DISKS_MAX).contains(&count) || names.len() != count {
        let sentence = "a group has 1 to 256 disks, each with another name";
        return Err(StoreError::Invalid(sentence));
    }
    Ok(())
}

impl PointRecord {
    /// Its group.
    #[must_use]
    pub fn group(&self) -> &Name {
        &self.id.group
    }

    /// The disk of that name.
    #[must_use]
    pub fn disk(&self, name: &Name) -> Option<&PointDisk> {
        self.disks.iter().find(|disk| disk.name == *name)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_text(self.id.group.as_str());
        out.put_u64(self.id.sequence);
        out.put_u64(self.at.0);
        out.put_bytes(&self.lineage);
        out.put_u64(self.generation);
        out.put_u8(match self.consistency {
            Consistency::Crash => 0,
            Consistency::Application => 1,
        });
        out.put_u64(self.stored_new_bytes);
        out.put_u64(self.changed_bytes);
        out.put_count(self.labels.len());
        for (key, value) in &self.labels {
            out.put_text(key);
            out.put_text(value);
        }
        out.put_count(self.disks.len());
        for disk in &self.disks {
            out.put_text(disk.name.as_str());
            disk.image.put(out);
        }
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        let group = decode_name(d)?;
        let sequence = d.u64()?;
        let at = UnixNanos(d.u64()?);
        let lineage = d.array()?;
        let generation = d.u64()?;
        let consistency = match d.u8()? {
            0 => Consistency::Crash,
            1 => Consistency::Application,
            _ => return Err(d.error("the consistency of a point is unknown")),
        };
        let [stored_new_bytes, changed_bytes] = [d.u64()?, d.u64()?];
        let mut labels = BTreeMap::new();
        for _ in 0..d.count(LABELS_MAX, 4)? {
            let key = d.text(LABEL_BYTES_MAX)?.to_owned();
            labels.insert(key, d.text(LABEL_BYTES_MAX)?.to_owned());
        }
        let mut disks = Vec::new();
        for _ in 0..d.count(DISKS_MAX, 13)? {
            let name = decode_name(d)?;
            let image = ImageRef::decode(d)?;
            let size = image.size;
            disks.push(PointDisk { name, size, image });
        }
        Ok(Self {
            id: PointId { group, sequence },
            at,
            lineage,
            generation,
            labels,
            consistency,
            disks,
            stored_new_bytes,
            changed_bytes,
        })
    }
}

impl SeedRecord {
    /// Bytes of its disks that are copied.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        let copied = |disk: &SeedDiskRecord| disk.cursor_granule.saturating_mul(GRANULE);
        let each = self.disks.iter().map(|disk| copied(disk).min(disk.size));
        each.fold(0, u64::saturating_add)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_text(self.group.as_str());
        out.put_bytes(&self.lineage);
        out.put_u64(self.generation);
        out.put_count(self.disks.len());
        for disk in &self.disks {
            out.put_text(disk.name.as_str());
            out.put_u64(disk.cursor_granule);
            disk.image.put(out);
        }
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        let group = decode_name(d)?;
        let lineage = d.array()?;
        let generation = d.u64()?;
        let mut disks = Vec::new();
        for _ in 0..d.count(DISKS_MAX, 21)? {
            let name = decode_name(d)?;
            let cursor_granule = d.u64()?;
            let image = ImageRef::decode(d)?;
            disks.push(SeedDiskRecord {
                name,
                size: image.size,
                cursor_granule,
                image,
            });
        }
        Ok(Self {
            group,
            lineage,
            generation,
            disks,
        })
    }
}

pub(crate) fn decode_name(d: &mut Decoder<'_>) -> Decoded<Name> {
    let text = d.text(Name::LEN_MAX)?;
    text.parse().map_err(|_| d.error("a name is not legal"))
}
