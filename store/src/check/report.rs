//! What a check says.

use block::{ByteRange, Name};

use crate::records::PointId;
use crate::scrub::{HealedObject, LostObject};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The catalog.
    pub catalog: CatalogCheck,
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged objects that a scrub can heal.
    pub healable: Vec<HealedObject>,
    /// What points need, and what is damaged beyond its armor or missing.
    pub lost: Vec<LostObject>,
    /// What is damaged beyond its armor, and nothing reads any more.
    pub spare: Vec<LostObject>,
    /// Places that the catalog names, where nothing of that kind lies.
    pub astray: Vec<LostObject>,
    /// Objects that nothing refers to: what collections let go of, or what a writer is about to refer to. `None` where trees
    /// are lost: nobody knows what they referred to.
    pub unneeded: Option<Pile>,
    /// Objects that collections have let go of, and that wait to be removed.
    pub quarantined: Pile,
    /// What a crashed writer left half created, unless somebody is writing it just now. The next writer removes it.
    pub half_created: Vec<Half>,
    /// Every point that is listed or can be brought back, and every seed.
    pub points: Vec<CheckedPoint>,
}

/// What a check found of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogCheck {
    /// Commits that can be read.
    pub commits: u64,
    /// Checkpoints that can be read.
    pub checkpoints: u64,
    /// The number of the newest commit.
    pub newest: u64,
    /// Commits and checkpoints that cannot be read.
    pub lost: Vec<LostEntry>,
    /// Checkpoints that are not what the commits before them come to.
    pub differing: Vec<String>,
}

/// A commit or a checkpoint that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostEntry {
    /// What is wrong with it.
    pub lost: LostObject,
    /// The checkpoint that stands for it. Where none does, the catalog does not open.
    pub covered_by: Option<u64>,
}

/// Objects, and what they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pile {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An object that was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// Its name.
    pub object: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A point, or the seed of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedPoint {
    /// The point; none for a seed.
    pub point: Option<PointId>,
    /// Its group.
    pub group: Name,
    /// It is not listed, but can be brought back.
    pub removed: bool,
    /// The bytes of its disks that cannot be read.
    pub lost: Vec<(Name, Vec<ByteRange>)>,
}

impl CheckReport {
    /// Whether the catalog opens, and everything that points need is there and right, perhaps after healing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let points = self.points.iter().all(|point| point.lost.is_empty());
        points && self.lost.is_empty() && self.catalog.is_whole()
    }
}

impl CatalogCheck {
    /// Whether it opens.
    #[must_use]
    pub fn opens(&self) -> bool {
        self.lost.iter().all(|entry| entry.covered_by.is_some())
    }

    /// Whether it opens, and says one thing only.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.opens() && self.differing.is_empty()
    }
}
