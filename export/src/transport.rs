//! A client's socket, plain or under TLS.
//!
//! One thread receives and another sends at the same time; neither waits for the other. The
//! callers see to it that there is one receiver and one sender at most.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use crate::tls::{TlsConfig, TlsError, TlsLayer};

/// How often to look for bytes on their way: some microseconds in all.
const LOOKS: usize = 12;

/// A connected stream socket in blocking mode.
#[derive(Clone)]
pub(crate) struct Socket(Arc<OwnedFd>);

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&*self.0, &mut *buf, RecvFlags::empty()) {
                Ok((n, _)) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// As [`Self::recv`], for bytes that are on their way: the sender is between two system calls. Going
    /// to sleep and being woken costs both sides more than to look a few times.
    pub(crate) fn recv_soon(&self, buf: &mut [u8]) -> io::Result<usize> {
        for _ in 0..LOOKS {
            match rustix::net::recv(&*self.0, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((n, _)) => return Ok(n),
                Err(Errno::AGAIN | Errno::INTR) => std::hint::spin_loop(),
                Err(e) => return Err(e.into()),
            }
        }
        self.recv(buf)
    }

    /// Sends all of `first`, then all of `second`, in as few packets as may be.
    pub(crate) fn send_all(&self, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
        while !first.is_empty() || !second.is_empty() {
            let n = self.send_some(first, second)?;
            let of_first = n.min(first.len());
            first = &first[of_first..];
            second = &second[n - of_first..];
        }
        Ok(())
    }

    /// Sends as much of `bytes` as the socket takes at once.
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&*self.0, bytes, flags) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    fn send_some(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        let parts = [IoSlice::new(first), IoSlice::new(second)];
        let mut no_control = SendAncillaryBuffer::default();
        loop {
            let sent = rustix::net::sendmsg(&*self.0, &parts, &mut no_control, SendFlags::NOSIGNAL);
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                // The send timeout: not one byte went out for so long.
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// [`Self::recv`] fails with `WouldBlock` after `max` without a byte.
    pub(crate) fn set_recv_timeout(&self, max: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(
            &*self.0,
            Timeout::Recv,
            at_least_one_ms(max),
        )?)
    }

    /// [`Self::send_all`] fails with `TimedOut` after `max` without a byte.
    pub(crate) fn set_send_timeout(&self, max: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(
            &*self.0,
            Timeout::Send,
            at_least_one_ms(max),
        )?)
    }

    /// Ends the connection both ways; threads that wait in it wake up. What was sent still arrives.
    pub(crate) fn hang_up(&self) {
        // It fails only if the peer was first.
        let _ = rustix::net::shutdown(&*self.0, Shutdown::Both);
    }
}

/// Zero would mean "no timeout".
fn at_least_one_ms(max: Duration) -> Option<Duration> {
    Some(max.max(Duration::from_millis(1)))
}

/// A socket, and the TLS layer once it is negotiated.
pub(crate) struct Transport {
    socket: Socket,
    tls: Option<TlsLayer>,
}

impl Transport {
    pub(crate) fn plain(socket: Socket) -> Self {
        Self { socket, tls: None }
    }

    /// Performs the server's side of a TLS handshake. `before_recv` is called before each wait for
    /// the client: it sets the timeout, or says that time is up.
    pub(crate) fn into_tls(
        self,
        config: &TlsConfig,
        before_recv: impl FnMut() -> io::Result<()>,
    ) -> Result<Self, TlsError> {
        let tls = TlsLayer::accept(config, &self.socket, before_recv)?;
        Ok(Self {
            socket: self.socket,
            tls: Some(tls),
        })
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// At least one byte, or 0 at the end of the stream.
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.recv(buf),
            Some(tls) => tls.recv(&self.socket, buf),
        }
    }

    /// As [`Self::recv`], for bytes that are on their way.
    pub(crate) fn recv_soon(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.recv_soon(buf),
            Some(tls) => tls.recv(&self.socket, buf),
        }
    }

    pub(crate) fn send_all(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        match &self.tls {
            None => self.socket.send_all(first, second),
            Some(tls) => tls.send_all(&self.socket, first, second),
        }
    }

    /// Sends as much of `bytes` as goes without waiting: under TLS nothing, its records are sent whole.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.try_send(bytes),
            Some(_) => Ok(0),
        }
    }

    /// Tells the client that nothing more will be sent, so that it can tell an end from a cut.
    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.close(&self.socket);
        }
        self.socket.hang_up();
    }
}
