//! `standin store repair`, `rebuild-index`.

use agent::{RepairFigures, Result, StepFigures, Target};

use crate::commands::world;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::units;

/// Steps, objects and points shown to people; programs get all.
const SHOWN_MAX: usize = 40;

pub(crate) fn repair(
    target: &Target,
    replica: Option<&Target>,
    apply: bool,
    printer: &Printer,
) -> Result<()> {
    let bar = Bar::of_things(printer, "read");
    let tell = |done, all| bar.tell(done, all);
    let figures = agent::repair(target, replica, apply, &world()?, &tell)?;
    bar.finish();
    printer.answer(&figures, || text(&figures));
    figures.verdict()
}

pub(crate) fn rebuild_index(target: &Target, printer: &Printer) -> Result<()> {
    let index = agent::rebuild_index(target, &world()?.clock)?;
    printer.answer(&index, || {
        let mut lines = vec![format!(
            "{} entries for {} chunks in {} containers (one in {} has one), in {:.1} s",
            index.entries, index.chunks, index.containers, index.one_in, index.seconds
        )];
        let damaged = index.damaged.iter().take(SHOWN_MAX);
        lines
            .extend(damaged.map(|object| format!("cannot be read, and is not built on: {object}")));
        lines.join("\n")
    });
    Ok(())
}

fn text(figures: &RepairFigures) -> String {
    let mut lines = vec![
        match (figures.changes, figures.applied) {
            (false, _) => "there is nothing that a repair could do",
            (true, false) => "a repair would do this (--apply does it):",
            (true, true) => "this was done:",
        }
        .to_owned(),
    ];
    for step in figures.steps.iter().take(SHOWN_MAX) {
        lines.extend(told(step));
    }
    for lost in figures.lost.iter().take(SHOWN_MAX) {
        lines.push(format!("stays lost: {}", lost.what));
    }
    if figures.steps.len().max(figures.lost.len()) > SHOWN_MAX {
        lines.push("(--json lists all)".to_owned());
    }
    lines.join("\n")
}

fn told(step: &StepFigures) -> Vec<String> {
    match step {
        StepFigures::Heal(healed) => vec![format!(
            "heal {} ({} bytes are damaged)",
            healed.object, healed.damaged_bytes
        )],
        StepFigures::Leave { object, covered_by } => vec![format!(
            "leave {object}: it is lost, and checkpoint {covered_by} says all that it said"
        )],
        StepFigures::BeginAnew {
            number,
            lost,
            may_have_listed,
        } => {
            let mut lines = vec![format!(
                "let the catalog go on with commit and checkpoint {number}, from what is left of it"
            )];
            let objects = lost.iter().take(SHOWN_MAX);
            lines.extend(objects.map(|lost| format!("  lost: {}", lost.what)));
            if !may_have_listed.is_empty() {
                let points = may_have_listed.iter().take(SHOWN_MAX).cloned();
                let points = points.collect::<Vec<_>>().join(", ");
                lines.push(format!(
                    "  points that are lost if that listed them (standin replicate --lost brings them back from a replica): {points}"
                ));
            }
            lines
        }
        StepFigures::CopyAgain {
            point,
            disk,
            lost_bytes,
        } => vec![format!(
            "copy disk {disk} of {point} again from the replica ({} of it cannot be read)",
            units::bytes(*lost_bytes)
        )],
        StepFigures::LetGo { object } => vec![format!(
            "let go of {object}: it is damaged, and nothing needs it (a collection removes it after its time in quarantine)"
        )],
        StepFigures::UseCopy {
            what,
            lost,
            instead,
        } => vec![format!("use {what} from {instead} instead of {lost}")],
    }
}
