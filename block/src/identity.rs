//! What tells a block device from any other, over restarts of the machine: the kernel numbers devices
//! in the order in which it finds them, so the number alone does not.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel keeps what a device, or the one that names its kind, says of itself; the first
/// that says something counts.
const NAMES: [&str; 8] = [
    "dm/uuid",
    "dm/name",
    "md/uuid",
    "wwid",
    "device/wwid",
    "serial",
    "device/serial",
    "loop/backing_file",
];

/// A disk's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same for the same disk, however its path is written.
    pub text: String,
    /// Whether it still names this disk, and no other, once the machine was started anew.
    pub lasts: bool,
}

impl Identity {
    pub(crate) fn lasting(text: String) -> Self {
        Self { text, lasts: true }
    }
}

/// The identity of block device `major:minor`.
pub(crate) fn of_block_device(major: u32, minor: u32) -> Identity {
    let place = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    find(&place).map_or_else(
        || Identity {
            text: format!("block {major}:{minor}"),
            lasts: false,
        },
        |name| Identity::lasting(format!("block {name}")),
    )
}

fn find(place: &Path) -> Option<String> {
    let place = fs::canonicalize(place).ok()?;
    // A partition is a part of the disk whose directory it is in.
    let partition = read(&place.join("partition"));
    let disk = match partition {
        Some(_) => place.parent()?,
        None => &place,
    };
    let (kind, name) = NAMES
        .iter()
        .find_map(|kind| Some((kind, read(&disk.join(kind))?)))?;
    let part = partition.map_or(String::new(), |number| format!(" part {number}"));
    let offset = read(&disk.join("loop/offset")).unwrap_or_default();
    Some(format!("{kind} {name} {offset}{part}").trim_end().into())
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}
