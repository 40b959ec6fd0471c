//! Checking a target: everything is read, nothing is changed, and nobody who writes there is disturbed.

use dd_target::{Context, Pace, Progress, Rate};
use serde::Serialize;
use store::{CheckOptions, CheckReport, HealedObject, LostObject, PointId};

use crate::world::World;
use crate::{Error, Result, Target};

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckFigures {
    /// Whether the catalog opens, and everything that points need is there and right, perhaps after healing.
    pub whole: bool,
    /// Whether every chunk was hashed.
    pub deep: bool,
    /// The catalog.
    pub catalog: CatalogFigures,
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What a scrub can heal.
    pub healable: Vec<HealedObject>,
    /// What points need, and what is lost.
    pub lost: Vec<LostObject>,
    /// What is lost, and nothing reads any more.
    pub spare: Vec<LostObject>,
    /// Places that the catalog names, and where nothing lies.
    pub astray: Vec<LostObject>,
    /// What nothing refers to; null where that cannot be known.
    pub unneeded: Option<PileFigures>,
    /// What waits to be removed.
    pub quarantined: PileFigures,
    /// What was never completed.
    pub half_created: Vec<HalfFigures>,
    /// Every point, and every unfinished first copy.
    pub points: Vec<CheckedPointFigures>,
}

/// What a check found of the catalog.
#[derive(Clone, Debug, Serialize)]
pub struct CatalogFigures {
    /// Whether it opens.
    pub opens: bool,
    /// The number of its newest commit.
    pub newest: u64,
    /// Commits that can be read.
    pub commits: u64,
    /// Checkpoints that can be read.
    pub checkpoints: u64,
    /// What cannot be read.
    pub lost: Vec<LostEntryFigures>,
    /// Checkpoints that are not what the commits before them come to.
    pub differing: Vec<String>,
}

/// A commit or a checkpoint that cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct LostEntryFigures {
    /// What is wrong with it.
    #[serde(flatten)]
    pub lost: LostObject,
    /// The number of the checkpoint that stands for it.
    pub covered_by: Option<u64>,
}

/// Objects, and what they take.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PileFigures {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An object that was not completed.
#[derive(Clone, Debug, Serialize)]
pub struct HalfFigures {
    /// Its name.
    pub object: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A point, or a group's unfinished first copy.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedPointFigures {
    /// GROUP@NUMBER; null for an unfinished first copy.
    pub point: Option<String>,
    /// The group.
    pub group: String,
    /// It was removed, and can be brought back.
    pub removed: bool,
    /// Whether every byte can be read.
    pub whole: bool,
    /// What cannot.
    pub lost: Vec<LostRanges>,
}

/// What of a disk cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct LostRanges {
    /// The disk.
    pub disk: String,
    /// Offset and length of each range.
    pub ranges: Vec<(u64, u64)>,
}

impl CheckFigures {
    /// The failure of a check that found something lost.
    ///
    /// # Errors
    /// That one.
    pub fn verdict(&self) -> Result<()> {
        match self.whole {
            true => Ok(()),
            false => Err(Error::Unsound {
                opens: self.catalog.opens,
                objects: self.lost.len(),
                points: self.points.iter().filter(|point| !point.whole).count(),
            }),
        }
    }
}

/// Reads everything on a target; at most at `rate`. `deep`: every chunk is hashed.
///
/// # Errors
/// If there is no store, or the place cannot be read. Damage is in the answer.
pub fn check(
    target: &Target,
    deep: bool,
    rate: Option<Rate>,
    world: &World,
    progress: Progress<'_>,
) -> Result<CheckFigures> {
    let context = Context {
        clock: &*world.clock,
        progress,
        stop: &|| false,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pace = Pace::new(rate.map(Rate::bytes_per_s), &context);
    let options = CheckOptions {
        deep,
        // Whoever wants it slow wants it quiet.
        threads: rate.map_or(context.threads, |_| 1),
        pace: &|bytes| pace.keep(bytes),
        progress,
    };
    Ok(figures(deep, target.check(&world.clock, &options)?))
}

fn figures(deep: bool, report: CheckReport) -> CheckFigures {
    CheckFigures {
        whole: report.is_whole(),
        deep,
        objects: report.objects,
        bytes: report.bytes,
        unneeded: report.unneeded.map(pile),
        quarantined: pile(report.quarantined),
        half_created: report.half_created.into_iter().map(half).collect(),
        points: report.points.iter().map(point).collect(),
        catalog: catalog(report.catalog),
        healable: report.healable,
        lost: report.lost,
        spare: report.spare,
        astray: report.astray,
    }
}

fn catalog(catalog: store::CatalogCheck) -> CatalogFigures {
    let entry = |entry: store::LostEntry| LostEntryFigures {
        lost: entry.lost,
        covered_by: entry.covered_by,
    };
    CatalogFigures {
        opens: catalog.opens(),
        newest: catalog.newest,
        commits: catalog.commits,
        checkpoints: catalog.checkpoints,
        lost: catalog.lost.into_iter().map(entry).collect(),
        differing: catalog.differing,
    }
}

fn pile(pile: store::Pile) -> PileFigures {
    PileFigures {
        objects: pile.objects,
        bytes: pile.bytes,
    }
}

fn half(half: store::Half) -> HalfFigures {
    HalfFigures {
        object: half.object,
        bytes: half.bytes,
    }
}

fn point(point: &store::CheckedPoint) -> CheckedPointFigures {
    let lost = point.lost.iter().map(|(disk, ranges)| LostRanges {
        disk: disk.to_string(),
        ranges: ranges.iter().map(|r| (r.start(), r.len())).collect(),
    });
    CheckedPointFigures {
        point: point.point.as_ref().map(PointId::to_string),
        group: point.group.to_string(),
        removed: point.removed,
        whole: point.lost.is_empty(),
        lost: lost.collect(),
    }
}
