//! The object `format`, which makes a place a store, and gives the store its id.
//!
//! ```text
//! format:   "STDNSTO1" | version u32 | store 16 | crc32c u32, in armor
//! ```

use std::io;

use crate::armor::{self, Kind, Owner};
use crate::backend::Backend;
use crate::codec::{self, Decoded, Encode};
use crate::error::{Result, StoreError, io_error};

const MAGIC: [u8; 8] = *b"STDNSTO1";

pub(crate) const NAME: &str = "format";

/// Its armor's owner: who reads it does not know the store yet.
pub(crate) const OWNER: Owner = Owner {
    store: [0; 16],
    kind: Kind::Format,
    id: 0,
};

const LEN_MAX: u64 = 4096;

/// Makes a new store of the place.
pub(crate) fn create(place: &dyn Backend) -> io::Result<()> {
    let mut format = codec::begin(MAGIC);
    format.put_bytes(uuid::Uuid::new_v4().as_bytes());
    let format = armor::wrap(OWNER, &codec::seal(format));
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

/// The store's id.
pub(crate) fn read(place: &dyn Backend) -> Result<[u8; 16]> {
    Ok(examine(place)?.0)
}

/// The store's id, and how many bytes of the object are damaged.
pub(crate) fn examine(place: &dyn Backend) -> Result<([u8; 16], u64)> {
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
    read.map_err(|malformed| StoreError::malformed(NAME.into(), malformed))
}

pub(crate) fn decode(bytes: &[u8]) -> Decoded<[u8; 16]> {
    let mut d = codec::unseal(bytes, MAGIC)?;
    let store = d.array()?;
    d.end()?;
    Ok(store)
}
