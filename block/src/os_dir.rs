//! The real [`Dir`]: a directory of the operating system, held open.
//!
//! Every name is resolved against the open directory, never against a path, so a directory that
//! is renamed or mounted over while the program runs stays the same directory.
//!
//! Rule: files hold guests' data, so what is created is for its owner alone (0600, 0700).

use std::any::Any;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::dir::check_name;
use crate::os_file::OsFile;
use crate::{Dir, File, Space};

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAYFS: i64 = 0x794c_7630;

/// A directory of the operating system.
pub struct OsDir {
    fd: OwnedFd,
    path: PathBuf,
}

/// An error of the operating system, with what was being done to which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} `{}`: {source}", path.display())]
pub(crate) struct FileError {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Adds what was being done; the kind stays.
pub(crate) fn file_error(
    verb: &'static str,
    path: &Path,
    source: impl Into<io::Error>,
) -> io::Error {
    let source = source.into();
    let path = path.to_owned();
    io::Error::new(source.kind(), FileError { verb, path, source })
}

impl OsDir {
    /// The directory at `path`, which must exist.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| file_error("open directory", path, e))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// The directory at `path`; it and its parents are created, durably, if they are missing.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn create_all(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        make_durable_dirs(path)?;
        Self::open(path)
    }

    /// Where the directory was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the file system, if it copies a page before it writes to it again: there a full
    /// disk kills a process that stores to mapped words, whatever was reserved.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn copy_on_write(&self) -> io::Result<Option<&'static str>> {
        let stat = rustix::fs::fstatfs(&self.fd)
            .map_err(|e| file_error("ask the file system of", &self.path, e))?;
        Ok(match stat.f_type {
            0x9123_683e => Some("btrfs"),
            0x2fc1_2fc1 => Some("zfs"),
            0xca45_1a4e => Some("bcachefs"),
            _ => None,
        })
    }

    fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.fd, name, flags | OFlags::CLOEXEC, mode)
    }

    fn file(&self, fd: OwnedFd, name: &str) -> Arc<dyn File> {
        // overlayfs answers for itself, and not for the file system below it that failed.
        let layered = rustix::fs::fstatfs(&fd).is_ok_and(|stat| stat.f_type == OVERLAYFS);
        Arc::new(OsFile::new(
            fs::File::from(fd),
            self.path.join(name),
            layered,
        ))
    }

    /// `Err` says what was tried, and on which file.
    fn named<T>(&self, verb: &'static str, name: &str, result: Result<T, Errno>) -> io::Result<T> {
        result.map_err(|e| file_error(verb, &self.path.join(name), e))
    }
}

/// Renames a file, in one directory or from one to another. Not durable before the directories are.
///
/// # Errors
/// `AlreadyExists` if something has the name; the operating system's.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let renamed = rename_without_replacing(CWD, from, to);
    renamed.map_err(|e| file_error("rename to", to, e))
}

fn rename_without_replacing(dir: BorrowedFd<'_>, from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
        // The file system has no such rename (NFS). A second link is as atomic.
        Err(Errno::INVAL | Errno::NOSYS) => relink(dir, from, to),
        renamed => renamed,
    }
}

fn relink(dir: BorrowedFd<'_>, from: &Path, to: &Path) -> Result<(), Errno> {
    rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())?;
    rustix::fs::unlinkat(dir, from, AtFlags::empty())
}

impl Dir for OsDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        check_name(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = self.named("create", name, self.open_file(name, flags))?;
        Ok(self.file(fd, name))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        check_name(name)?;
        let opened = match self.open_file(name, OFlags::RDWR) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => self.open_file(name, OFlags::RDONLY),
            other => other,
        };
        let fd = self.named("open", name, opened)?;
        Ok(self.file(fd, name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        let renamed = rustix::fs::renameat(&self.fd, from, &self.fd, to);
        self.named("rename", from, renamed)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        let renamed = rename_without_replacing(self.fd.as_fd(), from.as_ref(), to.as_ref());
        self.named("rename to", to, renamed)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let removed = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
        self.named("remove", name, removed)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.list_files()
            .map_err(|e| file_error("list", &self.path, e))
    }

    fn sync(&self) -> io::Result<()> {
        rustix::fs::fsync(&self.fd).map_err(|e| file_error("sync directory", &self.path, e))
    }

    fn subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        check_name(name)?;
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            // A read-only directory still lets an existing one be opened.
            Err(Errno::ROFS | Errno::ACCESS) if self.has(name) => {}
            Err(e) => return self.named("create directory", name, Err(e)),
        }
        self.existing_subdir(name)
    }

    fn existing_subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        check_name(name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.named("open directory", name, self.open_file(name, flags))?;
        let path = self.path.join(name);
        Ok(Arc::new(Self { fd, path }))
    }

    fn lock_exclusive(&self, name: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        check_name(name)?;
        let opened = self.open_file(name, OFlags::RDWR | OFlags::CREATE);
        let fd = self.named("open lock file", name, opened)?;
        // The lock belongs to the open file: it goes with the last descriptor, however that ends.
        let locked = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
        self.named("lock", name, locked)?;
        Ok(Box::new(fd))
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.fd)
            .map_err(|e| file_error("ask the file system of", &self.path, e))?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

impl OsDir {
    fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::empty()).is_ok()
    }

    /// Names that are no text are not ours and are left out.
    fn list_files(&self) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let is_file = match entry.file_type() {
                FileType::Unknown | FileType::Symlink => self.is_file(name),
                kind => kind.is_file(),
            };
            if is_file {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn is_file(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::empty())
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
    }
}

impl AsFd for OsDir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for OsDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OsDir").field(&self.path).finish()
    }
}

/// Creates what is missing of `path` from the top; each new name is synced into its parent.
fn make_durable_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if parent != path {
        make_durable_dirs(parent)?;
    }
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => OsDir::open(parent)?.sync(),
        Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(file_error("create directory", path, e)),
    }
}

#[cfg(test)]
mod tests;
