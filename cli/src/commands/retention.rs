//! `standin retention preview` and `apply`.

use agent::{Chore, Done, Judged, Result};
use block::UnixNanos;
use serde_json::json;

use crate::args::{Retention, RetentionCommand};
use crate::commands::{upkeep, world};
use crate::printer::{Printer, table};
use crate::units;

pub(crate) fn retention(args: Retention, printer: &Printer) -> Result<()> {
    match args.command {
        RetentionCommand::Preview(asked) => {
            let rules = asked.keep.rules();
            if rules.is_empty() {
                return Err(no_rules());
            }
            let world = world()?;
            let judged = agent::preview(&asked.target, asked.group.as_ref(), rules, &world)?;
            show(&judged, printer);
            Ok(())
        }
        RetentionCommand::Apply {
            asked,
            delay,
            state,
        } => {
            let rules = asked.keep.rules();
            if rules.is_empty() {
                return Err(no_rules());
            }
            let chore = Chore::Apply {
                group: asked.group.map(|group| group.to_string()),
                rules,
                delay_s: delay.seconds(),
            };
            let done = upkeep(&asked.target, &chore, &state, &|_, _| ())?;
            if let Done::Points { points } = &done {
                let document = json!({ "removed": points, "delay_s": delay.seconds() });
                printer.answer(&document, || match points.len() {
                    0 => "every point is kept".to_owned(),
                    count => format!(
                        "{count} points removed: {}{}",
                        points.join(", "),
                        can_be_brought_back(delay.seconds())
                    ),
                });
            }
            Ok(())
        }
    }
}

fn no_rules() -> agent::Error {
    agent::Error::Usage {
        what: "no rule is named, so only the newest point of each group would stay".to_owned(),
        hint: "say what to keep, as in --keep-hourly 24 --keep-daily 7; `standin retention preview` shows what that means",
    }
}

/// How long a removed point is still there, in words.
pub(crate) fn can_be_brought_back(delay_s: u64) -> String {
    match delay_s {
        0 => "; what only they needed goes with the next collection of garbage".to_owned(),
        seconds => format!(
            "; for {} `standin point undelete` brings them back",
            units::duration(std::time::Duration::from_secs(seconds))
        ),
    }
}

fn show(judged: &[Judged], printer: &Printer) {
    let going = judged.iter().filter(|point| point.keep.is_empty()).count();
    let document = json!({ "points": judged, "kept": judged.len() - going, "removed": going });
    printer.answer(&document, || {
        let mut rows = vec![["POINT", "CUT AT", "KEPT AS"].map(str::to_owned).to_vec()];
        rows.extend(judged.iter().map(|point| {
            let keep = match point.keep.is_empty() {
                true => "- (would be removed)".to_owned(),
                false => point.keep.join(", "),
            };
            let at = units::local_time(UnixNanos(point.at_unix_ns));
            vec![point.point.clone(), at, keep]
        }));
        let kept = judged.len() - going;
        format!("{}\n{kept} kept, {going} would be removed", table(&rows))
    });
}
