//! Where the objects of a store lie: a directory, or anything else that can create an object whole.
//!
//! Objects have names like `containers/000000/000000000001.con`: a folder, and a plain name in it.
//! Rule: an object is created once, whole, and only under a name that is free; whoever sees a name sees the
//! whole object. Nothing is durable before [`sync`](Backend::sync) of its folder has returned.

use std::any::Any;
use std::io;
use std::time::Duration;

use block::Space;

#[cfg(feature = "bucket")]
pub use blocks::{Blocks, Ranges, TAIL};
#[cfg(feature = "bucket")]
pub use bucket::{Bucket, InvalidBucket};
pub use directory::Directory;
#[cfg(feature = "conformance")]
pub use watched::{Watch, Watched};

#[cfg(feature = "bucket")]
mod blocks;
#[cfg(feature = "bucket")]
mod bucket;
#[cfg(feature = "conformance")]
pub mod conformance;
mod directory;
#[cfg(feature = "conformance")]
mod watched;
#[cfg(feature = "bucket")]
mod wholes;

/// Keeps objects.
pub trait Backend: Send + Sync {
    /// Creates an object: all of it, or none. `epoch` is the writer's.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; `TimedOut` if nobody can say whether it was created; `StorageFull`, and
    /// others of the place.
    fn create(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()>;

    /// The same, in place of what has the name: for bytes that were healed, and no others.
    ///
    /// # Errors
    /// `StorageFull`, and others of the place. The old object is there then, or the new one.
    fn replace(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()>;

    /// The same for something small that is worth nothing later: given up after `most`, where the place may hang.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    fn replace_within(
        &self,
        name: &str,
        bytes: &[u8],
        epoch: u64,
        most: Duration,
    ) -> io::Result<()> {
        let _ = most;
        self.replace(name, bytes, epoch)
    }

    /// Length of an object in bytes.
    ///
    /// # Errors
    /// `NotFound`, and others of the place.
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Fills `buf` from byte `offset` of an object.
    ///
    /// # Errors
    /// `NotFound`; `UnexpectedEof` if it ends before; others of the place.
    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Reads a whole object, around sectors that its disk has lost.
    ///
    /// # Errors
    /// `InvalidData` if it is longer than `len_max`, and as [`read`](Self::read).
    fn read_whole(&self, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
        let len = self.len(name)?;
        let mut bytes = vec![0; block::index(within(len, len_max)?)];
        match self.read(name, 0, &mut bytes) {
            Err(e) if is_damage(&e) => {
                // What the disk still gives of it; the rest reads as zeroes, which its checksums notice.
                for (at, sector) in (0..).step_by(SECTOR).zip(bytes.chunks_mut(SECTOR)) {
                    match self.read(name, at, sector) {
                        Err(e) if is_damage(&e) => sector.fill(0),
                        other => other?,
                    }
                }
            }
            other => other?,
        }
        Ok(bytes)
    }

    /// Keeps an object at hand for who reads a good part of it next, until the returned value is dropped. Where each request costs the way there
    /// and back all of it is brought with one, if that is `worth` it; else, or if it does not come, `None`, and nothing is lost but time.
    /// May wait until others are let go of: whoever has one must not wait for somebody who wants one.
    fn hold(&self, name: &str, worth: bool) -> Option<Box<dyn Any + Send>> {
        let _ = (name, worth);
        None
    }

    /// Removes an object.
    ///
    /// # Errors
    /// `NotFound` where the place says so, and others of it.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The plain names of the objects in a folder, and their lengths, in no order; none if there is no such folder.
    ///
    /// # Errors
    /// Those of the place.
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>>;

    /// What crashed writers left half created in a folder, and what is being created there just now: names and lengths.
    ///
    /// # Errors
    /// Those of the place.
    fn half_created(&self, folder: &str) -> io::Result<Vec<(String, u64)>>;

    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// Those of the place.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.list("")?.is_empty())
    }

    /// The plain names of a folder without further folders that come after `after` and before `before`.
    ///
    /// # Errors
    /// Those of the place.
    fn list_between(&self, folder: &str, after: &str, before: &str) -> io::Result<Vec<String>> {
        let names = self.list(folder)?.into_iter().map(|(name, _)| name);
        let between = |name: &String| name.as_str() > after && name.as_str() < before;
        Ok(names.filter(between).collect())
    }

    /// For the one writer: removes what crashed writers left half created in a folder, and makes all names in it
    /// (and its own) durable.
    ///
    /// # Errors
    /// Those of the place.
    fn recover(&self, folder: &str) -> io::Result<()>;

    /// Makes durable what was created, replaced and removed in a folder.
    ///
    /// # Errors
    /// Those of the place. Nobody can say then what is durable.
    fn sync(&self, folder: &str) -> io::Result<()>;

    /// Keeps other writers out until the returned value is dropped or the process ends; `None` where there are no locks.
    ///
    /// # Errors
    /// `WouldBlock` if somebody holds it; others of the place.
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;

    /// How full the place is; `None` where that is not known.
    ///
    /// # Errors
    /// Those of the place.
    fn space(&self) -> io::Result<Option<Space>>;

    /// How long a container should be in bytes, where there is enough to fill it: what a place loses by small objects.
    fn container_bytes(&self) -> u64 {
        4 << 20
    }

    /// How many requests it takes at once to use what the place can do.
    fn requests_at_once(&self) -> usize {
        2
    }

    /// How to name this place to a person.
    fn describe(&self) -> String;
}

/// How many threads it takes beside those that compute: who waits for a place that is far away uses no processor.
pub(crate) fn waiting_threads(place: &dyn Backend) -> usize {
    place.requests_at_once().saturating_sub(2)
}

/// `len`, if it is at most `len_max`.
fn within(len: u64, len_max: u64) -> io::Result<u64> {
    let sentence = "it is far larger than it can be";
    match len <= len_max {
        true => Ok(len),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, sentence)),
    }
}

/// What a disk loses at once.
const SECTOR: usize = 4096;

/// Whether a disk says that it has lost what it was asked for.
#[must_use]
pub fn is_damage(error: &std::io::Error) -> bool {
    /// EIO, EBADMSG, EILSEQ, ENODATA, EUCLEAN.
    const CODES: [i32; 5] = [5, 74, 84, 61, 117];
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = error {
        let code = e.downcast_ref::<std::io::Error>();
        let code = code.and_then(std::io::Error::raw_os_error);
        if code.is_some_and(|code| CODES.contains(&code)) {
            return true;
        }
        let inner = e.downcast_ref::<std::io::Error>();
        let inner = inner.and_then(std::io::Error::get_ref);
        error = match inner {
            Some(inner) => Some(inner),
            None => e.source(),
        };
    }
    false
}
