//! The one writer: a lock that goes with the process, and an epoch that outlives it.
//!
//! ```text
//! lease/lock            held (flock) by the writer
//! lease/epoch-NUMBER    created by each writer in turn: "STDNEPO1" version | store 16 | number u64 | at u64 | crc32c
//! ```
//!
//! Rule: before every commit a writer looks for an epoch above its own; where locks do not reach
//! (a network file system that lies), that, and the numbers of the commits, fence it.

use std::any::Any;
use std::io;
use std::sync::Arc;

use block::UnixNanos;

use crate::backend::Backend;
use crate::codec::{self, Encode};
use crate::error::{Result, StoreError, io_error};
use crate::headroom::{self, Headroom};

const MAGIC: [u8; 8] = *b"STDNEPO1";

/// The right to write.
pub(crate) struct Lease {
    place: Arc<dyn Backend>,
    pub(crate) epoch: u64,
    _lock: Box<dyn Any + Send + Sync>,
}

impl Lease {
    pub(crate) fn take(place: &Arc<dyn Backend>, store: [u8; 16], at: UnixNanos) -> Result<Self> {
        let failed = |verb| move |e| io_error(verb, "lease".into(), e);
        let in_use = || StoreError::InUse {
            store: place.describe(),
        };
        let lock = match place.lock() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(in_use()),
            other => other.map_err(failed("lock"))?,
        };
        place.recover("lease").map_err(failed("recover"))?;
        let names = place.list("lease").map_err(failed("list"))?;
        let newest = names.iter().filter_map(|(name, _)| parse_name(name)).max();
        let epoch = newest.unwrap_or(0) + 1;
        let mut object = codec::begin(MAGIC);
        object.put_bytes(&store);
        object.put_u64(epoch);
        object.put_u64(at.0);
        let object = codec::seal(object);
        let create = || place.create(&path(epoch), &object, epoch);
        let created = match create() {
            // Whoever comes to make room needs some.
            Err(e) if is_full(&e) && headroom::give_up(&**place) => {
                let created = create();
                headroom::keep_the_rest(&**place, Headroom::BYTES, epoch);
                created
            }
            other => other,
        };
        match created {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(in_use()),
            other => other.map_err(failed("write an epoch in"))?,
        }
        place.sync("lease").map_err(failed("sync"))?;
        Ok(Self {
            place: Arc::clone(place),
            epoch,
            _lock: lock,
        })
    }

    /// When the store had its first writer; `None` if that is not known any more.
    pub(crate) fn first_at(place: &dyn Backend) -> Option<UnixNanos> {
        const AT: u64 = 8 + 4 + 16 + 8;
        let mut at = [0; 8];
        place.read(&path(1), AT, &mut at).ok()?;
        Some(UnixNanos(u64::from_le_bytes(at)))
    }

    /// `Fenced` if a later writer exists.
    pub(crate) fn check(&self) -> Result<()> {
        let theirs = self.epoch + 1;
        match self.place.len(&path(theirs)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("read", path(theirs), e)),
            Ok(_) => Err(StoreError::Fenced {
                ours: self.epoch,
                theirs,
            }),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn path(epoch: u64) -> String {
    format!("lease/epoch-{epoch:016x}")
}

fn parse_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("epoch-")?, 16).ok()
}
