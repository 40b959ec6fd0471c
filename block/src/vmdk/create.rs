//! Making a VMDK: a raw data file, and at the end the descriptor that names it.
//!
//! ```text
//!   create_flat("web.vmdk")   web-flat.vmdk   a hole of the disk's size; written by the caller
//!   publish()                 data synced, then web.vmdk appears, whole
//! ```
//!
//! Crash: before `publish` returns there is a data file and no disk; never a disk with lost bytes.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::descriptor::is_plain;
use crate::{BlockDevice, Caching, Dir, OpenError, OsDir, Production, SECTOR, create_raw};

/// A VMDK (monolithicFlat) whose content is being written.
pub struct NewFlat {
    data: Production,
    path: PathBuf,
    text: String,
}

/// Creates the data file of a VMDK of `size` bytes at `path` (`X.vmdk`; the data goes to
/// `X-flat.vmdk` beside it). [`NewFlat::publish`] makes it a VMDK.
///
/// # Errors
/// `Io`: `AlreadyExists` if either file exists, `InvalidInput` if `path` does not end in `.vmdk` or
/// its name cannot stand in a descriptor. `PartialSector`.
pub fn create_flat(path: &Path, size: u64, caching: Caching) -> Result<NewFlat, OpenError> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let stem = name.strip_suffix(".vmdk").unwrap_or("");
    if stem.is_empty() || !is_plain(name) || !super::is_named_vmdk(path) {
        let sentence = "the name of a VMDK is plain text, ends in `.vmdk` and not in `-flat.vmdk`";
        let error = io::Error::new(io::ErrorKind::InvalidInput, sentence);
        return Err(OpenError::io(path, error));
    }
    if path.symlink_metadata().is_ok() {
        return Err(OpenError::io(path, io::ErrorKind::AlreadyExists.into()));
    }
    let data_name = format!("{stem}-flat.vmdk");
    let data = create_raw(&path.with_file_name(&data_name), size, caching)?;
    Ok(NewFlat {
        data,
        path: path.to_owned(),
        text: descriptor(&data_name, size),
    })
}

impl NewFlat {
    /// The disk, to be written.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.data.device
    }

    /// Makes the content durable, then the VMDK appear.
    ///
    /// # Errors
    /// The device's, and the operating system's. The data file stays.
    pub fn publish(self) -> io::Result<()> {
        self.device().flush().map_err(io::Error::other)?;
        let dir = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let dir = OsDir::open(dir)?;
        let name = self.path.file_name().and_then(|n| n.to_str());
        let name = name.expect("create_flat checked the name");
        let partial = format!(".{name}.partial");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path.with_file_name(&partial))?;
        file.write_all(self.text.as_bytes())?;
        file.sync_all()?;
        dir.rename_new(&partial, name)?;
        dir.sync()
    }
}

/// A descriptor as VMware writes it for a disk that was never written: CID fffffffe.
fn descriptor(data_name: &str, size: u64) -> String {
    let sectors = size / SECTOR;
    // BIOS geometry of large disks: 255 heads, 63 sectors; cylinders end at what CHS can say.
    let cylinders = (sectors / (255 * 63)).clamp(1, 65_535);
    format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         CID=fffffffe\n\
         parentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n\
         \n\
         # Extent description\n\
         RW {sectors} FLAT \"{data_name}\" 0\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.adapterType = \"lsilogic\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\n\
         ddb.virtualHWVersion = \"14\"\n"
    )
}
