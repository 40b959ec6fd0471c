//! Where a restored disk goes.
//!
//! ```text
//!   raw file      PATH.partial               --durable--> PATH
//!   VMDK          PATH.partial/{X-flat.vmdk, X.vmdk}  --durable--> X-flat.vmdk, then X.vmdk
//!   block device  itself
//! ```
//!
//! Rule: a file that has its final name is whole and durable. Nothing that exists is replaced or
//! written to unless the user says so, and two restores to one place do not meet: what each makes is locked.
//! Crash: what is left is named `.partial`; the next restore to the same place removes it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{
    Access, BlockDevice, ByteRange, Caching, Dir, Fua, OpenError, OsDir, Production, ZeroOptions,
};
use store::RestoreSink;

use crate::partial_dir::PartialDir;
use crate::restore::Format;
use crate::writeback::Writeback;
use crate::{Error, Result};

/// Writes past the page cache take as long as the device does; so many keep one at work that does many at once.
const WAITING_WRITERS: usize = 8;

/// A place that is being written.
pub(crate) struct Output {
    /// Unless writes go past the page cache.
    writeback: Option<Writeback>,
    kind: Kind,
    path: PathBuf,
    force: bool,
    /// What is replaced, locked until it is: nobody begins to use it meanwhile.
    _replaced: Vec<Production>,
}

enum Kind {
    File(Production),
    Vmdk(block::vmdk::NewFlat, PartialDir),
    Device(Production),
}

impl Kind {
    fn device(&self) -> &Arc<dyn BlockDevice> {
        match self {
            Self::File(opened) | Self::Device(opened) => &opened.device,
            Self::Vmdk(vmdk, _) => vmdk.device(),
        }
    }
}

impl Output {
    /// Begins to write a disk of `size` bytes.
    pub(crate) fn begin(path: &Path, size: u64, format: Format, force: bool) -> Result<Self> {
        let found = fs::symlink_metadata(path).ok();
        let is_device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        if is_device {
            return Self::device(path, size, format, force);
        }
        if found.is_some_and(|meta| !meta.is_file() && !meta.is_symlink()) {
            return Err(Error::usage(
                format!("`{}` is neither a file nor a block device", path.display()),
                "name a file that does not exist yet",
            ));
        }
        let taken = |path: &Path| !force && path.symlink_metadata().is_ok();
        let flat = flat_path(path);
        let existing = [
            Some(path),
            (format == Format::Vmdk).then_some(flat.as_path()),
        ];
        if let Some(path) = existing.into_iter().flatten().find(|path| taken(path)) {
            return Err(Error::usage(
                format!("`{}` exists already", path.display()),
                "choose another name, or add --force to replace it",
            ));
        }
        let replaced = lock_replaced(existing.into_iter().flatten())?;
        let partial = partial_path(path);
        let (kind, caching) = match format {
            Format::Raw => {
                remove_partial(&partial)?;
                past_cache(|caching| {
                    let file = block::create_raw(&partial, size, caching)?;
                    Ok(Kind::File(file))
                })?
            }
            Format::Vmdk => {
                let dir = partial_dir(&partial, [path, &flat])?;
                let inner = partial.join(path.file_name().unwrap_or_default());
                let created = past_cache(|caching| block::vmdk::create_flat(&inner, size, caching));
                let (vmdk, caching) = created.inspect_err(|_| {
                    // It was ours and is empty.
                    let _ = dir.remove();
                })?;
                (Kind::Vmdk(vmdk, dir), caching)
            }
        };
        Self::of(kind, caching, path, force, replaced)
    }

    fn of(
        kind: Kind,
        caching: Caching,
        path: &Path,
        force: bool,
        replaced: Vec<Production>,
    ) -> Result<Self> {
        let writeback = match caching {
            Caching::Direct => None,
            Caching::Buffered => {
                let flushed = Arc::clone(kind.device());
                let writeback = Writeback::begin(move || flushed.flush());
                Some(writeback.map_err(Error::file("write", path))?)
            }
        };
        Ok(Self {
            writeback,
            kind,
            path: path.to_owned(),
            force,
            _replaced: replaced,
        })
    }

