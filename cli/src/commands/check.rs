//! `standin store check`.

use agent::{CheckFigures, CheckedPointFigures, Rate, Result, Target};

use crate::commands::world;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::units;

/// Objects and points shown to people; programs get all.
const SHOWN_MAX: usize = 20;

pub(crate) fn check(
    target: &Target,
    deep: bool,
    rate: Option<Rate>,
    printer: &Printer,
) -> Result<()> {
    let bar = Bar::of_things(printer, "check");
    let tell = |done, all| bar.tell(done, all);
    let figures = agent::check(target, deep, rate, &world()?, &tell)?;
    bar.finish();
    printer.answer(&figures, || text(&figures));
    figures.verdict()
}

fn text(figures: &CheckFigures) -> String {
    let mut lines = vec![format!(
        "{} objects read ({}): {}",
        figures.objects,
        units::bytes(figures.bytes),
        match (figures.whole, figures.healable.is_empty()) {
            (true, true) => "every point is whole",
            (true, false) => "every point is whole; what is damaged can be healed (store scrub)",
            (false, _) => "SOMETHING IS LOST",
        }
    )];
    lines.push(catalog(figures));
    for entry in figures.catalog.lost.iter().take(SHOWN_MAX) {
        lines.push(match entry.covered_by {
            Some(number) => format!(
                "lost, and not needed: {} (checkpoint {number} stands for it)",
                entry.lost.what
            ),
            None => format!("lost: {}", entry.lost.what),
        });
    }
    for object in figures.catalog.differing.iter().take(SHOWN_MAX) {
        lines.push(format!(
            "differs: `{object}` does not say what the commits before it come to"
        ));
    }
    for healable in figures.healable.iter().take(SHOWN_MAX) {
        lines.push(format!(
            "can be healed: {} ({} bytes are damaged)",
            healable.object, healable.damaged_bytes
        ));
    }
    for lost in figures.lost.iter().take(SHOWN_MAX) {
        lines.push(format!("lost: {}", lost.what));
    }
    for astray in figures.astray.iter().take(SHOWN_MAX) {
        lines.push(format!("astray: {}: {}", astray.object, astray.what));
    }
    for spare in figures.spare.iter().take(SHOWN_MAX) {
        lines.push(format!("damaged, and not needed: {}", spare.what));
    }
    let hit = figures.points.iter().filter(|point| !point.whole);
    lines.extend(hit.take(SHOWN_MAX).map(lost_of));
    let whole = figures.points.iter().filter(|point| point.whole).count();
    lines.push(format!(
        "{whole} of {} points are whole",
        figures.points.len()
    ));
    lines.extend(strays(figures));
    if is_cut_short(figures) {
        lines.push("(--json lists all)".to_owned());
    }
    lines.join("\n")
}

fn catalog(figures: &CheckFigures) -> String {
    let catalog = &figures.catalog;
    format!(
        "catalog: {} commits and {} checkpoints can be read, {} cannot; it {}",
        catalog.commits,
        catalog.checkpoints,
        catalog.lost.len(),
        match catalog.opens {
            true => "opens",
            false => "DOES NOT OPEN",
        }
    )
}

fn lost_of(point: &CheckedPointFigures) -> String {
    let name = point.point.clone();
    let name = name.unwrap_or_else(|| format!("the first copy of {}", point.group));
    let disks = point.lost.iter().map(|lost| {
        let bytes: u64 = lost.ranges.iter().map(|(_, len)| len).sum();
        format!(
            "disk {}: {} cannot be read, in {} ranges",
            lost.disk,
            units::bytes(bytes),
            lost.ranges.len()
        )
    });
    format!("{name}, {}", disks.collect::<Vec<_>>().join("; "))
}

/// What lies there and harms nobody.
fn strays(figures: &CheckFigures) -> Vec<String> {
    let mut lines = Vec::new();
    match figures.unneeded {
        None => lines.push(
            "nobody can say what is garbage, since trees are lost: nothing is collected".to_owned(),
        ),
        Some(pile) if pile.objects > 0 => lines.push(format!(
            "nothing refers to {} objects ({}): the next collection lets go of them",
            pile.objects,
            units::bytes(pile.bytes)
        )),
        Some(_) => {}
    }
    if figures.quarantined.objects > 0 {
        lines.push(format!(
            "{} objects ({}) wait in quarantine to be removed",
            figures.quarantined.objects,
            units::bytes(figures.quarantined.bytes)
        ));
    }
    if !figures.half_created.is_empty() {
        let bytes: u64 = figures.half_created.iter().map(|half| half.bytes).sum();
        lines.push(format!(
            "{} objects ({}) were never completed: the next writer removes them",
            figures.half_created.len(),
            units::bytes(bytes)
        ));
    }
    lines
}

fn is_cut_short(figures: &CheckFigures) -> bool {
    let hit = figures.points.iter().filter(|point| !point.whole).count();
    let most = [
        figures.catalog.lost.len(),
        figures.catalog.differing.len(),
        figures.healable.len(),
        figures.lost.len(),
        figures.astray.len(),
        figures.spare.len(),
        hit,
    ];
    most.into_iter().any(|count| count > SHOWN_MAX)
}
