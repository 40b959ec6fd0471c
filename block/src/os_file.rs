//! The real [`File`], and the words of a file mapped into memory.
//!
//! Rule: a store to a mapped page whose block the file system has not reserved kills the process
//! with SIGBUS when the disk is full. So whoever maps a sparse file calls [`File::allocate`] for a
//! range before the first store to it; `map` itself reserves nothing, because a map may be sparse
//! on purpose (2 GiB of words for a disk of 64 TiB). On a copy-on-write file system (btrfs, ZFS,
//! bcachefs) no reservation covers a page that must be copied: no map may lie there.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{Advice as PageAdvice, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::host_file::write_in_pieces;
use crate::os_dir::file_error;
use crate::{ByteRange, File, SharedWords, index};

/// A file of the operating system.
#[derive(Debug)]
pub(crate) struct OsFile {
    file: fs::File,
    path: PathBuf,
    /// Whether only a sync tells what could not be written back.
    layered: bool,
    /// The same file, open for writes past the page cache, once one was asked for; `None` if it cannot be.
    direct: OnceLock<Option<fs::File>>,
}

impl OsFile {
    pub(crate) fn new(file: fs::File, path: PathBuf, layered: bool) -> Self {
        Self {
            file,
            path,
            layered,
            direct: OnceLock::new(),
        }
    }

    fn direct(&self) -> Option<&fs::File> {
        let open = || {
            let same = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = OFlags::DIRECT.bits().cast_signed();
            let opened = fs::OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open(same);
            opened.ok()
        };
        self.direct.get_or_init(open).as_ref()
    }

    fn named<T>(
        &self,
        verb: &'static str,
        result: Result<T, impl Into<io::Error>>,
    ) -> io::Result<T> {
        result.map_err(|e| file_error(verb, &self.path, e))
    }

    fn advise(&self, range: ByteRange, advice: PageAdvice) -> io::Result<()> {
        // No length would mean to the end of the file.
        let Some(len) = NonZeroU64::new(range.len()) else {
            return Ok(());
        };
        let advised = rustix::fs::fadvise(&self.file, range.start(), Some(len), advice);
        self.named("advise on", advised)
    }

    fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> Result<(), Errno> {
        if range.is_empty() {
            return Ok(());
        }
        let keep = flags | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, keep, range.start(), range.len()) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        let meta = self.named("stat", self.file.metadata())?;
        if meta.file_type().is_block_device() {
            let end = rustix::fs::seek(&self.file, SeekFrom::End(0));
            return self.named("find the end of", end);
        }
        Ok(meta.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.named("resize", self.file.set_len(len))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.named("read", self.file.read_exact_at(buf, offset))
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.named("write", write_in_pieces(&self.file, data, offset))
    }

