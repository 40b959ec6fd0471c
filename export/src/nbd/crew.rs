//! The threads of a connection: one leads, that is, reads requests; who performs a request may
//! lead on or pass the lead to another.
//!
//! ```text
//!            quick request: performed by the leader, who leads on          no thread is woken
//!   leader --+
//!            slow request: the lead passes to a waiting thread, or a new one;
//!                          whoever is done with a request waits for the lead
//! ```
//!
//! Waking a thread costs more than a small read or write of the page cache, so [`Pace`] learns
//! which requests are quick. A guess that fails costs little: [`Watch`](super::watch::Watch) looks
//! every millisecond, and takes the lead from a leader that is stuck in a request.
//!
//! Invariant: as long as the crew has not ended, one thread leads, or the lead is vacant and a
//! thread is on its way to it or busy with a request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

pub(crate) struct Crew {
    roles: Mutex<Roles>,
    changed: Condvar,
    /// Twice the number of quick requests begun, plus one while the leader performs one.
    turn: AtomicU64,
    /// The turn at the last look of the watch.
    seen: AtomicU64,
    /// A quick request was not.
    stolen: AtomicBool,
}

struct Roles {
    vacant: bool,
    ended: bool,
    threads: usize,
    waiting: usize,
}

/// What a thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Lead,
    Leave,
}

/// Whether somebody can take the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heir {
    /// Somebody waits for it, or will be back from a request.
    Present,
    /// A thread is to be started; it counts already.
    ToStart,
}

/// What the watch saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    Quiet,
    Active,
    /// The leader was stuck and has lost the lead, which must be passed on.
    Stolen,
}

/// A quick request in work.
#[derive(Clone, Copy)]
pub(crate) struct Turn(u64);

impl Crew {
    /// A crew of one thread, which leads.
    pub(crate) fn new() -> Self {
        Self {
            roles: Mutex::new(Roles {
                vacant: false,
                ended: false,
                threads: 1,
                waiting: 0,
            }),
            changed: Condvar::new(),
            turn: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            stolen: AtomicBool::new(false),
        }
    }

    /// Gives the lead away. Called by the leader, or for it after [`Sight::Stolen`].
    pub(crate) fn pass_lead(&self, threads_max: usize) -> Heir {
        let mut roles = self.roles.lock();
        roles.vacant = true;
        if roles.waiting > 0 {
            drop(roles);
            self.changed.notify_one();
            Heir::Present
        } else if roles.threads < threads_max {
            roles.threads += 1;
            Heir::ToStart
        } else {
            Heir::Present
        }
    }

    /// The thread that [`Heir::ToStart`] asked for could not be started: whoever is back first
    /// leads.
    pub(crate) fn not_started(&self) {
        self.roles.lock().threads -= 1;
    }

    /// Waits for the lead. After `idle_max` without it the thread is one too many.
    pub(crate) fn wait_for_lead(&self, idle_max: Duration) -> Next {
        let mut roles = self.roles.lock();
        loop {
            if roles.ended {
                return Next::Leave;
            }
            if roles.vacant {
                roles.vacant = false;
                return Next::Lead;
            }
            roles.waiting += 1;
            let idle = self.changed.wait_for(&mut roles, idle_max).timed_out();
            roles.waiting -= 1;
            if idle && !roles.vacant {
                return Next::Leave;
            }
        }
    }

    /// No more requests: everybody leaves when done.
    pub(crate) fn end(&self) {
        self.roles.lock().ended = true;
        self.changed.notify_all();
    }

    /// A thread is gone; whether it was the last.
    pub(crate) fn leave(&self) -> bool {
        let mut roles = self.roles.lock();
        roles.threads -= 1;
        roles.threads == 0
    }

