//! `standin point list`, `show`, `verify`, `diff`.

use agent::{Chore, Done, Error, Points, Result, Target, Verified};
use block::{ByteRange, UnixNanos};
use serde_json::{Value, json};
use store::{PointId, PointRecord, PointRef};

use crate::args::{Point, PointCommand, State};
use crate::commands::retention::can_be_brought_back;
use crate::commands::{Span, upkeep, world};
use crate::printer::{Printer, table};
use crate::progress::Bar;
use crate::units;

/// Ranges shown to people; programs get all.
const RANGES_SHOWN_MAX: usize = 20;

pub(crate) fn point(args: Point, printer: &Printer) -> Result<()> {
    match args.command {
        PointCommand::List { target, group } => {
            let points = open(&target)?;
            let found = points.list(group.as_ref());
            let documents: Vec<_> = found.iter().map(|point| listed(&points, point)).collect();
            let held = points.figures();
            let document = json!({
                "points": documents,
                "stored_bytes": held.stored_bytes,
                "target": target.to_string(),
            });
            printer.answer(&document, || {
                let heading = [
                    "POINT", "CUT AT", "DISKS", "SIZE", "CHANGED", "STORED", "KEPT", "LABELS",
                ];
                let mut rows = vec![heading.map(str::to_owned).to_vec()];
                rows.extend(found.iter().map(|point| row(&points, point)));
                let held = format!(
                    "{} points, {} stored",
                    found.len(),
                    units::bytes(held.stored_bytes)
                );
                format!("{}\n{held}", table(&rows))
            });
            Ok(())
        }
        PointCommand::Show { point, target } => {
            let points = open(&target)?;
            let point = points.find(&point)?;
            printer.answer(&listed(&points, &point), || {
                let kept = kept(&points, &point);
                let kept = if kept.is_empty() { "no" } else { &kept };
                format!("{}\nheld or locked: {kept}", show(&point))
            });
            Ok(())
        }
        PointCommand::Verify { point, all, target } => {
            if point.is_none() && !all {
                return Err(Error::Usage {
                    what: "no point to verify is named".to_owned(),
                    hint: "name one, as in web@17 or web@latest, or say --all",
                });
            }
            verify(point.as_ref(), &target, printer)
        }
        PointCommand::Diff { a, b, target } => diff(&a, &b, &target, printer),
        PointCommand::Delete {
            points,
            target,
            delay,
            dry_run,
            even_newest,
            state,
        } => {
            let how = How {
                delay,
                dry_run,
                even_newest,
            };
            delete(&points, &target, how, &state, printer)
        }
        PointCommand::Undelete {
            point,
            target,
            state,
        } => {
            let chore = Chore::BringBack {
                point: point.to_string(),
            };
            upkeep(&target, &chore, &state, &|_, _| ())?;
            let document = json!({ "brought_back": [point.to_string()] });
            printer.answer(&document, || format!("{point} is listed again"));
            Ok(())
        }
        PointCommand::Hold {
            point,
            target,
            reason,
            lift,
            state,
        } => {
            let chore = Chore::Hold {
                point: point.to_string(),
                reason: (!lift).then_some(reason),
            };
            protect(&target, &chore, &state, printer)
        }
        PointCommand::Lock {
            point,
            target,
            until,
            state,
        } => {
            let chore = Chore::Lock {
                point: point.to_string(),
                until_unix_ns: until.at(world()?.clock.wall()).0,
            };
            protect(&target, &chore, &state, printer)
        }
    }
}

/// How points are to be deleted.
struct How {
    delay: Span,
    dry_run: bool,
    even_newest: bool,
}

