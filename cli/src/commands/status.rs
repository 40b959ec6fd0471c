//! `standin status`.

use std::time::Duration;

use agent::api::{AuditStatus, Cause, GroupStatus, Rung, State, Status as Document};
use agent::{Result, client};
use block::UnixNanos;

use crate::args::Status;
use crate::commands::world;
use crate::printer::Printer;
use crate::units;

pub(crate) fn status(args: &Status, printer: &Printer) -> Result<()> {
    let state = args.state.root();
    let world = world()?;
    let document = match &args.group {
        Some(group) => Document {
            groups: vec![client::status(&state.group(group), &world)?],
        },
        None => client::status_of_all(&state, &world)?,
    };
    printer.answer(&document, || match document.groups.as_slice() {
        [] => format!(
            "no group has been protected here ({})",
            state.path().display()
        ),
        groups => groups.iter().map(text).collect::<Vec<_>>().join("\n\n"),
    });
    Ok(())
}

fn text(group: &GroupStatus) -> String {
    let mut lines = vec![format!("{}: {}", group.name, state(group.state))];
    let mut say = |what: &str, text: String| lines.push(format!("  {what:<8} {text}"));
    match (&group.point, group.point_age_s) {
        (Some(point), Some(age)) => {
            say(
                "point",
                format!("{point}, {} old", units::duration(units::seconds(age))),
            );
        }
        _ => say("point", "none yet".into()),
    }
    if let Some(rung) = rung_text(group) {
        say("rung", rung);
    }
    if let Some(gap) = &group.gap {
        let since = units::local_time(UnixNanos(gap.from_unix_ns));
        let causes: Vec<_> = gap.causes.iter().map(Cause::to_string).collect();
        let long = units::duration(units::seconds(gap.seconds));
        say(
            "GAP",
            format!(
                "no moment since {since} can be restored, {long}: {}",
                causes.join(", ")
            ),
        );
    }
    if !group.seed.complete && group.seed.total_bytes > 0 && group.state != State::Stopped {
        let (done, all) = (group.seed.done_bytes, group.seed.total_bytes);
        let percent = u128::from(done) * 100 / u128::from(all);
        say(
            "seed",
            format!(
                "{percent} % ({} of {})",
                units::bytes(done),
                units::bytes(all)
            ),
        );
    }
    if group.state != State::Stopped {
        say(
            "ahead",
            format!(
                "{} written and not on the target yet, {} of diffs, {} cuts waiting",
                units::bytes(group.dirty_bytes),
                units::bytes(group.diff_bytes),
                group.sealed
            ),
        );
    }
    if let Some(cut) = &group.last_cut {
        let pause = units::duration(Duration::from_micros(cut.pause_us));
        say(
            "cut",
            format!(
                "{} written, made within {pause}",
                units::bytes(cut.dirty_bytes)
            ),
        );
    }
    if let Some(late) = &group.cut_lateness_us {
        let [half, most] =
            [late.p50, late.p99].map(|us| units::duration(Duration::from_micros(us)));
        say(
            "schedule",
            format!(
                "half of the cuts at most {half} late, 99 of 100 at most {most}; {} left out",
                group.ticks_skipped
            ),
        );
    }
    if let Some(ship) = &group.last_ship {
        say(
            "ship",
            format!(
                "{} changed, {} stored, in {}",
                units::bytes(ship.changed_bytes),
                units::bytes(ship.stored_bytes),
                units::duration(Duration::from_micros(ship.took_us))
            ),
        );
    }
    if group.reread_bytes > 0 {
        say(
            "reread",
            format!(
                "{} of production, after a crash",
                units::bytes(group.reread_bytes)
            ),
        );
    }
    if let Some(audit) = &group.audit {
        say("audit", audit_text(audit));
    }
    if let Some(trouble) = &group.trouble {
        let since = units::duration(units::seconds(trouble.since_s));
        say(
            "TROUBLE",
            format!(
                "{} fails for {since} ({} times): {}",
                trouble.step, trouble.attempts, trouble.error
            ),
        );
    }
    for disk in &group.disks {
        let size = if disk.size > 0 {
            format!(", {}", units::bytes(disk.size))
        } else {
            String::new()
        };
        say("disk", format!("{}{size}, {}", disk.name, disk.production));
    }
    for export in &group.exports {
        say("export", export.clone());
    }
    say("target", format!("{}, every {}", group.target, group.every));
    lines.join("\n")
}

/// One line, while protection is not whole or was not a while ago.
fn rung_text(group: &GroupStatus) -> Option<String> {
    let ladder = &group.ladder;
    let since = ladder
        .since_unix_ns
        .map(|at| units::local_time(UnixNanos(at)))?;
    Some(match (group.rung, ladder.cause) {
        (Rung::EveryWrite, _) | (_, None) => format!(
            "{} since {since}, after {} steps",
            group.rung, ladder.steps_total
        ),
        (Rung::Coalescing, Some(cause)) => format!(
            "COALESCING since {since}: cuts are merged, since {}",
            cause_text(cause)
        ),
        (Rung::Regions, Some(cause)) => format!(
            "REGIONS since {since}: only the regions of writes are known, since {}",
            cause_text(cause)
        ),
        (Rung::MapOnly, Some(cause)) => format!(
            "MAP-ONLY since {since}: writes are only marked, since {}",
            cause_text(cause)
        ),
    })
}

fn cause_text(cause: Cause) -> &'static str {
    match cause {
        Cause::DiffSpace => "the diffs have no more room",
        Cause::StateSpace => "the state directory has no more room",
        Cause::DiffError => "the diff device fails",
        Cause::DiffLatency => "the diff device is slow",
        Cause::Memory => "memory is short",
        Cause::TargetBehind => "the target lags",
        Cause::Production => "production fails",
        Cause::Busy => "guests' writes take long",
        Cause::NotRunning => "no process protected the group",
        Cause::MarksLost => "writes could not be marked",
        Cause::CopiedAnew => "the disks are copied anew",
        Cause::ForeignPoint => "the target lists a point that was not made here",
        Cause::Late => "the machine is busy",
    }
}

fn audit_text(audit: &AuditStatus) -> String {
    let so_far = format!(
        "{} compared in {} passes",
        units::bytes(audit.bytes_checked),
        audit.passes
    );
    match &audit.last_miss {
        None => format!("{so_far}, nothing amiss"),
        Some(last) => format!(
            "{so_far}; {} BLOCKS DIFFERED, last {} at byte {} of disk {}, {}",
            audit.misses,
            units::bytes(last.length),
            last.offset,
            last.disk,
            units::local_time(UnixNanos(last.at_unix_ns))
        ),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Seeding => "seeding: the first copy is being made",
        State::Protected => "protected",
        State::Lagging => "lagging: cuts wait for the target",
        State::Degraded => "DEGRADED: no point can be made of what is written",
        State::Fenced => "FENCED: another process has taken over the target",
        State::Stopping => "stopping",
        State::Stopped => "stopped: not being protected",
    }
}
