//! Restore: a point's disk becomes a file or a block device.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Name};
use store::PointRef;

use crate::output::Output;
use crate::points::{Points, find_disk};
use crate::{Result, Target};
use dd_target::Progress;

/// What a disk is restored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Its bytes.
    Raw,
    /// A flat VMDK: a descriptor, and a file of its bytes.
    Vmdk,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "vmdk" => Ok(Self::Vmdk),
            _ => Err(format!("`{text}` is no format: use raw or vmdk")),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
        })
    }
}

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The point.
    pub point: PointRef,
    /// Which disk, where there are several.
    pub disk: Option<Name>,
    /// Where it is.
    pub target: Target,
    /// A file that does not exist, or a block device.
    pub output: PathBuf,
    /// As what.
    pub format: Format,
    /// Leave holes where the disk is zero; otherwise all space is reserved first.
    pub sparse: bool,
    /// Replace a file, overwrite a block device.
    pub force: bool,
}

/// A disk that was restored: whole, checked and durable.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The point's id.
    pub point: String,
    /// The disk.
    pub disk: Name,
    /// Its size in bytes.
    pub size: u64,
    /// Fingerprint of its content.
    pub root: String,
    /// How long it took.
    pub took: Duration,
}

/// Restores a disk. Every byte is checked against its fingerprint on the way.
///
/// # Errors
/// `Damaged` if the point does not read back; nothing is left under the output's name then.
pub fn restore(
    options: &RestoreOptions,
    clock: &Arc<dyn Clock>,
    progress: Progress<'_>,
) -> Result<Restored> {
    let began = clock.monotonic();
    let points = Points::open(&options.target, clock)?;
    let point = points.find(&options.point)?;
    let disk = find_disk(&point, options.disk.as_ref())?;
    let image = points.image(disk)?;
    let output = Output::begin(&options.output, disk.size, options.format, options.force)?;
    let reserved = match options.sparse {
        true => Ok(()),
        false => output.allocate(disk.size),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let failed = options.target.failed("restore the disk");
    let written = reserved
        .and_then(|()| {
            image
                .restore_to(&output, processors, output.writers(processors), progress)
                .map_err(&failed)
        })
        .and_then(|()| image.root().map_err(&failed));
    match written {
        Ok(root) => {
            output.publish()?;
            Ok(Restored {
                point: point.id.to_string(),
                disk: disk.name.clone(),
                size: disk.size,
                root: root.to_string(),
                took: clock.monotonic().saturating_sub(began),
            })
        }
        Err(error) => {
            output.discard();
            Err(error)
        }
    }
}
