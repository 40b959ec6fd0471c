//! What requests may have at once (bytes of memory, threads): of all owners together, and of each, a token or a vault, a share of it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One permit a byte, or a thread.
pub(crate) struct Budget {
    share: usize,
    whole: Arc<Semaphore>,
    shares: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// What was taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    _own: OwnedSemaphorePermit,
    _whole: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(all: usize, share: usize) -> Self {
        Self {
            share,
            whole: Arc::new(Semaphore::new(all)),
            shares: Mutex::default(),
        }
    }

    /// Waits until the owner, and then all of them, have so much left; never more than a share.
    pub(crate) async fn take(&self, owner: &str, wanted: usize) -> Taken {
        let wanted = u32::try_from(wanted.min(self.share)).expect("requests take far less");
        let own = self.share_of(owner).acquire_many_owned(wanted).await;
        let whole = Arc::clone(&self.whole).acquire_many_owned(wanted).await;
        Taken {
            _own: own.expect("it is never closed"),
            _whole: whole.expect("it is never closed"),
        }
    }

    /// One, if it is left.
    pub(crate) fn try_take_one(&self, owner: &str) -> Option<Taken> {
        Some(Taken {
            _own: self.share_of(owner).try_acquire_owned().ok()?,
            _whole: Arc::clone(&self.whole).try_acquire_owned().ok()?,
        })
    }

    fn share_of(&self, owner: &str) -> Arc<Semaphore> {
        let mut all = self.shares.lock();
        // Whoever waits for one, or has some of it, has the semaphore; others are made anew.
        all.retain(|_, share| Arc::strong_count(share) > 1);
        let share = all.entry(owner.to_owned());
        Arc::clone(share.or_insert_with(|| Arc::new(Semaphore::new(self.share))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two tokens that began uploads and sent nothing kept all others waiting for a minute, again and again.
    #[tokio::test]
    async fn a_token_that_takes_its_share_keeps_no_other_waiting() {
        let budget = Budget::new(8_000, 1_000);
        let hostile = [budget.take("a", 600).await, budget.take("a", 400).await];
        let soon = Duration::from_millis(20);
        let more = tokio::time::timeout(soon, budget.take("a", 1));
        assert!(more.await.is_err());
        drop(budget.take("b", 1_000).await);
        drop(hostile);
        drop(budget.take("a", 1_000_000).await);
        assert_eq!(budget.whole.available_permits(), 8_000);
        drop(budget.share_of("c"));
        assert!(budget.shares.lock().len() <= 2);
    }
}