    fn device(path: &Path, size: u64, format: Format, force: bool) -> Result<Self> {
        if format != Format::Raw {
            return Err(Error::usage(
                format!(
                    "`{}` is a block device, which holds no {format}",
                    path.display()
                ),
                "leave out --format, or name a file",
            ));
        }
        if !force {
            return Err(Error::usage(
                format!(
                    "`{}` is a block device; all it holds would be overwritten",
                    path.display()
                ),
                "add --force if that is what you want",
            ));
        }
        let (opened, caching) =
            past_cache(|caching| block::open_production_with(path, Access::ReadWrite, caching))?;
        if opened.device.size() < size {
            return Err(Error::usage(
                format!(
                    "`{}` has {} bytes, the disk has {size}",
                    path.display(),
                    opened.device.size()
                ),
                "choose a device that is as large as the disk",
            ));
        }
        Self::of(Kind::Device(opened), caching, path, force, Vec::new())
    }

    /// How many threads should write.
    pub(crate) fn writers(&self, processors: usize) -> usize {
        match self.writeback {
            Some(_) => processors,
            None => WAITING_WRITERS,
        }
    }

    /// Reserves space for the whole disk, so that it cannot run out later.
    pub(crate) fn allocate(&self, size: u64) -> Result<()> {
        let (dir, name) = match &self.kind {
            Kind::Device(_) => return Ok(()),
            Kind::File(_) => (parent(&self.path), partial_path(&self.path)),
            Kind::Vmdk(_, dir) => (dir.path().to_owned(), flat_path(&self.path)),
        };
        let name = file_name(&name);
        let whole = ByteRange::at(0, size).expect("from zero");
        let file = OsDir::open(&dir).and_then(|dir| dir.open(&name));
        match file.and_then(|file| file.allocate(whole)) {
            // A file system that cannot reserve is no reason not to restore.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done.map_err(Error::file("reserve space for", &self.path)),
        }
    }

    /// Makes the disk durable and gives it its name.
    pub(crate) fn publish(self) -> Result<()> {
        let failed = Error::file("complete", self.path.clone());
        let published = self
            .written_back()
            .and_then(|()| self.kind.device().flush())
            .map_err(device_error)
            .and_then(|()| match self.kind {
                Kind::Device(_) => Ok(()),
                Kind::File(_) => settle(&partial_path(&self.path), &self.path, self.force),
                Kind::Vmdk(vmdk, dir) => vmdk
                    .publish()
                    .and_then(|()| settle_vmdk(&dir, &self.path, self.force)),
            });
        published.map_err(failed)
    }

    /// Waits for what is made durable meanwhile.
    fn written_back(&self) -> block::Result<()> {
        self.writeback.as_ref().map_or(Ok(()), Writeback::end)
    }

    /// Removes what was begun.
    pub(crate) fn discard(self) {
        let partial = partial_path(&self.path);
        // What is left is named `.partial`; the next restore tries again to remove it.
        let _ = match self.kind {
            Kind::Device(_) => Ok(()),
            Kind::File(_) => fs::remove_file(&partial),
            Kind::Vmdk(_, dir) => dir.remove(),
        };
    }

    /// Whether a part that is not written reads as zeroes.
    fn starts_zero(&self) -> bool {
        !matches!(self.kind, Kind::Device(_))
    }
}

impl RestoreSink for Output {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let written = self.kind.device().write_at(data, offset, Fua::No);
        // A flush that failed makes later writes fail, and says why itself.
        written.map_err(|e| device_error(self.written_back().err().unwrap_or(e)))?;
        if let Some(writeback) = &self.writeback {
            writeback.wrote(data.len() as u64);
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        if self.starts_zero() {
            return Ok(());
        }
        self.kind
            .device()
            .write_zeroes(range, ZeroOptions::RELAXED)
            .map_err(device_error)
    }
}

/// Opens past the page cache, which a disk of any size would fill with what nobody reads soon, or through it where it cannot be
/// passed.
fn past_cache<T>(
    open: impl Fn(Caching) -> std::result::Result<T, OpenError>,
) -> Result<(T, Caching)> {
    match open(Caching::Direct) {
        Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
            Ok((open(Caching::Buffered)?, Caching::Buffered))
        }
        opened => Ok((opened?, Caching::Direct)),
    }
}

