//! A small NBD client, our own so that a journey decides what is in flight and when: fixed
//! newstyle, simple replies, any number of requests in flight on one connection.
//!
//! It shares no code with the server: what both misread would pass unseen.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// No reply takes this long, unless the server hangs.
const SILENCE: Duration = Duration::from_secs(150);

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl fmt::Display for Address {
    /// As `--listen` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Address {
    /// A TCP port of the loopback on which nobody listens at the moment.
    ///
    /// # Errors
    /// If there is none.
    pub fn free_port() -> io::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self::Tcp(format!("127.0.0.1:{port}")))
    }

    /// The NBD URI of `export` here.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

/// What to ask of the server. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Request {
    /// Read.
    Read { offset: u64, len: u32 },
    /// Write.
    Write {
        offset: u64,
        data: Vec<u8>,
        fua: bool,
    },
    /// Make everything acknowledged durable.
    Flush,
    /// Forget the content.
    Trim { offset: u64, len: u32 },
    /// Make it read as zeroes; `keep` forbids a hole.
    Zero { offset: u64, len: u32, keep: bool },
}

impl Request {
    fn header(&self) -> (u16, u16, u64, u32) {
        match self {
            Self::Read { offset, len } => (0, 0, *offset, *len),
            Self::Write { offset, data, fua } => (u16::from(*fua), 1, *offset, length(data.len())),
            Self::Flush => (0, 3, 0, 0),
            Self::Trim { offset, len } => (0, 4, *offset, *len),
            Self::Zero { offset, len, keep } => (u16::from(*keep) << 1, 6, *offset, *len),
        }
    }
}

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request it answers.
    pub cookie: u64,
    /// NBD error number; 0 is success.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection to one export.
pub struct Client {
    stream: Box<dyn Stream>,
    size: u64,
    flags: u16,
    next_cookie: u64,
    /// Bytes that a successful reply carries, by cookie.
    in_flight: HashMap<u64, u32>,
}

impl Client {
    /// Connects and negotiates `export` (empty: the default one).
    ///
    /// # Errors
    /// Socket errors; `InvalidData` if the server does not speak the protocol; `NotFound` if it
    /// refuses the export.
    pub fn connect(address: &Address, export: &str) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                Box::new(stream)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                Box::new(stream)
            }
        };
        let mut client = Self {
            stream,
            size: 0,
            flags: 0,
            next_cookie: 1,
            in_flight: HashMap::new(),
        };
        client.greet()?;
        client.go(export)?;
        Ok(client)
    }

    fn greet(&mut self) -> io::Result<()> {
        let greeting: [u8; 18] = self.take()?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(broken("the greeting is not fixed newstyle"));
        }
        self.stream
            .write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())
    }

    fn go(&mut self, export: &str) -> io::Result<()> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend(OPT_GO.to_be_bytes());
        message.extend(length(export.len() + 6).to_be_bytes());
        message.extend(length(export.len()).to_be_bytes());
        message.extend(export.as_bytes());
        message.extend([0, 0]);
        self.stream.write_all(&message)?;
        loop {
            let magic = u64::from_be_bytes(self.take()?);
            let _option: [u8; 4] = self.take()?;
            let kind = u32::from_be_bytes(self.take()?);
            let len = u32::from_be_bytes(self.take()?);
            if magic != OPTION_REPLY_MAGIC || len > 64 * 1024 {
                return Err(broken("the option reply is malformed"));
            }
            let body = self.take_vec(len)?;
            match kind {
                REP_ACK => return Ok(()),
                REP_INFO if body.len() == 12 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                    self.size = u64::from_be_bytes(part(&body, 2));
                    self.flags = u16::from_be_bytes(part(&body, 10));
                }
                REP_INFO => {}
                kind if kind & REP_ERROR != 0 => {
                    let why = String::from_utf8_lossy(&body).into_owned();
                    return Err(io::Error::new(io::ErrorKind::NotFound, why));
                }
                _ => return Err(broken("the option reply is unknown")),
            }
        }
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export.
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Requests sent and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends `request` and does not wait; its cookie.
    ///
    /// # Errors
    /// Socket errors.
    pub fn submit(&mut self, request: &Request) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (flags, kind, offset, len) = request.header();
        let mut message = Vec::with_capacity(28);
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        if let Request::Write { data, .. } = request {
            message.extend(data);
        }
        self.stream.write_all(&message)?;
        let carried = if matches!(request, Request::Read { .. }) {
            len
        } else {
            0
        };
        self.in_flight.insert(cookie, carried);
        Ok(cookie)
    }

    /// Waits for the next reply, to whichever request.
    ///
    /// # Errors
    /// Socket errors; `InvalidData` for what is no reply to a request in flight.
    pub fn complete(&mut self) -> io::Result<Reply> {
        let magic = u32::from_be_bytes(self.take()?);
        let error = u32::from_be_bytes(self.take()?);
        let cookie = u64::from_be_bytes(self.take()?);
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(broken("the reply's magic is wrong"));
        }
        let Some(carried) = self.in_flight.remove(&cookie) else {
            return Err(broken("the reply answers no request in flight"));
        };
        let data = self.take_vec(if error == 0 { carried } else { 0 })?;
        Ok(Reply {
            cookie,
            error,
            data,
        })
    }

    /// Sends `request` and waits for its reply; nothing else may be in flight.
    ///
    /// # Errors
    /// Socket errors; `Other` with the server's error number.
    pub fn call(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        assert!(
            self.in_flight.is_empty(),
            "a call waits for its own reply only"
        );
        self.submit(request)?;
        let reply = self.complete()?;
        if reply.error != 0 {
            return Err(io::Error::other(format!(
                "{request:.60?}: error {}",
                reply.error
            )));
        }
        Ok(reply.data)
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.call(&Request::Read { offset, len })
    }

    /// Writes `data`.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(&Request::Write {
            offset,
            data: data.to_vec(),
            fua: false,
        })
        .map(drop)
    }

    /// Makes durable what was acknowledged.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(&Request::Flush).map(drop)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn take_vec(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).expect("32 bits fit")];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Client {
    /// Says goodbye, as the protocol wants it; the server may be gone.
    fn drop(&mut self) {
        let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
        message.extend([0, 0, 0, 2]);
        message.extend([0; 20]);
        let _ = self.stream.write_all(&message);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn part<const N: usize>(body: &[u8], at: usize) -> [u8; N] {
    body[at..at + N]
        .try_into()
        .expect("the caller checked the length")
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a test's request is under 4 GiB")
}
