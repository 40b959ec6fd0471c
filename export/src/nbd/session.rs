//! The transmission phase: up to 16 threads per connection, one of which leads ([`Crew`]).
//!
//! ```text
//!  leader: reads a request, payload included
//!     quick: performs it, replies, reads on
//!     slow:  passes the lead on, performs the request beside the others, replies, waits for the lead
//! ```
//!
//! Back-pressure is not reading on: when all threads are busy or the payload budget is lent out,
//! requests stay in the socket.
//!
//! Rules: replies go out whole, under the lock of the [`Outbox`]. No lock is held while the device works. A
//! thread that panics takes its connection along, and no other.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use block::{Fua, PageBuf};
use parking_lot::Mutex;

use super::contexts::Context;
use super::crew::{Backlog, Crew, Heir, Next, Pace, Sight};
use super::handshake::Negotiated;
use super::holes::HolePace;
use super::outbox::{Outbox, When};
use super::receiver::{Filled, Receiver};
use super::reply::To;
use super::request::{Command, Header, Judged, Refusal, Terms};
use super::watch::Watched;
use crate::Export;
use crate::budget::{Budget, Loan};
use crate::limits::SMALL_BYTES_MAX;
use crate::registry::{InFlight, Membership};
use crate::server::Shared;
use crate::transport::Transport;

/// A connection that serves an export.
pub(crate) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) membership: Membership,
    pub(super) transport: Transport,
    pub(super) export: Arc<Export>,
    pub(super) contexts: Vec<Context>,
    pub(super) terms: Terms,
    receive: Mutex<Receive>,
    pub(super) outbox: Mutex<Outbox>,
    budget: Budget,
    crew: Crew,
    pub(super) hole_pace: HolePace,
    /// Set by the thread that could not send; the others find out in vain.
    broken: AtomicBool,
}

/// What belongs to the leader.
struct Receive {
    receiver: Receiver,
    pace: Pace,
}

/// Why a session ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the client sent something else than a request")]
    Magic,
    #[error("the client announced {0} bytes of payload")]
    Payload(u64),
    #[error("the connection failed")]
    Socket(#[from] io::Error),
}

/// A request that is ours to answer.
pub(super) struct Job<'a> {
    pub(super) to: To,
    pub(super) verdict: Result<Command, Refusal>,
    pub(super) payload_len: usize,
    pub(super) when: When,
    _loan: Loan<'a>,
    _in_flight: InFlight<'a>,
}

