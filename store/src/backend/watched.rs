//! A place that is watched: what tests and benches put before another one.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use block::Space;

use crate::backend::Backend;

/// Sees what is done in a place.
pub trait Watch: Send + Sync {
    /// Bytes of an object are about to be read.
    ///
    /// # Errors
    /// What the reader is to get in their place.
    fn reads(&self, name: &str, bytes: Range<u64>) -> io::Result<()>;

    /// An object was replaced.
    fn replaced(&self, _name: &str) {}
}

/// A place, and who watches it.
pub struct Watched<W> {
    place: Arc<dyn Backend>,
    /// Who watches.
    pub watch: W,
}

impl<W: Watch> Watched<W> {
    /// Lets `watch` see what is done in `place`.
    #[must_use]
    pub fn new(place: Arc<dyn Backend>, watch: W) -> Self {
        Self { place, watch }
    }
}

impl<W: Watch> Backend for Watched<W> {
    fn create(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
        self.place.create(name, bytes, epoch)
    }

    fn replace(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
        self.place.replace(name, bytes, epoch)?;
        self.watch.replaced(name);
        Ok(())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.place.len(name)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        self.watch.reads(name, offset..end)?;
        self.place.read(name, offset, buf)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.place.remove(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        self.place.list(folder)
    }

    fn half_created(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        self.place.half_created(folder)
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
