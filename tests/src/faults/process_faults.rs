//! What is done to a process: it is stopped most of the time, or gets little memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::time::{let_pass, wait_for};

/// A process that is stopped most of the time: what it serves takes up to the pause to answer.
#[derive(Debug)]
pub struct Stutter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stutter {
    pub(super) fn start(pid: u32, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                signal(pid, Signal::STOP);
                wait_told(&told, pause);
                signal(pid, Signal::CONT);
                let_pass(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Stutter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until `told`, or so long.
pub(super) fn wait_told(told: &AtomicBool, limit: Duration) {
    // Running into the limit is the rule here.
    let _ = wait_for("the end of a stutter", limit, || {
        Ok(told.load(Ordering::Relaxed).then_some(()))
    });
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Whoever is gone cannot be stopped.
        let _ = kill_process(pid, signal);
    }
}

/// A memory cgroup around one process: what it maps and what it caches. Version 1 or 2, whichever
/// the kernel offers at `/sys/fs/cgroup`. The pages a process had before stay charged elsewhere.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
    peak: &'static str,
    refused: &'static str,
}

impl MemoryLimit {
    /// From this moment `pid` gets at most `bytes`.
    ///
    /// # Errors
    /// If no memory controller can be written to.
    pub fn around(pid: u32, bytes: u64) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let (parent, limit, peak, refused) = if root.join("memory").is_dir() {
            let files = ("memory.limit_in_bytes", "memory.max_usage_in_bytes");
            (root.join("memory"), files.0, files.1, "memory.failcnt")
        } else {
            (
                root.to_owned(),
                "memory.max",
                "memory.peak",
                "memory.events",
            )
        };
        let group = parent.join(format!("standin-test-{pid}"));
        std::fs::create_dir(&group).context("a memory cgroup")?;
        let made = Self {
            group,
            peak,
            refused,
        };
        std::fs::write(made.group.join(limit), bytes.to_string()).context("its limit")?;
        std::fs::write(made.group.join("cgroup.procs"), pid.to_string())?;
        Ok(made)
    }

    /// The most it used, and how often the kernel had to reclaim.
    #[must_use]
    pub fn report(&self) -> String {
        let read = |name| std::fs::read_to_string(self.group.join(name)).unwrap_or_default();
        let (peak, refused) = (read(self.peak), read(self.refused));
        format!(
            "{}: {}, {}: {}",
            self.peak,
            peak.trim(),
            self.refused,
            refused.trim()
        )
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let parent = self.group.parent().unwrap_or(Path::new("/"));
        let members = std::fs::read_to_string(self.group.join("cgroup.procs"));
        for pid in members.unwrap_or_default().lines() {
            let _ = std::fs::write(parent.join("cgroup.procs"), pid);
        }
        let _ = std::fs::remove_dir(&self.group);
    }
}
