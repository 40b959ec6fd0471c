//! A client that sends what it is told to, sense or nonsense, and takes replies apart. It shares no
//! code with the server: what both misread would pass unseen.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED: u32 = 8;
pub(crate) const OPT_LIST_META: u32 = 9;
pub(crate) const OPT_SET_META: u32 = 10;
pub(crate) const OPT_EXTENDED: u32 = 11;

pub(crate) const ACK: u32 = 1;
pub(crate) const UNSUP: u32 = (1 << 31) + 1;
pub(crate) const INVALID: u32 = (1 << 31) + 3;
pub(crate) const TLS_REQD: u32 = (1 << 31) + 5;
pub(crate) const UNKNOWN: u32 = (1 << 31) + 6;
pub(crate) const TOO_BIG: u32 = (1 << 31) + 9;
pub(crate) const EXT_HEADER_REQD: u32 = (1 << 31) + 10;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZERO: u16 = 6;
pub(crate) const STATUS: u16 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Simple,
    Structured,
    Extended,
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) framing: Framing,
}

/// Everything that came in answer to one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) errno: u32,
    /// Type and payload of each chunk.
    pub(crate) chunks: Vec<(u16, Vec<u8>)>,
}

impl Client {
    /// Connects and reads the greeting; sends nothing.
    pub(crate) fn silent(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("legal");
        stream.set_write_timeout(Some(PATIENCE)).expect("legal");
        let framing = Framing::Simple;
        Self { stream, framing }
    }

    pub(crate) fn connect(path: &Path) -> Self {
        let mut client = Self::silent(path);
        assert_eq!(&client.bytes(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(client.bytes(2), [0, 3], "fixed newstyle, no zeroes");
        client.send(&3_u32.to_be_bytes());
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.try_bytes(len).expect("the server answers")
    }

    fn try_bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().expect("two"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().expect("four"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().expect("eight"))
    }

    /// The server closes without another byte.
    pub(crate) fn assert_closed(&mut self) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("expected the end, got {other:?} {byte:?}"),
        }
    }

