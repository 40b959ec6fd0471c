//! The one trait that every disk in Standin implements.

use crate::{ByteRange, Extent, Result};

/// A disk: bytes `0..size`, readable and (usually) writable at any time from any thread.
///
/// Contract, checked by the conformance suite:
/// - A request that reaches past [`size`](Self::size) fails with `OutOfRange` and changes nothing.
/// - A request may have any offset and length; alignment is the caller's economy, not its duty.
/// - Requests on disjoint ranges are independent. Requests that overlap in flight may take effect
///   in any order, but each byte ends as one of them wrote it.
/// - A request that returned is seen by every request that starts afterwards.
/// - [`flush`](Self::flush) makes durable every write that returned before it was called, from any
///   thread. A request with [`Fua::Yes`] is durable when it returns.
/// - A request that fails leaves its range in any mix of old and new bytes, and nothing else changed.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes, constant, a multiple of [`SECTOR`](crate::SECTOR).
    fn size(&self) -> u64;

    /// What the device can do.
    fn features(&self) -> Features;

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `OutOfRange`, `Io`, `Corrupt`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// `OutOfRange`, `ReadOnly`, `Full`, `Io`.
    fn write_at(&self, data: &[u8], offset: u64, fua: Fua) -> Result<()>;

    /// As [`write_at`](Self::write_at), and calls `answer` once, as soon as the outcome is certain and
    /// every request that starts from then on sees it. A device that has more to do for itself, with
    /// `data` or under its locks, does that before it returns; so `answer` must not wait for anybody.
    fn write_and_answer(
        &self,
        data: &[u8],
        offset: u64,
        fua: Fua,
        answer: &mut dyn FnMut(Result<()>),
    ) {
        answer(self.write_at(data, offset, fua));
    }

    /// Makes `range` read as zeroes.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); `Unsupported` if `options.speed` is [`Speed::FastOnly`] and
    /// it would be no faster than writing zeroes.
    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()>;

    /// Says that the content of `range` no longer matters. What it reads as afterwards is
    /// unspecified but stable. A device may ignore it, whole or in part.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn trim(&self, range: ByteRange, fua: Fua) -> Result<()>;

    /// Makes durable every write that returned before this call.
    ///
    /// # Errors
    /// `Io`. After a failed flush the device fails every later write and flush, since nobody can
    /// say which writes were lost.
    fn flush(&self) -> Result<()>;

    /// Extents that start at `range.start()`, follow each other without a gap and together cover
    /// a prefix of `range`: all of it unless that takes more than `extents_max` (at least 1).
    /// [`ExtentState::Data`](crate::ExtentState::Data) is always a truthful answer.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>>;

    /// Says that `range` will be read soon. May do nothing.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn prefetch(&self, range: ByteRange) -> Result<()>;
}

/// What a device can do. A method behind an absent feature answers `ReadOnly` or `Unsupported`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Accepts writes, write-zeroes and trim.
    pub writable: bool,
    /// Trim may free space.
    pub trim: bool,
    /// Write-zeroes is usually much faster than a write.
    pub fast_zero: bool,
    /// Seeking is expensive.
    pub rotational: bool,
}

impl Features {
    /// A device that is only read.
    pub const READ_ONLY: Self = Self {
        writable: false,
        trim: false,
        fast_zero: false,
        rotational: false,
    };
}

/// Whether a write must be durable when it returns (forced unit access).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    /// Durable when it returns.
    Yes,
    /// Durable after a later flush.
    No,
}

/// Whether zeroing may give space back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// The range may become unallocated.
    Allowed,
    /// The range stays (or becomes) allocated.
    Forbidden,
}

/// Whether zeroing may be as slow as writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// Any way of zeroing will do.
    Any,
    /// Fail with `Unsupported`, changing nothing, rather than write zeroes one by one.
    FastOnly,
}

/// How to zero a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Durable when it returns?
    pub fua: Fua,
    /// May it free space?
    pub hole: Hole,
    /// May it be slow?
    pub speed: Speed,
}

impl ZeroOptions {
    /// Not durable, may free space, any speed.
    pub const RELAXED: Self = Self {
        fua: Fua::No,
        hole: Hole::Allowed,
        speed: Speed::Any,
    };
}
