//! `standin protect` as a child, so that it can be killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent::api::{CutReply, CutRequest, GroupStatus};
use agent::{GroupPlace, StateRoot, World, client};
use anyhow::{Context, Result, bail};
use block::Name;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::nbd::Client;
use super::place::Place;

/// Until it must serve, or end.
const PATIENCE: Duration = Duration::from_secs(120);

/// The running child. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    noted: Arc<Mutex<Option<Pid>>>,
    log: PathBuf,
    group: GroupPlace,
    world: World,
}

impl Server {
    /// Starts it, and waits until the disk is served.
    pub(crate) fn start(place: &Place, disk: &Path, world: &World) -> Result<Self> {
        let log = place.path("protect.log");
        let out = File::options().create(true).append(true).open(&log)?;
        let state = place.path("state");
        let child = Command::new(std::env::current_exe()?)
            .arg("protect")
            .arg(disk)
            .args(["--group", "demo", "--every", "manual", "--target"])
            .arg(format!("dir:{}", place.path("target").display()))
            .arg("--state")
            .arg(&state)
            .arg("--listen")
            .arg(format!("unix:{}", socket(place).display()))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("cannot start `standin protect`")?;
        let name: Name = "demo".parse().expect("a name");
        let noted = place.child();
        *noted.lock() = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let mut server = Self {
            child,
            noted,
            log,
            group: StateRoot::at(state).group(&name),
            world: world.clone(),
        };
        server.wait("serve", |_| {
            Ok(Client::connect(&socket(place)).is_ok().then_some(()))
        })?;
        Ok(server)
    }

    /// Cuts, and waits until the point is durable on the target.
    pub(crate) fn cut(&self, label: &str) -> Result<CutReply> {
        let labels = [("demo".to_owned(), label.to_owned())].into();
        let request = CutRequest { labels, wait: true };
        Ok(client::cut(&self.group, &request)?)
    }

    pub(crate) fn status(&self) -> Result<GroupStatus> {
        Ok(client::status(&self.group, &self.world)?)
    }

    /// Waits until `ready` gives a value.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let clock = Arc::clone(&self.world.clock);
        let end = clock.monotonic() + PATIENCE;
        loop {
            if let Some(value) = ready(self)? {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("`standin protect` ended with {status}:\n{}", self.said());
            }
            if clock.monotonic() > end {
                bail!("`standin protect` did not {what} in time:\n{}", self.said());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// `kill -9`.
    pub(crate) fn kill9(mut self) -> Result<()> {
        self.child.kill()?;
        self.wait_end()?;
        Ok(())
    }

    /// Its number may be another process's afterwards.
    fn wait_end(&mut self) -> Result<ExitStatus> {
        let mut noted = self.noted.lock();
        let ended = self.child.wait()?;
        *noted = None;
        Ok(ended)
    }

    /// `SIGTERM`, and waits for the last cut and the end.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = (*self.noted.lock()).context("a process that was not waited for")?;
        kill_process(pid, Signal::TERM)?;
        let status = self.child.wait()?;
        *self.noted.lock() = None;
        if !status.success() {
            bail!("`standin protect` ended with {status}:\n{}", self.said());
        }
        Ok(())
    }

    /// The newest lines of what it said.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.wait_end();
    }
}

/// Where the disk is served.
pub(crate) fn socket(place: &Place) -> PathBuf {
    place.path("nbd.sock")
}
