//! Does what an event says, from its begin to its end, and looks at both groups meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::faults::{Fault, Frozen, Gone};
use crate::standin;
use crate::time::{elapsed, let_pass};

use super::place::{Guarded, Place};
use super::prove;
use super::schedule::{Event, Kind};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// As a device that is about to die.
const DIFF_PAUSE: Duration = Duration::from_secs(3);
const TARGET_PAUSE: Duration = Duration::from_millis(700);

/// What an event did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// Processes killed.
    pub(crate) kills: u64,
    /// Longest from a start until it served.
    pub(crate) restart: Duration,
    /// States, and steps that were called trouble, that the status showed.
    pub(crate) seen: BTreeSet<String>,
    /// Points that were restored and held against the ledger, by disk.
    pub(crate) restored: u64,
    /// Points that were verified.
    pub(crate) verified: u64,
}

impl Done {
    fn killed(&mut self, times: u64, restart: Duration) {
        self.kills += times;
        self.restart = self.restart.max(restart);
    }
}

/// Does it.
///
/// # Errors
/// Whatever goes wrong; faults are ended in any case.
pub(crate) fn perform(place: &mut Place, event: &Event) -> Result<Done> {
    let mut done = Done::default();
    match event.kind {
        Kind::Kill => done.killed(1, place.mortal.kill(None)?),
        Kind::KillTwice => {
            let moment = event.lasting.mul_f64(0.05);
            done.killed(2, place.mortal.kill(Some(moment))?);
        }
        Kind::Stop => done.killed(0, place.mortal.stop_and_start()?),
        Kind::Freeze => {
            let process = &place.mortal.protect.process;
            process.signal(Signal::STOP)?;
            let_pass(event.lasting);
            process.signal(Signal::CONT)?;
        }
        Kind::DiffEio => {
            place.diffs.begin()?;
            let written_back = place.diffs.write_back();
            hold(place, event, &mut done)?;
            drop(written_back);
            place.diffs.end()?;
            place.diffs.mend()?;
        }
        Kind::DiffLost => lose_diffs(place, event, &mut done)?,
        Kind::DiffSlow => {
            let stutter = place.diffs.stutter(DIFF_PAUSE);
            let written_back = place.diffs.write_back();
            hold(place, event, &mut done)?;
            // The device first: who writes back waits for it.
            drop(stutter);
            drop(written_back);
        }
        Kind::DiffFull => {
            place.ballast.begin()?;
            hold(place, event, &mut done)?;
            place.ballast.end()?;
        }
        Kind::TargetFrozen => {
            let mut frozen = Frozen(place.mortal.bench.path("backup"));
            frozen.begin()?;
            hold(place, event, &mut done)?;
            frozen.end()?;
        }
        Kind::TargetGone => {
            let mut gone = Gone(place.mortal_target());
            gone.begin()?;
            let held = hold(place, event, &mut done);
            gone.end()?;
            held?;
        }
        Kind::TargetStopped => {
            let _stutter = place.backup.stutter(event.lasting);
            hold(place, event, &mut done)?;
        }
        Kind::TargetSlow => {
            let _stutter = place.backup.stutter(TARGET_PAUSE);
            hold(place, event, &mut done)?;
        }
        Kind::ProductionEio => {
            let spell = std::sync::Arc::clone(&place.spell);
            spell.begin(&mut place.production)?;
            hold(place, event, &mut done)?;
            spell.end(&mut place.production)?;
        }
        Kind::Restore => {
            let point = prove::any_point(&place.mortal, event.choice)?;
            done.restored += prove::whole(&place.mortal, &point, crate::Window::ANY)?;
        }
        Kind::Verify => {
            let point = prove::any_point(&place.mortal, event.choice)?;
            let target = place.mortal.bench.target();
            standin::run(["point", "verify", &point, "--target", &target])?;
            done.verified += 1;
        }
    }
    Ok(done)
}

/// What was written back in vain is clean in the page cache, and gone when that is reclaimed. Sealed
/// generations wait for a frozen target, or they would be shipped before the cache forgets them.
fn lose_diffs(place: &mut Place, event: &Event, done: &mut Done) -> Result<()> {
    let mut frozen = Frozen(place.mortal.bench.path("backup"));
    frozen.begin()?;
    place.diffs.begin()?;
    let written_back = place.diffs.write_back();
    hold(place, event, done)?;
    drop(written_back);
    place.diffs.end()?;
    place.diffs.mend()?;
    place.diffs.forget_cache()?;
    frozen.end()
}

/// Lets it last, with a kill in its middle if the event has one.
fn hold(place: &mut Place, event: &Event, done: &mut Done) -> Result<()> {
    if !event.with_kill {
        return watch(place, event.lasting, done);
    }
    watch(place, event.lasting / 2, done)?;
    done.killed(1, place.mortal.kill(None)?);
    watch(place, event.lasting / 2, done)
}

fn watch(place: &Place, lasting: Duration, done: &mut Done) -> Result<()> {
    let end = elapsed() + lasting;
    while elapsed() < end {
        for group in place.groups() {
            look(group, done)?;
        }
        let_pass(LOOK_EVERY);
    }
    Ok(())
}

/// What the group says of itself; that an audit missed something is the end.
///
/// # Errors
/// If it says nothing, or something that must not be.
pub(crate) fn look(group: &Guarded, done: &mut Done) -> Result<()> {
    let status = group.protect.status();
    let status = status.with_context(|| format!("no status of {}", group.how.group))?;
    let state = status["state"].as_str().unwrap_or("-");
    done.seen.insert(state.to_owned());
    if let Some(step) = status["trouble"]["step"].as_str() {
        done.seen.insert(format!("!{step}"));
    }
    let misses = status["audit"]["misses"].as_u64().unwrap_or(0);
    ensure!(misses == 0, "the audit missed: {}", status["audit"]);
    Ok(())
}
