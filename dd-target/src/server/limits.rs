//! What the server gives to whom, at most. Where a limit is reached the caller is told to come again, or waits; nothing
//! that was acknowledged is given up for it.

use std::time::Duration;

/// Connections at once; further ones wait to be taken.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Requests that one connection has under way, at most: streams of HTTP/2.
pub(crate) const STREAMS_MAX: u32 = 64;
/// Requests that one token has under way, at most. Further ones are answered with 429.
pub(crate) const REQUESTS_PER_TOKEN: usize = 32;
/// Bytes of bodies that are read at once, of everybody; further ones wait.
pub(crate) const BODY_BYTES_AT_ONCE: usize = 256 << 20;
/// Bytes of objects that were read and are not sent yet, of everybody; further ones wait.
pub(crate) const ANSWER_BYTES_AT_ONCE: usize = 256 << 20;
/// What part of these one token has, at most, and of threads one vault: so that none keeps all others waiting.
pub(crate) const SHARES: usize = 8;
/// Threads on which requests to vaults wait for disks and for each other; further ones wait for a thread.
pub(crate) const THREADS_MAX: usize = 128;
/// Of these one token has so many, at most.
pub(crate) const THREADS_PER_TOKEN: usize = 20;
/// Threads of requests that name no vault.
pub(crate) const OTHER_THREADS: usize = 32;
/// Threads on which it is found out who calls.
pub(crate) const GUARD_THREADS: usize = 16;
/// Chores under way at once, of all vaults and of one. Further ones are answered with 429.
pub(crate) const CHORES_AT_ONCE: usize = 16;
pub(crate) const CHORES_PER_VAULT: usize = 4;

/// How long a client may take for its part of the TLS handshake.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long it may take to send the head of a request.
pub(crate) const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long it may take to send a body.
pub(crate) const BODY_MAX: Duration = Duration::from_secs(60);
/// How long, and for how many bytes, a request that is refused is listened to: its client may be sending still.
pub(crate) const REFUSED_MAX: Duration = Duration::from_secs(5);
pub(crate) const REFUSED_BYTES_MAX: usize = 1 << 20;
/// A connection is asked for a sign of life after so much silence, and given up after as much again.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(20);
/// A peer that takes nothing of its answers for so long is left.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(60);
/// How long requests that are under way may take to end, once the server is to end.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Longest body of a request in JSON.
pub(crate) const JSON_BYTES_MAX: usize = 1 << 20;
/// Bytes of HTTP/2's windows: of a stream, of a connection.
pub(crate) const WINDOWS: (u32, u32) = (4 << 20, 16 << 20);
/// How long threads that wait for disks may take to end after that, and vaults to be closed.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(10);

/// Disks of a group: as a store has them.
pub(crate) const DISKS_MAX: usize = 256;
/// Bytes of a disk: as large as hypervisors make them. What an image holds in memory goes with its size.
pub(crate) const DISK_BYTES_MAX: u64 = 64 << 40;
/// Bytes of all labels of a point together.
pub(crate) const LABELS_BYTES_MAX: usize = 16 << 10;
/// Drafts that a token has, at most: two for each disk of the largest group.
pub(crate) const DRAFTS_PER_TOKEN: usize = 512;
/// Bytes that all drafts may hold in memory. Beyond it those that hold most put what they have into their stores: in smaller
/// containers than they would.
pub(crate) const DRAFT_BYTES_MAX: u64 = 256 << 20;
/// Bytes of these that they cannot put anywhere before they end: the change lists that they build on. Beyond it none is begun.
pub(crate) const DRAFT_BYTES_KEPT_MAX: u64 = DRAFT_BYTES_MAX / 2;
/// A draft that nobody touches for so long is dropped, unless somebody is at work on another one of its ship.
pub(crate) const DRAFT_IDLE_MAX: Duration = Duration::from_mins(15);
/// One that nobody touched for so long gives way to another one of its token, once that has as many as it may.
pub(crate) const DRAFT_GIVES_WAY: Duration = Duration::from_mins(5);
/// Ranges of zeroes in one request.
pub(crate) const ZERO_RANGES_MAX: usize = 4096;
/// How many numbers a copy of a point may skip; points of its origin that were removed had them.
pub(crate) const NUMBERS_SKIPPED_MAX: u64 = 1 << 20;
/// Points that are told of a group at once.
pub(crate) const POINTS_MAX: usize = 100;
/// How much older than the group's newest point one may claim to be, before it is refused instead of being as old as that.
pub(crate) const BEHIND_MAX: Duration = Duration::from_mins(10);
/// How far ahead of the server's clock a point may be.
pub(crate) const AHEAD_MAX: Duration = Duration::from_mins(5);
