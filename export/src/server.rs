//! Listeners, the accept loops, and the way down.
//!
//! One thread per listening socket accepts; each connection starts with one thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use block::{Clock, SystemClock};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::activation::ActivationError;
use crate::limits::REQUEST_BYTES_MAX;
use crate::listen::{self, Listen, Listener, LocalAddress};
use crate::log_gate::LogGate;
use crate::nbd::handshake::{self, House};
use crate::nbd::session::Session;
use crate::nbd::watch::Watch;
use crate::registry::{DrainReport, Membership, Registry};
use crate::transport::{Socket, Transport};
use crate::{Exports, Limits, TlsPolicy};

/// How to serve.
pub struct ServerOptions {
    /// Who uses TLS.
    pub tls: TlsPolicy,
    /// What clients may ask for.
    pub limits: Limits,
    /// For the deadlines.
    pub clock: Arc<dyn Clock>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            tls: TlsPolicy::Off,
            limits: Limits::default(),
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No address was given.
    #[error("there is no address to listen on")]
    NoAddress,
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why; `AddrInUse` if somebody else does.
        source: io::Error,
    },
    /// No activated sockets.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The machine has no more of something.
    #[error("cannot start to serve")]
    Start(#[from] io::Error),
}

/// A running NBD server. Dropping it cuts off its clients; [`drain`](Self::drain) is the way out.
pub struct Server {
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    addresses: Vec<LocalAddress>,
    acceptors: Vec<JoinHandle<()>>,
    watch: Option<JoinHandle<()>>,
    listeners: Arc<Mutex<Vec<Listener>>>,
}

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) log_gate: LogGate,
    pub(crate) watch: Watch,
    exports: Exports,
    tls: TlsPolicy,
    pub(crate) clock: Arc<dyn Clock>,
    registry: Arc<Registry>,
}

impl Server {
    /// Listens on every address and serves `exports`, which may change meanwhile.
    ///
    /// # Errors
    /// If an address cannot be listened on; then none is.
    pub fn start(
        listen: &[Listen],
        exports: Exports,
        options: ServerOptions,
    ) -> Result<Self, ServeError> {
        let mut listeners = Vec::new();
        for listen in listen {
            listeners.append(&mut listen::open(listen)?);
        }
        if listeners.is_empty() {
            return Err(ServeError::NoAddress);
        }
        for listener in &listeners {
            // A client may leave between poll and accept, which must not wait for the next.
            rustix::io::ioctl_fionbio(&listener.fd, true).map_err(io::Error::from)?;
        }
        let addresses = listeners.iter().map(|l| l.address.clone()).collect();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?);
        let fds = listeners
            .iter()
            .map(|listener| listener.fd.try_clone())
            .collect::<io::Result<Vec<_>>>()?;
        let mut server = Self {
            shared: Arc::new(Shared::new(exports, options)),
            wake,
            addresses,
            acceptors: Vec::new(),
            watch: None,
            listeners: Arc::new(Mutex::new(listeners)),
        };
        let shared = Arc::clone(&server.shared);
        let watch = thread::Builder::new()
            .name("nbd-watch".to_owned())
            .spawn(move || shared.watch.run())?;
        server.watch = Some(watch);
        for fd in fds {
            let (shared, wake) = (Arc::clone(&server.shared), Arc::clone(&server.wake));
            let acceptor = thread::Builder::new()
                .name("nbd-accept".to_owned())
                .spawn(move || accept_loop(&shared, &fd, &wake))?;
            server.acceptors.push(acceptor);
        }
        Ok(server)
    }

    /// Where clients reach it, with the real ports.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<LocalAddress> {
        self.addresses.clone()
    }

    /// Stops accepting, lets requests in work finish and be answered, and closes each connection
    /// when nothing is in work on it; at `deadline` cuts off the rest. Removes the Unix sockets.
    pub fn drain(mut self, deadline: Duration) -> DrainReport {
        self.stop_accepting();
        self.shared.registry.drain(deadline)
        // Dropping `self` stops the watch, which the draining connections still need.
    }

    fn stop_accepting(&mut self) {
        // Any number that is not zero wakes them. Fails only if the counter is full, when they are awake.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_le_bytes());
        for acceptor in self.acceptors.drain(..) {
            // It does not panic; were it to, there would be nothing to stop.
            let _ = acceptor.join();
        }
        let mut listeners = self.listeners.lock();
        listeners.iter_mut().for_each(Listener::remove_file);
        listeners.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        self.shared.registry.drain(Duration::ZERO);
        self.shared.watch.stop();
        if let Some(watch) = self.watch.take() {
            // As with the acceptors.
            let _ = watch.join();
        }
    }
}

