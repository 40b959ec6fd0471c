//! Opening the disk that holds the live data: what it is, that nobody else has it, and how it is
//! known again.
//!
//! | path | taken as |
//! |---|---|
//! | block device | its sectors |
//! | `X-flat.vmdk`, `X-f001.vmdk` | raw bytes: the data file of a VMDK |
//! | any other `X.vmdk` | a VMDK; anything else in it is refused |
//! | `X.qcow2` and the like, with the content to match | refused, with the command that converts it |
//! | any other file | raw bytes, whatever they look like |
//!
//! Rule: the content alone never decides. The guest writes the content of a raw disk; a guest that
//! writes a VMDK descriptor there would otherwise be served other files of the host.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use tracing::warn;

use crate::group_sync::Latch;
use crate::host_disk::HostDisk;
use crate::host_file::HostFile;
use crate::identity::{self, Identity};
use crate::raw::RawDevice;
use crate::vmdk::{self, VmdkError};
use crate::{BlockDevice, ByteRange, SECTOR, locks};

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read; refused while somebody has it open to write.
    ReadOnly,
    /// To read and write; refused while anybody else has it open.
    ReadWrite,
}

/// Whether the page cache of this machine has a part in reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// It keeps what was read and written, and brings writes to the disk later.
    #[default]
    Buffered,
    /// It has none (`O_DIRECT`): the guest's cache is the only one.
    Direct,
}

/// How the files of a disk are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) access: Access,
    pub(crate) caching: Caching,
}

impl From<Access> for Opening {
    fn from(access: Access) -> Self {
        let caching = Caching::Buffered;
        Self { access, caching }
    }
}

impl Opening {
    pub(crate) fn is_writable(self) -> bool {
        self.access == Access::ReadWrite
    }
}

/// An open production disk. Its locks go when this value and the device are dropped.
pub struct Production {
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// What it is, for a person.
    pub description: String,
    /// Names the same disk however its path is written: device and inode of the (first) file, or
    /// what the block device says of itself.
    pub identity: Identity,
    /// Taken when it was opened.
    pub stamp: Option<Stamp>,
    files: Vec<Arc<HostFile>>,
}

/// Tells a disk that was written behind our back. Block devices have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length of all files, in bytes.
    pub len: u64,
    /// Newest modification of any file, in nanoseconds since 1970.
    pub mtime_ns: u64,
}

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The operating system refused.
    #[error("cannot open `{}`: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// Another process, or another part of this one, has it.
    #[error("`{}` is in use by another program (a running guest, a mounted file system, another protect)", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// A directory, a terminal, a socket.
    #[error("`{}` is neither a file nor a block device", path.display())]
    NotADisk {
        /// Which file.
        path: PathBuf,
    },
    /// A file that no guest could see whole.
    #[error("`{}` has {len} bytes, which is not a multiple of 512: a disk consists of whole sectors; extend it with `truncate -s %512 {}`", path.display(), path.display())]
    PartialSector {
        /// Which file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// A disk without a byte.
    #[error("`{}` is empty", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// A disk format that is not served.
    #[error("`{}` is a {format} image, which cannot be served; convert it with `qemu-img convert -O raw {} DISK.img`", path.display(), path.display())]
    ForeignFormat {
        /// Which file.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
    },
    /// A VMDK that is damaged, lies or is of a kind that is not served.
    #[error("cannot open VMDK `{}`: {source}", path.display())]
    Vmdk {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: VmdkError,
    },
}

impl OpenError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => Self::InUse { path },
            _ => Self::Io { path, source },
        }
    }
}

/// Opens a raw file, a block device or a VMDK, and locks it.
///
/// # Errors
/// `InUse` and the others of [`OpenError`]; each names the file and what is wrong.
pub fn open_production(path: &Path, access: Access) -> Result<Production, OpenError> {
    open_production_with(path, access, Caching::Buffered)
}

