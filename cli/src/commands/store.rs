//! `standin store init`, `status`, `explain`, `gc`, `scrub`, and the way to the others.

use std::time::Duration;

use agent::{Chore, Done, GcFigures, Points, Result, ScrubFigures, Target};
use block::{Name, UnixNanos};
use dd_target::api::SeedFigures;
use serde_json::json;

use crate::args::{State, Store, StoreCommand};
use crate::commands::{self, key, upkeep, world};
use crate::printer::{Printer, table};
use crate::progress::Bar;
use crate::units;

/// Ranges and objects shown to people; programs get all.
const SHOWN_MAX: usize = 20;

pub(crate) fn store(args: Store, printer: &Printer) -> Result<()> {
    match args.command {
        StoreCommand::Init {
            target,
            encrypt: true,
            no_recovery_key,
        } => key::init_encrypted(&target, !no_recovery_key, printer),
        StoreCommand::Init { target, .. } => {
            agent::init(&target)?;
            let document = json!({ "target": target.to_string(), "encrypted": false });
            printer.answer(&document, || format!("{target} is an empty store"));
            Ok(())
        }
        StoreCommand::Key(args) => key::key(args, printer),
        StoreCommand::Status { target } => status(&target, printer),
        StoreCommand::Explain {
            target,
            point,
            offset,
            disk,
        } => {
            let points = Points::open(&target, &world()?.clock)?;
            let Some(point) = point else {
                return explain_store(&points, printer);
            };
            let point = points.find(&point)?;
            match offset {
                None => explain_point(&points, &point, printer),
                Some(offset) => {
                    let disk = agent::find_disk(&point, disk.as_ref())?;
                    explain_chunk(&points, &point, disk, offset, printer)
                }
            }
        }
        StoreCommand::Gc {
            target,
            dry_run,
            quarantine,
            thorough,
            rate,
            state,
        } => {
            let chore = Chore::Collect {
                dry_run,
                quarantine_s: quarantine.seconds(),
                compact_below: if thorough { 1.0 } else { 0.7 },
                rate: rate.and_then(|rate| rate.0).map(agent::Rate::bytes_per_s),
            };
            let done = upkeep(&target, &chore, &state, &|_, _| ())?;
            if let Done::Collected(figures) = &done {
                printer.answer(figures, || collected(figures));
            }
            Ok(())
        }
        StoreCommand::DropSeed {
            target,
            group,
            dry_run,
            state,
        } => drop_seed(&target, &group, dry_run, &state, printer),
        StoreCommand::Check { target, deep, rate } => {
            let rate = rate.and_then(|rate| rate.0);
            commands::check(&target, deep, rate, printer)
        }
        StoreCommand::Repair {
            target,
            from,
            apply,
        } => commands::repair(&target, from.as_ref(), apply, printer),
        StoreCommand::RebuildIndex { target } => commands::rebuild_index(&target, printer),
        StoreCommand::Scrub {
            target,
            light,
            dry_run,
            rate,
            state,
        } => {
            let chore = Chore::Scrub {
                deep: !light,
                heal: !dry_run,
                rate: rate.and_then(|rate| rate.0).map(agent::Rate::bytes_per_s),
            };
            let bar = Bar::of_things(printer, "scrub");
            let done = upkeep(&target, &chore, &state, &|done, all| bar.tell(done, all))?;
            bar.finish();
            let Done::Scrubbed(figures) = &done else {
                return Ok(());
            };
            printer.answer(figures, || scrubbed(figures));
            match figures.whole {
                true => Ok(()),
                false => Err(agent::Error::Lost {
                    objects: figures.lost.len(),
                    images: figures.hits.len(),
                }),
            }
        }
    }
}

