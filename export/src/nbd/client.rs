//! A disk that another NBD server serves (qemu-nbd, nbdkit, another Standin), to be read.
//!
//! ```text
//! url --connect--> client/hello.rs: GO, structured replies and base:allocation where the server has them
//!                    --> requests one after the other on one connection
//! ```
//!
//! Rule: nothing that the server says is believed before it is checked: lengths, offsets, the order of extents. After any
//! doubt the connection is not used any more.

use std::io::{self, Read, Write};
use std::sync::Arc;

use block::{
    BlockDevice, ByteRange, Error, Extent, ExtentState, Features, Fua, Op, Result, ZeroOptions,
    index,
};
use parking_lot::Mutex;

use crate::nbd::client::hello::{Hello, Stream, connect};
use crate::nbd::proto::{
    REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, cmd, status,
};

pub use hello::{ConnectError, InvalidNbdUrl, NbdUrl};

mod hello;

/// Bytes of a read; servers take 32 MiB at least ("Block size constraints").
const READ_MAX: u64 = 4 << 20;
/// Bytes of a block status request: its length has 32 bits.
const STATUS_MAX: u64 = 1 << 30;
/// Extents of one answer that are believed.
const EXTENTS_MAX: u32 = 1 << 20;

/// A disk behind an NBD server, for reading only.
pub struct NbdDisk {
    size: u64,
    /// The id of `base:allocation`, where the server has it.
    allocation: Option<u32>,
    connection: Mutex<Connection>,
}

struct Connection {
    stream: Box<dyn Stream>,
    cookie: u64,
    /// Something went wrong: what comes next on the stream is not known.
    broken: bool,
}

/// A reply's beginning.
struct Head {
    flags: u16,
    kind: u16,
    len: u32,
}

impl NbdDisk {
    /// Connects to the server.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(url: &NbdUrl) -> std::result::Result<Arc<Self>, ConnectError> {
        connect(url).map(|hello| Arc::new(Self::after(hello)))
    }

    fn after(hello: Hello) -> Self {
        Self {
            size: hello.size,
            allocation: hello.allocation,
            connection: Mutex::new(Connection {
                stream: hello.stream,
                cookie: 0,
                broken: false,
            }),
        }
    }

    fn check(&self, op: Op, range: ByteRange) -> Result<()> {
        match range.end() <= self.size {
            true => Ok(()),
            false => Err(Error::out_of_range(op, range, self.size)),
        }
    }
}

impl BlockDevice for NbdDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features::READ_ONLY
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let Some(range) = ByteRange::new(offset, end) else {
            return Ok(());
        };
        self.check(Op::Read, range)?;
        let mut connection = self.connection.lock();
        for (at, piece) in (offset..)
            .step_by(index(READ_MAX))
            .zip(buf.chunks_mut(index(READ_MAX)))
        {
            let read = connection.whole(|connection| connection.read(at, piece));
            read.map_err(|e| Error::io(Op::Read, range, e))?;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        match ByteRange::new(offset, end) {
            None => Ok(()),
            Some(range) => Err(Error::read_only(Op::Write, range)),
        }
    }

    fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> Result<()> {
        Err(Error::read_only(Op::WriteZeroes, range))
    }

    fn trim(&self, range: ByteRange, _fua: Fua) -> Result<()> {
        Err(Error::read_only(Op::Trim, range))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        self.check(Op::BlockStatus, range)?;
        let Some(context) = self.allocation else {
            let state = ExtentState::Data;
            return Ok(vec![Extent { range, state }]);
        };
        // Some servers know nothing of parts of a sector.
        let asked = range.len().min(STATUS_MAX);
        let mut connection = self.connection.lock();
        let descriptors =
            connection.whole(|connection| connection.status(context, range.start(), asked));
        let descriptors = descriptors.map_err(|e| Error::io(Op::BlockStatus, range, e))?;
        let mut extents = Vec::new();
        let mut at = range.start();
        for (len, flags) in descriptors {
            // The last one may reach past what was asked for.
            let end = at.saturating_add(u64::from(len)).min(range.end());
            let state = match (flags & status::ZERO != 0, flags & status::HOLE != 0) {
                (true, true) => ExtentState::Hole,
                (true, false) => ExtentState::Zero,
                // A hole that need not read as zeroes.
                (false, _) => ExtentState::Data,
            };
            if at == end || !Extent::append(&mut extents, state, at, end, extents_max) {
                break;
            }
            at = end;
        }
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.check(Op::Prefetch, range)
    }
}

impl Connection {
    /// Does `request`; where it fails, nothing is asked on this connection again.
    fn whole<T>(&mut self, request: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.broken {
            return Err(io::Error::other(
                "the connection to the NBD server is broken",
            ));
        }
        let done = request(self);
        self.broken = done.is_err();
        done
    }

    fn ask(&mut self, command: u16, offset: u64, len: u64) -> io::Result<()> {
        let len = u32::try_from(len).map_err(|_| wrong("a request is too long"))?;
        self.cookie += 1;
        let mut request = Vec::with_capacity(28);
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        self.stream.write_all(&request)
    }

