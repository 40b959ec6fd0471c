//! The thread that watches what protection takes, between cuts as well: a diff device that keeps guests
//! waiting is left alone at once.
//!
//! Rule: it waits for no lock that is held while a diff is written: the device that it watches may hang.

use std::time::Duration;

use splitter::Group;

use crate::api::{Cause, Rung};
use crate::engine::{Engine, Stop};
use crate::ladder;
use crate::pressure::LatencyJudge;

/// How often space and memory are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Watches until the exports are closed.
pub(crate) fn run(engine: &Engine) {
    let limit = engine.limits.diff_latency.map(|limit| limit.time());
    // A visit is slow once so many whole turns have passed.
    let turns = u32::try_from(Group::SLOW_TURNS).expect("a few");
    let turn = limit.map_or(LOOK_EVERY, |limit| (limit / turns).min(LOOK_EVERY));
    let (mut judge, mut looked) = (LatencyJudge::default(), Duration::ZERO);
    loop {
        let stop = engine.wait(Some(turn), Stop::Closing, |_| false).stop;
        if stop > Stop::Closing {
            return;
        }
        engine.beat();
        let pace = engine.group.turn();
        engine.ladder.note_pace(pace);
        if engine.ladder.rung() >= Rung::MapOnly {
            judge.forget();
        }
        if judge.is_too_slow(pace)
            && let Some(limit) = limit
        {
            let why = format!("guests' writes waited more than {limit:?} for it");
            ladder::step_down(engine, Rung::MapOnly, Cause::DiffLatency, &why);
        }
        if pace.device_hanging > 0 {
            // Guests may go on for long; a cut does not.
            engine.note_cause(Cause::DiffLatency);
        }
        let now = engine.now();
        if now.saturating_sub(looked) >= LOOK_EVERY {
            looked = now;
            ladder::look_at_room(engine);
        }
    }
}