fn delete(
    points: &[PointId],
    target: &Target,
    how: How,
    state: &State,
    printer: &Printer,
) -> Result<()> {
    let How {
        delay,
        dry_run,
        even_newest,
    } = how;
    let names: Vec<String> = points.iter().map(PointId::to_string).collect();
    let delay_s = delay.seconds();
    if dry_run {
        let listed = open(target)?;
        let mut in_the_way = Vec::new();
        for id in points {
            let point = listed.find(&PointRef::Id(id.clone()))?;
            in_the_way.extend(listed.in_the_way(&point));
        }
        let document = json!({ "would_remove": names, "in_the_way": in_the_way });
        printer.answer(&document, || match in_the_way.is_empty() {
            true => format!("would be removed: {}", names.join(", ")),
            false => format!("nothing would be removed: {}", in_the_way.join("; ")),
        });
        return Ok(());
    }
    if !even_newest {
        let listed = open(target)?;
        let newest = |id: &&PointId| {
            let latest = PointRef::Latest(id.group.clone());
            listed.find(&latest).is_ok_and(|latest| latest.id == **id)
        };
        if let Some(id) = points.iter().find(newest) {
            return Err(Error::Usage {
                what: format!(
                    "{id} is the newest point of its group, which the next one builds on"
                ),
                hint: "with --even-newest it goes all the same; a protection then copies the disks anew",
            });
        }
    }
    let chore = Chore::Remove {
        points: names.clone(),
        delay_s,
    };
    upkeep(target, &chore, state, &|_, _| ())?;
    let document = json!({ "removed": names, "delay_s": delay_s });
    printer.answer(&document, || {
        let then = can_be_brought_back(delay_s);
        format!("removed: {}{then}", names.join(", "))
    });
    Ok(())
}

fn protect(target: &Target, chore: &Chore, state: &State, printer: &Printer) -> Result<()> {
    let done = upkeep(target, chore, state, &|_, _| ())?;
    if let Done::Protection(figures) = &done {
        printer.answer(figures, || {
            let hold = match &figures.hold {
                None => "not held".to_owned(),
                Some(reason) if reason.is_empty() => "held".to_owned(),
                Some(reason) => format!("held ({})", reason.escape_debug()),
            };
            let lock = match figures.locked_until_unix_ns {
                None => "never locked".to_owned(),
                Some(until) => {
                    format!("locked until {}", units::local_time(UnixNanos(until)))
                }
            };
            format!("{}: {hold}, {lock}", figures.point)
        });
    }
    Ok(())
}

/// A time to come: itself, or from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    At(UnixNanos),
    For(std::time::Duration),
}

impl Until {
    pub(crate) fn at(self, now: UnixNanos) -> UnixNanos {
        match self {
            Self::At(at) => at,
            Self::For(span) => {
                let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
                UnixNanos(now.0.saturating_add(span))
            }
        }
    }
}

impl std::str::FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(span) = agent::parse_duration(text) {
            return Ok(Self::For(span));
        }
        let parsed = text.parse::<jiff::Timestamp>().ok();
        let at = parsed.and_then(|at| u64::try_from(at.as_nanosecond()).ok());
        let at = at.ok_or_else(|| {
            format!("`{text}` is no time: use 2027-01-31T00:00:00Z, or 12h, 30d from now")
        })?;
        Ok(Self::At(UnixNanos(at)))
    }
}

fn open(target: &Target) -> Result<Points> {
    Points::open(target, &world()?.clock)
}

/// A point of a target, with what protects it, for programs.
fn listed(points: &Points, point: &PointRecord) -> Value {
    let mut document = document(point);
    let protection = points.protection(point);
    document["hold"] = json!(protection.hold);
    document["locked_until_unix_ns"] = json!(protection.locked_until_unix_ns);
    document
}

/// What protects a point, in short.
fn kept(points: &Points, point: &PointRecord) -> String {
    let protection = points.protection(point);
    let hold = protection.hold.map(|_| "held".to_owned());
    let now = points.now().0;
    let lock = protection.locked_until_unix_ns.filter(|until| now < *until);
    let lock = lock.map(|until| format!("locked until {}", units::local_time(UnixNanos(until))));
    let all: Vec<_> = hold.into_iter().chain(lock).collect();
    all.join(", ")
}

