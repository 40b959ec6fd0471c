//! `standin restore`.

use agent::{RestoreOptions, Result};
use serde_json::json;

use crate::args::Restore;
use crate::commands::world;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::units;

pub(crate) fn restore(args: Restore, printer: &Printer) -> Result<()> {
    let options = RestoreOptions {
        point: args.point,
        disk: args.disk,
        target: args.target,
        output: args.output,
        format: args.format,
        sparse: args.sparse,
        force: args.force,
    };
    let bar = Bar::new(printer, "restore");
    let restored = agent::restore(&options, &world()?.clock, &|done, all| bar.tell(done, all));
    bar.finish();
    let restored = restored?;
    let output = options.output.display().to_string();
    let document = json!({
        "point": restored.point,
        "disk": restored.disk.as_str(),
        "output": output,
        "format": options.format.to_string(),
        "size": restored.size,
        "root": restored.root,
        "took_s": restored.took.as_secs_f64(),
    });
    printer.answer(&document, || {
        format!(
            "restored disk {} of {} to {output}: {} in {} ({}), every byte checked",
            restored.disk,
            restored.point,
            units::bytes(restored.size),
            units::duration(restored.took),
            units::rate(restored.size, restored.took),
        )
    });
    Ok(())
}
