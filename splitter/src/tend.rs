//! Keeping the logs of open diffs short, beside the guests' writes: what is old is given up, and what is written
//! does not stay in the page cache.
//!
//! Rule: from the heal before a cut to the cut no log is begun anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::log::DiffLog;
use crate::tracked::TrackedDisk;
use crate::{CutError, Group};

/// No log is begun anew while this lives; see [`Group::keep_logs`].
#[must_use]
pub struct LogsKept<'a>(&'a Group);

impl Drop for LogsKept<'_> {
    fn drop(&mut self) {
        self.0.logs_kept.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Group {
    /// Keeps the logs of the open diffs short, and what they keep in memory little: several times a second, from a
    /// thread of its own, since it waits for the device of the diffs. A guest that writes the same blocks
    /// again and again must not fill the device: where most of a log is old, it is begun anew, and what
    /// it held is stale, to be read again by the next heal. Not while logs are [kept](Self::keep_logs).
    ///
    /// # Errors
    /// `Degraded`: space of the old log may not be free yet.
    pub fn tend_logs(&self) -> Result<(), CutError> {
        self.tend_each(DiffLog::is_mostly_old)
    }

    /// The same, where the device is full: every log is begun anew that holds anything old.
    ///
    /// # Errors
    /// As [`Self::tend_logs`].
    pub fn renew_logs(&self) -> Result<(), CutError> {
        self.tend_each(DiffLog::is_worth_renewing)
    }

    fn tend_each(&self, may_renew: fn(&DiffLog) -> bool) -> Result<(), CutError> {
        let may_renew =
            |log: &DiffLog| self.logs_kept.load(Ordering::Acquire) == 0 && may_renew(log);
        self.disks.iter().try_for_each(|disk| {
            let renewing = self.renewing.lock();
            let log = disk.renew_log(may_renew);
            drop(renewing);
            // It waits for the device: without a lock.
            log.tend().map_err(|source| CutError::Degraded {
                disk: disk.name.clone(),
                source,
            })
        })
    }

    /// While it lives no log is begun anew: from the heal before a cut to the cut, or that would lack what nobody
    /// can read again.
    pub fn keep_logs(&self) -> LogsKept<'_> {
        self.logs_kept.fetch_add(1, Ordering::AcqRel);
        // One may be under way.
        drop(self.renewing.lock());
        LogsKept(self)
    }
}

impl TrackedDisk {
    /// The open log, begun anew if `may_renew` says so.
    fn renew_log(&self, may_renew: impl Fn(&DiffLog) -> bool) -> Arc<DiffLog> {
        let diff = self.gate.enter();
        if may_renew(&diff.log) {
            tracing::debug!(disk = %self.name, "much of the diff is old; it is begun anew");
            diff.log.begin_anew();
        }
        Arc::clone(&diff.log)
    }
}
