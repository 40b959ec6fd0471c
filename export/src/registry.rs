//! Who is connected: counts, caps, and the drain.
//!
//! A draining server lets requests in work finish and be answered, takes no new ones and closes
//! each connection as soon as nothing is in work on it. It does not answer what it did not take:
//! QEMU would hand an error to the guest, but a closed connection it opens again and repeats.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use block::Clock;
use parking_lot::{Condvar, Mutex};

use crate::transport::Socket;

/// All connections of a server.
pub(crate) struct Registry {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next_id: u64,
    handshakes: usize,
    peers: HashMap<u64, Arc<Peer>>,
    draining: bool,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that were open when it began.
    pub connections: usize,
    /// Of these, the ones cut off at the deadline with requests in work.
    pub aborted: usize,
}

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("too many handshakes at once")]
    Handshakes,
    #[error("too many connections")]
    Connections,
    #[error("the server is shutting down")]
    Draining,
}

/// One connection as others see it.
pub(crate) struct Peer {
    socket: Socket,
    draining: AtomicBool,
    in_flight: AtomicUsize,
}

/// A connection's place in the registry; it leaves when this is dropped.
pub(crate) struct Membership {
    registry: Arc<Registry>,
    id: u64,
    peer: Arc<Peer>,
    handshaking: bool,
}

/// A request in work.
pub(crate) struct InFlight<'a>(&'a Peer);

impl Registry {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn admit(
        self: &Arc<Self>,
        socket: Socket,
        limits: &crate::Limits,
    ) -> Result<Membership, Refused> {
        let mut state = self.state.lock();
        if state.draining {
            return Err(Refused::Draining);
        }
        if state.peers.len() >= limits.connections_max {
            return Err(Refused::Connections);
        }
        if state.handshakes >= limits.handshakes_max {
            return Err(Refused::Handshakes);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.handshakes += 1;
        let peer = Arc::new(Peer {
            socket,
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        });
        state.peers.insert(id, Arc::clone(&peer));
        Ok(Membership {
            registry: Arc::clone(self),
            id,
            peer,
            handshaking: true,
        })
    }

    /// Closes every connection, each when its requests in work are answered; those that are not
    /// within `deadline` are cut off.
    pub(crate) fn drain(&self, deadline: Duration) -> DrainReport {
        let mut state = self.state.lock();
        state.draining = true;
        let connections = state.peers.len();
        state.peers.values().for_each(|peer| peer.drain());
        let end = self.clock.monotonic() + deadline;
        while !state.peers.is_empty() {
            let rest = end.saturating_sub(self.clock.monotonic());
            if rest.is_zero() {
                break;
            }
            self.changed.wait_for(&mut state, rest);
        }
        state.peers.values().for_each(|peer| peer.socket.hang_up());
        DrainReport {
            connections,
            aborted: state.peers.len(),
        }
    }
}

impl Membership {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    pub(crate) fn handshake_done(&mut self) {
        self.leave_handshake(&mut self.registry.clone().state.lock());
    }

    fn leave_handshake(&mut self, state: &mut State) {
        if std::mem::take(&mut self.handshaking) {
            state.handshakes -= 1;
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let registry = Arc::clone(&self.registry);
        let mut state = registry.state.lock();
        self.leave_handshake(&mut state);
        state.peers.remove(&self.id);
        registry.changed.notify_all();
    }
}

impl Peer {
    /// Marks a request as in work; `None` if the connection takes no more.
    ///
    /// Either this sees `draining`, or `drain` sees the request: both orders are sequentially
    /// consistent, so never is neither the case.
    pub(crate) fn begin(&self) -> Option<InFlight<'_>> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let request = InFlight(self);
        (!self.draining.load(Ordering::SeqCst)).then_some(request)
    }

    /// How many requests are in work.
    pub(crate) fn in_work(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts a reply that is held as a request in work, before the request itself ends.
    pub(crate) fn hold(&self) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    /// So many held replies are out.
    pub(crate) fn let_go(&self, count: usize) {
        if count > 0 {
            self.end(count);
        }
    }

    fn end(&self, count: usize) {
        let was = self.in_flight.fetch_sub(count, Ordering::SeqCst);
        if was == count && self.is_draining() {
            self.socket.hang_up();
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        if self.in_flight.load(Ordering::SeqCst) == 0 {
            self.socket.hang_up();
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.end(1);
    }
}
