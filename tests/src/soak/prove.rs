//! That nothing is wrong: points hold exactly what the ledgers say, all disks of one instant, and what was
//! listed once stays listed.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ledger::Window;
use crate::standin;
use crate::time::wait_for;

use super::place::{Disk, Guarded, Place};

/// Every cut reaches the target again within this, on a machine that does other things as well.
const RECOVERY_MAX: Duration = Duration::from_secs(240);
/// Requests that each disk's guests get through after every event.
const ACKED_AFTER: u64 = 4;

/// Waits until a point is listed that was cut after this call; its id, and the events between which it
/// was cut.
///
/// # Errors
/// If there is none in time.
pub(crate) fn next_point(group: &Guarded) -> Result<(String, Window)> {
    let ledger = &group.disks[0].ledger;
    // Before the status: the cut of the generation that it calls open comes later than this event.
    let asked = ledger.tick();
    let open = generation(&group.protect.status()?);
    let mut last = Value::Null;
    wait_for("protection to be whole again", RECOVERY_MAX, || {
        last = group.protect.status()?;
        let whole = last["state"] == "protected" && last["trouble"].is_null();
        if !whole || generation(&last) <= open + 1 {
            return Ok(None);
        }
        // A history that began anew is called protected before its first point is there.
        let points = group.bench.points()?;
        let of_history = |point: &&Value| point["lineage"] == last["lineage"];
        let newest = points.last().filter(of_history);
        let newest = newest.filter(|point| generation(point) >= open);
        newest.map(id).transpose()
    })
    .map(|point| {
        let answered = ledger.tick();
        (point, Window { asked, answered })
    })
    .with_context(|| format!("status {last}"))
}

fn generation(of: &Value) -> u64 {
    of["generation"].as_u64().unwrap_or(0)
}

fn id(point: &Value) -> Result<String> {
    let id = point["id"].as_str().context("a point has an id")?;
    Ok(id.to_owned())
}

/// A listed point, whichever `choice` picks.
///
/// # Errors
/// If there is none.
pub(crate) fn any_point(group: &Guarded, choice: u64) -> Result<String> {
    let points = group.bench.points()?;
    let at = usize::try_from(choice % (points.len().max(1) as u64))?;
    id(points.get(at).context("no point is listed")?)
}

/// Restores one disk of `point` and holds it against its ledger.
///
/// # Errors
/// If it is not what was written, at one instant in `window`.
pub(crate) fn one(group: &Guarded, point: &str, disk: &Disk, window: Window) -> Result<()> {
    let survey = group.bench.survey(point, disk.name, &disk.ledger, window)?;
    let judged = survey.judge(survey.horizon);
    judged.with_context(|| format!("point {point}, disk {}", disk.name))
}

/// Restores all disks of `point` and holds them against their ledgers, as of one instant; how many.
///
/// # Errors
/// If they are not what was written, at one instant in `window`.
pub(crate) fn whole(group: &Guarded, point: &str, window: Window) -> Result<u64> {
    let survey = |disk: &Disk| group.bench.survey(point, disk.name, &disk.ledger, window);
    let surveys = group.disks.iter().map(survey).collect::<Result<Vec<_>>>()?;
    let horizon = surveys.iter().map(|survey| survey.horizon).max();
    for (survey, disk) in surveys.iter().zip(&group.disks) {
        let judged = survey.judge(horizon.unwrap_or(0));
        judged.with_context(|| format!("point {point}, disk {}", disk.name))?;
    }
    Ok(surveys.len() as u64)
}

/// Nothing that was listed has gone since; adds what is listed.
///
/// # Errors
/// The first point that has gone.
pub(crate) fn still_listed(group: &Guarded, known: &mut BTreeSet<String>) -> Result<()> {
    let listed = group.bench.points()?;
    let listed = listed.iter().map(id).collect::<Result<BTreeSet<_>>>()?;
    if let Some(gone) = known.difference(&listed).next() {
        bail!("point {gone} was listed and is not any more");
    }
    *known = listed;
    Ok(())
}

/// Guests go on: none has met what it must not, and all are answered.
///
/// # Errors
/// What a guest met.
pub(crate) fn guests_go_on(place: &mut Place) -> Result<()> {
    for group in [&mut place.mortal, &mut place.steady] {
        for disk in &mut group.disks {
            let load = disk.load.as_ref().context("guests write")?;
            if load.failed() || load.wait_acked(ACKED_AFTER).is_err() {
                let stopped = disk.load.take().context("guests write")?.stop();
                stopped.with_context(|| format!("a guest of disk {}", disk.name))?;
                bail!("no guest of disk {} is answered any more", disk.name);
            }
        }
    }
    Ok(())
}

/// Nobody writes any more: the last point is production, byte for byte, and points of every age are what
/// was written. How many disks were restored, and how many points were verified.
///
/// # Errors
/// The first that is not.
pub(crate) fn at_the_end(group: &Guarded, older: usize) -> Result<(u64, u64)> {
    let (point, window) = group.protect.cut_beside(&group.disks[0].ledger)?;
    for disk in &group.disks {
        let production = production(group, disk)?;
        group.bench.compare(&point, Some(disk.name), &production)?;
    }
    let mut restored = whole(group, &point, window)?;
    let points = group.bench.points()?;
    let mut verified = 0;
    for old in points.iter().step_by(points.len() / older.max(1) + 1) {
        restored += whole(group, &id(old)?, Window::ANY)?;
        let target = group.bench.target();
        standin::run(["point", "verify", &id(old)?, "--target", &target])?;
        verified += 1;
    }
    Ok((restored, verified))
}

/// A disk's bytes in one file.
fn production(group: &Guarded, disk: &Disk) -> Result<PathBuf> {
    if let [only] = disk.files.as_slice() {
        return Ok(only.clone());
    }
    let joined = group.bench.path("joined.raw");
    let mut output = File::create(&joined)?;
    for file in &disk.files {
        std::io::copy(&mut File::open(file)?, &mut output)?;
    }
    Ok(joined)
}
