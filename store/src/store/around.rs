//! What a store is given by who opens it.

use std::sync::Arc;
use std::time::Duration;

use block::{Clock, OsRandom, Random};

use crate::backend::Backend;
use crate::error::Result;
use crate::format::Format;
use crate::headroom::Headroom;
use crate::keys::{self, Secret};
use crate::lease::Lease;
use crate::pool::OnWorker;
use crate::region::ChunkCodec;
use crate::tree::LIST_RUNS_MAX;

/// What a store needs of the world beside its directory.
#[derive(Clone)]
pub struct Around {
    /// Wall time is written on commits, and says when the store is opened what has expired since: locks, the time to bring
    /// points back, quarantine. Monotonic time counts on from there.
    pub clock: Arc<dyn Clock>,
    /// Threads that compress and write containers; 0: the callers do it themselves.
    pub workers: usize,
    /// What each of them does first.
    pub on_worker: OnWorker,
    /// Bytes that a writer keeps free by occupying them: a full store needs some room to be cleaned.
    pub headroom_bytes: u64,
    /// Images with more runs than this in their change lists are folded into trees: at most, and at best, 65,536.
    pub list_runs_max: usize,
    /// How long a writer without a lock may show no sign of life until another one takes over; at most 5 min.
    pub lease_term: Duration,
    /// What opens an encrypted store. With it one that is not encrypted is refused: somebody may have put it there.
    pub secret: Option<Arc<Secret>>,
    /// What keys and nonces are made of.
    pub random: Arc<dyn Random>,
}

impl Around {
    /// As many workers as processors and one more, since some wait for the disk; at most 9.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = processors.min(8) + 1;
        Self {
            clock,
            workers,
            on_worker: OnWorker::default(),
            headroom_bytes: Headroom::BYTES,
            list_runs_max: LIST_RUNS_MAX,
            lease_term: Lease::TERM,
            secret: None,
            random: Arc::new(OsRandom),
        }
    }

    pub(crate) fn codec(&self, place: &dyn Backend, format: &Format) -> Result<Option<ChunkCodec>> {
        keys::codec(place, format, self.secret.as_deref(), &self.random)
    }
}
