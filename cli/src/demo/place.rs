//! Where the demo works, and that nothing is left of it: neither files nor a process, however it
//! ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::signals::Ending;

/// What a shell says of a command that was interrupted.
const INTERRUPTED: i32 = 130;

/// A directory that goes with its owner.
pub(crate) struct Place {
    dir: PathBuf,
    keep: bool,
    child: Arc<Mutex<Option<Pid>>>,
}

impl Place {
    pub(crate) fn new(base: &Path, keep: bool) -> Result<Self> {
        let dir = base.join(format!("standin-demo-{}", std::process::id()));
        let dir = std::path::absolute(&dir)?;
        fs::create_dir(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        let place = Self {
            dir,
            keep,
            child: Arc::default(),
        };
        let (dir, child) = (place.dir.clone(), Arc::clone(&place.child));
        Ending::new()?.on_next(move || {
            end_child(&child);
            clear(&dir, keep);
            std::process::exit(INTERRUPTED);
        });
        Ok(place)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the process is noted that must not outlive the demo, while it lives.
    pub(crate) fn child(&self) -> Arc<Mutex<Option<Pid>>> {
        Arc::clone(&self.child)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(&self.dir, self.keep);
    }
}

fn end_child(child: &Mutex<Option<Pid>>) {
    if let Some(pid) = *child.lock() {
        // It may have ended with the same signal.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn clear(dir: &Path, keep: bool) {
    if !keep {
        // What cannot be removed is in the temporary directory.
        let _ = fs::remove_dir_all(dir);
    }
}
