//! `standin protect`, running.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::bench::Bench;
use crate::ledger::{Ledger, Window};
use crate::nbd::{Address, Client};
use crate::process::{Beside, Said};
use crate::standin;
use crate::time::wait_for;

/// A cause to step down the ladder that needs no fault.
pub(crate) const BUSY_MACHINE: &str = "diff-latency";

/// How to protect.
#[derive(Clone, Debug)]
pub struct How {
    /// The production disks.
    pub disks: Vec<PathBuf>,
    /// The group's name.
    pub group: String,
    /// `--every`.
    pub every: String,
    /// `--listen`.
    pub listen: Address,
    /// `--diff-dir`; a directory of the bench if none.
    pub diff_dir: Option<PathBuf>,
    /// Further arguments.
    pub more: Vec<String>,
    /// Added to its environment.
    pub env: Vec<(String, String)>,
    /// How long it may take until it serves.
    pub patience: Duration,
}

impl How {
    /// Manual cuts, a Unix socket.
    #[must_use]
    pub fn new(bench: &Bench, disks: &[&Path]) -> Self {
        Self {
            disks: disks.iter().map(|disk| disk.to_path_buf()).collect(),
            group: "g".into(),
            every: "manual".into(),
            listen: Address::Unix(bench.path("nbd.sock")),
            diff_dir: None,
            more: Vec::new(),
            env: Vec::new(),
            patience: Duration::from_secs(60),
        }
    }

    /// Cuts at an interval.
    #[must_use]
    pub fn every(mut self, every: &str) -> Self {
        self.every = every.into();
        self
    }

    /// Listens on a free TCP port of the loopback.
    ///
    /// # Errors
    /// If no port is free.
    pub fn tcp(mut self) -> Result<Self> {
        self.listen = Address::free_port()?;
        Ok(self)
    }

