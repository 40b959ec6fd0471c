//! Bringing full frames of open diffs to their files, from a thread of its own: a guest's write pays for its copy
//! in memory, and not for the file system of the diffs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::Group;
use crate::log::DiffLog;
use crate::pace::Pace;
use crate::trouble::Trouble;

/// After a frame could not be written: nobody waits for one meanwhile.
const FAILED_PAUSE: Duration = Duration::from_millis(10);

/// How those who fill frames call the one who writes them.
///
/// Rule: the log comes with the call, as the gate is not asked for it. A guest who waits for a frame is behind that,
/// somebody may wait for the guest to leave, and who would enter then waits as well.
#[derive(Default)]
pub(crate) struct WriterCall {
    /// Writers that there are.
    count: AtomicUsize,
    called: Mutex<Vec<Called>>,
    changed: Condvar,
    /// Never notified.
    quiet: Condvar,
    /// Visits of those at the device whom no guest waits for, or not for long: the writer, cuts and heals.
    pub(crate) device: Pace,
}

/// A log that has full frames.
struct Called {
    log: Arc<DiffLog>,
    trouble: Arc<Trouble>,
}

impl WriterCall {
    /// What goes wrong with its frames is `trouble`.
    pub(crate) fn call(&self, log: &Arc<DiffLog>, trouble: &Arc<Trouble>) {
        if self.is_there() && !log.note_called(true) {
            let (log, trouble) = (Arc::clone(log), Arc::clone(trouble));
            self.called.lock().push(Called { log, trouble });
            self.changed.notify_one();
        }
    }

    fn take_called(&self) -> Vec<Called> {
        let called = std::mem::take(&mut *self.called.lock());
        // Before their frames are looked at: whoever fills one after that calls again.
        for Called { log, .. } in &called {
            log.note_called(false);
        }
        called
    }

    /// Does nothing for a while, whoever calls.
    fn pause(&self) {
        self.quiet.wait_for(&mut self.called.lock(), FAILED_PAUSE);
    }

    /// Whether somebody writes frames.
    pub(crate) fn is_there(&self) -> bool {
        self.count.load(Ordering::Acquire) != 0
    }

    /// Waits for a call, `patience` at most.
    fn wait(&self, patience: Duration) {
        let mut called = self.called.lock();
        if called.is_empty() {
            self.changed.wait_for(&mut called, patience);
        }
    }
}

/// Writes the frames of a group's open diffs. While it lives, guests' writes leave that to it: they wait for it
/// rather than for the device of the diffs, and go on without a copy once copies are paused, or what it writes
/// fails. Without one they write frames themselves.
pub struct FrameWriter<'a>(&'a Group);

impl Drop for FrameWriter<'_> {
    fn drop(&mut self) {
        if self.0.writer.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.writer.take_called();
        }
    }
}

impl FrameWriter<'_> {
    /// Writes the frames that are full; waits for some at first, `patience` at most. To be called again and again.
    /// It waits for the device of the diffs.
    pub fn write(&self, patience: Duration) {
        let Self(group) = self;
        let writer = &*group.writer;
        writer.wait(patience);
        let mut logs: Vec<Called> = Vec::new();
        loop {
            for called in writer.take_called() {
                if !logs
                    .iter()
                    .any(|other| Arc::ptr_eq(&other.log, &called.log))
                {
                    logs.push(called);
                }
            }
            // One of each in turn: a busy disk must not keep the frames of the others waiting.
            let mut failed = false;
            logs.retain(|Called { log, trouble }| {
                let _at_device = writer.device.visit();
                match log.write_full() {
                    Some(Ok(())) => true,
                    Some(Err(error)) => {
                        trouble.note(&error.to_string());
                        failed = true;
                        false
                    }
                    None => false,
                }
            });
            if failed {
                writer.pause();
            }
            if logs.is_empty() {
                return;
            }
        }
    }
}

impl Group {
    /// The one who writes frames, for a thread of its own.
    #[must_use]
    pub fn frame_writer(&self) -> FrameWriter<'_> {
        self.writer.count.fetch_add(1, Ordering::AcqRel);
        FrameWriter(self)
    }
}