/// Keeps "no space left" what it is.
fn device_error(error: block::Error) -> io::Error {
    match error.kind() {
        block::ErrorKind::Full => io::Error::new(io::ErrorKind::StorageFull, error),
        _ => io::Error::other(error),
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn flat_path(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-flat.vmdk"))
}

/// Removes what an earlier restore left, unless one is at work there.
fn remove_partial(partial: &Path) -> Result<()> {
    let Ok(meta) = partial.symlink_metadata() else {
        return Ok(());
    };
    let removed = match block::open_production(partial, Access::ReadWrite) {
        Err(error @ OpenError::InUse { .. }) => return Err(error.into()),
        _ if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => fs::remove_file(partial),
    };
    removed.map_err(Error::file("remove", partial))
}

/// Where a VMDK of these files is made.
fn partial_dir(partial: &Path, files: [&Path; 2]) -> Result<PartialDir> {
    let mut names: Vec<String> = files.map(file_name).into();
    // What its descriptor is called until it is whole.
    names.push(format!(".{}.partial", names[0]));
    PartialDir::create(partial, &names).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => Error::usage(
            format!("another restore is at work in `{}`", partial.display()),
            "wait for it, or choose another name",
        ),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => Error::usage(
            format!("`{}` is in the way, and no restore's", partial.display()),
            "move it away, or choose another name",
        ),
        _ => Error::file("create", partial)(e),
    })
}

/// Locks the files that are to be replaced. One that is a running guest's, or served, would go on under no name, and what is
/// written to it would be lost.
fn lock_replaced<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Vec<Production>> {
    let mut locked: Vec<Production> = Vec::new();
    for path in paths {
        // A VMDK comes before its data, and may hold it.
        if locked.iter().any(|disk| disk.has_file(path)) {
            continue;
        }
        match block::open_production(path, Access::ReadWrite) {
            Ok(disk) => locked.push(disk),
            Err(error @ OpenError::InUse { .. }) => return Err(error.into()),
            // It is not there, or no disk that anybody could use.
            Err(_) => {}
        }
    }
    Ok(locked)
}

/// Whoever may read what is replaced may read what replaces it.
fn hand_over(old: Option<&fs::Metadata>, new: &Path) -> io::Result<()> {
    let Some(old) = old else { return Ok(()) };
    match chown(new, Some(old.uid()), Some(old.gid())) {
        // Who may not give files away keeps it.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    fs::set_permissions(new, old.permissions())
}

fn settle(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    if force {
        hand_over(fs::metadata(to).ok().as_ref(), from)?;
    }
    rename(from, to, force)
}

/// Gives a file its final name, durably.
fn rename(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    match force {
        true => fs::rename(from, to)?,
        false => block::rename_new(from, to)?,
    }
    OsDir::open(parent(to))?.sync()
}

/// The data first: a descriptor must never name a file that is not there, or an old one.
fn settle_vmdk(dir: &PartialDir, path: &Path, force: bool) -> io::Result<()> {
    let files = [flat_path(path), path.to_owned()];
    let from = |to: &Path| dir.path().join(file_name(to));
    let old = fs::metadata(path).ok().filter(|_| force);
    for to in &files {
        hand_over(old.as_ref(), &from(to))?;
        if !force && to.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
    }
    if force {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    for to in &files {
        rename(&from(to), to, force)?;
    }
    dir.remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Production {
        block::open_production(path, Access::ReadWrite).expect("it is free")
    }

    /// Only the first file that could be locked was: a descriptor that named other data hid that the data beside it, which was
    /// replaced, too, was a running guest's.
    #[test]
    fn each_file_that_is_replaced_is_locked() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = |name: &str| tmp.path().join(name);
        for name in ["a.vmdk", "b.vmdk"] {
            let disk = block::vmdk::create_flat(&path(name), 1 << 20, Caching::Buffered);
            disk.expect("created").publish().expect("published");
        }
        let lock = || lock_replaced([path("a.vmdk"), path("a-flat.vmdk")].iter().map(|p| &**p));
        assert_eq!(lock().expect("free").len(), 1);
        fs::copy(path("b.vmdk"), path("a.vmdk")).expect("copied");
        let guest = open(&path("a-flat.vmdk"));
        assert!(lock().is_err());
        drop(guest);
        let locked = lock().expect("free");
        for name in ["a-flat.vmdk", "b-flat.vmdk"] {
            let opened = block::open_production(&path(name), Access::ReadWrite);
            assert!(matches!(opened, Err(OpenError::InUse { .. })), "{name}");
        }
        drop(locked);
        open(&path("a-flat.vmdk"));
    }
}
