//! The objects of a vault, to be read as a store's: whatever reads stores reads vaults by it.
//!
//! Rule: lengths and ranges that a server tells are compared with what was asked for; the bytes are checked by the store.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use block::{Space, index};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use store::{Backend, Blocks, Ranges, TAIL};

use crate::api::ObjectList;
use crate::client::connection::{Ask, Connection, patience};
use crate::client::{Access, RemoteError, VaultUrl};
use crate::part::Part;
use crate::wire::{KEYS, RANGE_MAX};

/// No object is longer.
const LEN_MAX: u64 = 1 << 40;

/// A [`Backend`] behind a server, read-only.
pub struct Objects {
    connection: Arc<Connection>,
    url: VaultUrl,
    blocks: Blocks,
}

impl Objects {
    /// The objects of a vault.
    ///
    /// # Errors
    /// If there is nothing to show to the server. Whether it can be reached shows at the first request.
    pub fn open(url: &VaultUrl, access: &Access) -> Result<Arc<dyn Backend>, RemoteError> {
        Ok(Arc::new(Self {
            connection: Connection::open(&url.server, access)?,
            url: url.clone(),
            blocks: Blocks::default(),
        }))
    }

    fn path(&self, name: &str) -> String {
        format!("/v1/vaults/{}/objects/{name}", self.url.vault)
    }

    /// Bytes of an object (in `memory`, if they fit), and how long all of it is.
    fn get(&self, name: &str, part: &Part, memory: Vec<u8>) -> Result<(Vec<u8>, u64), RemoteError> {
        let mut ask = Ask::get(self.path(name));
        let value = HeaderValue::try_from(part.to_string()).expect("digits are legal");
        ask.headers.insert(RANGE, value);
        let asked = part.bytes_max();
        ask.patience = Some(patience(asked));
        let answer = self.connection.ask_into(ask, index(asked), memory)?;
        let nonsense = || self.connection.nonsense("other bytes than were asked for");
        let (sent, len) = content_range(&answer.headers).ok_or_else(nonsense)?;
        let whole = answer.body.len() as u64 == sent.end - sent.start;
        match sent == part.of(len) && whole && len <= LEN_MAX {
            true => Ok((answer.body, len)),
            false => Err(nonsense()),
        }
    }

    /// How long an object is.
    fn len_of(&self, name: &str) -> Result<u64, RemoteError> {
        let mut ask = Ask::get(self.path(name));
        ask.method = Method::HEAD;
        let answer = self.connection.ask(ask, 0)?;
        let len = answer.headers.get(CONTENT_LENGTH);
        let len = len.and_then(|len| len.to_str().ok()?.parse().ok());
        let nonsense = || self.connection.nonsense("an object without a length");
        len.filter(|len| *len <= LEN_MAX).ok_or_else(nonsense)
    }
}

impl Ranges for Objects {
    fn tail(&self, name: &str) -> io::Result<(Vec<u8>, u64)> {
        let tail = match self.get(name, &Part::Last(TAIL), Vec::new()) {
            // An empty object has no range.
            Err(RemoteError::Refused { status: 416, .. }) => {
                self.len_of(name).map(|len| (Vec::new(), len))
            }
            got => got,
        };
        tail.map_err(RemoteError::into_io)
    }

    fn range(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let got = self.get(name, &Part::Range(range), Vec::new());
        Ok(got.map_err(RemoteError::into_io)?.0)
    }

    fn whole(&self, name: &str, len_max: u64, memory: Vec<u8>) -> io::Result<Vec<u8>> {
        let too_long = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it is far larger than it can be",
            )
        };
        let (mut bytes, len) = match self.get(name, &Part::Range(0..RANGE_MAX), memory) {
            Err(RemoteError::Refused { status: 416, .. }) => (Vec::new(), 0),
            got => got.map_err(RemoteError::into_io)?,
        };
        if len > len_max {
            return Err(too_long());
        }
        bytes.reserve_exact(index(len).saturating_sub(bytes.len()));
        while (bytes.len() as u64) < len {
            let at = bytes.len() as u64;
            let next = Part::Range(at..(at + RANGE_MAX).min(len));
            let got = self.get(name, &next, Vec::new());
            bytes.extend(got.map_err(RemoteError::into_io)?.0);
        }
        Ok(bytes)
    }
}

/// `bytes FIRST-LAST/LENGTH`.
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, len) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let range = first..last.checked_add(1)?;
    let len = len.parse().ok()?;
    (range.start < range.end && range.end <= len).then_some((range, len))
}

fn read_only<T>() -> io::Result<T> {
    let sentence = "a vault is written through its server, not by its objects";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence))
}

impl Backend for Objects {
    fn create(&self, _name: &str, _bytes: &[u8], _epoch: u64) -> io::Result<()> {
        read_only()
    }

    fn replace(&self, _name: &str, _bytes: &[u8], _epoch: u64) -> io::Result<()> {
        read_only()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.blocks.len(name, self)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.blocks.read(name, offset, buf, self)
    }

    fn read_whole(&self, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
        self.whole(name, len_max, Vec::new())
    }

    fn hold(&self, name: &str, worth: bool) -> Option<Box<dyn Any + Send>> {
        self.blocks.hold(name, worth, self)
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        read_only()
    }

    /// They are its server's, which removes them.
    fn half_created(&self, _folder: &str) -> io::Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let path = match folder {
            // Shippers may, too.
            KEYS => format!("/v1/vaults/{}/keys", self.url.vault),
            _ => format!("/v1/vaults/{}/list?folder={folder}", self.url.vault),
        };
        let listed: Result<ObjectList, _> = self.connection.json(Ask::get(path));
        Ok(listed.map_err(RemoteError::into_io)?.objects)
    }

    fn recover(&self, _folder: &str) -> io::Result<()> {
        read_only()
    }

    fn sync(&self, _folder: &str) -> io::Result<()> {
        // What the server lists it has made durable.
        Ok(())
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        read_only()
    }

    fn space(&self) -> io::Result<Option<Space>> {
        Ok(None)
    }

    fn requests_at_once(&self) -> usize {
        8
    }

    fn describe(&self) -> String {
        self.url.to_string()
    }
}
