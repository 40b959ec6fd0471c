//! Which steps of protection fail, why and since when.

use std::fmt;
use std::time::Duration;

use crate::api::Trouble;

/// A step, the most telling first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Copy,
    Cut,
    OpenTarget,
    Seed,
    Ship,
    Hook,
    Ledger,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Cut => "cut",
            Self::OpenTarget => "open-target",
            Self::Seed => "seed",
            Self::Ship => "ship",
            Self::Hook => "hook",
            Self::Ledger => "ledger",
        })
    }
}

/// The steps that fail at the moment, in order.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Vec<Failing>);

#[derive(Debug)]
struct Failing {
    step: Step,
    error: String,
    since: Duration,
    attempts: u64,
}

impl Troubles {
    /// Whether this is news: the step did not fail before, or for another reason.
    pub(crate) fn note(&mut self, step: Step, error: String, now: Duration) -> bool {
        match self.0.iter_mut().find(|failing| failing.step == step) {
            Some(failing) => {
                failing.attempts += 1;
                let news = failing.error != error;
                failing.error = error;
                news
            }
            None => {
                let (since, attempts) = (now, 1);
                self.0.push(Failing {
                    step,
                    error,
                    since,
                    attempts,
                });
                self.0.sort_by_key(|failing| failing.step);
                true
            }
        }
    }

    pub(crate) fn clear(&mut self, step: Step) {
        self.0.retain(|failing| failing.step != step);
    }

    pub(crate) fn has(&self, step: Step) -> bool {
        self.0.iter().any(|failing| failing.step == step)
    }

    /// Whether a step fails without which no cut reaches the target. A hook is none, nor is the ledger.
    pub(crate) fn hold_up_points(&self) -> bool {
        self.0.iter().any(|failing| failing.step < Step::Hook)
    }

    /// The most telling one.
    pub(crate) fn first(&self, now: Duration) -> Option<Trouble> {
        self.0.first().map(|failing| Trouble {
            step: failing.step.to_string(),
            error: failing.error.clone(),
            since_s: now.saturating_sub(failing.since).as_secs_f64(),
            attempts: failing.attempts,
        })
    }
}
