//! What a soak found, for a person and for a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::act::Done;
use super::growth::Growth;
use super::schedule::{Event, Kind};

/// What became of all events of one kind.
#[derive(Clone, Debug, Default)]
pub struct OfKind {
    /// How many.
    pub events: u64,
    /// Processes killed in them.
    pub kills: u64,
    /// The longest that a guest's request waited, from the begin of an event until it was recovered from.
    pub latency: Duration,
    /// Longest from a start until it served.
    pub restart: Duration,
    /// Longest from the end of an event until every cut reached the target.
    pub recovery: Duration,
    /// States and troubles that the status showed.
    pub seen: BTreeSet<String>,
}

/// The report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What replays the schedule.
    pub seed: u64,
    /// How long guests wrote.
    pub lasted: Duration,
    /// The events in order, as they were done.
    pub events: Vec<String>,
    /// By kind.
    pub kinds: BTreeMap<Kind, OfKind>,
    /// The longest that a guest's request waited while nothing was out of the ordinary.
    pub calm_latency: Duration,
    /// Requests that guests sent and that were answered.
    pub acked: u64,
    /// Requests that met a failing production disk.
    pub refused: u64,
    /// Points listed at the end.
    pub points: u64,
    /// The longest distance between two of the steady group.
    pub gap: Duration,
    /// Disks of points that were restored, and were exact.
    pub restored: u64,
    /// Points that were verified.
    pub verified: u64,
    /// Figures through the run.
    pub growth: Vec<Growth>,
    /// What went wrong.
    pub failure: Option<String>,
}

impl Report {
    /// Nothing wrong, nothing grows.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.growth.iter().all(Growth::passed)
    }

    /// Enters an event.
    pub(crate) fn enter(
        &mut self,
        event: &Event,
        done: &Done,
        latency: Duration,
        recovery: Duration,
    ) {
        let kind = self.kinds.entry(event.kind).or_default();
        kind.events += 1;
        kind.kills += done.kills;
        kind.latency = kind.latency.max(latency);
        kind.restart = kind.restart.max(done.restart);
        kind.recovery = kind.recovery.max(recovery);
        kind.seen.extend(done.seen.iter().cloned());
        self.restored += done.restored;
        self.verified += done.verified;
        let line = format!(
            "{event}: recovered after {:.1} s, slowest request {:.3} s",
            recovery.as_secs_f64(),
            latency.as_secs_f64()
        );
        self.events.push(line);
    }

    /// For a program.
    #[must_use]
    pub fn json(&self) -> Value {
        let kind = |(kind, of): (&Kind, &OfKind)| {
            let seconds = |duration: Duration| duration.as_secs_f64();
            json!({
                "kind": kind.name(), "events": of.events, "kills": of.kills, "seen": of.seen,
                "latency_s_max": seconds(of.latency), "restart_s_max": seconds(of.restart),
                "recovery_s_max": seconds(of.recovery),
            })
        };
        json!({
            "passed": self.passed(), "failure": self.failure, "seed": self.seed,
            "hours": self.lasted.as_secs_f64() / 3600.0, "kills": self.kills(),
            "kinds": self.kinds.iter().map(kind).collect::<Vec<_>>(),
            "calm_latency_s_max": self.calm_latency.as_secs_f64(),
            "requests": self.acked, "refused": self.refused, "points": self.points,
            "gap_s_max": self.gap.as_secs_f64(), "restored": self.restored, "verified": self.verified,
            "growth": self.growth.iter().map(Growth::json).collect::<Vec<_>>(),
            "events": self.events,
        })
    }

    fn kills(&self) -> u64 {
        self.kinds.values().map(|of| of.kills).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.lasted.as_secs_f64() / 3600.0;
        let word = if self.passed() { "passed" } else { "FAILED" };
        writeln!(
            f,
            "soak {word}: seed {}, {hours:.3} h, {} events, {} kills",
            self.seed,
            self.events.len(),
            self.kills()
        )?;
        if let Some(failure) = &self.failure {
            writeln!(f, "\nwrong: {failure}")?;
        }
        writeln!(
            f,
            "{} requests answered, {} met production's own error; {} points listed; {} disks of points \
             restored, each exact; {} points verified",
            self.acked, self.refused, self.points, self.restored, self.verified
        )?;
        writeln!(
            f,
            "longest distance between two points of the steady group {:.1} s; slowest request at calm \
             moments {:.3} s\n",
            self.gap.as_secs_f64(),
            self.calm_latency.as_secs_f64()
        )?;
        self.write_kinds(f)?;
        self.write_growth(f)?;
        writeln!(f, "\nevents:")?;
        self.events
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Report {
    fn write_kinds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["kind", "events", "kills", "request", "restart", "recovery"];
        let [kind, events, kills, request, restart, recovery] = head;
        writeln!(
            f,
            "{kind:<16}{events:>7}{kills:>7}{request:>10}{restart:>10}{recovery:>10}  status showed"
        )?;
        for (kind, of) in &self.kinds {
            let [latency, restart, recovery] =
                [of.latency, of.restart, of.recovery].map(|time| time.as_secs_f64());
            let seen = of
                .seen
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            let (kind, events, kills) = (kind.name(), of.events, of.kills);
            writeln!(
                f,
                "{kind:<16}{events:>7}{kills:>7}{latency:>8.3} s{restart:>8.2} s{recovery:>8.1} s  {seen}"
            )?;
        }
        writeln!(
            f,
            "(the longest of each: a guest's request, a start until it serves, from the end of an event until every cut reaches the target)\n"
        )
    }

    fn write_growth(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "least..most of each quarter at calm moments; the most at any; what the last quarter may reach"
        )?;
        for growth in &self.growth {
            write!(f, "{:<8}{:<14}", growth.group, growth.figure)?;
            for quarter in growth.quarters {
                let text = quarter.map_or("-".into(), |(least, most)| {
                    format!("{}..{}", short(least), short(most))
                });
                write!(f, "{text:>16}")?;
            }
            let limit = growth.limit.map_or("-".into(), short);
            let word = if growth.passed() { "ok" } else { "GROWS" };
            writeln!(f, "{:>9}{limit:>9}  {word}", short(growth.most))?;
        }
        Ok(())
    }
}

fn short(value: u64) -> String {
    match value {
        0..10_000 => value.to_string(),
        10_000..10_240_000 => format!("{}K", value >> 10),
        _ => format!("{}M", value >> 20),
    }
}