    pub(crate) fn send_option(&mut self, code: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// Sends an option; returns its replies, the last one being ACK or an error.
    pub(crate) fn option(&mut self, code: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(code, data);
        self.option_replies(code)
    }

    pub(crate) fn option_replies(&mut self, code: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
            assert_eq!(self.u32(), code);
            let kind = self.u32();
            let len = self.u32() as usize;
            let data = self.bytes(len);
            replies.push((kind, data));
            if kind == ACK || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    /// The type of the last reply to an option.
    pub(crate) fn outcome(&mut self, code: u32, data: &[u8]) -> u32 {
        self.option(code, data).last().expect("one at least").0
    }

    pub(crate) fn negotiate(&mut self, framing: Framing) {
        match framing {
            Framing::Simple => {}
            Framing::Structured => assert_eq!(self.outcome(OPT_STRUCTURED, &[]), ACK),
            Framing::Extended => assert_eq!(self.outcome(OPT_EXTENDED, &[]), ACK),
        }
        self.framing = framing;
    }

    /// Goes to transmission on the default export, with the given contexts.
    pub(crate) fn go(mut self, framing: Framing, contexts: &[&str]) -> Self {
        self.negotiate(framing);
        if !contexts.is_empty() {
            let replies = self.option(OPT_SET_META, &meta_data("", contexts));
            assert_eq!(replies.len(), contexts.len() + 1, "{replies:?}");
        }
        assert_eq!(self.outcome(OPT_GO, &info_data("", &[])), ACK);
        self
    }

    pub(crate) fn request(&self, flags: u16, kind: u16, cookie: u64, at: u64, len: u64) -> Vec<u8> {
        let extended = self.framing == Framing::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        if extended {
            bytes.extend(len.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(len).expect("32 bits").to_be_bytes());
        }
        bytes
    }

    pub(crate) fn send_request(&mut self, flags: u16, kind: u16, cookie: u64, at: u64, len: u64) {
        let bytes = self.request(flags, kind, cookie, at, len);
        self.send(&bytes);
    }

    pub(crate) fn send_write(&mut self, flags: u16, cookie: u64, at: u64, data: &[u8]) {
        let payload = if self.framing == Framing::Extended {
            1 << 5
        } else {
            0
        };
        let mut bytes = self.request(flags | payload, WRITE, cookie, at, data.len() as u64);
        bytes.extend(data);
        self.send(&bytes);
    }

    /// One request and its reply, nothing else being in flight.
    pub(crate) fn ask(&mut self, flags: u16, kind: u16, at: u64, len: u64) -> Reply {
        self.send_request(flags, kind, 77, at, len);
        let simple_data = if kind == READ { block::index(len) } else { 0 };
        let (cookie, reply) = self.reply(|_| simple_data);
        assert_eq!(cookie, 77);
        reply
    }

    pub(crate) fn write(&mut self, at: u64, data: &[u8]) -> u32 {
        self.send_write(0, 78, at, data);
        let (cookie, reply) = self.reply(|_| 0);
        assert_eq!(cookie, 78);
        reply.errno
    }

    /// The content of a range, put together from whatever chunks come.
    pub(crate) fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        let reply = self.ask(0, READ, at, len as u64);
        assert_eq!(reply.errno, 0, "read of {len} at {at}");
        reply.content(at, len)
    }

    /// The next whole reply. `simple_data` says how many bytes a simple reply with this cookie has.
    pub(crate) fn reply(&mut self, simple_data: impl Fn(u64) -> usize) -> (u64, Reply) {
        let mut parts: HashMap<u64, Reply> = HashMap::new();
        loop {
            let magic = self.u32();
            if magic == 0x6744_6698 {
                assert_ne!(self.framing, Framing::Extended);
                let errno = self.u32();
                let cookie = self.u64();
                let len = if errno == 0 { simple_data(cookie) } else { 0 };
                let chunks = if len > 0 {
                    vec![(0, self.bytes(len))]
                } else {
                    Vec::new()
                };
                return (cookie, Reply { errno, chunks });
            }
            let (done, cookie, kind, data) = self.chunk(magic);
            let reply = parts.entry(cookie).or_default();
            if kind >= 1 << 15 {
                reply.errno = u32::from_be_bytes(data[..4].try_into().expect("four"));
            }
            if kind != 0 {
                reply.chunks.push((kind, data));
            }
            if done {
                return (cookie, parts.remove(&cookie).expect("just used"));
            }
        }
    }

    fn chunk(&mut self, magic: u32) -> (bool, u64, u16, Vec<u8>) {
        let flags = self.u16();
        let kind = self.u16();
        let cookie = self.u64();
        let len = match (self.framing, magic) {
            (Framing::Structured, 0x668e_33ef) => u64::from(self.u32()),
            (Framing::Extended, 0x6e8a_278c) => {
                let _offset = self.u64();
                self.u64()
            }
            other => panic!("unexpected reply {other:x?}"),
        };
        assert!(len <= 65 << 20, "a chunk of {len} bytes");
        let data = self.bytes(usize::try_from(len).expect("checked"));
        (flags == 1, cookie, kind, data)
    }
}

impl Reply {
    fn content(&self, at: u64, len: usize) -> Vec<u8> {
        let mut content = vec![0xee; len];
        let place = |data: &[u8]| {
            let offset = u64::from_be_bytes(data[..8].try_into().expect("eight"));
            usize::try_from(offset - at).expect("after the start")
        };
        for (kind, data) in &self.chunks {
            match kind {
                0 => content.copy_from_slice(data),
                1 => content[place(data)..][..data.len() - 8].copy_from_slice(&data[8..]),
                2 => {
                    let hole = u32::from_be_bytes(data[8..12].try_into().expect("four"));
                    content[place(data)..][..hole as usize].fill(0);
                }
                other => panic!("chunk type {other} in a read"),
            }
        }
        content
    }

    pub(crate) fn kinds(&self) -> Vec<u16> {
        self.chunks.iter().map(|(kind, _)| *kind).collect()
    }
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub(crate) fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = text(name);
    data.extend(u16::try_from(wanted.len()).expect("few").to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

pub(crate) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = text(name);
    data.extend(u32::try_from(queries.len()).expect("few").to_be_bytes());
    queries.iter().for_each(|query| data.extend(text(query)));
    data
}
