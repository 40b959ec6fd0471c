//! The directory of what a server must not lose: tokens, vaults, the audit log. Nobody but its owner can look into it.
//!
//! Rule: a file is replaced whole (written beside, synced, renamed, directory synced); whoever changes one holds the lock,
//! since commands on the server's machine change them, too. The file `headroom` occupies room in good times, so that a token can
//! be taken back when the disk is full.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use tracing::debug;

/// No file of it is longer.
const FILE_BYTES_MAX: u64 = 16 << 20;

const HEADROOM: &str = "headroom";
/// The longest file of tokens.
const HEADROOM_BYTES: u64 = 8 << 20;
/// Less than this is not worth a file.
const HEADROOM_BYTES_LEAST: u64 = 64 << 10;

/// The state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

/// Held while something in it is changed.
pub(crate) struct Locked {
    _file: File,
}

/// Which version of a file was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64, i64, i64, u64);

impl StateDir {
    /// Makes it if it is missing, for its owner alone.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            let sentence = "others can read it; make it private (chmod 700)";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence));
        }
        let path = path.to_owned();
        let dir = Self { path };
        dir.keep_headroom();
        Ok(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Waits until nobody else changes anything.
    pub(crate) fn lock(&self) -> io::Result<Locked> {
        self.lock_as("lock")
    }

    /// The same of files that have a lock of their own.
    pub(crate) fn lock_as(&self, name: &str) -> io::Result<Locked> {
        let file = private().append(true).open(self.path(name))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Locked { _file: file })
    }

    /// A file, and which version of it; `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<(Vec<u8>, Stamp)>> {
        let file = match File::open(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let stamp = stamp_of(&file.metadata()?);
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 <= FILE_BYTES_MAX {
            true => Ok(Some((bytes, stamp))),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is far longer than it can be",
            )),
        }
    }

    /// Which version of a file is there; `None` if there is none.
    pub(crate) fn stamp(&self, name: &str) -> io::Result<Option<Stamp>> {
        match fs::metadata(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            found => Ok(Some(stamp_of(&found?))),
        }
    }

    /// Replaces a file; durable when this returns.
    pub(crate) fn write(&self, _locked: &Locked, name: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = self.path(&format!("{name}.tmp"));
        let mut file = private().write(true).truncate(true).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, self.path(name))?;
        self.sync()
    }

    /// The same; on a full disk it goes where the headroom was.
    pub(crate) fn write_at_last(
        &self,
        locked: &Locked,
        name: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        match self.write(locked, name, bytes) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                // Without headroom it fails once more.
                let _ = fs::remove_file(self.path(HEADROOM));
                let written = self.write(locked, name, bytes);
                self.keep_headroom();
                written
            }
            written => written,
        }
    }

    /// Occupies the headroom, or as much of it as there is; who has none can go on.
    fn keep_headroom(&self) {
        let keep = || -> io::Result<()> {
            let file = private().append(true).open(self.path(HEADROOM))?;
            let mut there = file.metadata()?.len();
            let halves = std::iter::successors(Some(HEADROOM_BYTES), |bytes| Some(bytes / 2));
            for more in halves.take_while(|bytes| *bytes >= HEADROOM_BYTES_LEAST) {
                let is_wanted = there + more <= HEADROOM_BYTES;
                if is_wanted && fallocate(&file, FallocateFlags::empty(), there, more).is_ok() {
                    there += more;
                }
            }
            Ok(())
        };
        if let Err(error) = keep() {
            debug!(%error, "no headroom could be reserved in the state directory");
        }
    }

    /// Makes names in it durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// For files that only their owner can read.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

fn stamp_of(found: &fs::Metadata) -> Stamp {
    Stamp(found.ino(), found.mtime(), found.mtime_nsec(), found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_are_their_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        assert!(state.read("x").unwrap().is_none());
        let locked = state.lock().unwrap();
        state.write(&locked, "x", b"one").unwrap();
        let (bytes, stamp) = state.read("x").unwrap().unwrap();
        assert_eq!(bytes, b"one");
        assert_eq!(state.stamp("x").unwrap(), Some(stamp));
        state.write(&locked, "x", b"two").unwrap();
        assert_ne!(state.stamp("x").unwrap(), Some(stamp));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path("x")), 0o600);
        assert_eq!(mode(state.path("")), 0o700);
    }

    #[test]
    fn a_directory_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
}
