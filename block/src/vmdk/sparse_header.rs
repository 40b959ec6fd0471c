//! The header of a sparse VMDK extent ("SparseExtentHeader" in VMware's specification).
//!
//! ```text
//!    0 magic "KDMV"        28 descriptorOffset      73 newline bytes "\n \r\n"
//!    4 version             36 descriptorSize        77 compressAlgorithm
//!    8 flags               44 numGTEsPerGT          79 padding
//!   12 capacity            48 rgdOffset            512
//!   20 grainSize           56 gdOffset
//! ```
//! Little-endian; offsets and sizes in sectors.

use super::VmdkError;
use super::descriptor::{DESCRIPTOR_BYTES_MAX, bytes_of};
use crate::{ByteRange, SECTOR};

/// Length of the header in bytes.
pub(crate) const HEADER_LEN: usize = 512;

const MAGIC: &[u8; 4] = b"KDMV";
const VERSION_MAX: u32 = 3;
const FLAG_NEWLINE_TEST: u32 = 1 << 0;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const NEWLINES: &[u8; 4] = b"\n \r\n";
const DEFLATE: u16 = 1;
/// The grain directory's place is in the footer at the end of the file.
const GD_AT_END: u64 = u64::MAX;
/// Grain sizes in sectors: 4 KiB (the specification's smallest) to 1 MiB. 64 KiB is usual.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=2048;
/// What every writer uses; fewer would let a small file claim a large directory.
const GTES_PER_GT: u32 = 512;
/// More grain tables are refused: 128 TiB at the usual 64 KiB per grain, 16 MiB of directory.
const GRAIN_TABLES_MAX: u64 = 4 << 20;

/// A header whose fields are legal by themselves; nothing else of the file is looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseHeader {
    /// Size of the extent in bytes: positive, whole sectors.
    pub capacity: u64,
    /// Size of a grain in bytes: a power of two, 4 KiB to 1 MiB.
    pub grain_bytes: u64,
    /// Where the embedded descriptor lies.
    pub descriptor: Option<ByteRange>,
    /// Where the grain directory lies; `None`: the footer says.
    pub directory: Option<ByteRange>,
    /// Entries in a grain table.
    pub table_entries: u32,
    /// Grains are compressed with deflate, each behind a marker.
    pub compressed: bool,
    /// A grain table entry of 1 means a grain of zeroes.
    pub zero_grains: bool,
}

/// Reads a header (or a footer, which is one) from the first 512 bytes of `bytes`.
///
/// # Errors
/// `NotVmdk` without the magic; `Header` names the field; `Unsupported`.
pub fn parse_sparse_header(bytes: &[u8]) -> Result<SparseHeader, VmdkError> {
    let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(VmdkError::NotVmdk);
    };
    if !bytes.starts_with(MAGIC) {
        return Err(VmdkError::NotVmdk);
    }
    let version = le32(bytes, 4);
    if !(1..=VERSION_MAX).contains(&version) {
        return Err(bad("version", version.into(), "1 to 3 are known"));
    }
    let flags = le32(bytes, 8);
    if flags & FLAG_NEWLINE_TEST != 0 && &bytes[73..77] != NEWLINES {
        let found = le32(bytes, 73).into();
        let why = "which is what a transfer in text mode makes of it";
        return Err(bad("the newline test", found, why));
    }
    let grain_bytes = grain_bytes(le64(bytes, 20))?;
    let capacity = capacity(le64(bytes, 12))?;
    let table_entries = le32(bytes, 44);
    if table_entries != GTES_PER_GT {
        return Err(bad("numGTEsPerGT", table_entries.into(), "512 is expected"));
    }
    let tables = capacity.div_ceil(grain_bytes * u64::from(table_entries));
    if tables > GRAIN_TABLES_MAX {
        let why = "too large for its grain size";
        return Err(bad("capacity", capacity / SECTOR, why));
    }
    Ok(SparseHeader {
        capacity,
        grain_bytes,
        descriptor: descriptor(le64(bytes, 28), le64(bytes, 36))?,
        directory: directory(le64(bytes, 56), tables)?,
        table_entries,
        compressed: compressed(flags, le16(bytes, 77))?,
        zero_grains: flags & FLAG_ZERO_GRAINS != 0,
    })
}

fn grain_bytes(sectors: u64) -> Result<u64, VmdkError> {
    if sectors.is_power_of_two() && GRAIN_SECTORS.contains(&sectors) {
        Ok(sectors * SECTOR)
    } else {
        Err(bad(
            "grainSize",
            sectors,
            "a power of two from 8 to 2048 is expected",
        ))
    }
}

fn capacity(sectors: u64) -> Result<u64, VmdkError> {
    bytes_of(sectors)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| bad("capacity", sectors, "no disk has that many sectors"))
}

fn descriptor(offset: u64, sectors: u64) -> Result<Option<ByteRange>, VmdkError> {
    if offset == 0 || sectors == 0 {
        return Ok(None);
    }
    let len = bytes_of(sectors)
        .filter(|len| *len <= DESCRIPTOR_BYTES_MAX)
        .ok_or_else(|| bad("descriptorSize", sectors, "more than 1 MiB"))?;
    place(offset, len)
        .ok_or_else(|| bad("descriptorOffset", offset, "no file reaches there"))
        .map(Some)
}

fn directory(offset: u64, tables: u64) -> Result<Option<ByteRange>, VmdkError> {
    match offset {
        GD_AT_END => Ok(None),
        0 => Err(bad("gdOffset", 0, "which is the header's own place")),
        _ => place(offset, tables * 4)
            .ok_or_else(|| bad("gdOffset", offset, "no file reaches there"))
            .map(Some),
    }
}

fn compressed(flags: u32, algorithm: u16) -> Result<bool, VmdkError> {
    if flags & FLAG_COMPRESSED == 0 {
        return Ok(false);
    }
    if algorithm != DEFLATE {
        return Err(bad(
            "compressAlgorithm",
            algorithm.into(),
            "1 (deflate) is known",
        ));
    }
    if flags & FLAG_MARKERS == 0 {
        let kind = "a compressed VMDK without grain markers".to_owned();
        return Err(VmdkError::Unsupported { kind });
    }
    Ok(true)
}

/// `len` bytes at a sector; `None` where no file reaches.
fn place(sector: u64, len: u64) -> Option<ByteRange> {
    let range = ByteRange::at(bytes_of(sector)?, len)?;
    i64::try_from(range.end()).ok()?;
    Some(range)
}

fn bad(field: &'static str, value: u64, why: &'static str) -> VmdkError {
    VmdkError::Header { field, value, why }
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