    /// The beginning of the next chunk; a simple reply is one of data that is not framed.
    fn head(&mut self) -> io::Result<Option<Head>> {
        let magic = u32::from_be_bytes(self.array()?);
        let (head, cookie) = match magic {
            SIMPLE_REPLY_MAGIC => {
                let errno = u32::from_be_bytes(self.array()?);
                let cookie = u64::from_be_bytes(self.array()?);
                if errno != 0 {
                    return Err(refused(errno, ""));
                }
                (None, cookie)
            }
            STRUCTURED_REPLY_MAGIC => {
                let flags = u16::from_be_bytes(self.array()?);
                let kind = u16::from_be_bytes(self.array()?);
                let cookie = u64::from_be_bytes(self.array()?);
                let len = u32::from_be_bytes(self.array()?);
                (Some(Head { flags, kind, len }), cookie)
            }
            _ => return Err(wrong("a reply begins with a wrong number")),
        };
        match cookie == self.cookie {
            true => Ok(head),
            false => Err(wrong("a reply is to another request")),
        }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.ask(cmd::READ, offset, buf.len() as u64)?;
        let mut filled = 0;
        loop {
            let Some(head) = self.head()? else {
                return self.stream.read_exact(buf);
            };
            let len = u64::from(head.len);
            match head.kind {
                chunk::OFFSET_DATA if len > 8 => {
                    let at = u64::from_be_bytes(self.array()?);
                    let part = part(buf, offset, at, len - 8)?;
                    self.stream.read_exact(part)?;
                    filled += len - 8;
                }
                chunk::OFFSET_HOLE if len == 12 => {
                    let at = u64::from_be_bytes(self.array()?);
                    let hole = u64::from(u32::from_be_bytes(self.array()?));
                    part(buf, offset, at, hole)?.fill(0);
                    filled += hole;
                }
                kind => self.other(kind, head.len)?,
            }
            if head.flags & chunk::FLAG_DONE != 0 {
                // Chunks do not overlap, by the protocol: so nothing is left out.
                return match filled == buf.len() as u64 {
                    true => Ok(()),
                    false => Err(wrong("a reply leaves bytes out")),
                };
            }
        }
    }

    /// Lengths and flags of the extents from `offset` on.
    fn status(&mut self, context: u32, offset: u64, len: u64) -> io::Result<Vec<(u32, u32)>> {
        self.ask(cmd::BLOCK_STATUS, offset, len)?;
        let mut extents = Vec::new();
        loop {
            let Some(head) = self.head()? else {
                return Err(wrong("a block status came without extents"));
            };
            match head.kind {
                chunk::BLOCK_STATUS
                    if head.len >= 12 && head.len % 8 == 4 && head.len / 8 <= EXTENTS_MAX =>
                {
                    if u32::from_be_bytes(self.array()?) != context {
                        return Err(wrong("a block status is of another context"));
                    }
                    for _ in 0..head.len / 8 {
                        let len = u32::from_be_bytes(self.array()?);
                        extents.push((len, u32::from_be_bytes(self.array()?)));
                    }
                }
                kind => self.other(kind, head.len)?,
            }
            if head.flags & chunk::FLAG_DONE != 0 {
                return match extents.first() {
                    Some((len, _)) if *len > 0 => Ok(extents),
                    _ => Err(wrong("a block status says nothing")),
                };
            }
        }
    }

    /// A chunk that carries nothing, or an error.
    fn other(&mut self, kind: u16, len: u32) -> io::Result<()> {
        const MESSAGE_MAX: u32 = 4096;
        match kind {
            chunk::NONE if len == 0 => Ok(()),
            kind if kind & (1 << 15) != 0 && (6..=MESSAGE_MAX).contains(&len) => {
                let errno = u32::from_be_bytes(self.array()?);
                let mut rest = vec![0; len as usize - 4];
                self.stream.read_exact(&mut rest)?;
                let message = u16::from_be_bytes([rest[0], rest[1]]);
                let message = rest[2..].get(..usize::from(message)).unwrap_or_default();
                Err(refused(errno, &String::from_utf8_lossy(message)))
            }
            _ => Err(wrong("a reply has a part that was not asked for")),
        }
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A server that says `bytes` and nothing else, and is asked for this and that.
#[cfg(feature = "fuzzing")]
pub(crate) fn listen_to(bytes: &[u8], greeted: bool) {
    struct Said(io::Cursor<Vec<u8>>);
    impl Read for Said {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }
    impl Write for Said {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let stream = Box::new(Said(io::Cursor::new(bytes.to_vec())));
    let hello = match greeted {
        true => Hello {
            stream,
            size: 1 << 20,
            allocation: Some(1),
        },
        false => match hello::agree(stream, "disk") {
            Ok(Ok(hello)) => hello,
            _ => return,
        },
    };
    let disk = NbdDisk::after(hello);
    let mut buf = vec![0; 8192];
    for at in [0, 4096] {
        let len = disk.size().saturating_sub(at).min(8192);
        let _ = disk.read_at(&mut buf[..index(len)], at);
        if let Some(rest) = ByteRange::new(at, disk.size()) {
            let Ok(extents) = disk.block_status(rest, 16) else {
                continue;
            };
            assert!(extents.len() <= 16 && extents[0].range.start() == at);
            assert!(
                extents
                    .windows(2)
                    .all(|two| two[0].range.end() == two[1].range.start())
            );
            assert!(
                extents
                    .iter()
                    .all(|extent| extent.range.end() <= disk.size())
            );
        }
    }
}

/// The part of `buf`, which begins at byte `offset` of the disk, that a chunk is of.
fn part(buf: &mut [u8], offset: u64, at: u64, len: u64) -> io::Result<&mut [u8]> {
    let from = at.checked_sub(offset);
    let range = from.and_then(|from| Some(from..from.checked_add(len)?));
    let inside = range.filter(|range| range.end <= buf.len() as u64);
    inside
        .and_then(|range| buf.get_mut(index(range.start)..index(range.end)))
        .ok_or_else(|| wrong("a reply is of bytes that were not asked for"))
}

fn wrong(sentence: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the NBD server does not keep to the protocol: {sentence}"),
    )
}

fn refused(errno: u32, message: &str) -> io::Error {
    let message = match message {
        "" => String::new(),
        message => format!(" ({})", message.escape_debug()),
    };
    io::Error::other(format!(
        "the NBD server answered with error {errno}{message}"
    ))
}
