//! Check: everything is read, and nothing is changed; also where the catalog does not open.
//!
//! ```text
//! catalog: every commit and checkpoint (catalog/survey.rs) -> what the store is, as far as that is known
//! objects: as a scrub reads them (scrub.rs), which heals nothing here -> what points have lost
//! strays:  places that the catalog names and that are none; objects that nothing needs; what was never completed
//! ```
//!
//! Rule: it needs no lease, and runs beside a writer: what a collection takes or moves meanwhile is no finding.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{ByteRange, Name};

use crate::backend::Backend;
use crate::catalog::{Catalog, HeldImage, State, Survey};
use crate::copies;
use crate::error::Result;
use crate::format::{self, Format};
use crate::records::PointId;
use crate::scrub::{self, HealedObject, Hit, LostObject, Scope, ScrubOptions, ScrubPosition};
use crate::store::{Around, Inner, Store};

pub use report::{CatalogCheck, CheckReport, CheckedPoint, Half, LostEntry, Pile};

mod report;
mod strays;

/// How to check.
#[derive(Clone, Copy)]
pub struct CheckOptions<'a> {
    /// Decompress and hash every chunk, instead of trusting the checksums that were made with the objects.
    pub deep: bool,
    /// Objects that are checked at once, each by a thread of its own.
    pub threads: usize,
    /// Told of bytes that were read; may sleep.
    pub pace: &'a (dyn Fn(u64) + Sync),
    /// Told of objects checked and objects in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self {
            deep: false,
            threads: 1,
            pace: &|_| (),
            progress: &|_, _| (),
        }
    }
}

impl Store {
    /// Reads and checks everything there is in a place, and changes nothing. The catalog need not open.
    ///
    /// # Errors
    /// `NotFound` if there is no store, `Corrupt` if nobody can say which one it is, `Io`; damage is no error but in the
    /// report.
    pub fn check(
        place: &Arc<dyn Backend>,
        around: Around,
        options: &CheckOptions<'_>,
    ) -> Result<CheckReport> {
        let (format, damaged_bytes) = format::examine(&**place)?;
        let catalog = Catalog::open(place, format.store);
        let survey = catalog.survey()?;
        let state = match survey.opens() {
            true => survey.state.clone(),
            false => found_anew(place, &format, &survey, &around)?,
        };
        let left = Self::reader_of(place, &format, catalog, state, around)?;
        let mut report = check(&left.inner, &survey, options)?;
        if damaged_bytes > 0 {
            let object = format::NAME.to_owned();
            let healable = HealedObject {
                object,
                damaged_bytes,
            };
            report.healable.insert(0, healable);
        }
        Ok(report)
    }
}

/// Checks what is left of a store.
pub(crate) fn check(
    inner: &Inner,
    survey: &Survey,
    options: &CheckOptions<'_>,
) -> Result<CheckReport> {
    inner.objects.find_ends()?;
    let half_created = strays::half_created(inner)?;
    let examined = scrub::examine(
        inner,
        &ScrubOptions {
            deep: options.deep,
            heal: false,
            // The survey has looked at the catalog.
            after: Some(ScrubPosition::BEFORE_ALL),
            threads: options.threads,
            pace: options.pace,
            progress: options.progress,
            ..ScrubOptions::default()
        },
        Scope::ButTheCatalog,
    )?;
    let images = inner.state.lock().images();
    let mut healable = survey.healable.clone();
    healable.extend_from_slice(&examined.report.healed);
    Ok(CheckReport {
        catalog: catalog(survey),
        objects: survey.commits + survey.checkpoints + examined.report.objects,
        bytes: survey.bytes + examined.report.bytes,
        points: points(&images, &examined.report.hits),
        astray: strays::astray(inner)?,
        unneeded: match examined.trees_lost {
            true => None,
            false => Some(strays::unneeded(inner, &examined.marks)?),
        },
        quarantined: strays::quarantined(inner),
        half_created: strays::still_there(&half_created, &strays::half_created(inner)?),
        lost: examined.report.lost,
        spare: examined.spare,
        healable,
    })
}

/// What is left of a catalog, with places that are found anew: it may not say where things were moved to.
fn found_anew(
    place: &Arc<dyn Backend>,
    format: &Format,
    survey: &Survey,
    around: &Around,
) -> Result<State> {
    let catalog = Catalog::open(place, format.store);
    let state = survey.state.clone();
    let left = Store::reader_of(place, format, catalog, state, around.clone())?;
    left.inner.objects.find_ends()?;
    let found = copies::find(&left.inner, &BTreeSet::new(), true)?;
    Ok(survey.state.relocated(&copies::relocation(&found)))
}

fn catalog(survey: &Survey) -> CatalogCheck {
    let lost = survey.lost.iter().map(|part| LostEntry {
        covered_by: part.covered_by,
        lost: LostObject {
            object: part.object.clone(),
            what: part.what.clone(),
        },
    });
    CatalogCheck {
        commits: survey.commits,
        checkpoints: survey.checkpoints,
        newest: survey.state.sequence,
        lost: lost.collect(),
        differing: survey.differing.clone(),
    }
}

/// Every point, and what of it is lost.
fn points(images: &[HeldImage], hits: &[Hit]) -> Vec<CheckedPoint> {
    let mut points: Vec<CheckedPoint> = Vec::new();
    for held in images {
        let is_next = |last: &CheckedPoint| last.group != held.group || last.point != held.point;
        if points.last().is_none_or(is_next) {
            points.push(CheckedPoint {
                point: held.point.clone(),
                group: held.group.clone(),
                removed: held.removed_until.is_some(),
                lost: Vec::new(),
            });
        }
        let lost = lost_of(hits, held.point.as_ref(), &held.group, &held.disk);
        if let (Some(last), Some(ranges)) = (points.last_mut(), lost) {
            last.lost.push((held.disk.clone(), ranges.to_vec()));
        }
    }
    points
}

fn lost_of<'a>(
    hits: &'a [Hit],
    point: Option<&PointId>,
    group: &Name,
    disk: &Name,
) -> Option<&'a [ByteRange]> {
    let of_disk =
        |hit: &&Hit| hit.point.as_ref() == point && hit.group == *group && hit.disk == *disk;
    hits.iter().find(of_disk).map(|hit| hit.ranges.as_slice())
}
