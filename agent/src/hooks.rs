//! Hooks: commands of the user before and after a cut, so that what runs in the guests is quiet for it.
//!
//! ```text
//!  heal -> before --ok--> cut: application-consistent --+
//!             |                                         +-> after (whatever became of the cut)
//!             +--fails, hangs--> cut: crash-consistent -+
//! ```
//!
//! Rule: the cut is made whatever a hook does, and no guest's write waits for one.
//!
//! Rule: what `before` began, `after` ends: also if the cut failed, and at the next start if this
//! process is killed in between. A file says that it is owed.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use block::{Clock, Name};
use parking_lot::{Mutex, MutexGuard};
use splitter::{Consistency, Cut, Generation};
use tracing::{debug, warn};

use crate::hook_process::{self, Failure};
use crate::schedule::parse_duration;
use crate::{Error, Result};

/// A command as the user wrote it: split into words as a shell does, but no shell runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookCommand {
    text: String,
    /// The program and its arguments. Invariant: not empty.
    words: Vec<String>,
}

/// A text that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no command: it is empty, or a quote is not closed")]
pub struct InvalidCommand(String);

impl FromStr for HookCommand {
    type Err = InvalidCommand;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidCommand> {
        let words = shlex::split(text).filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| InvalidCommand(text.chars().take(100).collect()))?;
        let text = text.to_owned();
        Ok(Self { text, words })
    }
}

/// How long a hook may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookTimeout(Duration);

impl Default for HookTimeout {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

/// A text that is no time for a hook.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time for a hook: use 500ms, 10s or 2m, at most 1h")]
pub struct InvalidTimeout(String);

impl FromStr for HookTimeout {
    type Err = InvalidTimeout;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidTimeout> {
        const LONGEST: Duration = Duration::from_secs(3600);
        let legal = |time: &Duration| !time.is_zero() && *time <= LONGEST;
        let time = parse_duration(text).filter(legal);
        time.map(Self)
            .ok_or_else(|| InvalidTimeout(text.chars().take(40).collect()))
    }
}

/// Which commands run around a cut.
#[derive(Clone, Debug, Default)]
pub struct HookOptions {
    /// Before it; its success makes the point application-consistent.
    pub before: Option<HookCommand>,
    /// After it, whatever became of it.
    pub after: Option<HookCommand>,
    /// How long each may take; what takes longer is killed, with all that it started.
    pub timeout: HookTimeout,
}

/// The hooks of a group.
pub(crate) struct Hooks {
    group: Name,
    options: HookOptions,
    /// There while `after` is owed.
    owed: PathBuf,
    /// Held from before `before` until after `after`: cuts with hooks happen one by one.
    running: Mutex<()>,
}

/// Whose turn it is to cut with hooks.
pub(crate) struct Turn<'a> {
    hooks: &'a Hooks,
    one: MutexGuard<'a, ()>,
}

/// A cut that is being made, with its hooks.
pub(crate) struct Quiet<'a> {
    hooks: &'a Hooks,
    clock: &'a dyn Clock,
    generation: Generation,
    /// What the guests' state at the cut is.
    pub(crate) consistency: Consistency,
    /// The first hook that failed.
    failed: Option<Error>,
    _one: MutexGuard<'a, ()>,
}

impl Hooks {
    /// `None` if there is nothing to run.
    pub(crate) fn new(group: &Name, options: HookOptions, owed: PathBuf) -> Option<Self> {
        let any = options.before.is_some() || options.after.is_some();
        any.then(|| Self {
            group: group.clone(),
            options,
            owed,
            running: Mutex::new(()),
        })
    }

