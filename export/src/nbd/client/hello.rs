//! Finding an NBD server by URL, and agreeing with it ("Fixed newstyle negotiation").
//!
//! | URL | |
//! |---|---|
//! | `nbd://HOST[:PORT]/EXPORT` | TCP, port 10809 if left out |
//! | `nbd+unix:///EXPORT?socket=PATH` | a socket of this machine |

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::nbd::client::wrong;
use crate::nbd::proto::{IHAVEOPT, NBDMAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, opt, rep};

/// How long the server may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an option's reply that are believed.
const REPLY_MAX: u32 = 64 << 10;
const PORT: u16 = 10809;
const ALLOCATION: &[u8] = b"base:allocation";

/// Where an NBD server serves a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUrl {
    place: Place,
    export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A text that is no URL of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no NBD export: use nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
)]
pub struct InvalidNbdUrl(String);

/// Why a server does not serve us.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It is not there, or went away.
    #[error("cannot reach the NBD server at `{0}`")]
    Reach(String, #[source] io::Error),
    /// It does not let us have the export.
    #[error("the NBD server at `{url}` refuses: {why}")]
    Refused {
        /// Where.
        url: String,
        /// What it says.
        why: String,
    },
}

impl FromStr for NbdUrl {
    type Err = InvalidNbdUrl;

    fn from_str(text: &str) -> Result<Self, InvalidNbdUrl> {
        let invalid = || InvalidNbdUrl(text.chars().take(200).collect());
        let decoded = |text: &str| unescape(text).ok_or_else(invalid);
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest.split_once("?socket=").ok_or_else(invalid)?;
            let socket = decoded(socket)?;
            return match socket.is_empty() {
                true => Err(invalid()),
                false => Ok(Self {
                    place: Place::Unix(socket.into()),
                    export: decoded(export)?,
                }),
            };
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(invalid)?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, port) = match host.rsplit_once(':') {
            // A bare IPv6 address has its colons in brackets.
            Some((name, port)) if !port.ends_with(']') => {
                (name, port.parse().map_err(|_| invalid())?)
            }
            _ => (host, PORT),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        match name.is_empty() || export.contains('?') {
            true => Err(invalid()),
            false => Ok(Self {
                place: Place::Tcp(name.to_owned(), port),
                export: decoded(export)?,
            }),
        }
    }
}

/// Takes `%XX` apart.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for NbdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, export } = self;
        match place {
            Place::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Place::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
            Place::Unix(path) => write!(f, "nbd+unix:///{export}?socket={}", path.display()),
        }
    }
}