/// A point, for programs.
fn document(point: &PointRecord) -> Value {
    let disk = |disk: &store::PointDisk| json!({ "name": disk.name.as_str(), "size": disk.size });
    json!({
        "id": point.id.to_string(),
        "group": point.id.group.as_str(),
        "sequence": point.id.sequence,
        "at": units::rfc3339(point.at),
        "at_unix_ns": point.at.0,
        "lineage": splitter::Lineage(point.lineage).to_string(),
        "generation": point.generation,
        "consistency": consistency(point),
        "labels": point.labels,
        "disks": point.disks.iter().map(disk).collect::<Vec<_>>(),
        "changed_bytes": point.changed_bytes,
        "stored_bytes": point.stored_new_bytes,
    })
}

fn consistency(point: &PointRecord) -> &'static str {
    match point.consistency {
        store::Consistency::Application => "application",
        _ => "crash",
    }
}

fn meaning(point: &PointRecord) -> &'static str {
    match point.consistency {
        store::Consistency::Application => "the hook before the cut had made the guests quiet",
        _ => "as after a power cut at that instant",
    }
}

fn labels(point: &PointRecord) -> String {
    let pairs = point
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    // Labels are free text; what would move the cursor is shown, not done.
    pairs
        .collect::<Vec<_>>()
        .join(" ")
        .escape_debug()
        .to_string()
}

fn row(points: &Points, point: &PointRecord) -> Vec<String> {
    let size = point.disks.iter().map(|disk| disk.size).sum();
    vec![
        point.id.to_string(),
        units::local_time(point.at),
        point.disks.len().to_string(),
        units::bytes(size),
        units::bytes(point.changed_bytes),
        units::bytes(point.stored_new_bytes),
        kept(points, point),
        labels(point),
    ]
}

fn show(point: &PointRecord) -> String {
    let mut lines = vec![
        format!("{}", point.id),
        format!(
            "  cut at   {} ({})",
            units::local_time(point.at),
            units::rfc3339(point.at)
        ),
        format!(
            "  state    {}-consistent: {}",
            consistency(point),
            meaning(point)
        ),
        format!(
            "  history  lineage {}, generation {}",
            splitter::Lineage(point.lineage),
            point.generation
        ),
        format!(
            "  cost     {} changed, {} stored for it",
            units::bytes(point.changed_bytes),
            units::bytes(point.stored_new_bytes)
        ),
    ];
    if !point.labels.is_empty() {
        lines.push(format!("  labels   {}", labels(point)));
    }
    for disk in &point.disks {
        lines.push(format!(
            "  disk     {}, {}",
            disk.name,
            units::bytes(disk.size)
        ));
    }
    lines.join("\n")
}

fn verify(point: Option<&PointRef>, target: &Target, printer: &Printer) -> Result<()> {
    let points = open(target)?;
    let wanted = match point {
        Some(point) => vec![points.find(point)?],
        None => points.list(None),
    };
    let bar = Bar::new(printer, "verify");
    let mut found = Vec::new();
    for point in &wanted {
        bar.restart(&format!("verify {}", point.id));
        found.push(points.verify(point, &|done, all| bar.tell(done, all))?);
    }
    bar.finish();
    let documents: Vec<_> = found.iter().map(verified).collect();
    let damaged = found.iter().filter(|point| !point.is_whole()).count();
    let document = json!({
        "points": documents,
        "whole": damaged == 0,
        "damaged_points": damaged,
    });
    printer.answer(&document, || {
        let lines = found.iter().map(verdict);
        lines.collect::<Vec<_>>().join("\n")
    });
    let disks = found.iter().flat_map(|point| &point.disks);
    let checked = disks.clone().count();
    match disks.filter(|disk| !disk.report.is_whole()).count() {
        0 => Ok(()),
        damaged => Err(Error::Damaged { damaged, checked }),
    }
}

