//! Reading a sparse VMDK extent: two levels of tables lead to a grain, which may be compressed.
//!
//! ```text
//!   grain directory --> grain table --> grain            0: hole   1: zeroes, if the header says so
//!   (one for all)       (512 entries)   (64 KiB)
//!
//!   compressed grain:   lba u64 | size u32 | deflate stream of `size` bytes
//!   stream end:         footer marker | footer (a header) | end-of-stream marker, 512 bytes each
//! ```
//!
//! Rule: no table entry is believed. An offset past the end of the file, or a grain that says it
//! belongs elsewhere, is `Corrupt`, never zeroes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};

use super::VmdkError;
use super::sparse_header::{HEADER_LEN, SparseHeader, le32, le64, parse_sparse_header};
use crate::host_file::HostFile;
use crate::{
    BlockDevice, ByteRange, Error, ErrorKind, Extent, ExtentState, Features, Fua, Op, Result,
    SECTOR, ZeroOptions, index,
};

/// Where the bytes of a sparse file come from.
pub(crate) trait Source: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for Arc<HostFile> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        HostFile::read_exact_at(self, buf, offset)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.as_slice().len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// A sparse VMDK (monolithicSparse, streamOptimized) that lies in memory, as a read-only disk.
///
/// # Errors
/// What is wrong with its header, footer or directory. Damage further down is found by reading.
pub fn read_sparse(file: Vec<u8>) -> std::result::Result<impl BlockDevice, VmdkError> {
    SparseExtent::open(Box::new(file), None)
}

/// A sparse extent.
pub(crate) struct SparseExtent {
    source: Box<dyn Source>,
    len: u64,
    size: u64,
    header: SparseHeader,
    /// The sector of every grain table; 0: none.
    directory: Vec<u32>,
    tables: Cache<Box<[u32]>>,
    grains: Cache<Vec<u8>>,
}

/// Where the content of a grain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grain {
    Hole,
    Zero,
    /// At this byte of the file.
    At(u64),
}

/// Grain tables in memory: 2 KiB each, a table covers 32 MiB.
const TABLES_CACHED: usize = 256;
/// Decompressed grains in memory: 64 KiB each, so a reader of small blocks decompresses once.
const GRAINS_CACHED: usize = 16;
/// Bytes before the deflate stream of a compressed grain.
const GRAIN_MARKER_LEN: u64 = 12;
const MARKER_END_OF_STREAM: u32 = 0;
const MARKER_FOOTER: u32 = 3;

impl SparseExtent {
    /// `size` of a descriptor that lies elsewhere may be less than the file's capacity.
    pub(crate) fn open(
        source: Box<dyn Source>,
        size: Option<u64>,
    ) -> std::result::Result<Self, VmdkError> {
        let len = source.len()?;
        let mut header = read_header(source.as_ref(), 0, len)?;
        if header.directory.is_none() {
            header = read_footer(source.as_ref(), len)?;
        }
        let size = size.unwrap_or(header.capacity);
        if size > header.capacity {
            let value = header.capacity / SECTOR;
            let why = "less than the descriptor says";
            let field = "capacity";
            return Err(VmdkError::Header { field, value, why });
        }
        let directory = read_directory(source.as_ref(), &header, len)?;
        Ok(Self {
            source,
            len,
            size,
            header,
            directory,
            tables: Cache::new(TABLES_CACHED),
            grains: Cache::new(GRAINS_CACHED),
        })
    }

    /// The text of the descriptor inside the file.
    pub(crate) fn embedded_descriptor(&self) -> std::result::Result<Option<Vec<u8>>, VmdkError> {
        let Some(range) = self.header.descriptor else {
            return Ok(None);
        };
        let what = "descriptor";
        read_checked(self.source.as_ref(), range, self.len, what).map(Some)
    }

    /// Where grain `grain` is.
    fn locate(&self, grain: u64) -> io::Result<Grain> {
        let entries = u64::from(self.header.table_entries);
        let Some(&sector) = self.directory.get(index(grain / entries)) else {
            return Err(corrupt("a grain lies past the grain directory"));
        };
        if sector == 0 {
            return Ok(Grain::Hole);
        }
        let table = self.table(grain / entries, sector)?;
        Ok(match table[index(grain % entries)] {
            0 => Grain::Hole,
            1 if self.header.zero_grains => Grain::Zero,
            sector => Grain::At(u64::from(sector) * SECTOR),
        })
    }

