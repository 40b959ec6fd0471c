//! A small NBD client, one request at a time: fixed newstyle, simple replies.
//!
//! It shares no code with the server, so that what both misread would not pass unseen.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
/// No reply takes this long unless the server hangs.
const SILENCE: Duration = Duration::from_secs(60);

/// A connection to the default export of a server.
pub(crate) struct Client {
    stream: UnixStream,
    cookie: u64,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut client = Self { stream, cookie: 0 };
        client.negotiate()?;
        Ok(client)
    }

    fn negotiate(&mut self) -> io::Result<()> {
        let greeting: [u8; 18] = self.take()?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(broken("the greeting is not fixed newstyle"));
        }
        // Fixed newstyle, no zeroes; then "go" with the empty name and no information asked for.
        let mut message = 3_u32.to_be_bytes().to_vec();
        message.extend(OPTION_MAGIC.to_be_bytes());
        message.extend(OPT_GO.to_be_bytes());
        message.extend(6_u32.to_be_bytes());
        message.extend([0; 6]);
        self.stream.write_all(&message)?;
        loop {
            let head: [u8; 20] = self.take()?;
            let [magic, kind, len] = [&head[..8], &head[12..16], &head[16..]].map(number);
            if magic != OPTION_REPLY_MAGIC || len > 1 << 16 {
                return Err(broken("an option reply is malformed"));
            }
            let mut body = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            self.stream.read_exact(&mut body)?;
            match u32::try_from(kind) {
                Ok(REP_ACK) => return Ok(()),
                Ok(REP_INFO) => {}
                _ => return Err(broken("the export is refused")),
            }
        }
    }

    pub(crate) fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = u32::try_from(buf.len()).map_err(io::Error::other)?;
        self.request(0, offset, len, &[])?;
        self.stream.read_exact(buf)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).map_err(io::Error::other)?;
        self.request(1, offset, len, data)
    }

    pub(crate) fn write_zeroes(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(6, offset, len, &[])
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, &[])
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend([0, 0]);
        message.extend(kind.to_be_bytes());
        message.extend(self.cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)?;
        let reply: [u8; 16] = self.take()?;
        let [magic, error, cookie] = [&reply[..4], &reply[4..8], &reply[8..]].map(number);
        match error {
            _ if magic != u64::from(SIMPLE_REPLY_MAGIC) || cookie != self.cookie => {
                Err(broken("a reply is malformed"))
            }
            0 => Ok(()),
            error => Err(io::Error::other(format!(
                "the server answers error {error}"
            ))),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
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

/// Up to eight bytes, big-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
