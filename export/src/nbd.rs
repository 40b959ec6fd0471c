//! The NBD protocol (`doc/proto.md` of NetworkBlockDevice/nbd): codecs without I/O, the handshake
//! and the transmission phase over a [`Transport`](crate::transport::Transport).

pub(crate) mod client;
pub(crate) mod contexts;
pub(crate) mod crew;
pub(crate) mod handshake;
pub(crate) mod holes;
pub(crate) mod option;
pub(crate) mod outbox;
pub(crate) mod perform;
pub(crate) mod proto;
pub(crate) mod receiver;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod session;
pub(crate) mod watch;
