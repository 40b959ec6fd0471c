//! Bringing full frames of open diffs to their files, from a thread of its own: a guest's write pays for its copy
//! in memory, and not for the file system of the diffs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::Group;
use crate::tracked::TrackedDisk;

/// How those who fill frames call the one who writes them.
#[derive(Default)]
pub(crate) struct WriterCall {
    called: Mutex<bool>,
    changed: Condvar,
}

impl WriterCall {
    pub(crate) fn call(&self) {
        let mut called = self.called.lock();
        if !std::mem::replace(&mut *called, true) {
            self.changed.notify_one();
        }
    }

    /// Waits for a call, `patience` at most.
    fn wait(&self, patience: Duration) {
        let mut called = self.called.lock();
        if !*called {
            self.changed.wait_for(&mut called, patience);
        }
        *called = false;
    }
}

impl Group {
    /// Writes the frames of open diffs that are full; waits for some at first, `patience` at most. For a thread
    /// of its own, which calls it again and again: without one the guests' writes do it. It waits
    /// for the device of the diffs.
    pub fn write_frames(&self, patience: Duration) {
        self.writer.wait(patience);
        // One of each in turn: a busy disk must not keep the frames of the others waiting.
        while self.disks.iter().filter(|disk| disk.write_frame()).count() != 0 {}
    }
}

impl TrackedDisk {
    /// Whether one waited. What fails is stale, and is trouble that is shown; the cut meets it as well.
    fn write_frame(&self) -> bool {
        // Without the gate: a cut must not wait for the device.
        let log = Arc::clone(&self.gate.read().log);
        if !log.has_full() {
            return false;
        }
        // It takes as long as a guest's write would take that did it itself.
        let _copying = self.pace.visit();
        let written = log.write_full();
        if let Some(Err(error)) = &written {
            self.note_trouble(&error.to_string());
        }
        written.is_some()
    }
}