    /// Keeps diffs at `path`.
    #[must_use]
    pub fn diff_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.diff_dir = Some(path.into());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn with(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// The whole command line after `standin`.
    #[must_use]
    pub fn args(&self, bench: &Bench) -> Vec<String> {
        let mut args = vec!["protect".to_owned()];
        args.extend(self.disks.iter().map(|disk| disk.display().to_string()));
        let diffs = self.diff_dir.as_ref();
        for (flag, value) in [
            ("--target", bench.target()),
            ("--group", self.group.clone()),
            ("--listen", self.listen.to_string()),
            ("--every", self.every.clone()),
            ("--state", bench.state()),
            (
                "--diff-dir",
                diffs.map_or_else(|| bench.text("diffs"), |path| path.display().to_string()),
            ),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(self.more.iter().cloned());
        args
    }
}

/// The running process. Killed when dropped.
#[derive(Debug)]
pub struct Protect {
    /// The process.
    pub process: Beside,
    /// Where it listens.
    pub address: Address,
    group: String,
    state: String,
}

impl Protect {
    /// Starts it and waits until the first disk is served.
    ///
    /// # Errors
    /// If it ends, or does not serve in time.
    pub fn start(bench: &Bench, how: &How) -> Result<Self> {
        let mut protect = Self::spawn(bench, how)?;
        protect.wait_served(how)?;
        Ok(protect)
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(bench: &Bench, how: &How) -> Result<Self> {
        let mut command = standin::command(how.args(bench));
        command.envs(how.env.iter().cloned());
        let process = Beside::start(&mut command, &bench.path(&format!("{}.log", how.group)))?;
        Ok(Self {
            process,
            address: how.listen.clone(),
            group: how.group.clone(),
            state: bench.state(),
        })
    }

    /// Waits until the first disk is served.
    ///
    /// # Errors
    /// If it ends, or does not serve in time.
    pub fn wait_served(&mut self, how: &How) -> Result<()> {
        let stem = how.disks[0].file_stem().and_then(|stem| stem.to_str());
        let export = stem.context("a disk has a name")?.to_owned();
        // With TLS required nobody gets in without it; the socket must do.
        let plain = !how.more.iter().any(|arg| arg == "required");
        wait_for("standin protect to serve", how.patience, || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended with {status}:\n{}", self.process.log());
            }
            if !plain {
                return Ok(self.listens().then_some(()));
            }
            Ok(Client::connect(&self.address, &export).ok().map(drop))
        })
        .with_context(|| format!("its log:\n{}", self.process.log()))
    }

    fn listens(&self) -> bool {
        match &self.address {
            Address::Unix(path) => path.exists(),
            Address::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
        }
    }

    /// Cuts and waits until the point is durable on the target; its id. Where copies are paused for a
    /// diff device that is slow, and no test makes it so, the machine is busy: it waits until they go on. Where the target is so far
    /// behind that the cut was merged into a later one, as other cuts of a fast schedule make it, it cuts again as it is told to.
    ///
    /// # Errors
    /// If the command fails for another reason.
    pub fn cut(&self) -> Result<String> {
        let cut = || {
            let said = standin::say(["cut", &self.group, "--state", &self.state, "--wait"])?;
            if said.status.success() {
                return Ok(Some(said.out));
            }
            if said
                .err
                .contains("it was merged into the cut of generation")
            {
                return Ok(None);
            }
            let status = self.status()?;
            let busy = [Value::Null, BUSY_MACHINE.into()].contains(&status["cause"]);
            match busy && said.err.contains("no cut was made: writes are only marked") {
                true => Ok(None),
                false => bail!(
                    "no cut: {said:?}; {status}; its log:\n{}",
                    self.process.log()
                ),
            }
        };
        let out = wait_for("a cut", standin::LIMIT, cut)
            .with_context(|| format!("its log:\n{}", self.process.log()))?;
        let id = out
            .split_whitespace()
            .last()
            .context("cut --wait printed nothing")?;
        Ok(id.to_owned())
    }

    /// As [`cut`](Self::cut), with the events between which it fell.
    ///
    /// # Errors
    /// As [`cut`](Self::cut).
    pub fn cut_beside(&self, ledger: &Ledger) -> Result<(String, Window)> {
        let asked = ledger.tick();
        let id = self.cut()?;
        Ok((
            id,
            Window {
                asked,
                answered: ledger.tick(),
            },
        ))
    }

    /// Cuts and does not wait for the target.
    ///
    /// # Errors
    /// If the command cannot be started or hangs.
    pub fn cut_only(&self) -> Result<Said> {
        standin::say(["cut", &self.group, "--state", &self.state])
    }

    /// This group's entry of `status --json`.
    ///
    /// # Errors
    /// If the command fails or does not list the group.
    pub fn status(&self) -> Result<Value> {
        let all = standin::json(["status", &self.group, "--state", &self.state])?;
        let groups = all["groups"].as_array().context("status has no groups")?;
        let mine = groups
            .iter()
            .find(|group| group["name"] == self.group.as_str());
        mine.cloned()
            .with_context(|| format!("status lacks the group: {all}"))
    }

    /// This group's entry of `gaps --json`.
    ///
    /// # Errors
    /// If the command fails.
    pub fn gaps(&self) -> Result<Value> {
        let all = standin::json(["gaps", &self.group, "--state", &self.state])?;
        let mine = all["groups"].get(0).cloned();
        mine.with_context(|| format!("no ledger: {all}"))
    }

    /// Waits until the group has a point.
    ///
    /// # Errors
    /// If it gets none in time.
    pub fn wait_point(&self, limit: Duration) -> Result<String> {
        wait_for("the first point", limit, || {
            Ok(self.status()?["point"].as_str().map(str::to_owned))
        })
        .with_context(|| format!("its log:\n{}", self.process.log()))
    }

    /// `SIGTERM`, and waits for the last cut and the end.
    ///
    /// # Errors
    /// If it does not end in time, or not with success.
    pub fn stop(mut self) -> Result<()> {
        let status = self.interrupt(Signal::TERM)?;
        if !status.success() {
            bail!("it ended with {status}:\n{}", self.process.log());
        }
        Ok(())
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn interrupt(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(standin::LIMIT)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// If the kernel does not know it.
    pub fn kill9(mut self) -> Result<()> {
        self.process.kill9()
    }
}
