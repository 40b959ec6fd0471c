//! What all files of a device share: the device, where things are on it, and what it failed to do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::layout::Layout;
use super::space::FreeSpace;
use crate::File;

pub(super) struct Disk {
    pub(super) device: Arc<dyn File>,
    pub(super) layout: Layout,
    pub(super) space: Mutex<FreeSpace>,
    /// What the next record has.
    sequence: AtomicU64,
    failures: Failures,
}

/// How often the device lost what was to be written to it. It tells that to its one handle here, once.
struct Failures {
    count: AtomicU64,
    last: Mutex<String>,
}

impl Disk {
    pub(super) fn new(device: Arc<dyn File>, layout: Layout) -> Self {
        let disk = Self {
            device,
            layout,
            space: Mutex::new(FreeSpace::new(layout.segments)),
            sequence: AtomicU64::new(1),
            failures: Failures {
                count: AtomicU64::new(0),
                last: Mutex::default(),
            },
        };
        disk.ask();
        disk
    }

    /// A number above all that were given.
    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// No number up to `highest` is given any more.
    pub(super) fn go_on_after(&self, highest: u64) {
        self.sequence.fetch_max(highest + 1, Ordering::Relaxed);
    }

    /// Looks whether the device failed since somebody looked.
    pub(super) fn ask(&self) {
        self.note(&self.device.check_writeback());
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        let synced = self.device.sync_data();
        self.note(&synced);
        synced
    }

    fn note(&self, said: &io::Result<()>) {
        if let Err(error) = said {
            *self.failures.last.lock() = error.to_string();
            self.failures.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.count.load(Ordering::Acquire)
    }

    pub(super) fn last_failure(&self) -> io::Error {
        io::Error::other(self.failures.last.lock().clone())
    }
}