    fn table(&self, number: u64, sector: u32) -> io::Result<Arc<Box<[u32]>>> {
        self.tables.get(number, || {
            let mut bytes = vec![0; 4 * index(self.header.table_entries.into())];
            self.read(&mut bytes, u64::from(sector) * SECTOR, "a grain table")?;
            Ok(bytes.chunks_exact(4).map(|b| le32(b, 0)).collect())
        })
    }

    /// Fills `buf` with the bytes at `within` of grain `grain`.
    fn read_grain(&self, buf: &mut [u8], grain: u64, within: u64) -> io::Result<()> {
        match self.locate(grain)? {
            Grain::Hole | Grain::Zero => buf.fill(0),
            Grain::At(offset) if self.header.compressed => {
                let content = self.grains.get(grain, || self.decompress(grain, offset))?;
                let bytes = content.get(index(within)..index(within) + buf.len());
                buf.copy_from_slice(bytes.ok_or_else(|| corrupt("a grain is too short"))?);
            }
            Grain::At(offset) => self.read(buf, offset + within, "a grain")?,
        }
        Ok(())
    }

    fn decompress(&self, grain: u64, offset: u64) -> io::Result<Vec<u8>> {
        let mut marker = [0; index(GRAIN_MARKER_LEN)];
        self.read(&mut marker, offset, "a grain marker")?;
        if le64(&marker, 0) != grain * (self.header.grain_bytes / SECTOR) {
            return Err(corrupt("a grain's marker says that it belongs elsewhere"));
        }
        let size = u64::from(le32(&marker, 8));
        // Deflate grows incompressible data by less than a thousandth.
        if size == 0 || size > 2 * self.header.grain_bytes {
            return Err(corrupt("a grain's marker says an impossible size"));
        }
        let mut stream = vec![0; index(size)];
        self.read(&mut stream, offset + GRAIN_MARKER_LEN, "a grain")?;
        inflate(&stream, index(self.header.grain_bytes))
    }

    fn read(&self, buf: &mut [u8], offset: u64, what: &'static str) -> io::Result<()> {
        let inside = ByteRange::at(offset, buf.len() as u64).is_some_and(|r| r.end() <= self.len);
        if !inside {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                Truncated { what, offset },
            ));
        }
        self.source.read_exact_at(buf, offset)
    }

    /// Calls `each` with every grain that `range` touches and the bytes of it, until it says stop.
    fn each_grain(
        &self,
        op: Op,
        range: ByteRange,
        mut each: impl FnMut(u64, ByteRange) -> io::Result<()>,
    ) -> Result<()> {
        Error::check_range(op, range, self.size)?;
        let mut at = range.start();
        while at < range.end() {
            let grain = at / self.header.grain_bytes;
            let stop = ((grain + 1) * self.header.grain_bytes).min(range.end());
            let piece = ByteRange::new(at, stop).expect("the grain ends behind its bytes");
            each(grain, piece).map_err(|e| device_error(op, piece, e))?;
            at = stop;
        }
        Ok(())
    }

    /// The state of the bytes at `at`, and where the grains it was read from end.
    fn state_at(&self, at: u64) -> io::Result<(ExtentState, u64)> {
        let grain = at / self.header.grain_bytes;
        let entries = u64::from(self.header.table_entries);
        let table = index(grain / entries);
        if self.directory.get(table) == Some(&0) {
            let end = (grain / entries + 1) * entries * self.header.grain_bytes;
            return Ok((ExtentState::Hole, end));
        }
        let state = match self.locate(grain)? {
            Grain::Hole => ExtentState::Hole,
            Grain::Zero => ExtentState::Zero,
            Grain::At(_) => ExtentState::Data,
        };
        Ok((state, (grain + 1) * self.header.grain_bytes))
    }

    fn refuse(&self, op: Op, range: ByteRange) -> Result<()> {
        Error::check_range(op, range, self.size)?;
        Err(Error::read_only(op, range))
    }
}

impl BlockDevice for SparseExtent {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features::READ_ONLY
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of_buf(offset, buf);
        let mut rest = buf;
        self.each_grain(Op::Read, range, |grain, piece| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(index(piece.len()));
            rest = behind;
            self.read_grain(part, grain, piece.start() % self.header.grain_bytes)
        })
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        self.refuse(Op::Write, ByteRange::of_buf(offset, data))
    }

    fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> Result<()> {
        self.refuse(Op::WriteZeroes, range)
    }

    fn trim(&self, range: ByteRange, _fua: Fua) -> Result<()> {
        self.refuse(Op::Trim, range)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>> {
        Error::check_range(Op::BlockStatus, range, self.size)?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let (state, end) = self
                .state_at(at)
                .map_err(|e| device_error(Op::BlockStatus, range, e))?;
            let end = end.min(range.end());
            if !Extent::append(&mut extents, state, at, end, extents_max) {
                break;
            }
            at = end;
        }
        Ok(extents)
    }

    fn prefetch(&self, range: ByteRange) -> Result<()> {
        Error::check_range(Op::Prefetch, range, self.size)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the VMDK points to {what} at byte {offset}, past the end of the file")]
struct Truncated {
    what: &'static str,
    offset: u64,
}

fn corrupt(sentence: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, sentence)
}

