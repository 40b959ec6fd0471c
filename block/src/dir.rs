//! A directory and its files as values that are passed in: the real one (`OsDir`),
//! or a simulated one that loses power.
//!
//! What survives what:
//!
//! | | process killed | power lost |
//! |---|---|---|
//! | bytes and names whose call returned | kept | kept if synced since; else kept, lost or torn |
//! | words stored through [`SharedWords`] | kept | kept if `sync_data` since; else each page either |

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::ByteRange;

/// A flat directory. Names are plain file names, no path separators.
pub trait Dir: Send + Sync {
    /// Creates a file; fails with `AlreadyExists` if the name is taken.
    ///
    /// # Errors
    /// The operating system's.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens a file for reading and writing; for reading only where the file or the directory is not writable.
    ///
    /// # Errors
    /// `NotFound` and the operating system's.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Gives `from` the name `to`, replacing a file of that name, atomically.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Gives the file `from` the name `to`, atomically; fails with `AlreadyExists` if it is taken.
    ///
    /// # Errors
    /// The operating system's.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Handles that are open stay usable.
    ///
    /// # Errors
    /// `NotFound` and the operating system's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files, in no order.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes every change of names durable.
    ///
    /// # Errors
    /// The operating system's; a failed sync proves nothing about earlier changes.
    fn sync(&self) -> io::Result<()>;

    /// The directory `name` inside this one, created if it is missing.
    ///
    /// # Errors
    /// The operating system's.
    fn subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>>;

    /// The directory `name` inside this one. Nothing is created: who only reads changes nothing.
    ///
    /// # Errors
    /// `NotFound` and the operating system's.
    fn existing_subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>>;

    /// Takes the lock file `name` (created if missing) until the returned value is dropped or the
    /// process ends, however it ends.
    ///
    /// # Errors
    /// `WouldBlock` if somebody holds it; the operating system's.
    fn lock_exclusive(&self, name: &str) -> io::Result<Box<dyn Any + Send + Sync>>;

    /// How full the file system is.
    ///
    /// # Errors
    /// The operating system's.
    fn space(&self) -> io::Result<Space>;

    /// In which pieces space is taken and freed, in bytes.
    fn granularity(&self) -> u64 {
        4096
    }

    /// How to name this directory to a person.
    fn describe(&self) -> String;
}

/// What a file system has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that a program without privileges may still take.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// An open file.
pub trait File: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends (with a hole).
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Fills `buf`; fails with `UnexpectedEof` if the file ends before.
    ///
    /// # Errors
    /// The operating system's.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data`.
    ///
    /// # Errors
    /// The operating system's; part of it may have been written.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// The same, beside the page cache where that can be done: for much that nobody will read soon. Needs `offset`
    /// and the place and length of `data` in memory to be multiples of 4096; otherwise it is a usual write.
    ///
    /// # Errors
    /// As [`Self::write_all_at`].
    fn write_past_cache(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    /// Frees the space of `range`, which then reads as zeroes. The length stays.
    ///
    /// # Errors
    /// `Unsupported` where the file system cannot.
    fn punch_hole(&self, range: ByteRange) -> io::Result<()>;

    /// Whether the page cache holds a byte of `range`; asking brings nothing in. As long as one page of a file
    /// has been there, the system has known the file, and tells its failures to whoever opens it.
    ///
    /// # Errors
    /// The operating system's.
    fn is_cached(&self, range: ByteRange) -> io::Result<bool>;

    /// Makes the content durable (`fdatasync`).
    ///
    /// # Errors
    /// The operating system's; afterwards nobody can say what is durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Begins to bring `range` to the disk, and waits for nothing.
    ///
    /// # Errors
    /// None that say anything of the bytes: those come with [`Self::check_writeback`].
    fn start_writeback(&self, range: ByteRange) -> io::Result<()>;

    /// Begins to bring `range` into the page cache, and waits for nothing.
    ///
    /// # Errors
    /// The operating system's.
    fn fetch(&self, range: ByteRange) -> io::Result<()>;

    /// Lets the page cache go of what of `range` is on the disk already.
    ///
    /// # Errors
    /// The operating system's.
    fn let_go(&self, range: ByteRange) -> io::Result<()>;

    /// Fails if bytes that were written since this handle was opened, or before and nobody was told, could
    /// not be brought to the disk: then they may read as something else once the page cache lets them go. Starts no
    /// writing; bytes that are still only in the cache are fine. Each failure is told once.
    ///
    /// # Errors
    /// The operating system's.
    fn check_writeback(&self) -> io::Result<()>;

    /// Bytes that the file occupies on its file system.
    ///
    /// # Errors
    /// The operating system's.
    fn allocated(&self) -> io::Result<u64>;

    /// Reserves space for `range`, whose content stays as it is, so that a later store to mapped
    /// words there cannot meet a full disk (which would kill the process).
    ///
    /// # Errors
    /// `StorageFull` and the operating system's.
    fn allocate(&self, range: ByteRange) -> io::Result<()>;

    /// The first `len` bytes (a multiple of 8) as words that are shared with the file: a store
    /// survives the process as a completed write does. `len` must not exceed the file's length,
    /// which must not shrink while the words live. Nothing is reserved: where the file has holes,
    /// [`allocate`](Self::allocate) comes before the first store.
    ///
    /// # Errors
    /// `InvalidInput` if `len` is not as above; the operating system's.
    fn map(&self, len: u64) -> io::Result<Arc<dyn SharedWords>>;
}

/// Words of a file that live in memory and in the file at once.
pub trait SharedWords: Send + Sync {
    /// The words. Byte `8 * i` of the file is the low byte of word `i` (little-endian machines only).
    fn words(&self) -> &[AtomicU64];
}

/// A name never leaves its directory.
pub(crate) fn check_name(name: &str) -> io::Result<()> {
    let plain = !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
    if plain {
        Ok(())
    } else {
        let sentence = format!("{name:?} is not a plain file name");
        Err(io::Error::new(io::ErrorKind::InvalidInput, sentence))
    }
}