/// The same, through the page cache or past it.
///
/// # Errors
/// As [`open_production`]; `Io` with `Unsupported` where the page cache cannot be passed.
pub fn open_production_with(
    path: &Path,
    access: Access,
    caching: Caching,
) -> Result<Production, OpenError> {
    let opening = Opening { access, caching };
    let kind = fs::metadata(path)
        .map_err(|e| OpenError::io(path, e))?
        .file_type();
    if kind.is_block_device() {
        open_block_device(path, opening)
    } else if !kind.is_file() {
        let path = path.to_owned();
        Err(OpenError::NotADisk { path })
    } else if vmdk::is_named_vmdk(path) {
        open_vmdk(path, opening)
    } else {
        open_raw(path, opening)
    }
}

/// Creates a raw file of `size` bytes, all a hole, for its owner alone; opened and locked.
///
/// # Errors
/// `Io` with `AlreadyExists` if the name is taken; as [`open_production_with`], and there is no file then.
pub fn create_raw(path: &Path, size: u64, caching: Caching) -> Result<Production, OpenError> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| OpenError::io(path, e))?;
    let access = Access::ReadWrite;
    file.set_len(size)
        .map_err(|e| OpenError::io(path, e))
        .and_then(|()| open_raw(path, Opening { access, caching }))
        .inspect_err(|_| {
            // It was ours and is empty.
            let _ = fs::remove_file(path);
        })
}

impl Production {
    /// Whether a path leads to one of the disk's files, whatever it is called there.
    #[must_use]
    pub fn has_file(&self, path: &Path) -> bool {
        let Ok(found) = fs::metadata(path) else {
            return false;
        };
        let is_it = |file: &Arc<HostFile>| {
            file.metadata()
                .is_ok_and(|meta| inode(&meta) == inode(&found))
        };
        self.files.iter().any(is_it)
    }

    /// What the disk's files look like at this moment; `None` for a block device.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stamp_now(&self) -> io::Result<Option<Stamp>> {
        stamp(&self.files)
    }
}

impl fmt::Debug for Production {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Production")
            .field(&self.description)
            .finish()
    }
}

fn open_raw(path: &Path, opening: Opening) -> Result<Production, OpenError> {
    let host = Arc::new(open_host(path, opening, OFlags::empty(), Arc::default())?);
    let meta = host.metadata().map_err(|e| OpenError::io(path, e))?;
    let len = meta.len();
    let mut description = format!("raw file {}", path.display());
    if let Some(format) = foreign_format(&host) {
        if has_extension(path, format.extensions) {
            let (path, format) = (path.to_owned(), format.name);
            return Err(OpenError::ForeignFormat { path, format });
        }
        let name = format.name;
        warn!(path = %path.display(), format = name, "the disk looks like an image in a container format; it is served as raw bytes");
        description.push_str(&format!(" (its first bytes look like {name})"));
    }
    check_size(path, len)?;
    let window = ByteRange::at(0, len).expect("from zero");
    let device = RawDevice::new(host.clone(), window, opening.is_writable());
    let identity = Identity::lasting(format!("file {}", inode(&meta)));
    produce(path, Arc::new(device), description, identity, vec![host])
}

fn open_vmdk(path: &Path, opening: Opening) -> Result<Production, OpenError> {
    let opened = vmdk::open(path, opening)?;
    let description = format!("{} {}", opened.kind, path.display());
    let first = opened.files.first().map(|file| file.metadata());
    let identity = match first {
        Some(meta) => inode(&meta.map_err(|e| OpenError::io(path, e))?),
        None => inode(&fs::metadata(path).map_err(|e| OpenError::io(path, e))?),
    };
    let identity = Identity::lasting(format!("vmdk {identity}"));
    produce(path, opened.device, description, identity, opened.files)
}

fn open_block_device(path: &Path, opening: Opening) -> Result<Production, OpenError> {
    // On a block device, O_EXCL without O_CREAT claims it: mounted ones and those of a volume
    // group or RAID are refused. A writer keeps the claim, so that nobody can mount it meanwhile;
    // a reader only looks whether there is one.
    let claimed = open_host(path, opening, OFlags::EXCL, Arc::default())?;
    let host = match opening.access {
        Access::ReadWrite => claimed,
        Access::ReadOnly => {
            drop(claimed);
            open_host(path, opening, OFlags::empty(), Arc::default())?
        }
    };
    let error = |e| OpenError::io(path, e);
    let rdev = host.metadata().map_err(error)?.rdev();
    let device = HostDisk::new(host, rdev, opening.is_writable()).map_err(error)?;
    check_size(path, device.size())?;
    let description = format!("block device {}", path.display());
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let identity = identity::of_block_device(major, minor);
    produce(path, Arc::new(device), description, identity, Vec::new())
}