impl NbdUrl {
    /// The name of the disk at the server; may be empty.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.export
    }

    fn open(&self) -> io::Result<Box<dyn Stream>> {
        match &self.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Place::Tcp(host, port) => {
                let mut last = io::Error::other("the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, PATIENCE) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_read_timeout(Some(PATIENCE))?;
                            stream.set_write_timeout(Some(PATIENCE))?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// A connection.
pub(super) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// What was agreed on.
pub(super) struct Hello {
    pub(super) stream: Box<dyn Stream>,
    pub(super) size: u64,
    /// The id of `base:allocation`.
    pub(super) allocation: Option<u32>,
}

/// Connects, and agrees on the export.
pub(super) fn connect(url: &NbdUrl) -> Result<Hello, ConnectError> {
    let reach = |e| ConnectError::Reach(url.to_string(), e);
    let stream = url.open().map_err(reach)?;
    agree(stream, &url.export)
        .map_err(reach)?
        .map_err(|why| ConnectError::Refused {
            url: url.to_string(),
            why,
        })
}

/// Agrees on the export, on a new connection.
pub(super) fn agree(stream: Box<dyn Stream>, export: &str) -> Answer<Hello> {
    let mut talk = Talk { stream };
    let agreed = talk.agree(export)?;
    Ok(agreed.map(|(size, allocation)| Hello {
        stream: talk.stream,
        size,
        allocation,
    }))
}

struct Talk {
    stream: Box<dyn Stream>,
}

/// An option's replies, or what the server says against it.
type Answer<T> = io::Result<Result<T, String>>;

impl Talk {
    fn agree(&mut self, export: &str) -> Answer<(u64, Option<u32>)> {
        if u64::from_be_bytes(self.array()?) != NBDMAGIC
            || u64::from_be_bytes(self.array()?) != IHAVEOPT
        {
            return Err(wrong("it does not greet as a newstyle server"));
        }
        let flags = u16::from_be_bytes(self.array()?);
        if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(wrong("it knows no options"));
        }
        let ours = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        self.stream.write_all(&u32::from(ours).to_be_bytes())?;
        let allocation = self.allocation(export)?;
        let mut size = None;
        let asked = self.option(opt::GO, &go(export), |kind, data| {
            if kind == rep::INFO
                && let [a, b, size_and_flags @ ..] = data
                && u16::from_be_bytes([*a, *b]) == info::EXPORT
                && let Some(bytes) = size_and_flags.first_chunk()
            {
                size = Some(u64::from_be_bytes(*bytes));
            }
        })?;
        Ok(match (asked, size) {
            (Ok(()), Some(size)) if size <= i64::MAX as u64 => Ok((size, allocation)),
            (Ok(()), _) => return Err(wrong("it does not say how large the disk is")),
            (Err(why), _) => Err(why),
        })
    }

    /// Agrees on replies in chunks and on the context of holes, if the server has both.
    fn allocation(&mut self, export: &str) -> io::Result<Option<u32>> {
        if self.option(opt::STRUCTURED_REPLY, &[], |_, _| ())?.is_err() {
            return Ok(None);
        }
        let mut request = sized(export.as_bytes());
        request.extend(1_u32.to_be_bytes());
        request.extend(sized(ALLOCATION));
        let mut id = None;
        let asked = self.option(opt::SET_META_CONTEXT, &request, |kind, data| {
            if kind == rep::META_CONTEXT
                && let Some((number, name)) = data.split_first_chunk()
                && name == ALLOCATION
            {
                id = Some(u32::from_be_bytes(*number));
            }
        })?;
        Ok(id.filter(|_| asked.is_ok()))
    }

    /// Asks for an option; `each` gets the replies before the last.
    fn option(&mut self, option: u32, data: &[u8], mut each: impl FnMut(u32, &[u8])) -> Answer<()> {
        /// Replies to one option that are believed.
        const REPLIES_MAX: u32 = 1000;
        let len = u32::try_from(data.len()).map_err(|_| wrong("an option is too long"))?;
        let mut request = Vec::with_capacity(16 + data.len());
        request.extend(IHAVEOPT.to_be_bytes());
        request.extend(option.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        for _ in 0..REPLIES_MAX {
            if u64::from_be_bytes(self.array()?) != OPTION_REPLY_MAGIC
                || u32::from_be_bytes(self.array()?) != option
            {
                return Err(wrong("it answers another option"));
            }
            let kind = u32::from_be_bytes(self.array()?);
            let len = u32::from_be_bytes(self.array()?);
            if len > REPLY_MAX {
                return Err(wrong("an answer to an option is too long"));
            }
            let mut reply = vec![0; len as usize];
            self.stream.read_exact(&mut reply)?;
            match kind {
                rep::ACK => return Ok(Ok(())),
                rep::ERR_TLS_REQD => {
                    let why = "it wants TLS, which is not supported yet here; use a socket of this machine";
                    return Ok(Err(why.into()));
                }
                rep::ERR_UNKNOWN => return Ok(Err("it has no such export".into())),
                kind if kind >> 31 == 1 => {
                    let text = String::from_utf8_lossy(&reply).escape_debug().to_string();
                    return Ok(Err(match text.is_empty() {
                        true => format!("error {}", kind & 0x7fff_ffff),
                        false => text,
                    }));
                }
                kind => each(kind, &reply),
            }
        }
        Err(wrong("it does not come to an end with an option"))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// `NBD_OPT_GO` with no wishes.
fn go(export: &str) -> Vec<u8> {
    let mut data = sized(export.as_bytes());
    data.extend(0_u16.to_be_bytes());
    data
}

/// Bytes after their length.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut sized = len.to_be_bytes().to_vec();
    sized.extend(bytes);
    sized
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for (text, written) in [
            ("nbd://host/web", "nbd://host:10809/web"),
            ("nbd://host:1/", "nbd://host:1/"),
            ("nbd://[::1]:1/a%20b", "nbd://[::1]:1/a b"),
            ("nbd://[::1]", "nbd://[::1]:10809/"),
            (
                "nbd+unix:///web?socket=/run/x.sock",
                "nbd+unix:///web?socket=/run/x.sock",
            ),
            ("nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s"),
        ] {
            let url: NbdUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), written);
        }
        for text in [
            "nbd:host",
            "nbd:///x",
            "nbd://h:x/",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=",
            "nbds://h/x",
            "nbd://h/%zz",
            "nbd://h/x?a=b",
        ] {
            assert!(text.parse::<NbdUrl>().is_err(), "{text}");
        }
    }
}