fn device_error(op: Op, range: ByteRange, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::source(op, range, ErrorKind::Corrupt, error),
        _ => Error::io(op, range, error),
    }
}

fn read_checked(
    source: &dyn Source,
    range: ByteRange,
    len: u64,
    what: &'static str,
) -> std::result::Result<Vec<u8>, VmdkError> {
    // Before anything is allocated.
    if range.end() > len {
        let offset = range.start();
        return Err(VmdkError::Missing { what, offset, len });
    }
    let mut bytes = vec![0; index(range.len())];
    source.read_exact_at(&mut bytes, range.start())?;
    Ok(bytes)
}

fn read_header(
    source: &dyn Source,
    offset: u64,
    len: u64,
) -> std::result::Result<SparseHeader, VmdkError> {
    let range = ByteRange::at(offset, HEADER_LEN as u64).ok_or(VmdkError::NotVmdk)?;
    parse_sparse_header(&read_checked(source, range, len, "header")?)
}

/// "Stream-Optimized Compressed Sparse Extents": footer marker, footer, end of stream.
fn read_footer(source: &dyn Source, len: u64) -> std::result::Result<SparseHeader, VmdkError> {
    let missing = || VmdkError::Missing {
        what: "footer",
        offset: len.saturating_sub(3 * SECTOR),
        len,
    };
    let range = ByteRange::new(len.checked_sub(3 * SECTOR).ok_or_else(missing)?, len);
    let end = read_checked(source, range.ok_or_else(missing)?, len, "footer")?;
    let (marker, rest) = end.split_at(index(SECTOR));
    let (footer, end_marker) = rest.split_at(index(SECTOR));
    let is_marker = |bytes: &[u8], value: u64, kind: u32| {
        le64(bytes, 0) == value && le32(bytes, 8) == 0 && le32(bytes, 12) == kind
    };
    if !is_marker(marker, 1, MARKER_FOOTER) || !is_marker(end_marker, 0, MARKER_END_OF_STREAM) {
        return Err(missing());
    }
    let header = parse_sparse_header(footer)?;
    if header.directory.is_none() {
        let (field, value, why) = ("gdOffset", u64::MAX, "also in the footer");
        return Err(VmdkError::Header { field, value, why });
    }
    Ok(header)
}

fn read_directory(
    source: &dyn Source,
    header: &SparseHeader,
    len: u64,
) -> std::result::Result<Vec<u32>, VmdkError> {
    let range = header.directory.ok_or(VmdkError::NotVmdk)?;
    let bytes = read_checked(source, range, len, "grain directory")?;
    Ok(bytes.chunks_exact(4).map(|b| le32(b, 0)).collect())
}

/// The content of a deflate stream, at most `len_max` bytes.
fn inflate(stream: &[u8], len_max: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(len_max);
    let mut inflater = Decompress::new(true);
    let status = inflater.decompress_vec(stream, &mut content, FlushDecompress::Finish);
    match status {
        Ok(Status::StreamEnd) => Ok(content),
        Ok(_) => Err(corrupt("a grain's deflate stream is longer than a grain")),
        Err(_) => Err(corrupt("a grain's deflate stream is damaged")),
    }
}

/// The last values by number; each number has one slot it may be in.
struct Cache<T> {
    slots: Box<[Mutex<Slot<T>>]>,
}

/// A value and its number.
type Slot<T> = Option<(u64, Arc<T>)>;

impl<T> Cache<T> {
    fn new(slots: usize) -> Self {
        let slots = (0..slots).map(|_| Mutex::default()).collect();
        Self { slots }
    }

    fn get(&self, number: u64, load: impl FnOnce() -> io::Result<T>) -> io::Result<Arc<T>> {
        let slot = &self.slots[index(number) % self.slots.len()];
        let cached = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, value)) = cached.filter(|(cached, _)| *cached == number) {
            return Ok(value);
        }
        // Two that miss at once both load: the file does not change.
        let value = Arc::new(load()?);
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, value.clone()));
        Ok(value)
    }
}