/// Payloads that are longer than any 32-bit length could say are not read past.
const PAYLOAD_SKIPPED_MAX: u64 = u32::MAX as u64;

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        membership: Membership,
        negotiated: Negotiated,
    ) -> io::Result<Self> {
        let Negotiated {
            transport,
            receiver,
            export,
            mode,
            contexts,
        } = negotiated;
        let stall_max = shared.limits.stall_max;
        transport.socket().set_recv_timeout(stall_max)?;
        transport.socket().set_send_timeout(stall_max)?;
        let terms = Terms {
            mode,
            size: export.device.size(),
            writable: export.device.features().writable,
            contexts: contexts.len(),
        };
        let budget = Budget::new(shared.payload_bytes_max());
        Ok(Self {
            shared,
            membership,
            transport,
            export,
            contexts,
            terms,
            receive: Mutex::new(Receive {
                receiver,
                pace: Pace::new(),
            }),
            outbox: Mutex::default(),
            budget,
            crew: Crew::new(),
            hole_pace: HolePace::default(),
            broken: AtomicBool::new(false),
        })
    }

    /// Serves until the connection ends, the calling thread being the first of its threads.
    pub(crate) fn run(self) {
        let session = Arc::new(self);
        let (shared, id) = (Arc::clone(&session.shared), session.membership.id());
        let watched: Weak<Self> = Arc::downgrade(&session);
        shared.watch.add(id, watched);
        session.lead();
    }

    /// A thread's life, from the lead on.
    fn lead(self: Arc<Self>) {
        let _leave = OnExit(&self);
        let mut scratch = Scratch::default();
        let mut took = None;
        self.answer_held();
        while let Some((job, quick)) = self.next(&mut scratch, took.take()) {
            let leads = if quick {
                let begun = self.shared.clock.monotonic();
                let turn = self.crew.begin_turn();
                self.shared.watch.wake();
                self.answer(job, &mut scratch);
                took = Some(self.shared.clock.monotonic() - begun);
                self.crew.end_turn(turn)
            } else {
                self.pass_lead();
                self.answer_held();
                self.answer(job, &mut scratch);
                false
            };
            scratch.shrink();
            let idle_max = self.shared.limits.thread_idle_max;
            if !leads {
                // Who lost the lead has no next request that would take a held reply along.
                self.answer_held();
                if self.crew.wait_for_lead(idle_max) == Next::Leave {
                    return;
                }
                self.answer_held();
            }
        }
        self.answer_held();
    }

    /// The leader's part: reads the next request, and says whether it should be quick. `None`: the
    /// connection ends.
    fn next(&self, scratch: &mut Scratch, took: Option<Duration>) -> Option<(Job<'_>, bool)> {
        // Uncontended: only the leader comes here.
        let mut receive = self.receive.lock();
        let Receive { receiver, pace } = &mut *receive;
        if self.crew.take_stolen() {
            pace.got_stuck();
        } else if let Some(took) = took {
            let backlog = if receiver.is_empty() {
                Backlog::None
            } else {
                Backlog::Some
            };
            pace.took(took, backlog);
        }
        match self.receive(receiver, scratch) {
            Ok(Some(mut job)) => {
                let met = self.membership.peer().in_work() > 1;
                let quick = is_small(job.verdict) && pace.is_quick(met);
                if quick && self.holds_quick_request(receiver.ready()) {
                    job.when = When::Soon;
                }
                Some((job, quick))
            }
            Ok(None) => {
                self.crew.end();
                None
            }
            Err(e) => {
                self.crew.end();
                self.broken(&e);
                None
            }
        }
    }

    /// Lets another thread read on; starts one if nobody is there and the limit allows it.
    fn pass_lead(self: &Arc<Self>) {
        if self.crew.pass_lead(self.shared.limits.in_flight_max) == Heir::Present {
            return;
        }
        let session = Arc::clone(self);
        let started = thread::Builder::new()
            .name(format!("nbd-{}", self.membership.id()))
            .spawn(move || {
                if session
                    .crew
                    .wait_for_lead(session.shared.limits.thread_idle_max)
                    == Next::Lead
                {
                    session.lead();
                } else {
                    drop(OnExit(&session));
                }
            });
        if started.is_err() {
            // Whoever is done first reads on: slower, but not wrong.
            self.crew.not_started();
        }
    }

    fn answer(&self, job: Job<'_>, scratch: &mut Scratch) {
        if let Err(e) = self.perform(&job, scratch) {
            self.broken(&SessionError::Socket(e));
        }
    }

    /// Sends the replies that a leader left behind.
    fn answer_held(&self) {
        if let Err(e) = self.send_held() {
            self.broken(&SessionError::Socket(e));
        }
    }

    /// Whether `bytes` begin with a whole request that the leader will perform itself.
    fn holds_quick_request(&self, bytes: &[u8]) -> bool {
        let Some((head, rest)) = bytes.split_at_checked(Header::len_in(self.terms.mode)) else {
            return false;
        };
        Header::decode(self.terms.mode, head).is_some_and(|header| {
            let judged = self.terms.judge(header);
            is_small(judged.verdict) && judged.payload <= rest.len() as u64
        })
    }

    /// Reads one request with its payload. `None`: the client leaves, or the server drains.
    fn receive(
        &self,
        receiver: &mut Receiver,
        scratch: &mut Scratch,
    ) -> Result<Option<Job<'_>>, SessionError> {
        let header_len = Header::len_in(self.terms.mode);
        loop {
            match receiver.fill(&self.transport, header_len)? {
                Filled::Yes => break,
                Filled::Ended => return Ok(None),
                Filled::Idle => *scratch = Scratch::default(),
            }
        }
        let bytes = receiver.take(header_len);
        let header = Header::decode(self.terms.mode, bytes).ok_or(SessionError::Magic)?;
        let judged = self.terms.judge(header);
        if judged.verdict == Ok(Command::Disconnect) {
            return Ok(None);
        }
        let Some(in_flight) = self.membership.peer().begin() else {
            return Ok(None);
        };
        let loan = self
            .budget
            .borrow(bytes_held(judged.verdict), || self.answer_held());
        let payload_len = self.payload(receiver, judged, scratch)?;
        let Judged {
            cookie, verdict, ..
        } = judged;
        let offset = header.offset;
        Ok(Some(Job {
            to: To { cookie, offset },
            verdict,
            payload_len,
            when: When::Now,
            _loan: loan,
            _in_flight: in_flight,
        }))
    }

    /// Reads a legal request's payload to `scratch`, and reads past that of a refused one.
    fn payload(
        &self,
        receiver: &mut Receiver,
        judged: Judged,
        scratch: &mut Scratch,
    ) -> Result<usize, SessionError> {
        if judged.verdict.is_ok() {
            let len = block::index(judged.payload);
            receiver.read_exact(&self.transport, scratch.bytes(len))?;
            return Ok(len);
        }
        if judged.payload > PAYLOAD_SKIPPED_MAX {
            return Err(SessionError::Payload(judged.payload));
        }
        receiver.skip(&self.transport, judged.payload)?;
        Ok(0)
    }

    /// Ends the connection for all its threads, and says why once.
    fn broken(&self, e: &SessionError) {
        let first = !self.broken.swap(true, Ordering::Relaxed);
        let drained = self.membership.peer().is_draining();
        self.transport.socket().hang_up();
        if first
            && !drained
            && let Some(suppressed) = self.shared.log_gate.pass()
        {
            let (client, export) = (self.membership.id(), self.export.name.as_str());
            let error = crate::server::chain(e);
            tracing::info!(client, export, error, suppressed, "connection cut off");
        }
    }
}

