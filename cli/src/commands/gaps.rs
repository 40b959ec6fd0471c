//! `standin gaps`: which seconds cannot be restored, and why.

use std::str::FromStr;
use std::time::Duration;

use agent::api::{Cause, Gap, Gaps as Ledger};
use agent::{Result, client};
use block::UnixNanos;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};

use crate::args::Gaps;
use crate::commands::world;
use crate::printer::{Printer, table};
use crate::units;

/// From when on gaps are shown: a time as in `2026-11-21T10:00:00Z`, or how long ago, as in `90m`, `2h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    At(UnixNanos),
    Ago(Duration),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(at) = text.parse::<Timestamp>() {
            let at = u64::try_from(at.as_nanosecond()).map_err(|_| "before 1970 was nothing")?;
            return Ok(Self::At(UnixNanos(at)));
        }
        let span: Option<Span> = text.parse().ok();
        let long = span.and_then(|span| {
            let long = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours());
            Duration::try_from(long.ok()?).ok()
        });
        long.map(Self::Ago).ok_or_else(|| {
            "use a time as in 2026-11-21T10:00:00Z, or how long ago, as in 90m, 2h, 7d".to_owned()
        })
    }
}

impl Since {
    fn before(self, now: UnixNanos) -> UnixNanos {
        match self {
            Self::At(at) => at,
            Self::Ago(long) => {
                let long = u64::try_from(long.as_nanos()).unwrap_or(u64::MAX);
                UnixNanos(now.0.saturating_sub(long))
            }
        }
    }
}

pub(crate) fn gaps(args: &Gaps, printer: &Printer) -> Result<()> {
    let (state, world) = (args.state.root(), world()?);
    let places = match &args.group {
        Some(group) => vec![state.group(group)],
        None => state.groups()?,
    };
    let since = args.since.map(|since| since.before(world.clock.wall()));
    let ledgers = places.iter().map(|place| {
        let ledger = client::gaps(place, &world)?;
        Ok(match since {
            Some(since) => newer(ledger, since),
            None => ledger,
        })
    });
    let ledgers = ledgers.collect::<Result<Vec<_>>>()?;
    let document = json!({ "groups": ledgers.iter().map(document).collect::<Vec<_>>() });
    printer.answer(&document, || {
        ledgers.iter().map(text).collect::<Vec<_>>().join("\n\n")
    });
    Ok(())
}

/// What ended, or happened, at `since` or later.
fn newer(mut ledger: Ledger, since: UnixNanos) -> Ledger {
    let ends_later = |gap: &Gap| gap.until_unix_ns.is_none_or(|until| until >= since.0);
    ledger.gaps.retain(ends_later);
    ledger.clock.retain(|moved| moved.at_unix_ns >= since.0);
    if ledger.older.until_unix_ns < since.0 {
        ledger.older = Default::default();
    }
    ledger
}

fn document(ledger: &Ledger) -> Value {
    let time = |at: u64| units::rfc3339(UnixNanos(at));
    let gap = |gap: &Gap| {
        json!({
            "from": time(gap.from_unix_ns),
            "until": gap.until_unix_ns.map(time),
            "from_unix_ns": gap.from_unix_ns,
            "until_unix_ns": gap.until_unix_ns,
            "seconds": gap.seconds,
            "causes": gap.causes,
            "cuts_lost": gap.cuts_lost,
            "point": gap.point,
        })
    };
    let clock = ledger.clock.iter().map(|moved| {
        json!({
            "at": time(moved.at_unix_ns),
            "at_unix_ns": moved.at_unix_ns,
            "moved_s": moved.moved_s,
        })
    });
    json!({
        "group": ledger.group,
        "gaps": ledger.gaps.iter().map(gap).collect::<Vec<_>>(),
        "clock": clock.collect::<Vec<_>>(),
        "older": ledger.older,
        "damaged_lines": ledger.damaged_lines,
    })
}

fn text(ledger: &Ledger) -> String {
    let mut lines = vec![match ledger.gaps.is_empty() {
        true => format!("{}: no gaps", ledger.group),
        false => format!("{}: of these times there is no point", ledger.group),
    }];
    if ledger.older.gaps > 0 {
        lines.push(format!(
            "{} older ones, {} in all, until {}",
            ledger.older.gaps,
            units::duration(units::seconds(ledger.older.seconds)),
            units::local_time(UnixNanos(ledger.older.until_unix_ns))
        ));
    }
    if !ledger.gaps.is_empty() {
        let heading = ["AFTER", "UNTIL", "SECONDS", "CUTS LOST", "CAUSE"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(ledger.gaps.iter().map(row));
        lines.push(table(&rows));
    }
    lines.extend(ledger.clock.iter().map(|moved| {
        format!(
            "at {} the wall clock was moved by {:+.1} s",
            units::local_time(UnixNanos(moved.at_unix_ns)),
            moved.moved_s
        )
    }));
    if ledger.damaged_lines > 0 {
        lines.push(format!(
            "{} lines of the ledger are damaged; what they said is not known",
            ledger.damaged_lines
        ));
    }
    lines.join("\n")
}

fn row(gap: &Gap) -> Vec<String> {
    let time = |at: u64| units::local_time(UnixNanos(at));
    let causes: Vec<_> = gap.causes.iter().map(Cause::to_string).collect();
    vec![
        time(gap.from_unix_ns),
        gap.until_unix_ns.map_or("it goes on".to_owned(), time),
        format!("{:.1}", gap.seconds),
        gap.cuts_lost.to_string(),
        causes.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let second = UnixNanos(1_000_000_000);
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Since::At(second)));
        for (text, seconds) in [("90m", 5_400), ("2h", 7_200), ("7d", 604_800)] {
            let ago = Since::Ago(Duration::from_secs(seconds));
            assert_eq!(text.parse(), Ok(ago), "{text}");
            assert_eq!(ago.before(second), UnixNanos(0));
        }
        for bad in ["", "5", "-2h", "yesterday", "1969-01-01T00:00:01Z"] {
            assert!(bad.parse::<Since>().is_err(), "{bad}");
        }
    }
}
