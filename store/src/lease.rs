//! The one writer: a lock that goes with the process, or a beat where there are no locks, and an epoch that outlives it.
//!
//! ```text
//! lease/lock            held (flock) by the writer
//! lease/epoch-NUMBER    created by each writer in turn: "STDNEPO1" version | store 16 | number u64 | at u64 | nonce 16 | crc32c
//! lease/beat-NUMBER     written again and again by a writer that holds no lock: lease/beat.rs
//! ```
//!
//! Rule: before every commit a writer looks for an epoch above its own; that, and the numbers of the commits, fence it.
//! Locks and beats only keep a writer from fencing one that lives: no clock is ever trusted with data.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, UnixNanos};

use crate::backend::Backend;
use crate::codec::{self, Encode};
use crate::error::{Result, StoreError, io_error};
use crate::headroom::{self, Headroom};
use crate::lease::beat::{Beat, Life};

mod beat;

const MAGIC: [u8; 8] = *b"STDNEPO1";

/// The right to write.
pub(crate) struct Lease {
    place: Arc<dyn Backend>,
    pub(crate) epoch: u64,
    /// The writer before did not say that it ended, and no lock says so: it may still put objects, before it finds out.
    pub(crate) overtook: bool,
    _lock: Option<Box<dyn Any + Send + Sync>>,
    _beat: Option<Beat>,
}

impl Lease {
    /// Long enough for a place that is slow for a moment.
    pub(crate) const TERM: Duration = Duration::from_secs(30);

    /// Becomes the writer. Where there are no locks and the last writer did not say that it ended, it is watched for its
    /// `term` first.
    pub(crate) fn take(
        place: &Arc<dyn Backend>,
        store: [u8; 16],
        clock: &dyn Clock,
        term: Duration,
    ) -> Result<Self> {
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
        let mut epoch = newest.unwrap_or(0) + 1;
        // A list may be old.
        while exists(&**place, epoch)? {
            epoch += 1;
        }
        let beats = lock.is_none().then_some(beat::Beats { place, store, term });
        let mut overtook = false;
        if let Some(beats) = &beats
            && epoch > 1
        {
            overtook = match beats.watch(epoch - 1, clock)? {
                Life::Lives => return Err(in_use()),
                Life::Ended => false,
                Life::Silent => true,
            };
        }
        let mut object = codec::begin(MAGIC);
        object.put_bytes(&store);
        object.put_u64(epoch);
        object.put_u64(clock.wall().0);
        // No two writers create the same bytes: so who finds its own there has created them.
        object.put_bytes(uuid::Uuid::new_v4().as_bytes());
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
        if beats.is_some() {
            check_conditions(&**place, epoch)?;
        }
        let names = names.iter().map(|(name, _)| name.as_str());
        let beat = beats.map(|beats| beats.start(epoch, names)).transpose()?;
        Ok(Self {
            place: Arc::clone(place),
            epoch,
            overtook,
            _lock: lock,
            _beat: beat,
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
        let (ours, theirs) = (self.epoch, self.epoch + 1);
        match exists(&*self.place, theirs)? {
            false => Ok(()),
            true => Err(StoreError::Fenced { ours, theirs }),
        }
    }
}

/// Without locks all depends on the place creating a name once: it is asked for one that is taken.
fn check_conditions(place: &dyn Backend, epoch: u64) -> Result<()> {
    let name = path(epoch);
    match place.create(&name, b"another object must not take this name", epoch) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io_error("create", name, e)),
        Ok(()) => Err(StoreError::NoConditions {
            store: place.describe(),
        }),
    }
}

/// Whether there was a writer of that number.
fn exists(place: &dyn Backend, epoch: u64) -> Result<bool> {
    match place.len(&path(epoch)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_error("read", path(epoch), e)),
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
