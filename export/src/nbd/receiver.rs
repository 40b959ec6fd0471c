//! The receiving end of a connection: a buffer over the transport, so that a small request takes
//! one system call, and a burst of them one for all.

use std::io;

use crate::transport::Transport;

/// Bytes that came and were not used yet.
pub(crate) struct Receiver {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Holds fifteen 4 KiB writes with their headers, or many headers of reads.
const BUFFER_BYTES: usize = 64 << 10;

/// Whether the bytes asked for are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    Yes,
    /// The client ended the stream before the first of them.
    Ended,
    /// The receive timeout passed before the first of them.
    Idle,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            buf: vec![0; BUFFER_BYTES].into(),
            start: 0,
            end: 0,
        }
    }

    /// Whether nothing waits in the buffer.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What came and was not used yet.
    pub(crate) fn ready(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Gets `N` bytes into the buffer without using them; see [`Self::take`].
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` or `TimedOut` if the client stops in their midst.
    pub(crate) fn fill(&mut self, transport: &Transport, len: usize) -> io::Result<Filled> {
        self.fill_by(len, |buf| transport.recv(buf))
    }

    fn fill_by(
        &mut self,
        len: usize,
        mut recv: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Filled> {
        assert!(len <= BUFFER_BYTES, "a message head of {len} bytes");
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        } else if self.buf.len() - self.start < len {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.ready().len() < len {
            let at_boundary = self.is_empty();
            match recv(&mut self.buf[self.end..]) {
                Ok(0) if at_boundary => return Ok(Filled::Ended),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.end += n,
                Err(e) if is_timeout(&e) && at_boundary => return Ok(Filled::Idle),
                Err(e) => return Err(stalled(e)),
            }
        }
        Ok(Filled::Yes)
    }

    /// Uses `len` bytes that [`Self::fill`] got.
    pub(crate) fn take(&mut self, len: usize) -> &[u8] {
        let taken = &self.buf[self.start..][..len];
        self.start += len;
        taken
    }

    /// Fills `out` from the buffer and the transport.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn read_exact(&mut self, transport: &Transport, out: &mut [u8]) -> io::Result<()> {
        let buffered = self.ready().len().min(out.len());
        out[..buffered].copy_from_slice(self.take(buffered));
        let mut rest = &mut out[buffered..];
        // A long rest goes straight to its place; a short one through the buffer, because the
        // next request may come along with it.
        while rest.len() >= BUFFER_BYTES / 2 {
            let n = self.recv_some(transport, rest)?;
            rest = &mut rest[n..];
        }
        if !rest.is_empty() {
            // Most clients send the payload right after the header, in a call of its own.
            self.fill_by(rest.len(), |buf| transport.recv_soon(buf))
                .and_then(within)?;
            rest.copy_from_slice(self.take(rest.len()));
        }
        Ok(())
    }

    /// Reads `len` bytes and forgets them.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn skip(&mut self, transport: &Transport, len: u64) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            if self.is_empty() {
                self.fill_within(transport, 1)?;
            }
            let n = block::index(left.min(self.ready().len() as u64));
            self.start += n;
            left -= n as u64;
        }
        Ok(())
    }

    /// As [`Self::fill`], in the midst of a message: an end or a pause is an error.
    pub(crate) fn fill_within(&mut self, transport: &Transport, len: usize) -> io::Result<()> {
        self.fill(transport, len).and_then(within)
    }

    fn recv_some(&mut self, transport: &Transport, out: &mut [u8]) -> io::Result<usize> {
        match transport.recv(out) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(n),
            Err(e) => Err(stalled(e)),
        }
    }
}

fn within(filled: Filled) -> io::Result<()> {
    match filled {
        Filled::Yes => Ok(()),
        Filled::Ended => Err(io::ErrorKind::UnexpectedEof.into()),
        Filled::Idle => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn is_timeout(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock
}

fn stalled(e: io::Error) -> io::Error {
    if is_timeout(&e) {
        io::ErrorKind::TimedOut.into()
    } else {
        e
    }
}
