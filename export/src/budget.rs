//! Bytes of payload that one connection may hold in memory: a counting lock.

use parking_lot::{Condvar, Mutex};

/// So many bytes, lent out.
pub(crate) struct Budget {
    free: Mutex<usize>,
    returned: Condvar,
}

/// Bytes on loan; they return when this is dropped.
pub(crate) struct Loan<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            free: Mutex::new(bytes),
            returned: Condvar::new(),
        }
    }

    /// Waits until `bytes` are free, after a call of `before_wait`. The caller never asks for more than
    /// the whole budget.
    pub(crate) fn borrow(&self, bytes: usize, before_wait: impl FnOnce()) -> Loan<'_> {
        let mut free = self.free.lock();
        if *free < bytes {
            parking_lot::MutexGuard::unlocked(&mut free, before_wait);
        }
        while *free < bytes {
            self.returned.wait(&mut free);
        }
        *free -= bytes;
        let budget = self;
        Loan { budget, bytes }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        *self.budget.free.lock() += self.bytes;
        // Only the holder of the receive lock borrows, so there is one waiter at most.
        self.budget.returned.notify_one();
    }
}