/// Ends a thread's part in its session, however it ends.
struct OnExit<'a>(&'a Session);

impl Drop for OnExit<'_> {
    fn drop(&mut self) {
        let session = self.0;
        if thread::panicking() {
            session.transport.socket().hang_up();
            session.crew.end();
        }
        if session.crew.leave() {
            // All replies are out: the last thread leaves.
            session.transport.close();
            session.shared.watch.remove(session.membership.id());
        }
    }
}

impl Watched for Session {
    fn look(self: Arc<Self>) -> Sight {
        let sight = self.crew.look();
        if sight == Sight::Stolen {
            self.pass_lead();
        }
        sight
    }
}

/// A thread's memory for payload, kept between requests while it is small.
#[derive(Default)]
pub(super) struct Scratch(PageBuf);

impl Scratch {
    /// A fresh mebibyte costs as much in page faults as reading it from the page cache.
    const KEPT_BYTES_MAX: usize = 1 << 20;

    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            // Fresh zeroed pages come from the kernel as they are touched; growing would copy.
            self.0 = PageBuf::default();
            self.0 = PageBuf::zeroed(len);
        }
        &mut self.0[..len]
    }

    fn shrink(&mut self) {
        if self.0.len() > Self::KEPT_BYTES_MAX {
            self.0 = PageBuf::default();
        }
    }
}

/// Whether a request is small enough to be quick if the device is.
fn is_small(verdict: Result<Command, Refusal>) -> bool {
    match verdict {
        Ok(
            Command::Read { range, .. }
            | Command::Write {
                range,
                fua: Fua::No,
            },
        ) => range.len() <= SMALL_BYTES_MAX,
        Ok(_) => false,
        Err(_) => true,
    }
}

/// Payload that a request holds in memory until it is answered.
fn bytes_held(verdict: Result<Command, Refusal>) -> usize {
    match verdict {
        Ok(Command::Read { range, .. } | Command::Write { range, .. }) => block::index(range.len()),
        _ => 0,
    }
}
