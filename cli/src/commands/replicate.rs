//! `standin replicate`.

use agent::{ReplicateOptions, Result};
use serde_json::json;

use crate::args::Replicate;
use crate::commands::world;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::units;

pub(crate) fn replicate(args: Replicate, printer: &Printer) -> Result<()> {
    let options = ReplicateOptions {
        from: args.from,
        to: args.to,
        group: args.group,
        lost: args.lost,
    };
    let clock = world()?.clock;
    if args.dry_run {
        let points = agent::points_to_replicate(&options, &clock)?;
        let points: Vec<_> = points.iter().map(ToString::to_string).collect();
        let document = json!({ "would_copy": points });
        printer.answer(&document, || match points.len() {
            0 => nothing(&options),
            count => format!("{count} points would be copied: {}", points.join(", ")),
        });
        return Ok(());
    }
    let bar = Bar::new(printer, "replicate");
    let copied = agent::replicate(&options, &clock, &|done, all| bar.tell(done, all));
    bar.finish();
    let copied = copied?;
    let points: Vec<_> = copied.points.iter().map(ToString::to_string).collect();
    let left_out = copied.left_out.iter();
    let left_out: Vec<_> = left_out
        .map(|(point, why)| json!({ "point": point.to_string(), "why": why }))
        .collect();
    let document = json!({
        "points": points,
        "left_out": left_out,
        "copied_bytes": copied.copied_bytes,
        "stored_bytes": copied.stored_bytes,
        "took_s": copied.took.as_secs_f64(),
    });
    printer.answer(&document, || match points.len() {
        0 if left_out.is_empty() => nothing(&options),
        count => format!(
            "{count} points copied to {} in {}: {} travelled, {} stored",
            options.to,
            units::duration(copied.took),
            units::bytes(copied.copied_bytes),
            units::bytes(copied.stored_bytes),
        ),
    });
    copied.verdict()
}

fn nothing(options: &ReplicateOptions) -> String {
    format!("nothing to copy: {} has, or has had, them all", options.to)
}
