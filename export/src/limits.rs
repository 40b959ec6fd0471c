//! Every limit a client meets, with the reason for its value.

use std::time::Duration;

/// How much a client may ask for and how long it may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A handshake that takes longer is ended. QEMU's value.
    pub handshake_max: Duration,
    /// Handshakes at once; more are turned away. QEMU's value (CVE-2024-7409).
    pub handshakes_max: usize,
    /// Connections at once, over all exports; more are turned away.
    pub connections_max: usize,
    /// Requests of one connection in work at once, each on its thread; further ones stay in the
    /// socket. QEMU's and nbdkit's value.
    pub in_flight_max: usize,
    /// Payload in memory for one connection, in bytes; further requests stay in the socket.
    /// At least [`REQUEST_BYTES_MAX`].
    pub payload_bytes_max: usize,
    /// A client that sends no byte of a request it began, or takes no byte of a reply, for this
    /// long is cut off. Between requests a client may be silent for ever.
    pub stall_max: Duration,
    /// A thread that found nothing to do for this long ends, except the last of a connection.
    pub thread_idle_max: Duration,
}

/// The largest read or write served. Clients are told [`REQUEST_BYTES_ADVERTISED`], which is what
/// every other server takes; some ask for more all the same.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 << 20;
/// The maximum block size in the export's information.
pub(crate) const REQUEST_BYTES_ADVERTISED: u32 = 32 << 20;
/// Longer options are read past and refused.
pub(crate) const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Options longer than this end the connection: nobody sends them but to waste time.
pub(crate) const OPTION_BYTES_SKIPPED_MAX: u32 = 32 << 20;
/// Options of one handshake; a client needs about ten.
pub(crate) const OPTIONS_MAX: u32 = 10_000;
/// Longer requests are not tried for quickness: copying alone takes as long as waking a thread.
pub(crate) const SMALL_BYTES_MAX: u64 = 32 << 10;
/// Extents in one block status reply.
pub(crate) const STATUS_EXTENTS_MAX: usize = 8192;
/// Extents of one read that are looked at for holes.
pub(crate) const READ_EXTENTS_MAX: usize = 64;
/// Shorter reads are not looked at for holes: asking costs as much as copying.
pub(crate) const HOLE_READ_BYTES_MIN: usize = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_max: Duration::from_secs(10),
            handshakes_max: 100,
            connections_max: 1000,
            in_flight_max: 16,
            payload_bytes_max: REQUEST_BYTES_MAX,
            stall_max: Duration::from_mins(1),
            thread_idle_max: Duration::from_secs(10),
        }
    }
}
