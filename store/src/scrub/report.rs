//! What a scrub says, and how far it has come.

use block::{ByteRange, Name, UnixNanos};
use serde::{Deserialize, Serialize};

use crate::armor::Kind;
use crate::codec::{Decoded, Decoder, Encode};
use crate::records::PointId;

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrubPosition {
    pub(super) shelf: Shelf,
    pub(super) id: u64,
}

/// The kinds of objects, in the order of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shelf {
    Trees,
    Bundles,
    Containers,
}

impl Shelf {
    pub(super) const ALL: [Self; 3] = [Self::Trees, Self::Bundles, Self::Containers];

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Trees => Kind::Tree,
            Self::Bundles => Kind::Bundle,
            Self::Containers => Kind::Container,
        }
    }
}

impl ScrubPosition {
    /// Before every object on a shelf, and after the catalog.
    pub(crate) const BEFORE_ALL: Self = Self {
        shelf: Shelf::Trees,
        id: 0,
    };

    /// As a word that [`parse`](Self::parse) reads.
    #[must_use]
    pub fn to_word(self) -> String {
        format!("{:?}-{:x}", self.shelf, self.id).to_lowercase()
    }

    /// `None` if it is no such word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        let (shelf, id) = word.split_once('-')?;
        let named = |known: &Shelf| format!("{known:?}").to_lowercase() == shelf;
        Some(Self {
            shelf: Shelf::ALL.into_iter().find(named)?,
            id: u64::from_str_radix(id, 16).ok()?,
        })
    }
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Objects that were checked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged objects that were healed (or could be, where nothing was to be changed).
    pub healed: Vec<HealedObject>,
    /// What is damaged beyond its armor, or missing.
    pub lost: Vec<LostObject>,
    /// What points lose by that.
    pub hits: Vec<Hit>,
    /// The last object that was checked, if it was stopped early.
    pub reached: Option<ScrubPosition>,
}

/// An object that was healed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealedObject {
    /// Its name.
    pub object: String,
    /// Bytes of it that were damaged.
    pub damaged_bytes: u64,
}

/// An object that cannot be healed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostObject {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a point loses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The point; none for the seed of a group.
    pub point: Option<PointId>,
    /// Its group.
    pub group: Name,
    /// The disk.
    pub disk: Name,
    /// The bytes that cannot be read.
    pub ranges: Vec<ByteRange>,
}

impl ScrubReport {
    /// Whether everything that points need is there and right, perhaps after healing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.hits.is_empty() && self.lost.is_empty()
    }
}

/// What is remembered of a scrub of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastScrub {
    /// When it ended, by the store's time.
    pub ended_at: UnixNanos,
    /// Whether every chunk was hashed.
    pub deep: bool,
    /// Objects that were checked.
    pub objects: u64,
    /// Objects that were healed.
    pub healed: u64,
    /// Objects that are lost.
    pub lost: u64,
}

impl LastScrub {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.ended_at.0);
        out.put_u8(u8::from(self.deep));
        for count in [self.objects, self.healed, self.lost] {
            out.put_u64(count);
        }
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(Self {
            ended_at: UnixNanos(d.u64()?),
            deep: d.u8()? != 0,
            objects: d.u64()?,
            healed: d.u64()?,
            lost: d.u64()?,
        })
    }
}
