//! Threads on which requests wait for disks, and for each other: a share of them for each vault, and for each token.
//!
//! ```text
//! call of a vault:  the token's share --> the vault's share --> of 128 threads
//! any other call:   the token's share --> of 32 others
//! ```
//!
//! Rule: who waits for a vault's share holds nothing that calls of other vaults and other tokens need.

use std::sync::Arc;

use crate::server::budget::{Budget, Taken};
use crate::server::limits::{
    CONNECTIONS_MAX, OTHER_THREADS, SHARES, STREAMS_MAX, THREADS_MAX, THREADS_PER_TOKEN,
};

/// All threads of requests.
pub(crate) struct Threads {
    of_tokens: Budget,
    of_vaults: Budget,
    others: Budget,
}

/// A thread, until it is dropped.
pub(crate) struct Thread {
    _of_place: Taken,
    _of_token: Option<Taken>,
}

impl Default for Threads {
    fn default() -> Self {
        // Of tokens only each one's share counts: there are never so many requests.
        let all = CONNECTIONS_MAX * STREAMS_MAX as usize;
        Self {
            of_tokens: Budget::new(all, THREADS_PER_TOKEN),
            of_vaults: Budget::new(THREADS_MAX, THREADS_MAX / SHARES),
            others: Budget::new(OTHER_THREADS, OTHER_THREADS / SHARES),
        }
    }
}

/// Whose a request is, and to which vault.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) threads: Arc<Threads>,
    pub(crate) token: String,
    pub(crate) vault: Option<String>,
}

impl Way {
    /// Waits for a thread.
    pub(crate) async fn thread(&self) -> Thread {
        let threads = &*self.threads;
        match &self.vault {
            None => Thread {
                _of_place: threads.others.take(&self.token, 1).await,
                _of_token: None,
            },
            Some(vault) => {
                let of_token = threads.of_tokens.take(&self.token, 1).await;
                Thread {
                    _of_place: threads.of_vaults.take(vault, 1).await,
                    _of_token: Some(of_token),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    async fn is_free(way: &Way) -> bool {
        tokio::time::timeout(SOON, way.thread()).await.is_ok()
    }

    /// One vault's disk hung. The requests of two tokens to it had all threads, and nobody was answered any more, not even an
    /// administrator who wanted to take the tokens back.
    #[tokio::test]
    async fn a_vault_that_hangs_leaves_threads_to_others() {
        let threads = Arc::new(Threads::default());
        let way = |token: &str, vault: Option<&str>| Way {
            threads: Arc::clone(&threads),
            token: token.to_owned(),
            vault: vault.map(str::to_owned),
        };
        let mut waiting = Vec::new();
        for number in 0..THREADS_MAX {
            let way = way(&format!("token {}", number / 10), Some("hangs"));
            waiting.push(tokio::spawn(async move {
                let thread = way.thread().await;
                std::future::pending::<()>().await;
                drop(thread);
            }));
        }
        tokio::time::sleep(SOON).await;
        assert!(!is_free(&way("another", Some("hangs"))).await);
        // Who waits there can go elsewhere.
        for token in ["another", "token 0", "token 12"] {
            assert!(is_free(&way(token, Some("works"))).await, "{token}");
            assert!(is_free(&way(token, None)).await, "{token}");
        }
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        for end in waiting {
            assert!(end.await.unwrap_err().is_cancelled());
        }
        assert!(is_free(&way("another", Some("hangs"))).await);
    }

    #[tokio::test]
    async fn a_token_has_no_more_than_its_share() {
        let way = Way {
            threads: Arc::default(),
            token: "a".to_owned(),
            vault: None,
        };
        let mut held = Vec::new();
        for _ in 0..OTHER_THREADS / SHARES {
            held.push(way.thread().await);
        }
        assert!(!is_free(&way).await);
        let other = Way {
            token: "b".to_owned(),
            ..way.clone()
        };
        assert!(is_free(&other).await);
    }
}
