//! Child processes that cannot outlive the test, and commands that cannot hang it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::time::wait_for;

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Said {
    /// The exit code; -1 if a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// A command that dies with the thread which spawned it: nothing a test starts survives the test.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM"])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// Runs `command` to its end, whatever its exit code.
///
/// # Errors
/// If it cannot be started, or has not ended after `limit` (it is killed then).
pub fn say(command: &mut Command, limit: Duration) -> Result<Said> {
    let shown = format!("{command:?}");
    // A group of its own: what a shell started must end with it, or it would hold the pipes open.
    let mut child = command
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let status = wait_for(&shown, limit, || Ok(child.try_wait()?));
    if status.is_err() {
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process_group(group.context("no such process id")?, Signal::KILL)?;
        child.wait()?;
    }
    let (out, err) = (collect(out), collect(err));
    let status = status.with_context(|| format!("it said {out}\n{err}"))?;
    Ok(Said { status, out, err })
}

/// Runs `command`; its standard output.
///
/// # Errors
/// If it fails, with everything it said.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let said = say(command, limit)?;
    if !said.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            said.status,
            said.out,
            said.err
        );
    }
    Ok(said.out)
}

/// Runs a line of shell in `directory`; its standard output and error together.
///
/// # Errors
/// If it fails, with everything it said.
pub fn sh(directory: &Path, line: &str, limit: Duration) -> Result<String> {
    let mut bash = command("bash");
    bash.current_dir(directory)
        .args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{line}")]);
    run(&mut bash, limit)
}

type Draining = std::thread::JoinHandle<String>;

fn drain(pipe: Option<impl Read + Send + 'static>) -> Draining {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks ends the text, no more.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn collect(draining: Draining) -> String {
    draining
        .join()
        .unwrap_or_else(|_| "(its output was lost)".into())
}

/// A process that runs beside the test, with its output in a file. Killed when dropped.
#[derive(Debug)]
pub struct Beside {
    child: Child,
    log: PathBuf,
}

impl Beside {
    /// Starts `command`, appending what it says to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the kernel does not know the process.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("no such process id")?, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it runs longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for("the end of a process", limit, || Ok(child.try_wait()?))
            .with_context(|| format!("its log:\n{}", self.log()))
    }

    /// `kill -9`, and waits until the kernel has let go of it.
    ///
    /// # Errors
    /// If the kernel does not know the process.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Most memory it ever had resident, in bytes.
    ///
    /// # Errors
    /// If it is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line
            .context("no VmHWM")?
            .trim()
            .trim_end_matches(" kB")
            .trim();
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// What it has asked of the kernel since it started, by the kernel's own count.
    ///
    /// # Errors
    /// If it is gone.
    pub fn work(&self) -> Result<Work> {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.pid()))?;
        let figure = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.with_context(|| format!("no {name}"))?.trim();
            Ok(value.parse()?)
        };
        Ok(Work {
            bytes: figure("rchar:")? + figure("wchar:")?,
            calls: figure("syscr:")? + figure("syscw:")?,
        })
    }
}

/// Work of a process that another one on the machine cannot add to, unlike its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes it read and wrote, wherever.
    pub bytes: u64,
    /// Calls that read or wrote.
    pub calls: u64,
}

impl Work {
    /// What was done since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            calls: self.calls - earlier.calls,
        }
    }

    /// The smaller of each.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.min(other.bytes),
            calls: self.calls.min(other.calls),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