    fn write_past_cache(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let aligned = |n: u64| n.is_multiple_of(PAGE);
        if aligned(offset)
            && aligned(data.len() as u64)
            && aligned(data.as_ptr().addr() as u64)
            && let Some(direct) = self.direct()
        {
            match direct.write_all_at(data, offset) {
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
                other => return self.named("write", other),
            }
        }
        self.write_all_at(data, offset)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<()> {
        self.named(
            "free space of",
            self.fallocate(FallocateFlags::PUNCH_HOLE, range),
        )
    }

    fn is_cached(&self, range: ByteRange) -> io::Result<bool> {
        let mut at = range.start() / PAGE * PAGE;
        let end = range.end().min(self.len()?);
        while at < end {
            let piece = (end - at).min(RESIDENCY_BYTES_MAX);
            if self.named(
                "look for cached pages of",
                any_resident(&self.file, at, piece),
            )? {
                return Ok(true);
            }
            at += piece;
        }
        Ok(false)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.named("sync", self.file.sync_data())
    }

    fn start_writeback(&self, range: ByteRange) -> io::Result<()> {
        // No length would mean to the end of the file.
        if range.is_empty() {
            return Ok(());
        }
        self.named("begin to write", start_writeback(&self.file, range))
    }

    fn fetch(&self, range: ByteRange) -> io::Result<()> {
        self.advise(range, PageAdvice::WillNeed)
    }

    fn let_go(&self, range: ByteRange) -> io::Result<()> {
        self.advise(range, PageAdvice::DontNeed)
    }

    fn check_writeback(&self) -> io::Result<()> {
        if self.layered {
            return self.sync_data();
        }
        match failed_writeback(&self.file) {
            // A file system that cannot say: then only a sync tells.
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => self.sync_data(),
            other => self.named("write back", other),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        // POSIX leaves the unit of st_blocks open; on Linux it is 512 bytes.
        let blocks = self.named("stat", self.file.metadata())?.blocks();
        Ok(blocks.saturating_mul(512))
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.named(
            "reserve space in",
            self.fallocate(FallocateFlags::empty(), range),
        )
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn SharedWords>> {
        let file_len = self.len()?;
        if !len.is_multiple_of(8) || len > file_len {
            let sentence =
                format!("{len} bytes are not whole words inside a file of {file_len} bytes");
            let error = io::Error::new(io::ErrorKind::InvalidInput, sentence);
            return self.named("map", Err(error));
        }
        if len == 0 {
            return Ok(Arc::new(MappedWords { map: None }));
        }
        let map = MmapOptions::new().len(index(len)).map_raw(&self.file);
        let map = self.named("map", map)?;
        // Words are stored here and there in a file that is mostly holes: reading ahead would fill memory
        // with pages of zeroes, many times what is used.
        self.named("advise on the map of", map.advise(Advice::Random))?;
        let map = Some(map);
        Ok(Arc::new(MappedWords { map }))
    }
}

/// Reports what failed to be written back since the file was opened, without waiting for what is being
/// written: until that ends its bytes are in the page cache, and when it fails the failure is noted before
/// they can go. Asking about a byte that no file can have waits for no page.
#[expect(
    unsafe_code,
    reason = "no crate we use wraps sync_file_range; fdatasync would write all that is dirty, which a diff that lives for seconds must not"
)]
fn failed_writeback(file: &fs::File) -> io::Result<()> {
    const PAST_ANY_FILE: libc::off64_t = libc::off64_t::MAX - 0xffff;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call takes no pointer.
    let done = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            PAST_ANY_FILE,
            1,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[expect(
    unsafe_code,
    reason = "no crate we use wraps sync_file_range; fdatasync would wait"
)]
fn start_writeback(file: &fs::File, range: ByteRange) -> io::Result<()> {
    let offset = |byte| libc::off64_t::try_from(byte).map_err(io::Error::other);
    let (start, len) = (offset(range.start())?, offset(range.len())?);
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call takes no pointer.
    let done =
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The unit in which the system tells what is cached.
const PAGE: u64 = 4096;
/// How much of a file is asked for at once.
const RESIDENCY_BYTES_MAX: u64 = 64 << 20;

/// Whether the page cache holds a page of `len` bytes at `offset`, which is a multiple of a page.
#[expect(
    unsafe_code,
    reason = "no crate we use wraps mincore; a read, even one that may not wait, would bring pages in"
)]
fn any_resident(file: &fs::File, offset: u64, len: u64) -> io::Result<bool> {
    let map = MmapOptions::new()
        .offset(offset)
        .len(index(len))
        .map_raw_read_only(file)?;
    // One byte for each page, however large pages are.
    let mut pages = vec![0_u8; index(len.div_ceil(PAGE))];
    // SAFETY: the mapping starts at a page boundary and is `len` bytes long; `pages` has room for a byte per
    // page of it. Nothing of the mapping is read, so it does not matter if the file shrinks meanwhile.
    let done = unsafe { libc::mincore(map.as_mut_ptr().cast(), map.len(), pages.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.iter().any(|page| page & 1 == 1))
}

/// Words of a file mapped shared. The mapping keeps the file open.
struct MappedWords {
    map: Option<MmapRaw>,
}

const _: () = assert!(
    cfg!(target_endian = "little"),
    "the words of a file are little-endian"
);

impl SharedWords for MappedWords {
    #[expect(
        unsafe_code,
        reason = "std has no safe view of a shared mapping as atomics"
    )]
    fn words(&self) -> &[AtomicU64] {
        let Some(map) = &self.map else { return &[] };
        // SAFETY: The mapping starts at a page boundary, so it is aligned for u64; its length is a
        // positive multiple of 8 that `map` checked against the file; every bit pattern is a u64;
        // it is readable and writable and lives as long as `self`. All access from this process
        // goes through atomics. A page that vanishes under us (file truncated, disk full) raises
        // SIGBUS, which ends the process: no other memory is touched.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), map.len() / 8) }
    }
}
