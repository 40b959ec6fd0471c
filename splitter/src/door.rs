//! Before the gates of a group close, the doors of all its disks do: new writes wait there, and what is
//! in flight behind them ends on all disks at once, not disk by disk as each gate closes in turn.
//!
//! Rule: a door says nothing about who is inside; only the gate does. Whoever waits at a door holds
//! nothing, and doors are opened again however a cut ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::tracked::TrackedDisk;

#[derive(Default)]
pub(crate) struct Door {
    closed: AtomicBool,
    waiting: Mutex<()>,
    opened: Condvar,
}

/// Doors that are closed; they open when this is dropped.
pub(crate) struct ClosedDoors<'a>(&'a [Arc<TrackedDisk>]);

impl Door {
    /// Whether a cut is about to close the gate, or has it closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Waits until the door is open. It may close again at once; then the gate is the place to wait.
    pub(crate) fn pass(&self) {
        if self.is_closed() {
            let mut waiting = self.waiting.lock();
            while self.is_closed() {
                self.opened.wait(&mut waiting);
            }
        }
    }

    fn open(&self) {
        let waiting = self.waiting.lock();
        self.closed.store(false, Ordering::Relaxed);
        drop(waiting);
        self.opened.notify_all();
    }
}

impl<'a> ClosedDoors<'a> {
    pub(crate) fn of(disks: &'a [Arc<TrackedDisk>]) -> Self {
        for disk in disks {
            disk.door.closed.store(true, Ordering::Relaxed);
        }
        Self(disks)
    }
}

impl Drop for ClosedDoors<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|disk| disk.door.open());
    }
}
