//! `standin import`.

use agent::{ImportOptions, Result};
use serde_json::json;

use crate::args::Import;
use crate::commands::world;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::units;

pub(crate) fn import(args: Import, printer: &Printer) -> Result<()> {
    let options = ImportOptions {
        images: args.images,
        target: args.target,
        group: args.group,
        labels: args.labels.into_iter().collect(),
    };
    let bar = Bar::new(printer, "import");
    let imported = agent::import(&options, &world()?.clock, &|done, all| bar.tell(done, all));
    bar.finish();
    let imported = imported?;
    let point = imported.point.id.to_string();
    let document = json!({
        "point": point,
        "base": imported.base,
        "size": imported.size,
        "stored_bytes": imported.stored_bytes,
        "took_s": imported.took.as_secs_f64(),
    });
    printer.answer(&document, || {
        let size = units::bytes(imported.size);
        let stored = units::bytes(imported.stored_bytes);
        let on = match &imported.base {
            Some(base) => format!(" on {base}"),
            None => String::new(),
        };
        let took = units::duration(imported.took);
        format!("imported {size}{on} in {took}, {stored} stored; point {point}")
    });
    Ok(())
}