    /// The leader is about to perform a request itself.
    pub(crate) fn begin_turn(&self) -> Turn {
        // Only the leader changes an even turn, so this is no race.
        Turn(self.turn.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// The leader is done with it; whether it still leads.
    pub(crate) fn end_turn(&self, Turn(turn): Turn) -> bool {
        let done = turn + 1;
        (self.turn)
            .compare_exchange(turn, done, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// One look of the watch, which is one thread. A leader that has been in the same request
    /// since the last look is stuck.
    pub(crate) fn look(&self) -> Sight {
        let turn = self.turn.load(Ordering::SeqCst);
        if self.seen.swap(turn, Ordering::Relaxed) != turn {
            return Sight::Active;
        }
        if turn.is_multiple_of(2) {
            return Sight::Quiet;
        }
        if self.end_turn(Turn(turn)) {
            self.stolen.store(true, Ordering::Relaxed);
            return Sight::Stolen;
        }
        Sight::Active
    }

    /// Whether a leader was stuck since this was asked last.
    pub(crate) fn take_stolen(&self) -> bool {
        self.stolen.load(Ordering::Relaxed) && self.stolen.swap(false, Ordering::Relaxed)
    }
}

/// Whether requests wait in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backlog {
    Some,
    None,
}

/// Learns whether small requests are quick enough for the leader to perform them itself.
///
/// In windows: after [`SLOW_MAX`] slow ones of [`WINDOW`] requests the next [`PARALLEL`] are passed
/// on, then it tries again. Passing on helps only a client that asks for more before it has its answer:
/// where in the first [`TRIAL`] that are passed on hardly any meets another in work, the client is
/// *patient*, and slow requests do not count again until one waits in the buffer.
pub(crate) struct Pace {
    left: u32,
    slow: u32,
    /// Requests that got stuck, and windows until they are forgotten.
    stuck: u32,
    stuck_windows: u32,
    /// Requests, of those passed on in the trial, that met another in work.
    met: u32,
    parallel: bool,
    patient: bool,
}

/// Longer is slow when the next request waits already: two threads would then work at once. Waking
/// one costs about a quarter of it.
const QUICK_MAX_WITH_BACKLOG: Duration = Duration::from_micros(40);
/// Longer is slow when none waits: one might come.
const QUICK_MAX_ALONE: Duration = Duration::from_micros(50);
const WINDOW: u32 = 16;
const SLOW_MAX: u32 = 4;
/// Stuck ones that are too many, within [`STUCK_WINDOWS`]. A single one is not: where threads are more than
/// processors, now and then one waits for its turn, and that says nothing of the device.
const STUCK_MAX: u32 = 2;
const STUCK_WINDOWS: u32 = 8;
const PARALLEL: u32 = 512;
const TRIAL: u32 = 16;
/// A thread that is just done still counts as in work, so now and then a lone request meets it.
const MET_MAX: u32 = TRIAL / 2;

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            left: WINDOW,
            slow: 0,
            stuck: 0,
            stuck_windows: 0,
            met: 0,
            parallel: false,
            patient: false,
        }
    }

    /// Whether the next small request is likely to be quick, or nobody waits behind it. `met`: another
    /// is in work.
    pub(crate) fn is_quick(&mut self, met: bool) -> bool {
        if self.parallel {
            self.left -= 1;
            self.met += u32::from(met);
            let tried = PARALLEL - self.left;
            if self.left == 0 {
                *self = Self::new();
            } else if tried == TRIAL && self.met < MET_MAX {
                *self = Self::new();
                self.patient = true;
            }
        }
        !self.parallel
    }

    /// How long a request took that was thought quick, and whether the next one waited meanwhile.
    pub(crate) fn took(&mut self, time: Duration, backlog: Backlog) {
        if self.parallel {
            return;
        }
        let quick_max = match backlog {
            Backlog::Some => QUICK_MAX_WITH_BACKLOG,
            Backlog::None => QUICK_MAX_ALONE,
        };
        self.patient &= backlog == Backlog::None;
        self.slow += u32::from(time > quick_max && !self.patient);
        self.left -= 1;
        if self.slow >= SLOW_MAX {
            self.go_parallel();
        } else if self.left == 0 {
            (self.left, self.slow) = (WINDOW, 0);
            self.stuck_windows = self.stuck_windows.saturating_sub(1);
            if self.stuck_windows == 0 {
                self.stuck = 0;
            }
        }
    }

