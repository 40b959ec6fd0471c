//! A real Linux guest under emulation, and what it prints as it prints it. See `lab/guest.sh`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::command;
use crate::time::{elapsed, wait_for};

/// A guest at work. Ended when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

/// Folder with the guest's scripts.
#[must_use]
pub fn lab() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab")
}

impl Guest {
    /// Boots with the host's root as its own and runs `script`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(script: &Path, qemu: &[&str]) -> Result<Self> {
        Self::run_for(script, qemu, Duration::from_secs(600))
    }

    /// As [`run`](Self::run), with 2 GiB of memory, for at most `limit`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run_for(script: &Path, qemu: &[&str], limit: Duration) -> Result<Self> {
        let script = script.to_str().context("a path of text")?;
        let limit = limit.as_secs().to_string();
        let env = [("GUEST_TIMEOUT", &*limit), ("GUEST_MEM", "2048")];
        Self::start(&[&["run", script], qemu].concat(), &env)
    }

    /// Boots from its first virtio disk, of file system `fs`, and runs that disk's `/job`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn boot(fs: &str, job: &str, qemu: &[&str]) -> Result<Self> {
        Self::start(
            &[&["boot"], qemu].concat(),
            &[("ROOT_FS", fs), ("JOB", job)],
        )
    }

    fn start(args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let mut bash = command("bash");
        bash.arg(lab().join("guest.sh"))
            .args(args)
            .envs(env.iter().copied());
        let mut child = bash
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a guest")?;
        let out = BufReader::new(child.stdout.take().context("a pipe")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            said: Vec::new(),
        })
    }

    /// Everything it printed so far.
    pub fn said(&mut self) -> &[String] {
        self.said.extend(self.lines.try_iter());
        &self.said
    }

    /// Waits until it prints a line that starts with `start`; the rest of that line.
    ///
    /// # Errors
    /// If it ends before, or `limit` passes.
    pub fn wait_line(&mut self, start: &str, limit: Duration) -> Result<String> {
        let end = elapsed() + limit;
        let mut seen = 0;
        loop {
            while let Some(line) = self.said.get(seen) {
                seen += 1;
                if let Some(rest) = line.strip_prefix(start) {
                    return Ok(rest.trim().to_owned());
                }
            }
            match self.lines.recv_timeout(end.saturating_sub(elapsed())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the guest did not say `{start}` in {limit:?}:\n{}",
                        self.said.join("\n")
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "the guest ended without `{start}`:\n{}",
                        self.said.join("\n")
                    )
                }
            }
        }
    }

    /// The highest number of the lines `START NUMBER` so far.
    pub fn highest(&mut self, start: &str) -> Option<u64> {
        let numbers = self
            .said()
            .iter()
            .filter_map(|line| line.strip_prefix(start));
        numbers.filter_map(|rest| rest.trim().parse().ok()).max()
    }

    /// Waits for its end; everything it printed.
    ///
    /// # Errors
    /// If its script failed, or `limit` passes.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<String>> {
        let child = &mut self.child;
        let status = wait_for("the guest's end", limit, || Ok(child.try_wait()?));
        self.said.extend(self.lines.iter());
        let said = self.said.join("\n");
        let status = status.with_context(|| said.clone())?;
        if !status.success() {
            bail!("the guest ended with {status}:\n{said}");
        }
        Ok(std::mem::take(&mut self.said))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The script ends the emulator when it is told to end.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Ok(None)) = (pid, self.child.try_wait()) {
            let _ = kill_process(pid, Signal::TERM);
            let _ = self.child.wait();
        }
    }
}
