//! Ship: lay a sealed generation over its base, commit the point, release the diffs.
//!
//! ```text
//!   sealed diff: runs of whole granules --put--> ImageWriter over the base --finish--> commit --> release
//! ```
//!
//! Rule: production is never read here, and what the target has is never read back.
//! Crash: before the commit nothing is listed and the diffs are kept; after it, a later process finds
//! the point by lineage and generation and only releases.

use block::{GRANULE, Name, index};
use splitter::{DiffReader, Lineage, Run, RunContent, SealedDiff, SealedGeneration};
use store::{Base, Consistency, ImageRef};
use tracing::info;

use crate::api::ShipFigures;
use crate::base::{self, Plan};
use crate::engine::{Engine, micros};
use crate::stage_two::target_error;
use crate::target_writer::{NewPoint, TargetImage, TargetImageWriter, TargetWriter, WriteError};
use crate::{Error, Result};

/// How a ship ended.
pub(crate) enum Shipped {
    /// The point is listed and the diffs are released.
    Point,
    /// The end has come, or the generation was given up; nothing is listed.
    Interrupted,
    /// The target lacks what the generation builds on.
    NoBase {
        /// The history it is about.
        lineage: Lineage,
        /// What is missing.
        why: &'static str,
    },
}

/// Ships the oldest sealed generation.
pub(crate) fn ship(
    engine: &Engine,
    store: &TargetWriter,
    sealed: &SealedGeneration,
) -> Result<Shipped> {
    let lineage = sealed.lineage;
    if let Err(error) = engine.group.finish_merge(sealed) {
        // What moved half way is read from production again.
        engine.give_up_from(sealed, &error.to_string())?;
        return Ok(Shipped::Interrupted);
    }
    let Some(_claim) = sealed.claim() else {
        // It has just become a part of a later one.
        return Ok(Shipped::Interrupted);
    };
    engine.adjust_priority();
    let began = engine.now();
    let disks: Vec<_> = sealed
        .disks
        .iter()
        .map(|d| (d.name().clone(), d.size()))
        .collect();
    let planned = base::Sealed {
        lineage,
        since: sealed.since,
        generation: sealed.generation,
        open: engine.group.open_generation(),
        disks: &disks,
    };
    let images = match base::plan(&engine.held(store)?, &planned) {
        Plan::Over(images) => images,
        Plan::Missing(why) => return Ok(Shipped::NoBase { lineage, why }),
        Plan::AlreadyThere(point) => {
            engine.committed(store, &point, None);
            release(engine, sealed)?;
            return Ok(Shipped::Point);
        }
    };
    let mut finished: Vec<(Name, TargetImage)> = Vec::new();
    for (diff, image) in sealed.disks.iter().zip(images) {
        match ship_disk(engine, store, diff, image, lineage) {
            Ok(Some(image)) => finished.push((diff.name().clone(), image)),
            Ok(None) => return Ok(Shipped::Interrupted),
            Err(Failed::Target(error)) => return Err(error),
            Err(Failed::Diff(why)) => {
                // Tracking may have been restarted under our feet: then the diff is gone, rightly.
                if engine.group.lineage() == lineage {
                    engine.give_up_from(sealed, &why)?;
                }
                return Ok(Shipped::Interrupted);
            }
        }
    }
    if engine.group.lineage() != lineage {
        return Ok(Shipped::Interrupted);
    }
    let point = store
        .commit_point(NewPoint {
            group: engine.name.clone(),
            disks: finished,
            at: sealed.at,
            lineage: lineage.0,
            generation: sealed.generation.0,
            labels: sealed.note.labels.clone(),
            consistency: match sealed.note.consistency {
                splitter::Consistency::Crash => Consistency::Crash,
                splitter::Consistency::Application => Consistency::Application,
            },
        })
        .map_err(target_error(engine, "commit the point"))?;
    let took = engine.now().saturating_sub(began);
    info!(group = %engine.name, point = %point.id, changed = sealed.dirty_bytes(), stored = point.stored_new_bytes, took_us = micros(took), "point");
    let figures = ShipFigures {
        point: point.id.to_string(),
        changed_bytes: sealed.dirty_bytes(),
        stored_bytes: point.stored_new_bytes,
        took_us: micros(took),
    };
    // Released first: who waited for the point finds no diff of it any more.
    let released = release(engine, sealed);
    engine.committed(store, &point, Some(figures));
    released?;
    Ok(Shipped::Point)
}

/// Until this succeeds the diffs stay listed, and are released by a later attempt.
fn release(engine: &Engine, sealed: &SealedGeneration) -> Result<()> {
    let failed = Error::file("remove shipped diffs of", engine.place.dir());
    engine.group.release(sealed).map_err(failed)
}

/// Why a disk's diff could not be shipped.
enum Failed {
    Target(Error),
    /// The diff is damaged or cannot be read.
    Diff(String),
}

/// `None` if the end has come.
fn ship_disk(
    engine: &Engine,
    store: &TargetWriter,
    diff: &SealedDiff,
    base: ImageRef,
    lineage: Lineage,
) -> std::result::Result<Option<TargetImage>, Failed> {
    let failed = |e| Failed::Target(target_error(engine, "ship the diff")(e));
    let reader = diff
        .reader()
        .map_err(|damaged| Failed::Diff(damaged.to_string()))?;
    let mut writer = store.image_writer(Base::Image(base)).map_err(failed)?;
    let mut bytes = Vec::new();
    // Nothing in here needs the group.
    let stepped_back = engine.crew.step_back();
    for run in reader.runs() {
        if engine.is_over(lineage) {
            return Ok(None);
        }
        put_run(&mut writer, &reader, diff, run, &mut bytes).map_err(|failure| match failure {
            RunFailed::Target(error) => failed(error),
            RunFailed::Diff(why) => Failed::Diff(why),
        })?;
        engine.slow_ship(bytes_of(run));
    }
    let image = writer.finish().map_err(failed)?;
    drop(stepped_back);
    // Only now is it certain that what was read is what the guest wrote.
    reader
        .finish()
        .map_err(|damaged| Failed::Diff(damaged.to_string()))?;
    Ok(Some(image))
}

/// What of it is read: zeroes are not.
fn bytes_of(run: Run) -> u64 {
    match run.content {
        RunContent::Zero => 0,
        RunContent::Data => run.granules.count() * GRANULE,
    }
}

enum RunFailed {
    Target(WriteError),
    Diff(String),
}

fn put_run(
    writer: &mut TargetImageWriter,
    reader: &DiffReader,
    diff: &SealedDiff,
    run: Run,
    bytes: &mut Vec<u8>,
) -> std::result::Result<(), RunFailed> {
    match run.content {
        RunContent::Zero => writer.zero(run.granules).map_err(RunFailed::Target),
        RunContent::Data => {
            bytes.resize(index(run.granules.count() * GRANULE), 0);
            reader.read(run.granules, bytes).map_err(|error| {
                RunFailed::Diff(format!(
                    "the diff of disk {} cannot be read: {error}",
                    diff.name()
                ))
            })?;
            writer
                .put(run.granules.start, bytes)
                .map_err(RunFailed::Target)
        }
    }
}