impl Shared {
    fn new(exports: Exports, options: ServerOptions) -> Self {
        let ServerOptions { tls, limits, clock } = options;
        Self {
            limits,
            log_gate: LogGate::new(Arc::clone(&clock)),
            watch: Watch::default(),
            exports,
            tls,
            registry: Arc::new(Registry::new(Arc::clone(&clock))),
            clock,
        }
    }

    /// A budget that any single request fits in.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        self.limits.payload_bytes_max.max(REQUEST_BYTES_MAX)
    }
}

/// Accepts until woken.
fn accept_loop(shared: &Arc<Shared>, listener: &OwnedFd, wake: &OwnedFd) {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return tracing::error!(error = %e, "cannot wait for clients"),
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(fd) => admit(shared, fd),
            // The client left again.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN) => {}
            Err(e) => {
                if let Some(suppressed) = shared.log_gate.pass() {
                    tracing::warn!(error = %e, suppressed, "cannot accept a client");
                }
                // Out of descriptors or memory: others must end first.
                pause(wake);
            }
        }
    }
}

const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

fn pause(wake: &OwnedFd) {
    let mut fds = [PollFd::new(wake, PollFlags::IN)];
    // An early end only means to try earlier.
    let _ = poll(&mut fds, Some(&PAUSE));
}

fn admit(shared: &Arc<Shared>, fd: OwnedFd) {
    listen::tune(&fd);
    let socket = Socket::new(fd);
    let refused = match shared.registry.admit(socket.clone(), &shared.limits) {
        Ok(membership) => {
            let name = format!("nbd-{}", membership.id());
            let shared = Arc::clone(shared);
            thread::Builder::new()
                .name(name)
                .spawn(move || serve(shared, membership, socket))
                .err()
                .map(|e| e.to_string())
        }
        Err(refused) => Some(refused.to_string()),
    };
    if let Some(reason) = refused
        && let Some(suppressed) = shared.log_gate.pass()
    {
        tracing::warn!(reason, suppressed, "a client was turned away");
    }
}

/// Serves one connection from its first byte to its last.
pub(crate) fn serve(shared: Arc<Shared>, mut membership: Membership, socket: Socket) {
    let house = House {
        exports: &shared.exports,
        tls: &shared.tls,
        clock: &*shared.clock,
        deadline: shared.clock.monotonic() + shared.limits.handshake_max,
    };
    let client = membership.id();
    match handshake::negotiate(Transport::plain(socket), &house) {
        Ok(None) => {}
        Ok(Some(negotiated)) => {
            membership.handshake_done();
            let export = negotiated.export.name.clone();
            let (mode, tls) = (negotiated.mode, negotiated.transport.is_tls());
            tracing::debug!(client, export, ?mode, tls, "client connected");
            match Session::new(Arc::clone(&shared), membership, negotiated) {
                Ok(session) => session.run(),
                Err(error) => tracing::debug!(client, %error, "client lost"),
            }
            tracing::debug!(client, export, "first thread of the client ended");
        }
        Err(e) => {
            if let Some(suppressed) = shared.log_gate.pass() {
                let error = chain(&e);
                tracing::info!(client, error, suppressed, "handshake failed");
            }
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line = format!("{line}: {cause}");
        next = cause.source();
    }
    line
}

/// Serves one end of a connected pair as an accepted connection would be, in this thread.
#[cfg(feature = "fuzzing")]
pub(crate) fn serve_one(fd: impl Into<OwnedFd>, exports: Exports, options: ServerOptions) {
    let shared = Arc::new(Shared::new(exports, options));
    let socket = Socket::new(fd.into());
    let membership =
        (shared.registry.admit(socket.clone(), &shared.limits)).expect("nobody else is connected");
    serve(shared, membership, socket);
}
