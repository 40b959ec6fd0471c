//! The vocabulary that every part of Standin shares: byte ranges, granules, extents, the
//! [`BlockDevice`] trait with its conformance suite, and the seams through which the outside
//! world is reached ([`Clock`], [`Dir`], [`File`]).
//!
//! Production backends (raw file, block device, VMDK) live here too, because the splitter, the
//! store and the exports all meet at a [`BlockDevice`].
//!
//! Rule: nothing in this crate knows a protocol, a store or a generation.

mod bitmap;
mod clock;
mod concat;
#[cfg(feature = "conformance")]
pub mod conformance;
mod device;
mod device_dir;
mod dir;
mod direct;
mod error;
mod group_sync;
mod host_disk;
mod host_file;
mod identity;
mod locks;
#[cfg(feature = "conformance")]
mod memory;
mod name;
mod open_files;
mod os_dir;
mod os_file;
mod overlay;
mod page_buf;
mod production;
mod random;
mod range;
mod raw;
mod status;
pub mod vmdk;

pub use bitmap::{DirtyBitmap, DirtyExtent};
pub use clock::{Clock, SystemClock, UnixNanos};
pub use device::{BlockDevice, Features, Fua, Hole, Speed, ZeroOptions};
pub use device_dir::{DeviceDir, DeviceDirError};
pub use dir::{Dir, File, SharedWords, Space};
pub use error::{Error, ErrorKind, Op, Result};
pub use identity::Identity;
#[cfg(feature = "conformance")]
pub use memory::MemoryDevice;
pub use name::{InvalidName, Name};
pub use open_files::allow_many_open_files;
pub use os_dir::{OsDir, rename_new};
pub use overlay::Overlay;
pub use page_buf::PageBuf;
pub use production::{
    Access, Caching, OpenError, Production, Stamp, create_raw, open_production,
    open_production_with,
};
pub use random::{OsRandom, Random};
pub use range::{ByteRange, GRANULE, GranuleRange, SECTOR, index};
pub use status::{Extent, ExtentState};
