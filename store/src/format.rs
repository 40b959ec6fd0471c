//! The object `format`, which makes a place a store, and gives the store its id.
//!
//! ```text
//! format:   "STDNSTO1" | version u32 | store 16 | version 2, encrypted: key id 16 | crc32c u32, in armor
//! ```

use std::io;

use crate::armor::{self, Kind, Owner};
use crate::backend::Backend;
use crate::codec::{self, Decoded, Encode};
use crate::error::{Result, StoreError, io_error};
use crate::seal::KeyId;

const MAGIC: [u8; 8] = *b"STDNSTO1";

pub(crate) const NAME: &str = "format";

/// The version of an encrypted store.
const VERSION_ENCRYPTED: u32 = 2;

/// What `format` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) store: [u8; 16],
    /// Of the master key, if the store is encrypted.
    pub(crate) key: Option<KeyId>,
}

impl Format {
    fn encode(&self) -> Vec<u8> {
        let version = match self.key {
            Some(_) => VERSION_ENCRYPTED,
            None => codec::VERSION,
        };
        let mut out = codec::begin_version(MAGIC, version);
        out.put_bytes(&self.store);
        if let Some(key) = &self.key {
            out.put_bytes(key);
        }
        codec::seal(out)
    }
}

/// Its armor's owner: who reads it does not know the store yet.
pub(crate) const OWNER: Owner = Owner {
    store: [0; 16],
    kind: Kind::Format,
    id: 0,
};

const LEN_MAX: u64 = 4096;

/// Makes a new store of the place.
pub(crate) fn create(place: &dyn Backend, format: &Format) -> io::Result<()> {
    let format = armor::wrap(OWNER, &format.encode());
    place.create(NAME, &format, 0)
}

/// Whether the place is a store.
pub(crate) fn is_there(place: &dyn Backend) -> Result<bool> {
    match place.len(NAME) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_error("read", NAME.into(), e)),
    }
}

/// Which store it is.
pub(crate) fn read(place: &dyn Backend) -> Result<Format> {
    let bytes = match place.read_whole(NAME, LEN_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let dir = place.describe();
            return Err(StoreError::NotAStore { dir });
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(StoreError::corrupt(NAME.into(), e.to_string()));
        }
        other => other.map_err(|e| io_error("read", NAME.into(), e))?,
    };
    let read = armor::read_small(&bytes, OWNER, decode);
    let (format, _) = read.map_err(|malformed| StoreError::malformed(NAME.into(), malformed))?;
    Ok(format)
}

pub(crate) fn decode(bytes: &[u8]) -> Decoded<Format> {
    let (mut d, version) = codec::unseal_versions(bytes, MAGIC, VERSION_ENCRYPTED)?;
    let store = d.array()?;
    let key = match version {
        VERSION_ENCRYPTED => Some(d.array()?),
        _ => None,
    };
    d.end()?;
    Ok(Format { store, key })
}
