//! Replies on their way out.
//!
//! A leader that has the next request in its buffer already holds small replies back and sends them with
//! the last one: one system call, and one wake-up of the client, for a burst.
//!
//! Rule: a reply is held only while its thread has a whole quick request to go on with. Whoever sends
//! sends what is held first; whoever gains or passes on the lead does so too, so that a request that
//! hangs keeps no other's answer for longer than [`Watch`](super::watch::Watch) needs to notice.
//!
//! Rule: a connection is not drained while it holds a reply.

use std::io;

use super::session::Session;
use crate::transport::Transport;

/// Replies that go out with a later one, whole and in a row.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    replies: usize,
}

/// When a reply goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Now,
    /// With a later one, if it is small.
    Soon,
}

/// What became of a reply that must not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// It is out, or goes out with a later one.
    Sent,
    /// [`Session::send_held`] sends it, or the rest of it.
    Held,
    /// Somebody else is sending.
    Refused,
}

/// The client works on the first replies of a longer burst while we work on its rest.
const HELD_MAX: usize = 8;
/// More is not copied, but sent from where it is.
const HELD_BYTES_MAX: usize = 32 << 10;

impl Session {
    /// Sends a reply, after all that are held.
    pub(super) fn send(&self, head: &[u8], data: &[u8]) -> io::Result<()> {
        let mut outbox = self.outbox.lock();
        self.send_behind(&mut outbox, |transport, held| {
            if held.is_empty() {
                return transport.send_all(head, data);
            }
            held.extend_from_slice(head);
            transport.send_all(held, data)
        })
    }

    /// Sends several pieces of one reply.
    pub(super) fn send_pieces(&self, pieces: &[(Vec<u8>, &[u8])]) -> io::Result<()> {
        let mut outbox = self.outbox.lock();
        self.send_behind(&mut outbox, |transport, held| {
            transport.send_all(held, &[])?;
            let mut pieces = pieces.iter();
            pieces.try_for_each(|(head, data)| transport.send_all(head, data))
        })
    }

    /// Sends a reply, or holds it.
    pub(super) fn send_when(&self, when: When, head: &[u8], data: &[u8]) -> io::Result<()> {
        let mut outbox = self.outbox.lock();
        let full = outbox.replies >= HELD_MAX
            || outbox.bytes.len() + head.len() + data.len() > HELD_BYTES_MAX;
        if when == When::Now || full {
            drop(outbox);
            return self.send(head, data);
        }
        self.hold(&mut outbox, head, data);
        Ok(())
    }

    /// Sends or holds a reply without waiting for anybody, the client included.
    pub(super) fn send_early(&self, when: When, head: &[u8]) -> io::Result<Early> {
        let Some(mut outbox) = self.outbox.try_lock() else {
            return Ok(Early::Refused);
        };
        self.hold(&mut outbox, head, &[]);
        if when == When::Soon && outbox.replies < HELD_MAX {
            return Ok(Early::Sent);
        }
        let sent = self.transport.try_send(&outbox.bytes)?;
        outbox.bytes.drain(..sent);
        if !outbox.bytes.is_empty() {
            return Ok(Early::Held);
        }
        self.let_go(&mut outbox);
        Ok(Early::Sent)
    }

    /// Sends what is held, unless somebody is about to.
    pub(super) fn send_held(&self) -> io::Result<()> {
        match self.outbox.try_lock() {
            Some(mut outbox) if outbox.replies > 0 => {
                self.send_behind(&mut outbox, |transport, held| transport.send_all(held, &[]))
            }
            _ => Ok(()),
        }
    }

    fn send_behind(
        &self,
        outbox: &mut Outbox,
        send: impl FnOnce(&Transport, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let sent = send(&self.transport, &mut outbox.bytes);
        outbox.bytes.clear();
        // Also where the connection broke: then nobody waits for them.
        self.let_go(outbox);
        sent
    }

    fn hold(&self, outbox: &mut Outbox, head: &[u8], data: &[u8]) {
        outbox.bytes.extend_from_slice(head);
        outbox.bytes.extend_from_slice(data);
        outbox.replies += 1;
        self.membership.peer().hold();
    }

    fn let_go(&self, outbox: &mut Outbox) {
        (self.membership.peer()).let_go(std::mem::take(&mut outbox.replies));
    }
}
