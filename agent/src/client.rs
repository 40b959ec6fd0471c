//! Asks a running protection through its control API.

use std::time::Duration;

use block::{Name, OsDir};
use reqwest::{RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::runtime;

use crate::api::{CutReply, CutRequest, Gaps, GroupStatus, Status};
use crate::places::{GroupPlace, ShortPath};
use crate::world::World;
use crate::{Error, Problem, Result, StateRoot, gap_file, status};
use dd_target::{Chore, Done};

/// How long a process that listens may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a status may take.
const STATUS: Duration = Duration::from_secs(30);

/// Cuts a group. With `request.wait` this takes as long as the target takes.
///
/// # Errors
/// `NotRunning`, and whatever the protection answers.
pub fn cut(place: &GroupPlace, request: &CutRequest) -> Result<CutReply> {
    let path = format!("groups/{}/cut", place.group());
    ask(place, |client, base| {
        client.post(format!("{base}/{path}")).json(request)
    })
}

/// Does a chore on the target that the protection writes to. It takes as long as it takes.
///
/// # Errors
/// `NotRunning`, and whatever the chore meets.
pub(crate) fn upkeep(place: &GroupPlace, chore: &Chore) -> Result<Done> {
    ask(place, |client, base| {
        client.post(format!("{base}/target")).json(chore)
    })
}

/// What one group is doing; if no process protects it, what is known of it.
///
/// # Errors
/// `NotRunning` if it was never protected here; a running process that does not answer.
pub fn status(place: &GroupPlace, world: &World) -> Result<GroupStatus> {
    let asked = ask(place, |client, base| {
        client.get(format!("{base}/status")).timeout(STATUS)
    });
    match asked {
        Ok(Status { groups }) => groups
            .into_iter()
            .next()
            .ok_or_else(|| Error::Control("the status names no group".into())),
        Err(Error::NotRunning { .. }) if place.record().is_some() => {
            Ok(status::of_stopped(place, world))
        }
        Err(error) => Err(error),
    }
}

/// What all groups of a state directory are doing.
///
/// # Errors
/// If the directory cannot be read, or a running process does not answer.
pub fn status_of_all(state: &StateRoot, world: &World) -> Result<Status> {
    let groups = state.groups()?;
    let groups = groups.iter().map(|place| status(place, world));
    Ok(Status {
        groups: groups.collect::<Result<_>>()?,
    })
}

/// The gap ledger of a group, with the gap that goes on as its last.
///
/// # Errors
/// `NotRunning` if it was never protected here; if the ledger cannot be read.
pub fn gaps(place: &GroupPlace, world: &World) -> Result<Gaps> {
    let status = status(place, world)?;
    let failed = |error| Error::file("read the gap ledger in", place.dir())(error);
    let dir = OsDir::open(place.dir()).map_err(failed)?;
    let contents = gap_file::read(&dir).map_err(failed)?;
    Ok(Gaps {
        group: place.group().to_string(),
        gaps: contents.gaps.into_iter().chain(status.gap).collect(),
        clock: contents.clock.into(),
        older: contents.older,
        damaged_lines: contents.damaged,
    })
}

fn ask<T: DeserializeOwned>(
    place: &GroupPlace,
    request: impl FnOnce(&reqwest::Client, &str) -> RequestBuilder,
) -> Result<T> {
    let socket = place.control_socket();
    let not_running = || Error::NotRunning {
        group: place.group().clone(),
        socket: socket.clone(),
    };
    // It lives as long as the connection.
    let short = ShortPath::of(&socket).map_err(|_| not_running())?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Control(Box::new(error)))?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .unix_socket(short.path())
            .connect_timeout(CONNECT)
            .build()
            .map_err(|error| Error::Control(Box::new(error)))?;
        let sent = request(&client, "http://standin/v1").send().await;
        match sent {
            Ok(response) => decode(response).await,
            Err(error) if error.is_connect() => Err(not_running()),
            Err(error) => Err(Error::Control(Box::new(error))),
        }
    })
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T> {
    let broken = |error: reqwest::Error| Error::Control(Box::new(error));
    if response.status().is_success() {
        return response.json().await.map_err(broken);
    }
    let code = response.status();
    let problem = response.json::<Problem>().await;
    Err(problem.map_or_else(
        |_| Error::Control(format!("it answered {code}").into()),
        Error::Remote,
    ))
}

/// Whether a process protects the group at this moment.
#[must_use]
pub fn is_running(place: &GroupPlace) -> bool {
    let socket = ShortPath::of(&place.control_socket());
    socket.is_ok_and(|short| std::os::unix::net::UnixStream::connect(short.path()).is_ok())
}

/// Parses a group's name, as commands take it.
///
/// # Errors
/// `Usage`.
pub fn group_name(text: &str) -> Result<Name> {
    text.parse().map_err(|error: block::InvalidName| {
        Error::usage(error.to_string(), "`standin status` lists the groups")
    })
}
