//! What can be wrong with a VMDK.

use std::io;

/// Why a VMDK was refused. Lines count from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmdkError {
    /// Neither a descriptor nor a sparse header.
    #[error(
        "it is neither a VMDK descriptor nor a sparse VMDK; if it holds raw bytes, rename it to end in `.img` or `-flat.vmdk`"
    )]
    NotVmdk,
    /// A kind of VMDK that is not served.
    #[error("{kind} is not supported; convert it with `qemu-img convert -O raw`")]
    Unsupported {
        /// Which kind.
        kind: String,
    },
    /// A sparse kind was opened to be written.
    #[error(
        "a VMDK of kind {kind} can be read but not written; convert it with `qemu-img convert -O vmdk -o subformat=monolithicFlat`"
    )]
    ReadOnlyKind {
        /// Its createType.
        kind: String,
    },
    /// It holds only the changes since another disk.
    #[error(
        "it is a snapshot of another disk (parentCID {parent_cid:08x}); merge the snapshot first"
    )]
    HasParent {
        /// The content id of the parent.
        parent_cid: u32,
    },
    /// The descriptor is not text, is too long or breaks its own grammar.
    #[error("line {line} of the descriptor: {what}")]
    Descriptor {
        /// Where.
        line: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// The descriptor as a whole is wrong.
    #[error("the descriptor {what}")]
    DescriptorWhole {
        /// What is wrong.
        what: &'static str,
    },
    /// An extent's file is not what the descriptor says.
    #[error("extent {index} (`{file}`): {what}")]
    Extent {
        /// Which extent, from 0.
        index: usize,
        /// The name that the descriptor gives.
        file: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An extent's file is shorter than the descriptor says.
    #[error(
        "extent {index} (`{file}`) should reach to byte {needed} of its file, which has {len} bytes"
    )]
    ExtentShort {
        /// Which extent, from 0.
        index: usize,
        /// The name that the descriptor gives.
        file: String,
        /// Bytes the file must have.
        needed: u64,
        /// Bytes it has.
        len: u64,
    },
    /// A field of a sparse header has no legal value.
    #[error("the sparse header: {field} is {value}, {why}")]
    Header {
        /// Name in VMware's specification.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it should be.
        why: &'static str,
    },
    /// A table or the footer does not lie where the header says.
    #[error("the sparse file of {len} bytes has no {what} at byte {offset}")]
    Missing {
        /// What should be there.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Length of the file.
        len: u64,
    },
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}