fn drop_seed(
    target: &Target,
    group: &Name,
    dry_run: bool,
    state: &State,
    printer: &Printer,
) -> Result<()> {
    if dry_run {
        let points = Points::open(target, &world()?.clock)?;
        let seeds = points.seeds();
        let seed = seeds.iter().find(|seed| seed.group == group.as_str());
        printer.answer(&json!({ "would_drop": seed }), || match seed {
            Some(seed) => format!("would be given up: {}", seed_line(seed)),
            None => format!("no first copy of the group {group} is under way"),
        });
        return Ok(());
    }
    let chore = Chore::DropSeed {
        group: group.to_string(),
    };
    upkeep(target, &chore, state, &|_, _| ())?;
    let document = json!({ "dropped": group.as_str() });
    printer.answer(&document, || {
        format!("the first copy of {group} is given up; what only it needs is garbage (store gc)")
    });
    Ok(())
}

pub(crate) fn seed_line(seed: &SeedFigures) -> String {
    format!(
        "{}: {} of {} disks copied",
        seed.group,
        units::bytes(seed.copied_bytes),
        seed.disks
    )
}

fn status(target: &Target, printer: &Printer) -> Result<()> {
    let points = Points::open(target, &world()?.clock)?;
    let (held, scrub, removed) = (points.figures(), points.last_scrub(), points.removed());
    let (groups, seeds) = (points.groups(), points.seeds());
    let document = json!({
        "target": target.to_string(),
        "encrypted": points.is_encrypted(),
        "points": held.point_count,
        "removed_points": removed.len(),
        "stored_bytes": held.stored_bytes,
        "container_bytes": held.container_bytes,
        "tree_bytes": held.tree_bytes,
        "quarantined_bytes": held.quarantined_bytes,
        "chunks": held.chunk_count,
        "containers": held.container_count,
        "last_scrub": scrub.map(|scrub| json!({
            "ended_at": units::rfc3339(scrub.ended_at),
            "deep": scrub.deep,
            "objects": scrub.objects,
            "healed": scrub.healed,
            "lost": scrub.lost,
        })),
        "groups": groups.iter().map(|(group, count, newest)| json!({
            "group": group.as_str(),
            "points": count,
            "newest_at": units::rfc3339(*newest),
        })).collect::<Vec<_>>(),
        "seeds": seeds,
    });
    printer.answer(&document, || {
        let mut lines = vec![
            format!(
                "{target}{}: {} points, {} stored ({} chunks in {} containers; {} of it trees)",
                if points.is_encrypted() {
                    " (encrypted)"
                } else {
                    ""
                },
                held.point_count,
                units::bytes(held.stored_bytes),
                held.chunk_count,
                held.container_count,
                units::bytes(held.tree_bytes)
            ),
            format!(
                "garbage that waits in quarantine: {}",
                units::bytes(held.quarantined_bytes)
            ),
            match scrub {
                None => "never scrubbed".to_owned(),
                Some(scrub) => format!(
                    "scrubbed {}: {} objects, {} healed, {} lost",
                    units::local_time(scrub.ended_at),
                    scrub.objects,
                    scrub.healed,
                    scrub.lost
                ),
            },
        ];
        let mut rows = vec![["GROUP", "POINTS", "NEWEST"].map(str::to_owned).to_vec()];
        rows.extend(groups.iter().map(|(group, count, newest)| {
            let newest = units::local_time(*newest);
            vec![group.to_string(), count.to_string(), newest]
        }));
        lines.push(table(&rows));
        if !seeds.is_empty() {
            lines.push("first copies that are under way (standin store drop-seed):".to_owned());
            lines.extend(seeds.iter().map(seed_line));
        }
        if !removed.is_empty() {
            lines.push("removed, and can be brought back (standin point undelete):".to_owned());
            lines.extend(
                removed
                    .iter()
                    .map(|(point, until)| removed_line(point, *until)),
            );
        }
        lines.join("\n")
    });
    Ok(())
}

