//! How much of the machine the threads that bring cuts to the target may take from the guests.
//!
//! | cuts that wait | age of the newest point | these threads |
//! |---|---|---|
//! | 1 at most | 2 intervals at most | *low*: nice 10 |
//! | 2 at most | 3 intervals at most | *easy*: nice 5; so is the first copy |
//! | more | more | *normal*; also while somebody waits for a point |
//!
//! Where no other class was chosen the kernel takes a thread's I/O priority from its nice value, so
//! the disk is shared in the same way.
//!
//! Rule: a thread steps back only where it holds no lock that a guest's write needs. One that waits
//! for a processor with such a lock would make the guest wait as well. For the same reason it is
//! never more than nice 10: what the kernel locks for a thread, guests wait for, too.
//!
//! Rule: whoever steps back must be able to step forward again, or points would get old. Where the
//! process may not do that, nobody steps back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Builder;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::gettid;
use store::OnWorker;
use tracing::{debug, info};

use crate::api::Priority;
use crate::schedule::Every;

/// Intervals shorter than this are taken for as long: a ship takes a while itself.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The most that `nice` can be.
const NICE_MAX: i32 = 19;

/// How things stand with the points of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// The first copy is complete.
    pub(crate) seeded: bool,
    /// Cuts that wait for the target.
    pub(crate) sealed: usize,
    /// Of the newest point.
    pub(crate) age: Option<Duration>,
    pub(crate) every: Every,
    /// Somebody waits for a point.
    pub(crate) awaited: bool,
}

impl Standing {
    /// The table above.
    pub(crate) fn priority(self) -> Priority {
        let intervals = |count: u32| match (self.every, self.age) {
            (Every::Interval(interval), Some(age)) => age <= interval.max(INTERVAL_MIN) * count,
            _ => true,
        };
        match () {
            () if self.awaited => Priority::Normal,
            () if !self.seeded => Priority::Easy,
            () if self.sealed <= 1 && intervals(2) => Priority::Low,
            () if self.sealed <= 2 && intervals(3) => Priority::Easy,
            () => Priority::Normal,
        }
    }
}

/// The threads that have stepped back.
pub(crate) struct Crew {
    /// What the process was started with; `None` if nobody steps back.
    nice: Option<i32>,
    priority: AtomicU8,
    members: Mutex<Vec<Pid>>,
}

/// A thread that has stepped back, until this is dropped by it.
pub(crate) struct SteppedBack<'a> {
    crew: &'a Crew,
    thread: Pid,
}

impl Crew {
    pub(crate) fn new() -> Self {
        let nice = getpriority_process(None)
            .ok()
            .filter(|nice| may_return(*nice));
        if nice.is_none() {
            info!(
                "this process may not raise a thread's priority again (it needs CAP_SYS_NICE, or a limit of RLIMIT_NICE), so shipping runs like all else"
            );
        }
        Self {
            nice,
            priority: AtomicU8::new(Priority::Normal as u8),
            members: Mutex::default(),
        }
    }

    /// Steps back, for as long as the result lives.
    pub(crate) fn step_back(&self) -> SteppedBack<'_> {
        let thread = self.enter();
        SteppedBack { crew: self, thread }
    }

    /// For threads that have no other work: each steps back for its life.
    pub(crate) fn on_worker(self: &Arc<Self>) -> OnWorker {
        let crew = Arc::clone(self);
        OnWorker::new(move || {
            let thread = crew.enter();
            let crew = Arc::clone(&crew);
            Box::new(Member { crew, thread })
        })
    }

    fn enter(&self) -> Pid {
        let thread = gettid();
        let mut members = self.members.lock();
        members.push(thread);
        self.apply(thread);
        thread
    }

    /// Moves all who have stepped back, and those who will.
    pub(crate) fn set(&self, priority: Priority) {
        let members = self.members.lock();
        if self.priority.swap(priority as u8, Ordering::Relaxed) == priority as u8 {
            return;
        }
        debug!(?priority, "ship priority");
        members.iter().for_each(|member| self.apply(*member));
    }

    pub(crate) fn priority(&self) -> Priority {
        match self.priority.load(Ordering::Relaxed) {
            _ if self.nice.is_none() => Priority::Normal,
            low if low == Priority::Low as u8 => Priority::Low,
            easy if easy == Priority::Easy as u8 => Priority::Easy,
            _ => Priority::Normal,
        }
    }

    fn apply(&self, thread: Pid) {
        let step = match self.priority() {
            Priority::Normal => 0,
            Priority::Easy => 5,
            Priority::Low => 10,
        };
        self.set_nice(thread, step);
    }

    fn set_nice(&self, thread: Pid, step: i32) {
        if let Some(nice) = self.nice {
            // It was tried at the start; what fails by now costs manners, no more.
            let _ = setpriority_process(Some(thread), (nice + step).min(NICE_MAX));
        }
    }

    fn leave(&self, thread: Pid) {
        let mut members = self.members.lock();
        if let Some(at) = members.iter().position(|member| *member == thread) {
            members.swap_remove(at);
        }
        self.set_nice(thread, 0);
    }
}

