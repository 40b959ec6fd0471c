//! Some things done by several threads, each result in its place.

use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// What `act` gives for each of `things`, in their order. The caller is one of the threads.
pub(crate) fn side_by_side<T: Sync, R: Send + Sync>(
    things: &[T],
    threads: usize,
    act: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let threads = threads.min(things.len());
    if threads <= 1 {
        return things.iter().map(act).collect();
    }
    let next = AtomicUsize::new(0);
    let results: Vec<OnceLock<R>> = things.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        loop {
            let i = next.fetch_add(1, Relaxed);
            let (Some(thing), Some(result)) = (things.get(i), results.get(i)) else {
                return;
            };
            let _ = result.set(act(thing));
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let done = results.into_iter().map(OnceLock::into_inner);
    done.map(|result| result.expect("each was done")).collect()
}
