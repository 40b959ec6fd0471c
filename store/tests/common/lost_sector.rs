//! A place whose disk has lost a sector: every read that touches it fails, as the kernel lets it fail.
//!
//! Rule: what is written in place of the object lies elsewhere on that disk, and reads well.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use block::Space;
use store::Backend;

/// What a disk loses at once.
pub(crate) const SECTOR: u64 = 4096;

/// EIO.
const LOST: i32 = 5;

pub(crate) struct LostSector {
    place: Arc<dyn Backend>,
    object: String,
    from: u64,
    replaced: AtomicBool,
}

impl LostSector {
    /// Of `place`, a sector of an object, by its number.
    pub(crate) fn of(place: Arc<dyn Backend>, object: &str, sector: u64) -> Arc<Self> {
        Arc::new(Self {
            place,
            object: object.to_owned(),
            from: sector * SECTOR,
            replaced: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(SeqCst)
    }
}

impl Backend for LostSector {
    fn create(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
        self.place.create(name, bytes, epoch)
    }

    fn replace(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
        self.place.replace(name, bytes, epoch)?;
        self.replaced.fetch_or(name == self.object, SeqCst);
        Ok(())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.place.len(name)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let touches = offset < self.from + SECTOR && self.from < offset + buf.len() as u64;
        if name == self.object && touches && !self.is_replaced() {
            return Err(io::Error::from_raw_os_error(LOST));
        }
        self.place.read(name, offset, buf)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.place.remove(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        self.place.list(folder)
    }

    fn recover(&self, folder: &str) -> io::Result<()> {
        self.place.recover(folder)
    }

    fn sync(&self, folder: &str) -> io::Result<()> {
        self.place.sync(folder)
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.place.lock()
    }

    fn space(&self) -> io::Result<Option<Space>> {
        self.place.space()
    }

    fn describe(&self) -> String {
        self.place.describe()
    }
}
