//! `standin cut`.

use std::time::Duration;

use agent::api::{CutReply, CutRequest};
use agent::{Result, client};

use crate::args::Cut;
use crate::printer::Printer;
use crate::units;

pub(crate) fn cut(args: &Cut, printer: &Printer) -> Result<()> {
    let place = args.state.root().group(&args.group);
    let request = CutRequest {
        labels: args.labels.iter().cloned().collect(),
        wait: args.wait,
    };
    let reply = client::cut(&place, &request)?;
    printer.answer(&reply, || text(&reply));
    Ok(())
}

/// The last word is the point's id, or else the generation.
fn text(reply: &CutReply) -> String {
    let cut = &reply.cut;
    let what = match &reply.point {
        Some(id) => format!("point {id}"),
        None => format!("generation {}", cut.generation),
    };
    format!(
        "cut {}: {} written since the last cut, made within {}; {what}",
        reply.group,
        units::bytes(cut.dirty_bytes),
        units::duration(Duration::from_micros(cut.pause_us)),
    )
}
