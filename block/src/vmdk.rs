//! VMDK, the disk format of VMware: a descriptor in text, and extents that hold the bytes.
//!
//! ```text
//!   web.vmdk        descriptor   RW 4192256 FLAT "web-f001.vmdk" 0   --> web-f001.vmdk   raw bytes
//!                                RW 2048    FLAT "web-f002.vmdk" 0   --> web-f002.vmdk   raw bytes
//!   web.vmdk        sparse header | descriptor | grain directory | grain tables | grains
//! ```
//!
//! Flat kinds are read and written, sparse kinds (also compressed ones) only read. Field numbers and
//! names follow VMware's "Virtual Disk Format 5.0"; `docs/formats/vmdk.md` says what is accepted.
//!
//! Rule: a descriptor names files of its own directory by plain names, or it is refused: it may
//! come from a stranger, and must not reach any other file of the host.

mod create;
mod descriptor;
mod error;
mod open;
mod sparse;
mod sparse_header;

pub use create::{NewFlat, create_flat};
pub use descriptor::{Descriptor, ExtentKind, ExtentLine, parse_descriptor};
pub use error::VmdkError;
pub(crate) use open::{is_named_vmdk, open};
pub use sparse::read_sparse;
pub use sparse_header::{SparseHeader, parse_sparse_header};