    /// One of them got stuck, or its thread waited for a processor.
    pub(crate) fn got_stuck(&mut self) {
        self.stuck += 1;
        self.stuck_windows = STUCK_WINDOWS;
        if !self.parallel && self.stuck >= STUCK_MAX {
            self.go_parallel();
        }
    }

    fn go_parallel(&mut self) {
        *self = Self {
            left: PARALLEL,
            parallel: true,
            ..Self::new()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_leader_loses_the_lead_once() {
        let crew = Crew::new();
        let turn = crew.begin_turn();
        assert_eq!(crew.look(), Sight::Active, "it may have just begun");
        assert_eq!(crew.look(), Sight::Stolen);
        assert_eq!(crew.pass_lead(2), Heir::ToStart);
        assert_eq!(crew.look(), Sight::Active);
        assert_eq!(crew.look(), Sight::Quiet);
        assert!(!crew.end_turn(turn), "it finds out when it is done");
        assert!(crew.take_stolen());
        assert!(!crew.take_stolen());
    }

    #[test]
    fn a_leader_that_moves_keeps_the_lead() {
        let crew = Crew::new();
        for _ in 0..3 {
            let turn = crew.begin_turn();
            assert_eq!(crew.look(), Sight::Active);
            assert!(crew.end_turn(turn));
        }
    }

    #[test]
    fn a_vacant_lead_goes_to_whoever_is_back_first_when_all_threads_are_busy() {
        let crew = Crew::new();
        assert_eq!(crew.pass_lead(1), Heir::Present);
        assert_eq!(crew.wait_for_lead(Duration::ZERO), Next::Lead);
        assert_eq!(crew.wait_for_lead(Duration::ZERO), Next::Leave);
    }

    #[test]
    fn slow_requests_are_passed_on_and_tried_again() {
        let mut pace = Pace::new();
        for _ in 0..100 {
            assert!(pace.is_quick(false));
            pace.took(Duration::from_micros(5), Backlog::Some);
            pace.took(Duration::from_micros(45), Backlog::None);
        }
        for _ in 0..SLOW_MAX {
            assert!(pace.is_quick(false));
            pace.took(Duration::from_micros(45), Backlog::Some);
        }
        let passed_on = std::iter::repeat_with(|| pace.is_quick(true))
            .take_while(|quick| !quick)
            .count();
        assert_eq!(passed_on, usize::try_from(PARALLEL - 1).expect("small"));
    }

    /// Threads of the process that waited for the two processors took the lead from whoever led: each time the next
    /// 512 requests woke a thread, and depth 32 got 7 % less.
    #[test]
    fn a_single_stuck_request_wakes_nobody_and_two_in_short_order_do() {
        let mut pace = Pace::new();
        let quick = |pace: &mut Pace, count: u32| {
            for _ in 0..count {
                assert!(pace.is_quick(false));
                pace.took(Duration::from_micros(5), Backlog::Some);
            }
        };
        for _ in 0..10 {
            pace.got_stuck();
            quick(&mut pace, WINDOW * STUCK_WINDOWS);
        }
        pace.got_stuck();
        quick(&mut pace, WINDOW * STUCK_WINDOWS / 2);
        pace.got_stuck();
        assert!(!pace.is_quick(true));
    }

    /// A client with one request in flight met slow answers, each request then woke a thread, and it got
    /// two thirds of what it got before.
    #[test]
    fn requests_of_a_client_that_waits_for_each_answer_wake_nobody() {
        let mut pace = Pace::new();
        let (slow, mut passed_on) = (Duration::from_micros(500), 0);
        for _ in 0..10_000 {
            if pace.is_quick(false) {
                pace.took(slow, Backlog::None);
            } else {
                passed_on += 1;
            }
        }
        assert_eq!(passed_on, TRIAL - 1);
        // As soon as it asks for more at once, it is served by more.
        for _ in 0..WINDOW {
            pace.took(slow, Backlog::Some);
        }
        assert!(!pace.is_quick(true));
    }
}
