//! From a path to a disk: the descriptor is believed only where the files agree with it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::descriptor::{
    DESCRIPTOR_BYTES_MAX, Descriptor, ExtentKind, ExtentLine, parse_descriptor,
};
use super::sparse::SparseExtent;
use super::{VmdkError, sparse_header::HEADER_LEN};
use crate::concat::{Concat, ZeroDevice};
use crate::group_sync::Latch;
use crate::host_file::HostFile;
use crate::production::{Opening, open_host};
use crate::raw::RawDevice;
use crate::{Access, BlockDevice, ByteRange, OpenError, index};

/// An opened VMDK.
pub(crate) struct Opened {
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Such as "VMDK monolithicFlat".
    pub(crate) kind: String,
    /// All files, the first extent's first.
    pub(crate) files: Vec<Arc<HostFile>>,
}

/// Whether the name says that the file is a VMDK to be interpreted: not the raw data file of one.
pub(crate) fn is_named_vmdk(path: &Path) -> bool {
    let is_vmdk = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("vmdk"));
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
    is_vmdk && !is_data_file_stem(&stem.to_ascii_lowercase())
}

/// `web-flat`, `web-f001`.
fn is_data_file_stem(stem: &str) -> bool {
    let Some((_, last)) = stem.rsplit_once('-') else {
        return false;
    };
    let is_number = |n: &str| n.len() >= 3 && n.bytes().all(|b| b.is_ascii_digit());
    last == "flat" || last.strip_prefix('f').is_some_and(is_number)
}

/// Opens and locks a VMDK and all its files.
pub(crate) fn open(path: &Path, opening: Opening) -> Result<Opened, OpenError> {
    let latch = Arc::<Latch>::default();
    let host = Arc::new(open_host(path, opening, OFlags::empty(), latch.clone())?);
    let wrong = |source| OpenError::Vmdk {
        path: path.to_owned(),
        source,
    };
    let meta = host.metadata().map_err(|e| OpenError::io(path, e))?;
    let mut head = vec![0; index(meta.len().min(HEADER_LEN as u64))];
    host.read_exact_at(&mut head, 0)
        .map_err(|e| OpenError::io(path, e))?;
    if head.starts_with(b"KDMV") {
        return open_monolithic(host, opening.access).map_err(wrong);
    }
    refuse_foreign(&head).map_err(wrong)?;
    if meta.len() > DESCRIPTOR_BYTES_MAX {
        return Err(wrong(VmdkError::NotVmdk));
    }
    let mut text = vec![0; index(meta.len())];
    host.read_exact_at(&mut text, 0)
        .map_err(|e| OpenError::io(path, e))?;
    let descriptor = parse_descriptor(&text).map_err(wrong)?;
    let mut extents = Extents {
        dir: path.parent().unwrap_or(Path::new("")),
        descriptor: path,
        opening,
        latch,
        open: HashMap::new(),
        files: Vec::new(),
        windows: Vec::new(),
    };
    let device = extents.open_all(&descriptor)?;
    let mut files = extents.files;
    files.push(host);
    let kind = format!("VMDK {}", descriptor.create_type);
    Ok(Opened {
        device,
        kind,
        files,
    })
}

/// One file that holds its own descriptor, whose file name is ignored: files get renamed.
fn open_monolithic(host: Arc<HostFile>, access: Access) -> Result<Opened, VmdkError> {
    let extent = SparseExtent::open(Box::new(host.clone()), None)?;
    let text = extent.embedded_descriptor()?;
    let text = text.ok_or(VmdkError::DescriptorWhole {
        what: "is missing: this is one extent of a split disk; open the file that lists the extents",
    })?;
    let descriptor = parse_descriptor(&text)?;
    let kind = descriptor.create_type;
    let [only] = descriptor.extents.as_slice() else {
        let what = "inside a sparse file names more than that file";
        return Err(VmdkError::DescriptorWhole { what });
    };
    if only.size != extent.size() {
        let what = "says another size than the sparse header beside it";
        return Err(VmdkError::DescriptorWhole { what });
    }
    if access == Access::ReadWrite {
        return Err(VmdkError::ReadOnlyKind { kind });
    }
    Ok(Opened {
        device: Arc::new(extent),
        kind: format!("VMDK {kind}"),
        files: vec![host],
    })
}

fn refuse_foreign(head: &[u8]) -> Result<(), VmdkError> {
    let kind = if head.starts_with(b"COWD") {
        "a COWD file (an ESXi snapshot)"
    } else if head.starts_with(&0xcafe_babe_u64.to_le_bytes()) {
        "a SESPARSE file (an ESXi snapshot)"
    } else {
        return Ok(());
    };
    let kind = kind.to_owned();
    Err(VmdkError::Unsupported { kind })
}

