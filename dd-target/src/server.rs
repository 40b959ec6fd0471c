//! The server: stores on the network, behind TLS and roles.
//!
//! ```text
//!  accept --> TLS --> HTTP/2 --> guard (token, role, vault) --> handler --> a thread that may wait --> store
//!                                   |                                         |
//!                               audit log                                  vaults: opened once, kept
//! ```
//!
//! Rule: nothing is read of a request's body, nor done, before it is known who calls and that they may. What is
//! acknowledged is durable: the store's own rule, and nothing here answers before the store has.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use block::{Clock, Name, OsRandom};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tracing::{info, warn};

use crate::keeper::KeepOptions;
use crate::place::Place;
use crate::problem::chain;
use crate::server::audit::{Audit, Entry, Event};
use crate::server::budget::Budget;
use crate::server::certificate::Identity;
use crate::server::drafts::Drafts;
use crate::server::ending::{Ending, within};
use crate::server::figures::Figures;
use crate::server::guard::UnderWay;
use crate::server::limits::{
    ANSWER_BYTES_AT_ONCE, BODY_BYTES_AT_ONCE, CHORES_AT_ONCE, CHORES_PER_VAULT, GUARD_THREADS,
    OTHER_THREADS, SHARES, THREADS_MAX,
};
use crate::server::refusal::{Answer, Refusal};
use crate::server::state_dir::StateDir;
use crate::server::threads::Threads;
use crate::server::tokens::Tokens;
use crate::server::vaults::Vaults;

pub use audit::{AuditLine, AuditPage, Event as AuditEvent};
pub use certificate::{TlsError, TlsFiles};
pub use local::LocalTokens;
pub use tokens::TokenError;
pub use vaults::VaultError;

mod admin;
mod audit;
mod budget;
mod certificate;
mod draft;
mod drafts;
mod ending;
mod figures;
mod guard;
mod health;
mod keeping;
mod limits;
mod listen;
mod local;
mod openapi;
mod read;
mod refusal;
mod revocation;
mod roles;
mod sending;
mod state_dir;
mod threads;
mod tokens;
mod vaults;
mod write;

