//! A disk that has lost a sector: every read that touches it fails, as the kernel lets it fail.
//!
//! Rule: what is written in place of the object lies elsewhere on that disk, and reads well.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use store::{Backend, Watch, Watched};

/// What a disk loses at once.
pub(crate) const SECTOR: u64 = 4096;

/// EIO.
const LOST: i32 = 5;

pub(crate) struct LostSector {
    object: String,
    from: u64,
    replaced: AtomicBool,
}

impl LostSector {
    /// Of `place`, a sector of an object, by its number.
    pub(crate) fn of(place: Arc<dyn Backend>, object: &str, sector: u64) -> Arc<Watched<Self>> {
        let lost = Self {
            object: object.to_owned(),
            from: sector * SECTOR,
            replaced: AtomicBool::new(false),
        };
        Arc::new(Watched::new(place, lost))
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(SeqCst)
    }
}

impl Watch for LostSector {
    fn reads(&self, name: &str, bytes: Range<u64>) -> io::Result<()> {
        let touches = bytes.start < self.from + SECTOR && self.from < bytes.end;
        match name == self.object && touches && !self.is_replaced() {
            true => Err(io::Error::from_raw_os_error(LOST)),
            false => Ok(()),
        }
    }

    fn replaced(&self, name: &str) {
        self.replaced.fetch_or(name == self.object, SeqCst);
    }
}
