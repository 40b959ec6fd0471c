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
    /// How often the device lost what was to be written to it.
    failures: AtomicU64,
    /// The last of them. Held while the device is asked: it tells a failure once, to its one handle here, and whoever
    /// asks next must find it counted.
    last: Mutex<String>,
}

impl Disk {
    pub(super) fn new(device: Arc<dyn File>, layout: Layout) -> Self {
        let disk = Self {
            device,
            layout,
            space: Mutex::new(FreeSpace::new(layout.segments)),
            sequence: AtomicU64::new(1),
            failures: AtomicU64::new(0),
            last: Mutex::default(),
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
        let _ = self.asked(|| self.device.check_writeback());
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.asked(|| self.device.sync_data())
    }

    fn asked(&self, ask: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut last = self.last.lock();
        let said = ask();
        if let Err(error) = &said {
            *last = error.to_string();
            self.failures.fetch_add(1, Ordering::AcqRel);
        }
        said
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// Fails if the device did since `told` was told.
    ///
    /// # Errors
    /// The last failure.
    pub(super) fn tell(&self, told: &AtomicU64) -> io::Result<()> {
        let failures = self.failures();
        if told.fetch_max(failures, Ordering::AcqRel) >= failures {
            return Ok(());
        }
        Err(io::Error::other(self.last.lock().clone()))
    }
}