fn produce(
    path: &Path,
    device: Arc<dyn BlockDevice>,
    description: String,
    identity: Identity,
    files: Vec<Arc<HostFile>>,
) -> Result<Production, OpenError> {
    let stamp = stamp(&files).map_err(|e| OpenError::io(path, e))?;
    Ok(Production {
        device,
        description,
        identity,
        stamp,
        files,
    })
}

/// Opens and locks one file of a disk.
pub(crate) fn open_host(
    path: &Path,
    opening: Opening,
    flags: OFlags,
    latch: Arc<Latch>,
) -> Result<HostFile, OpenError> {
    // NONBLOCK: a pipe in a disk's place must not hang us. It means nothing to files.
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).expect("open flags are an int");
    let file = fs::OpenOptions::new()
        .read(true)
        .write(opening.is_writable())
        .custom_flags(flags)
        .open(path)
        .map_err(|e| OpenError::io(path, e))?;
    locks::lock(&file, opening.access).map_err(|e| OpenError::io(path, e))?;
    let mut host = HostFile::new(file, path.to_owned(), latch);
    if opening.caching == Caching::Direct {
        host.bypass_cache(opening.is_writable())
            .map_err(|e| OpenError::io(path, e))?;
    }
    Ok(host)
}

fn check_size(path: &Path, len: u64) -> Result<(), OpenError> {
    let path = path.to_owned();
    if len == 0 {
        Err(OpenError::Empty { path })
    } else if len.is_multiple_of(SECTOR) {
        Ok(())
    } else {
        Err(OpenError::PartialSector { path, len })
    }
}

fn inode(meta: &fs::Metadata) -> String {
    format!("{:x}:{}", meta.dev(), meta.ino())
}

fn stamp(files: &[Arc<HostFile>]) -> io::Result<Option<Stamp>> {
    let mut all: Option<Stamp> = None;
    for file in files {
        let meta = file.metadata()?;
        let ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let mtime_ns = u64::try_from(ns).unwrap_or(0);
        let so_far = all.unwrap_or(Stamp {
            len: 0,
            mtime_ns: 0,
        });
        all = Some(Stamp {
            len: so_far.len.saturating_add(meta.len()),
            mtime_ns: so_far.mtime_ns.max(mtime_ns),
        });
    }
    Ok(all)
}

/// A container format by its first bytes.
struct Format {
    name: &'static str,
    offset: usize,
    magic: &'static [u8],
    extensions: &'static [&'static str],
}

const FORMATS: [Format; 7] = [
    Format::new("qcow2", 0, b"QFI\xfb", &["qcow2", "qcow"]),
    Format::new("VHDX", 0, b"vhdxfile", &["vhdx"]),
    Format::new("VHD", 0, b"conectix", &["vhd", "vpc"]),
    Format::new("VDI", 64, b"\x7f\x10\xda\xbe", &["vdi"]),
    Format::new("QED", 0, b"QED\0", &["qed"]),
    Format::new("VMDK", 0, b"KDMV", &[]),
    Format::new("VMDK", 0, b"# Disk DescriptorFile", &[]),
];

impl Format {
    const fn new(
        name: &'static str,
        offset: usize,
        magic: &'static [u8],
        extensions: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            offset,
            magic,
            extensions,
        }
    }
}

fn foreign_format(host: &HostFile) -> Option<&'static Format> {
    let mut head = [0; 512];
    host.read_exact_at(&mut head, 0).ok()?;
    FORMATS
        .iter()
        .find(|f| head.get(f.offset..).is_some_and(|h| h.starts_with(f.magic)))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    extensions.iter().any(|e| extension.eq_ignore_ascii_case(e))
}