fn explain_store(points: &Points, printer: &Printer) -> Result<()> {
    let explained = points.explain()?;
    let document = json!({
        "needed_bytes": explained.needed_bytes,
        "removed_bytes": explained.removed_bytes,
        "removed_until": explained.removed_until.map(units::rfc3339),
        "garbage_bytes": explained.garbage_bytes,
        "quarantined_bytes": explained.quarantined_bytes,
        "groups": explained.groups.iter().map(|(group, points, bytes)| json!({
            "group": group.as_str(),
            "points": points,
            "alone_bytes": bytes,
        })).collect::<Vec<_>>(),
        "seeds": explained.seeds.iter().map(|(group, bytes)| json!({
            "group": group.as_str(),
            "alone_bytes": bytes,
        })).collect::<Vec<_>>(),
    });
    printer.answer(&document, || {
        let mut lines = vec![format!(
            "{} are needed by listed points, and by first copies under way",
            units::bytes(explained.needed_bytes)
        )];
        if let Some(until) = explained.removed_until {
            lines.push(format!(
                "{} only by points that were removed, and can be brought back until {}",
                units::bytes(explained.removed_bytes),
                units::local_time(until)
            ));
        }
        lines.push(format!(
            "{} are needed by nothing: collections let go of them (store gc)",
            units::bytes(explained.garbage_bytes)
        ));
        lines.push(format!(
            "{} were let go of and wait in quarantine",
            units::bytes(explained.quarantined_bytes)
        ));
        lines.extend(explained.seeds.iter().map(|(group, bytes)| {
            let bytes = units::bytes(*bytes);
            format!("{bytes} by the first copy of {group} alone, which is under way; if nobody goes on with it, give it up (store drop-seed)")
        }));
        let heading = ["GROUP", "POINTS", "NEEDED BY IT ALONE"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(explained.groups.iter().map(|(group, points, bytes)| {
            vec![group.to_string(), points.to_string(), units::bytes(*bytes)]
        }));
        lines.push(table(&rows));
        lines.join("\n")
    });
    Ok(())
}

fn explain_point(points: &Points, point: &store::PointRecord, printer: &Printer) -> Result<()> {
    let explained = points.explain_point(point)?;
    let protection = points.protection(point);
    let in_the_way = points.in_the_way(point);
    let document = json!({
        "point": point.id.to_string(),
        "needed_bytes": explained.needed_bytes,
        "alone_bytes": explained.alone_bytes,
        "newest": explained.newest,
        "hold": protection.hold,
        "locked_until_unix_ns": protection.locked_until_unix_ns,
    });
    printer.answer(&document, || {
        let mut lines = vec![format!(
            "{}: needs {}; {} of it alone, which removing it would free",
            point.id,
            units::bytes(explained.needed_bytes),
            units::bytes(explained.alone_bytes)
        )];
        lines.push(match in_the_way {
            Some(why) => why,
            None if explained.newest => {
                "it is the newest of its group: no rule removes it, and the next point builds on it"
                    .to_owned()
            }
            None => "it can be removed at any time (point delete)".to_owned(),
        });
        lines.join("\n")
    });
    Ok(())
}

fn explain_chunk(
    points: &Points,
    point: &store::PointRecord,
    disk: &store::PointDisk,
    offset: u64,
    printer: &Printer,
) -> Result<()> {
    let explained = points.explain_chunk(disk, offset)?;
    let names = |chunk: &store::ExplainedChunk| {
        let names = chunk.points.iter().map(ToString::to_string);
        names.collect::<Vec<_>>()
    };
    let document = json!({
        "point": point.id.to_string(),
        "disk": disk.name.as_str(),
        "offset": offset,
        "chunk": explained.as_ref().map(|chunk| json!({
            "fingerprint": chunk.fingerprint,
            "object": chunk.object,
            "container": chunk.place.0,
            "slot": chunk.place.1,
            "points": names(chunk),
            "removed_until": chunk.removed_until.map(units::rfc3339),
            "seeds": chunk.seeds.iter().map(Name::as_str).collect::<Vec<_>>(),
        })),
    });
    printer.answer(&document, || match &explained {
        None => "that is zeroes, which take no space".to_owned(),
        Some(chunk) => {
            let seeds = chunk.seeds.iter();
            let seeds = seeds.map(|group| format!("the first copy of {group} that is under way"));
            let needed = names(chunk).into_iter().chain(seeds).collect::<Vec<_>>();
            let mut lines = vec![
                format!(
                    "chunk {} in {} (container {}, slot {})",
                    chunk.fingerprint, chunk.object, chunk.place.0, chunk.place.1
                ),
                format!("needed by {}", needed.join(", ")),
            ];
            if let Some(until) = chunk.removed_until {
                let until = units::local_time(until);
                lines.push(format!(
                    "by those of them that were removed no longer than until {until}"
                ));
            }
            lines.join("\n")
        }
    });
    Ok(())
}

fn removed_line(point: &store::PointRecord, until: UnixNanos) -> String {
    format!("  {} until {}", point.id, units::local_time(until))
}

fn collected(figures: &GcFigures) -> String {
    let report = &figures.report;
    let would = if figures.dry_run { "would be " } else { "" };
    let mut lines = vec![
        format!(
            "{} images need {} of {} chunks",
            report.images, report.live_chunks, report.chunks
        ),
        format!(
            "{} containers and {} tree objects that nothing needs {would}let go of",
            report.containers_gone, report.trees_gone
        ),
        format!(
            "{} containers and {} tree objects {would}moved into bundles ({} written)",
            report.containers_moved,
            report.trees_moved,
            units::bytes(report.written_bytes)
        ),
        format!(
            "{} {would}freed; {} removed now, {} wait in quarantine",
            units::bytes(report.freed_bytes),
            units::bytes(report.removed_bytes),
            units::bytes(report.quarantined_bytes)
        ),
    ];
    if report.left_bytes > 0 {
        lines.push(format!(
            "{} of garbage stay, since much would have to be copied to be rid of them (--thorough does)",
            units::bytes(report.left_bytes)
        ));
    }
    if report.sealed_bytes > 0 {
        lines.push(format!(
            "{} of garbage stay, since they are encrypted together with what is needed (who has the key is rid of them)",
            units::bytes(report.sealed_bytes)
        ));
    }
    if report.damaged > 0 {
        lines.push(format!(
            "{} damaged containers were left where they are: standin store scrub names them",
            report.damaged
        ));
    }
    if report.stopped {
        lines.push("it was stopped early; the next collection goes on".to_owned());
    }
    lines.push(format!("{} stored", units::bytes(figures.stored_bytes)));
    lines.join("\n")
}

fn scrubbed(figures: &ScrubFigures) -> String {
    let mut lines = vec![format!(
        "{} objects checked ({}): {}",
        figures.objects,
        units::bytes(figures.bytes),
        match (figures.whole, figures.healed.is_empty()) {
            (true, true) => "all as they were written",
            (true, false) => "what was damaged is within reach of its armor",
            (false, _) => "SOMETHING IS LOST",
        }
    )];
    let verb = match figures.healing {
        true => "healed",
        false => "can be healed",
    };
    for healed in figures.healed.iter().take(SHOWN_MAX) {
        lines.push(format!(
            "{verb}: {} ({} bytes were damaged)",
            healed.object, healed.damaged_bytes
        ));
    }
    for lost in figures.lost.iter().take(SHOWN_MAX) {
        lines.push(format!("lost: {}", lost.what));
    }
    for hit in figures.hits.iter().take(SHOWN_MAX) {
        let bytes: u64 = hit.ranges.iter().map(|(_, len)| len).sum();
        let point = hit.point.clone();
        let point = point.unwrap_or_else(|| format!("the first copy of {}", hit.group));
        lines.push(format!(
            "{point}, disk {}: {} cannot be read, in {} ranges",
            hit.disk,
            units::bytes(bytes),
            hit.ranges.len()
        ));
    }
    let most = [figures.healed.len(), figures.lost.len(), figures.hits.len()];
    if most.into_iter().any(|count| count > SHOWN_MAX) {
        lines.push("(--json lists all)".to_owned());
    }
    if figures.stopped {
        lines.push("it was stopped early".to_owned());
    }
    lines.join("\n")
}

/// How long something takes, as users give it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// In whole seconds; what is left over is one more.
    pub(crate) fn seconds(self) -> u64 {
        agent::whole_seconds(self.0)
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let span = agent::parse_duration(text).map(Self);
        span.ok_or_else(|| format!("`{text}` is no time: use 0, 90s, 30m, 12h or 7d"))
    }
}
