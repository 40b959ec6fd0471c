//! Serves any [`block::BlockDevice`] to guests: an NBD server, threaded and blocking. And reads what others serve.
//!
//! ```text
//!  listen (unix, tcp, activation) -> server: accept, caps, drain
//!                                      |  one thread per connection
//!  transport (plain | TLS)  <-  nbd::handshake  ->  nbd::session: up to 16 threads,
//!                                                   leader/follower on the receive lock
//! ```
//!
//! Rule: a client that lies, stalls, floods or vanishes harms only its own connection. Every wait
//! on a client has a limit in [`Limits`], every length it names is checked before it is believed.
//!
//! What of the NBD specification is served: `docs/formats/nbd.md`.

mod activation;
mod budget;
mod exports;
mod limits;
mod listen;
mod log_gate;
mod nbd;
mod registry;
mod server;
mod tls;
mod transport;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use activation::ActivationError;
pub use exports::{AddError, Export, Exports};
pub use limits::Limits;
pub use listen::{InvalidListen, Listen, LocalAddress};
pub use nbd::client::{ConnectError, InvalidNbdUrl, NbdDisk, NbdUrl};
pub use registry::DrainReport;
pub use server::{ServeError, Server, ServerOptions};
pub use tls::{CertificateFiles, TlsConfig, TlsError, TlsPolicy};
