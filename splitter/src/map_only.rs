//! Tracking without copies: writes are marked, and their granules stay stale until copies resume and
//! healing reads them from production. The diff device is not touched meanwhile, by guests least of all.
//!
//! Crash: nothing says that copies are paused but the stale granules, which are read again anyhow.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::group::heal_error;
use crate::{CutError, Group, TrackedDisk, files};

/// What a probe writes.
const PROBE_BYTES: usize = 64 << 10;

impl Group {
    /// Writes are only marked from here on. Copies that wait for a frame are given up; no cut can be
    /// made.
    pub fn pause_copies(&self) {
        self.set_paused(true);
    }

    /// Writes are copied again. The next heal reads what went uncopied.
    pub fn resume_copies(&self) {
        self.set_paused(false);
    }

    /// Reads into the diffs what went uncopied, while writes are still only marked: most of it is there when
    /// copies resume, and no guest waits for the device meanwhile, but for one whose block is being read.
    /// `go_on` is asked before each 256 KiB at most. Returns the bytes read.
    ///
    /// # Errors
    /// `Production`, `Degraded`.
    pub fn catch_up(&self, go_on: &dyn Fn() -> bool) -> Result<u64, CutError> {
        let caught_up = |disk: &Arc<TrackedDisk>| {
            let healed = disk.heal_while(go_on, &|| Duration::ZERO);
            healed.map_err(|error| heal_error(disk, error))
        };
        self.disks.iter().map(caught_up).sum()
    }

    fn set_paused(&self, paused: bool) {
        let flags = self.disks.iter().map(|disk| &disk.copies_paused);
        flags.for_each(|flag| flag.store(paused, Ordering::Release));
    }

    /// Whether writes are only marked.
    #[must_use]
    pub fn copies_are_paused(&self) -> bool {
        self.disks.iter().any(|disk| disk.copies_are_paused())
    }

    /// Tries the diff device with a file of its own, written and synced. Returns how long that took.
    ///
    /// # Errors
    /// The operating system's.
    pub fn probe_diffs(&self) -> io::Result<Duration> {
        let (dir, clock) = (&*self.around.diffs, &*self.around.clock);
        let start = clock.monotonic();
        files::remove(dir, files::PROBE)?;
        let file = dir.create(files::PROBE)?;
        let probed = file.write_all_at(&vec![0xA5; PROBE_BYTES], 0);
        let probed = probed.and_then(|()| file.sync_data());
        // What stays behind is removed by the next probe.
        files::remove(dir, files::PROBE).and(probed)?;
        Ok(clock.monotonic().saturating_sub(start))
    }
}