fn verified(found: &Verified) -> Value {
    let damage =
        |damage: &store::Damage| json!({ "what": damage.what, "ranges": ranges(&damage.ranges) });
    let disk = |disk: &agent::VerifiedDisk| {
        json!({
            "name": disk.name.as_str(),
            "whole": disk.report.is_whole(),
            "checked_bytes": disk.report.checked_bytes,
            "data_bytes": disk.report.data_bytes,
            "damage": disk.report.damage.iter().map(damage).collect::<Vec<_>>(),
        })
    };
    json!({
        "id": found.point.id.to_string(),
        "whole": found.is_whole(),
        "disks": found.disks.iter().map(disk).collect::<Vec<_>>(),
    })
}

fn verdict(found: &Verified) -> String {
    let sum = |of: fn(&store::VerifyReport) -> u64| found.disks.iter().map(|d| of(&d.report)).sum();
    let (checked, data) = (
        sum(|report| report.checked_bytes),
        sum(|report| report.data_bytes),
    );
    let mut lines = vec![format!(
        "{}: {} ({} checked, {} of it data)",
        found.point.id,
        if found.is_whole() { "whole" } else { "DAMAGED" },
        units::bytes(checked),
        units::bytes(data),
    )];
    for disk in &found.disks {
        for damage in &disk.report.damage {
            let bytes: u64 = damage.ranges.iter().map(|range| range.len()).sum();
            lines.push(format!(
                "  disk {}: {}; {} are hit:",
                disk.name,
                damage.what,
                units::bytes(bytes)
            ));
            lines.extend(shown(&damage.ranges));
        }
    }
    lines.join("\n")
}

fn ranges(ranges: &[ByteRange]) -> Vec<Value> {
    let range = |range: &ByteRange| json!({ "offset": range.start(), "length": range.len() });
    ranges.iter().map(range).collect()
}

fn shown(ranges: &[ByteRange]) -> Vec<String> {
    let mut lines: Vec<_> = ranges
        .iter()
        .take(RANGES_SHOWN_MAX)
        .map(|range| format!("    {:>15}  {}", range.start(), units::bytes(range.len())))
        .collect();
    if ranges.len() > RANGES_SHOWN_MAX {
        let more = ranges.len() - RANGES_SHOWN_MAX;
        lines.push(format!("    and {more} more ranges (--json lists all)"));
    }
    lines
}

fn diff(a: &PointRef, b: &PointRef, target: &Target, printer: &Printer) -> Result<()> {
    let points = open(target)?;
    let (a, b) = (points.find(a)?, points.find(b)?);
    let found = points.diff(&a, &b)?;
    let sum = |ranges: &[ByteRange]| ranges.iter().map(|range| range.len()).sum::<u64>();
    let disk = |(name, found): &(block::Name, Vec<ByteRange>)| json!({ "name": name.as_str(), "differing_bytes": sum(found), "ranges": ranges(found) });
    let only = |x: &PointRecord, y: &PointRecord| {
        let missing = x.disks.iter().filter(|disk| y.disk(&disk.name).is_none());
        missing
            .map(|disk| disk.name.to_string())
            .collect::<Vec<_>>()
    };
    let document = json!({
        "a": a.id.to_string(),
        "b": b.id.to_string(),
        "disks": found.iter().map(disk).collect::<Vec<_>>(),
        "only_in_a": only(&a, &b),
        "only_in_b": only(&b, &a),
    });
    printer.answer(&document, || {
        let mut lines = Vec::new();
        for (name, ranges) in &found {
            let (bytes, count) = (units::bytes(sum(ranges)), ranges.len());
            lines.push(format!("disk {name}: {bytes} differ, in {count} ranges"));
            lines.extend(shown(ranges));
        }
        for (x, y) in [(&a, &b), (&b, &a)] {
            lines.extend(
                only(x, y)
                    .iter()
                    .map(|disk| format!("disk {disk}: only in {}", x.id)),
            );
        }
        lines.join("\n")
    });
    Ok(())
}
