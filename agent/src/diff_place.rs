//! Where the diffs of a group are kept, and that nobody else keeps any there.
//!
//! | `--diff-dir` | diffs lie in |
//! |---|---|
//! | left out | a directory of the state |
//! | a directory | one of the group's own in it |
//! | a block device | the device, which is the group's alone |

use std::any::Any;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use block::{Access, DeviceDir, DeviceDirError, Dir, OsDir};

use crate::places::GroupPlace;
use crate::{Error, Result};

/// What keeps others away until it is dropped.
pub(crate) type Lock = Box<dyn Any + Send + Sync>;

/// An open place for diffs.
pub(crate) struct DiffPlace {
    pub(crate) dir: Arc<dyn Dir>,
    /// Of a place that was chosen; the state has a lock of its own.
    pub(crate) lock: Option<Lock>,
}

impl DiffPlace {
    /// Opens, and takes, the place for the diffs of a group: `chosen`, or a part of its state.
    pub(crate) fn open(place: &GroupPlace, chosen: Option<&Path>) -> Result<Self> {
        match chosen {
            Some(device) if is_block_device(device) => Self::on_device(place, device),
            Some(path) if is_missing_device(path) => Err(Error::usage(
                format!("there is no device `{}`", path.display()),
                "connect it, or name another; what was not shipped is read again from the disks",
            )),
            _ => Self::in_directory(place, chosen),
        }
    }

    fn in_directory(place: &GroupPlace, chosen: Option<&Path>) -> Result<Self> {
        let lock = chosen.map(|chosen| lock(place, chosen)).transpose()?;
        let dir = open_dir(&place.diff_dir(chosen))?;
        Ok(Self { dir, lock })
    }

    fn on_device(place: &GroupPlace, device: &Path) -> Result<Self> {
        let failed = |source: io::Error| Error::file("open the diff device", device)(source);
        // A link may lead elsewhere by the time it is followed again.
        let real = fs::canonicalize(device).map_err(failed)?;
        // As a disk is opened: nobody mounts it, or makes a volume of it, while we have it.
        let claim = block::open_production(&real, Access::ReadWrite)?;
        let (Some(parent), Some(name)) = (real.parent(), real.file_name().and_then(|n| n.to_str()))
        else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let parent = OsDir::open(parent).map_err(failed)?;
        let owner = format!("group {}", place.group());
        let opened = DeviceDir::open(Arc::new(parent), name, &owner);
        let dir = opened.map_err(|error| refused(error, failed))?;
        Ok(Self {
            dir: Arc::new(dir),
            lock: Some(Box::new(claim)),
        })
    }
}

fn refused(error: DeviceDirError, failed: impl FnOnce(io::Error) -> Error) -> Error {
    let hint = match error {
        DeviceDirError::Io(error) => return failed(error),
        DeviceDirError::TooSmall { .. } => "give it a larger device",
        _ => {
            "give each group a device of its own; if nobody needs what is on this one, wipe it with `blkdiscard --zeroout DEVICE`"
        }
    };
    Error::usage(
        format!("no diffs can be kept there: {error}; nothing was written to it"),
        hint,
    )
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// A directory made in its place would lie in memory, and keep the device from coming back.
fn is_missing_device(path: &Path) -> bool {
    let is_link_to_nothing = path.is_symlink() && !path.exists();
    let below_dev = path.starts_with("/dev") && !path.starts_with("/dev/shm");
    is_link_to_nothing || (below_dev && !path.exists())
}

/// A directory for maps, diffs or state.
pub(crate) fn open_dir(path: &Path) -> Result<Arc<dyn Dir>> {
    let dir = OsDir::create_all(path).map_err(Error::file("open", path))?;
    match dir.copy_on_write().map_err(Error::file("open", path))? {
        None => Ok(Arc::new(dir)),
        Some(name) => Err(Error::usage(
            format!(
                "`{}` is on {name}, where a full disk would end the process",
                path.display()
            ),
            "keep the state and --diff-dir on ext4, XFS or tmpfs",
        )),
    }
}

/// A diff directory outside the state may be shared by mistake: with another state directory that
/// has a group of the same name, each would remove the other's files.
fn lock(place: &GroupPlace, chosen: &Path) -> Result<Lock> {
    let dir = OsDir::create_all(chosen).map_err(Error::file("open the diff directory", chosen))?;
    let lock = format!(".{}.lock", place.group());
    dir.lock_exclusive(&lock)
        .map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => Error::usage(
                format!(
                    "the diff directory `{}` is in use by another group {}",
                    chosen.display(),
                    place.group()
                ),
                "give each state directory its own --diff-dir",
            ),
            _ => Error::file("lock the diff directory", chosen)(source),
        })
}