/// What a server is made of.
pub struct ServerOptions {
    /// Where its vaults lie.
    pub place: Place,
    /// Where it listens: HOST:PORT.
    pub listen: String,
    /// Its state directory.
    pub state: PathBuf,
    /// How it proves who it is.
    pub tls: TlsFiles,
    /// Under which further names clients call it, for a certificate that it makes itself.
    pub names: Vec<String>,
    /// How its vaults are looked after.
    pub keep: KeepOptions,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its state directory.
    #[error("cannot use the state directory `{}`", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// Vaults.
    #[error(transparent)]
    Vaults(#[from] VaultError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// Which.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The audit log.
    #[error("cannot write the audit log")]
    Audit(#[source] io::Error),
}

/// What all requests share.
pub(crate) struct Inner {
    clock: Arc<dyn Clock>,
    tokens: Tokens,
    audit: Audit,
    vaults: Vaults,
    drafts: Drafts,
    keep: KeepOptions,
    under_way: UnderWay,
    bodies: Budget,
    answers: Budget,
    threads: Arc<Threads>,
    /// By vault.
    chores: Budget,
    /// Until when it is not noted again that a token reads a vault.
    reads: Mutex<HashMap<(String, Name), Duration>>,
    figures: Figures,
    openapi: Bytes,
    ending: Ending,
    keepers: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) type Shared = Arc<Inner>;

/// A running server. Dropped, it ends at once; [`close`](Self::close) lets what runs end.
pub struct Server {
    shared: Shared,
    address: SocketAddr,
    identity: Identity,
    runtime: Runtime,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Begins to serve.
    ///
    /// # Errors
    /// If the state cannot be read, the certificates are of no use, or the address is taken.
    pub fn start(options: ServerOptions) -> Result<Self, ServerError> {
        block::allow_many_open_files();
        let state = |source| ServerError::State {
            path: options.state.clone(),
            source,
        };
        let dir = Arc::new(StateDir::open(&options.state).map_err(state)?);
        let identity = Identity::load(&options.tls, &dir, &names(&options))?;
        let shared = Arc::new(Inner {
            tokens: Tokens::open(&dir, Arc::new(OsRandom))?,
            audit: Audit::new(&dir, &options.clock),
            vaults: Vaults::open(options.place, &dir, &options.clock)?,
            drafts: Drafts::new(&options.clock, Arc::new(OsRandom)),
            keep: options.keep,
            under_way: UnderWay::default(),
            bodies: Budget::new(BODY_BYTES_AT_ONCE, BODY_BYTES_AT_ONCE / SHARES),
            answers: Budget::new(ANSWER_BYTES_AT_ONCE, ANSWER_BYTES_AT_ONCE / SHARES),
            threads: Arc::default(),
            chores: Budget::new(CHORES_AT_ONCE, CHORES_PER_VAULT),
            reads: Mutex::default(),
            figures: Figures::default(),
            openapi: openapi::text(roles::ROUTES),
            ending: Ending::default(),
            keepers: Mutex::default(),
            clock: options.clock,
        });
        let listen = |source| ServerError::Listen {
            address: options.listen.clone(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("target")
            .max_blocking_threads(THREADS_MAX + OTHER_THREADS + CHORES_AT_ONCE + GUARD_THREADS)
            .enable_all()
            .build()
            .map_err(listen)?;
        let listener = runtime.block_on(TcpListener::bind(&options.listen));
        let listener = listener.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        shared
            .audit
            .write(of_server(format!("serves on {address}")))
            .map_err(ServerError::Audit)?;
        let router = roles::router(&shared);
        let serve = listen::accept(
            Arc::clone(&shared),
            listener,
            Arc::clone(&identity.config),
            router,
        );
        let accepting = runtime.spawn(serve);
        for vault in shared.vaults.all() {
            shared.look_after(vault);
        }
        info!(%address, vaults = shared.vaults.all().len(), "the target serves");
        Ok(Self {
            shared,
            address,
            identity,
            runtime,
            accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// SHA-256 of its certificate, in hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.identity.fingerprint
    }

    /// The certificate that clients must be given, if the server has made it itself.
    #[must_use]
    pub fn own_certificate(&self) -> Option<&Path> {
        let identity = &self.identity;
        identity.is_own.then_some(identity.certificate.as_path())
    }

    /// Takes no new work, lets what runs end for half a minute, and closes the vaults. What hangs is not waited for.
    pub fn close(self) {
        let shared = self.shared;
        let begun = shared.clock.monotonic();
        shared.ending.begin();
        let accepting = self.accepting;
        // It ends by itself; a panic of it is the end, too.
        let _ = self.runtime.block_on(accepting);
        let keepers = std::mem::take(&mut *shared.keepers.lock());
        let drained = shared.clock.monotonic().saturating_sub(begun);
        let left = limits::DRAIN_MAX.saturating_sub(drained);
        within(left, "keepers of vaults", move || {
            keepers.into_iter().for_each(|keeper| drop(keeper.join()));
        });
        self.runtime.shutdown_timeout(limits::CLOSE_MAX);
        within(limits::CLOSE_MAX, "vaults", move || shared.close());
        info!("the target has ended");
    }
}

impl Inner {
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.has_begun()
    }

    /// Gives up what is in memory, once nothing runs any more.
    fn close(&self) {
        self.drafts.drop_all();
        for vault in self.vaults.all() {
            vault.give_up();
        }
        self.note(of_server("ended".to_owned()));
    }

    /// Writes a line of the audit log; what cannot be written down is not done.
    pub(crate) fn record(&self, entry: Entry) -> Answer<()> {
        self.audit.write(entry).map_err(|error| {
            warn!(%error, "the audit log cannot be written");
            let sentence = format!("the audit log cannot be written: {}", chain(&error));
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, sentence)
        })
    }

    /// Writes down a refusal, as [`record_some`](Self::record_some) does.
    pub(crate) fn refused(&self, entry: Entry) -> Answer<()> {
        self.figures.refused();
        self.record_some(entry)
    }

    /// Writes a line of those that come by the thousand, and not every one: who causes them must not fill the disk.
    pub(crate) fn record_some(&self, mut entry: Entry) -> Answer<()> {
        match self.audit.is_due(entry.event, entry.token.as_deref()) {
            None => return Ok(()),
            Some(0) => {}
            Some(left_out) => {
                let why = entry.why.unwrap_or_default();
                let sentence = format!("{why}; {left_out} like it were not written down before");
                entry.why = Some(sentence);
            }
        }
        self.record(entry)
    }

    /// Writes a line that nothing depends on.
    pub(crate) fn note(&self, entry: Entry) {
        if let Err(error) = self.audit.write(entry) {
            warn!(%error, "the audit log cannot be written");
        }
    }
}

/// Does what waits for disks, on a thread that may: one of its vault's and its token's.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let thread = guard::thread().await;
    on_a_thread(move || {
        let done = work();
        drop(thread);
        done
    })
    .await
}

/// The same for what is counted otherwise.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    // A panic of ours, or the end of the runtime.
    let broken = "the server failed at this request";
    let done = tokio::task::spawn_blocking(guard::held(work)).await;
    done.unwrap_or_else(|_| Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, broken)))
}

/// Under which clients of this machine, and those that know its name, call it.
fn names(options: &ServerOptions) -> Vec<String> {
    let host = options.listen.rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_str().unwrap_or_default().to_owned();
    let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut names: Vec<_> = own.into_iter().chain(options.names.clone()).collect();
    for name in [host.to_owned(), machine] {
        let anywhere = ["", "0.0.0.0", "::"].contains(&name.as_str());
        if !anywhere && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A line about the server itself.
fn of_server(what: String) -> Entry {
    Entry {
        event: Event::Server,
        token: None,
        peer: None,
        vault: None,
        what,
        why: None,
    }
}
