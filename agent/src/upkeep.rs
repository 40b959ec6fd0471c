//! Looking after a target from the command line.
//!
//! ```text
//! command --> a protection of that target runs here? it is asked, over its control API, to do the chore
//!         --> none does? this process opens the store itself, as its writer, for this chore
//!         --> it is a vault behind a server? the server does it
//! ```

use std::time::Duration;

use block::Name;
use dd_target::client::{Access, Remote};
use dd_target::{Chore, Context, Done, Progress, perform};
use serde::Serialize;
use store::{Keep, Policy, Verdict};

use crate::places::StateRoot;
use crate::world::World;
use crate::{Error, Kind, Result, Target, client};

/// What the rules say of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// GROUP@NUMBER.
    pub point: String,
    /// When it was cut, ns since 1970.
    pub at_unix_ns: u64,
    /// Why it is kept; it would be removed if there is nothing here.
    pub keep: Vec<String>,
}

impl Judged {
    fn of(verdict: &Verdict) -> Self {
        Self {
            point: verdict.point.id.to_string(),
            at_unix_ns: verdict.point.at.0,
            keep: verdict.keep.iter().map(Keep::to_string).collect(),
        }
    }
}

/// Does `chore` on a target: as its writer, or through the protection that is.
///
/// # Errors
/// `Retry` if a process writes to the target that no state directory knows; whatever the chore meets.
pub fn upkeep(
    target: &Target,
    chore: &Chore,
    state: &StateRoot,
    world: &World,
    progress: Progress<'_>,
) -> Result<Done> {
    if let Some(url) = target.vault() {
        let refused = target.refused("look after the vault");
        let server = Remote::open(&url.server, &Access::of_this_process());
        let done = server.and_then(|server| server.chore(&url.vault, chore));
        return done.map_err(refused);
    }
    let end = world.clock.monotonic() + PATIENCE;
    let store = loop {
        // Asked first: who opens the target beside a protection keeps it from shipping.
        let busy = match ask(target, chore, state) {
            Ok(Some(done)) => return Ok(done),
            Ok(None) => match target.writer_of_existing(&world.clock) {
                Err(error) if error.kind() == Kind::Retry => error,
                opened => break opened?,
            },
            Err(error) if error.kind() == Kind::Retry => error,
            Err(error) => return Err(error),
        };
        if world.clock.monotonic() >= end {
            return Err(busy);
        }
        nap(NAP);
    };
    let context = Context {
        clock: &*world.clock,
        progress,
        stop: &|| false,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    perform(&store, chore, &context).map_err(target.failed("look after the store"))
}

/// How long a target may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody waits longer without looking again.
const NAP: Duration = Duration::from_millis(200);

fn nap(time: Duration) {
    // Nobody signals this channel: receiving from it is a sleep.
    let (_open, quiet) = std::sync::mpsc::channel::<()>();
    let _ = quiet.recv_timeout(time);
}

/// Through a protection that writes to the target; `None` if none does that is known here.
fn ask(target: &Target, chore: &Chore, state: &StateRoot) -> Result<Option<Done>> {
    let mut busy = None;
    for place in state.groups().unwrap_or_default() {
        let theirs = place.record().and_then(|record| record.target.parse().ok());
        let same = theirs.is_some_and(|theirs: Target| theirs.is_same_place(target));
        if !same || !client::is_running(&place) {
            continue;
        }
        match client::upkeep(&place, chore) {
            // Another group's protection may have it open.
            Err(error) if error.kind() == Kind::Retry => busy = Some(error),
            Err(Error::NotRunning { .. }) => {}
            done => return done.map(Some),
        }
    }
    match busy {
        None => Ok(None),
        Some(error) => Err(error),
    }
}

/// Makes a store of an empty directory.
///
/// # Errors
/// If there is anything in it.
pub fn init(target: &Target) -> Result<()> {
    if target.secret_file().is_some() {
        return Err(Error::usage(
            "a key is named for a store that would not be encrypted",
            "add --encrypt, or leave the key out",
        ));
    }
    target.create()
}

/// What rules say of the points on a target. Nothing is removed.
///
/// # Errors
/// If the target cannot be read.
pub fn preview(
    target: &Target,
    group: Option<&Name>,
    rules: Policy,
    world: &World,
) -> Result<Vec<Judged>> {
    let store = target.reader(&world.clock)?;
    let zone = jiff::tz::TimeZone::system();
    let verdicts = store.verdicts(group, &rules, &zone);
    Ok(verdicts.iter().map(Judged::of).collect())
}
