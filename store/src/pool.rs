//! Worker threads behind a bounded queue.
//!
//! Rule: a job may wait for the results of jobs that were submitted before it, and for nothing else:
//! the queue is first in, first out, so those are done or running when it starts.

use std::any::Any;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

type Job = Box<dyn FnOnce() + Send>;

/// What each worker thread does first; what that gives is dropped when the thread ends.
#[derive(Clone, Default)]
pub struct OnWorker(Option<Arc<Start>>);

type Start = dyn Fn() -> Box<dyn Any> + Send + Sync;

impl OnWorker {
    /// Does `start`.
    #[must_use]
    pub fn new(start: impl Fn() -> Box<dyn Any> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(start)))
    }

    fn start(&self) -> Option<Box<dyn Any>> {
        self.0.as_ref().map(|start| start())
    }
}

/// Runs jobs; with no threads, at once in the caller.
pub(crate) struct Pool {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// # Errors
    /// The operating system's, if it gives no thread.
    pub(crate) fn new(threads: usize, on_worker: &OnWorker) -> std::io::Result<Self> {
        if threads == 0 {
            return Ok(Self {
                queue: None,
                threads: Vec::new(),
            });
        }
        // A job is a region of 128 KiB, or a container: enough to keep the workers busy.
        let (queue, jobs) = crossbeam_channel::bounded::<Job>(2 * threads);
        let spawn = |i| {
            let (jobs, on_worker) = (jobs.clone(), on_worker.clone());
            let work = move || {
                let _until_the_end = on_worker.start();
                jobs.into_iter().for_each(|job| job());
            };
            let named = std::thread::Builder::new().name(format!("store-{i}"));
            named.spawn(work)
        };
        Ok(Self {
            queue: Some(queue),
            threads: (0..threads).map(spawn).collect::<std::io::Result<_>>()?,
        })
    }

    /// Queues `job`; waits while the queue is full.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        match &self.queue {
            None => job(),
            Some(queue) => {
                // Fails only if every worker has panicked: then whoever waits for the result
                // learns that it will not come.
                let _ = queue.send(Box::new(job));
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
