//! A disk to show things on: the user's, copied, or a file system of real files of this machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Bytes of files that go into the file system.
const FILES_BYTES_MAX: u64 = 400 << 20;
/// Files that go into it: a hundred thousand small ones take minutes to lay out.
const FILES_MAX: u64 = 15_000;
/// Larger files would be all there is.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Size of the disk in bytes.
const DISK_BYTES: u64 = 1 << 30;
/// Where real files are, on any machine.
const SOURCES: [&str; 4] = ["/etc", "/usr/bin", "/usr/lib", "/usr/share"];

/// Copies the user's image; the original is only read.
pub(crate) fn copy_of(image: &Path, to: &Path) -> Result<String> {
    let meta = fs::metadata(image).with_context(|| format!("cannot read `{}`", image.display()))?;
    ensure!(
        meta.is_file() && meta.len() > 0 && meta.len().is_multiple_of(512),
        "`{}` is no raw disk image (a file of whole 512-byte sectors)",
        image.display()
    );
    copy_sparse(image, to).with_context(|| format!("cannot copy `{}`", image.display()))?;
    Ok(format!("a copy of {}", image.display()))
}

/// Copies a file and leaves holes where it has zeroes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom, Write};
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    let len = from.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        if buffer[..read].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(
                i64::try_from(read).map_err(io::Error::other)?,
            ))?;
        } else {
            to.write_all(&buffer[..read])?;
        }
    }
    to.set_len(len)
}

/// Makes an ext4 file system of files of this machine.
pub(crate) fn of_this_machine(stage: &Path, to: &Path) -> Result<String> {
    let mke2fs = mke2fs()?;
    fs::create_dir(stage)?;
    let mut staged = Staged::default();
    for source in SOURCES {
        staged.take(
            Path::new(source),
            &stage.join(source.trim_start_matches('/')),
        );
    }
    ensure!(staged.files > 0, "no file of this machine can be read");
    File::create_new(to)?.set_len(DISK_BYTES)?;
    let made = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(stage)
        .arg(to)
        .stdin(Stdio::null())
        .output()
        .context("cannot run mke2fs")?;
    if !made.status.success() {
        bail!("mke2fs failed: {}", String::from_utf8_lossy(&made.stderr));
    }
    fs::remove_dir_all(stage)?;
    Ok(format!(
        "an ext4 file system with {} files of this machine ({})",
        staged.files,
        crate::units::bytes(staged.bytes)
    ))
}

fn mke2fs() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Users' search paths often lack the administrators' directories.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join("mke2fs"))
        .find(|program| program.is_file())
        .context("mke2fs is missing: install e2fsprogs, or give a disk image with --disk")
}

#[derive(Default)]
struct Staged {
    files: u64,
    bytes: u64,
}

impl Staged {
    /// Copies what can be read below `from`, until there is enough. What vanishes meanwhile or may
    /// not be read is left out.
    fn take(&mut self, from: &Path, to: &Path) {
        let Ok(entries) = fs::read_dir(from) else {
            return;
        };
        if fs::create_dir_all(to).is_err() {
            return;
        }
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(meta) = entry.metadata() else { continue };
            let to = to.join(entry.file_name());
            if meta.is_dir() {
                self.take(&entry.path(), &to);
            } else if meta.is_file()
                && self.fits(meta.size())
                && fs::copy(entry.path(), &to).is_ok()
            {
                self.files += 1;
                self.bytes += meta.size();
            }
        }
    }

    fn fits(&self, size: u64) -> bool {
        self.files < FILES_MAX && size <= FILE_BYTES_MAX && self.bytes + size <= FILES_BYTES_MAX
    }
}