    /// Waits for a cut with hooks that is being made.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn {
            hooks: self,
            one: self.running.lock(),
        }
    }

    /// Runs `after` for a cut of which an earlier process did not live to see the end.
    pub(crate) fn settle_owed(&self, clock: &dyn Clock) -> Result<()> {
        let _one = self.running.lock();
        match &self.options.after {
            Some(after) if self.owed.exists() => {
                warn!(group = %self.group, "an earlier process ended between the hooks of a cut; the hook after it runs now");
                self.run(
                    clock,
                    "after",
                    after,
                    &[("STANDIN_RESULT", "unknown".into())],
                )?;
                self.note_settled();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn run(
        &self,
        clock: &dyn Clock,
        which: &'static str,
        command: &HookCommand,
        more: &[(&str, String)],
    ) -> Result<()> {
        let mut env = vec![
            ("STANDIN_HOOK", which.to_owned()),
            ("STANDIN_GROUP", self.group.to_string()),
        ];
        env.extend_from_slice(more);
        let began = clock.monotonic();
        let ran = hook_process::run(&command.words, &env, self.options.timeout.0, clock);
        let took = clock.monotonic().saturating_sub(began);
        debug!(group = %self.group, which, ?took, ok = ran.is_ok(), "hook");
        ran.map_err(|failure: Failure| Error::Hook {
            which,
            command: command.text.clone(),
            source: failure,
        })
    }

    /// It is not synced: after a power cut the guests of this machine are not as they were.
    fn note_owed(&self) {
        if self.options.after.is_some()
            && let Err(error) = fs::write(&self.owed, "")
        {
            warn!(group = %self.group, %error, "should this process be killed now, the next one will not run the hook after the cut");
        }
    }

    fn note_settled(&self) {
        match fs::remove_file(&self.owed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(group = %self.group, %error, "the next start will run the hook after a cut once more");
            }
            _ => {}
        }
    }
}

impl<'a> Turn<'a> {
    /// Runs `before`.
    pub(crate) fn before(self, clock: &'a dyn Clock, sealing: Generation) -> Quiet<'a> {
        let hooks = self.hooks;
        let mut quiet = Quiet {
            _one: self.one,
            hooks,
            clock,
            generation: sealing,
            consistency: Consistency::Crash,
            failed: None,
        };
        if let Some(before) = &hooks.options.before {
            hooks.note_owed();
            match hooks.run(
                clock,
                "before",
                before,
                &[("STANDIN_GENERATION", number(sealing.0))],
            ) {
                Ok(()) => quiet.consistency = Consistency::Application,
                Err(error) => quiet.failed = Some(error),
            }
        }
        quiet
    }
}

impl Quiet<'_> {
    /// Runs `after`. The first hook that failed is the error.
    pub(crate) fn after(mut self, cut: Option<&Cut>) -> Result<()> {
        let Some(after) = &self.hooks.options.after else {
            return self.failed.take().map_or(Ok(()), Err);
        };
        let result = match cut.map(|cut| cut.consistency) {
            None => "failed",
            Some(Consistency::Crash) => "crash",
            Some(Consistency::Application) => "application",
        };
        let mut env = vec![
            ("STANDIN_GENERATION", number(self.generation.0)),
            ("STANDIN_RESULT", result.to_owned()),
        ];
        env.extend(cut.map(|cut| ("STANDIN_CUT_AT", number(cut.at.0))));
        let ran = self.hooks.run(self.clock, "after", after, &env);
        if ran.is_ok() {
            self.hooks.note_settled();
        }
        match self.failed.take() {
            Some(first) => Err(first),
            None => ran,
        }
    }
}

fn number(value: u64) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_does() {
        let command: HookCommand = "virsh domfsfreeze 'web 1' --now"
            .parse()
            .expect("a command");
        assert_eq!(command.words, ["virsh", "domfsfreeze", "web 1", "--now"]);
        for bad in ["", "   ", "echo 'open"] {
            assert!(bad.parse::<HookCommand>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_timeout_is_more_than_nothing_and_at_most_an_hour() {
        let time = |text: &str| text.parse::<HookTimeout>().ok().map(|t| t.0);
        assert_eq!(time("10s"), Some(Duration::from_secs(10)));
        assert_eq!(time("5ms"), Some(Duration::from_millis(5)));
        assert_eq!((time("0s"), time("2h"), time("10")), (None, None, None));
    }
}