impl Drop for SteppedBack<'_> {
    fn drop(&mut self) {
        self.crew.leave(self.thread);
    }
}

/// A worker of the store, while it lives.
struct Member {
    crew: Arc<Crew>,
    thread: Pid,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.crew.leave(self.thread);
    }
}

/// Whether a thread may lower its priority and raise it again: tried with one of its own.
fn may_return(nice: i32) -> bool {
    let attempt = move || {
        let back = setpriority_process(None, (nice + 1).min(NICE_MAX));
        back.and_then(|()| setpriority_process(None, nice)).is_ok()
    };
    let thread = Builder::new().name("priority".into()).spawn(attempt);
    thread.is_ok_and(|thread| thread.join().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(sealed: usize, age_s: u64) -> Standing {
        Standing {
            seeded: true,
            sealed,
            age: Some(Duration::from_secs(age_s)),
            every: Every::Interval(Duration::from_secs(5)),
            awaited: false,
        }
    }

    #[test]
    fn the_later_points_are_the_less_ships_step_back() {
        for (sealed, age_s, priority) in [
            (0, 0, Priority::Low),
            (1, 10, Priority::Low),
            (2, 10, Priority::Easy),
            (1, 11, Priority::Easy),
            (2, 15, Priority::Easy),
            (3, 0, Priority::Normal),
            (0, 16, Priority::Normal),
        ] {
            assert_eq!(
                standing(sealed, age_s).priority(),
                priority,
                "{sealed} {age_s}"
            );
        }
        let awaited = Standing {
            awaited: true,
            ..standing(0, 0)
        };
        assert_eq!(awaited.priority(), Priority::Normal);
        let seeding = Standing {
            seeded: false,
            ..standing(9, 99)
        };
        assert_eq!(seeding.priority(), Priority::Easy);
        let short = Standing {
            every: Every::Interval(Duration::from_millis(20)),
            ..standing(1, 2)
        };
        assert_eq!(short.priority(), Priority::Low);
        let manual = Standing {
            every: Every::Manual,
            ..standing(1, 1_000_000)
        };
        assert_eq!(manual.priority(), Priority::Low);
    }

    #[test]
    fn a_thread_steps_back_and_forward_again() {
        let crew = Arc::new(Crew::new());
        let Some(usual) = crew.nice else {
            // This machine lets nobody come back: then nobody goes.
            let _back = crew.step_back();
            crew.set(Priority::Low);
            assert_eq!(crew.priority(), Priority::Normal);
            return;
        };
        let nice = || getpriority_process(Some(gettid())).expect("readable");
        crew.set(Priority::Low);
        assert_eq!(nice(), usual);
        let back = crew.step_back();
        assert_eq!(nice(), (usual + 10).min(NICE_MAX));
        crew.set(Priority::Easy);
        assert_eq!(nice(), (usual + 5).min(NICE_MAX));
        drop(back);
        assert_eq!(nice(), usual);
        crew.set(Priority::Low);
        assert_eq!(nice(), usual);
    }
}