/// The extents of a descriptor while they are opened.
struct Extents<'a> {
    dir: &'a Path,
    descriptor: &'a Path,
    opening: Opening,
    latch: Arc<Latch>,
    /// By device and inode: a second open would meet our own lock.
    open: HashMap<(u64, u64), Arc<HostFile>>,
    files: Vec<Arc<HostFile>>,
    windows: Vec<((u64, u64), ByteRange)>,
}

impl Extents<'_> {
    fn open_all(&mut self, descriptor: &Descriptor) -> Result<Arc<dyn BlockDevice>, OpenError> {
        self.check_access(descriptor)?;
        let mut devices: Vec<Box<dyn BlockDevice>> = Vec::new();
        for (number, line) in descriptor.extents.iter().enumerate() {
            devices.push(self.open_extent(number, line)?);
        }
        self.check_windows()?;
        if let [_] = devices.as_slice() {
            let only = devices.remove(0);
            return Ok(Arc::from(only));
        }
        let what = "adds up to more bytes than a disk can have";
        let all =
            Concat::new(devices).ok_or_else(|| self.wrong(VmdkError::DescriptorWhole { what }))?;
        Ok(Arc::new(all))
    }

    fn check_access(&self, descriptor: &Descriptor) -> Result<(), OpenError> {
        let writable =
            |line: &ExtentLine| line.writable && matches!(line.kind, ExtentKind::Flat { .. });
        if self.opening.is_writable() && !descriptor.extents.iter().all(writable) {
            let kind = descriptor.create_type.clone();
            return Err(self.wrong(VmdkError::ReadOnlyKind { kind }));
        }
        Ok(())
    }

    fn open_extent(
        &mut self,
        number: usize,
        line: &ExtentLine,
    ) -> Result<Box<dyn BlockDevice>, OpenError> {
        match &line.kind {
            ExtentKind::Zero => Ok(Box::new(ZeroDevice::new(line.size))),
            ExtentKind::Flat { file, window } => {
                let (id, host) = self.open_file(number, file)?;
                let len = host.metadata().map_err(|e| self.io(file, e))?.len();
                if window.end() > len {
                    let (index, needed, file) = (number, window.end(), file.clone());
                    return Err(self.wrong(VmdkError::ExtentShort {
                        index,
                        file,
                        needed,
                        len,
                    }));
                }
                self.windows.push((id, *window));
                let writable = self.opening.is_writable();
                Ok(Box::new(RawDevice::new(host, *window, writable)))
            }
            ExtentKind::Sparse { file } => {
                let (_, host) = self.open_file(number, file)?;
                let extent = SparseExtent::open(Box::new(host), Some(line.size))
                    .map_err(|e| self.wrong(e))?;
                Ok(Box::new(extent))
            }
        }
    }

    /// Opens the file of an extent, once.
    fn open_file(
        &mut self,
        number: usize,
        name: &str,
    ) -> Result<((u64, u64), Arc<HostFile>), OpenError> {
        let path = self.dir.join(name);
        let refuse = |what| VmdkError::Extent {
            index: number,
            file: name.to_owned(),
            what,
        };
        // Looks at the name itself: a link could lead to any file of the host.
        let meta = fs::symlink_metadata(&path).map_err(|e| self.io(name, e))?;
        if !meta.is_file() {
            return Err(self.wrong(refuse("it is not a plain file")));
        }
        let id = (meta.dev(), meta.ino());
        let descriptor = fs::metadata(self.descriptor).map_err(|e| self.io(name, e))?;
        if id == (descriptor.dev(), descriptor.ino()) {
            return Err(self.wrong(refuse("it is the descriptor itself")));
        }
        if let Some(host) = self.open.get(&id) {
            return Ok((id, host.clone()));
        }
        let host = open_host(&path, self.opening, OFlags::NOFOLLOW, self.latch.clone())?;
        let opened = host.metadata().map_err(|e| self.io(name, e))?;
        if (opened.dev(), opened.ino()) != id {
            return Err(self.wrong(refuse("it was replaced while it was opened")));
        }
        let host = Arc::new(host);
        self.open.insert(id, host.clone());
        self.files.push(host.clone());
        Ok((id, host))
    }

    /// Two extents over the same bytes: a write to one place of the disk would change another.
    fn check_windows(&mut self) -> Result<(), OpenError> {
        self.windows
            .sort_by_key(|(id, window)| (*id, window.start()));
        let overlap = self
            .windows
            .windows(2)
            .any(|pair| pair[0].0 == pair[1].0 && pair[0].1.intersect(pair[1].1).is_some());
        if overlap {
            let what = "puts two extents on the same bytes of a file";
            return Err(self.wrong(VmdkError::DescriptorWhole { what }));
        }
        Ok(())
    }

    fn io(&self, name: &str, source: std::io::Error) -> OpenError {
        OpenError::io(&self.dir.join(name), source)
    }

    fn wrong(&self, source: VmdkError) -> OpenError {
        let path: PathBuf = self.descriptor.to_owned();
        OpenError::Vmdk { path, source }
    }
}
