//! Why a request on a device failed: a kind to act on, and the context to print.

use std::{fmt, io};

use crate::ByteRange;

/// Result of a request on a device.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request reaches past the end of the device: fix the request.
    OutOfRange,
    /// The device is not writable.
    ReadOnly,
    /// The device cannot do this (as fast as asked): do it another way.
    Unsupported,
    /// No space left behind the device.
    Full,
    /// The device failed.
    Io,
    /// What the device holds contradicts itself; reading it again will not help.
    Corrupt,
    /// The device is being shut down, or another owner has it.
    Unavailable,
}

/// Which request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the requests of BlockDevice")]
pub enum Op {
    Open,
    Read,
    Write,
    WriteZeroes,
    Trim,
    Flush,
    BlockStatus,
    Prefetch,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Open => "open",
            Op::Read => "read",
            Op::Write => "write",
            Op::WriteZeroes => "write-zeroes",
            Op::Trim => "trim",
            Op::Flush => "flush",
            Op::BlockStatus => "block status",
            Op::Prefetch => "prefetch",
        })
    }
}

/// A failed request.
#[derive(Debug, thiserror::Error)]
#[error("{op} of bytes {range} failed: {cause}")]
pub struct Error {
    op: Op,
    range: ByteRange,
    kind: ErrorKind,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("it reaches past the end of the device at {0}")]
    OutOfRange(u64),
    #[error("{0}")]
    Because(&'static str),
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The range passes the end of a device of `size` bytes.
    #[must_use]
    pub fn out_of_range(op: Op, range: ByteRange, size: u64) -> Self {
        Self {
            op,
            range,
            kind: ErrorKind::OutOfRange,
            cause: Cause::OutOfRange(size),
        }
    }

    /// A failure told in a fixed sentence.
    #[must_use]
    pub fn because(op: Op, range: ByteRange, kind: ErrorKind, sentence: &'static str) -> Self {
        Self {
            op,
            range,
            kind,
            cause: Cause::Because(sentence),
        }
    }

    /// The device is not writable.
    #[must_use]
    pub fn read_only(op: Op, range: ByteRange) -> Self {
        Self::because(op, range, ErrorKind::ReadOnly, "the device is read-only")
    }

    /// The operating system's error; its kind decides ours.
    #[must_use]
    pub fn io(op: Op, range: ByteRange, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                ErrorKind::ReadOnly
            }
            _ => ErrorKind::Io,
        };
        Self {
            op,
            range,
            kind,
            cause: Cause::Io(source),
        }
    }

    /// An error of a lower layer, kept as the cause.
    #[must_use]
    pub fn source(
        op: Op,
        range: ByteRange,
        kind: ErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            op,
            range,
            kind,
            cause: Cause::Source(source.into()),
        }
    }

    /// The same failure, as seen by a device of which the failed one is the part at `start`.
    #[must_use]
    pub(crate) fn of_part(mut self, start: u64) -> Self {
        let moved = ByteRange::at(self.range.start().saturating_add(start), self.range.len());
        self.range = moved.unwrap_or(self.range);
        self
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Which request failed.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// The bytes it was about.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// `Ok` if `range` lies inside a device of `size` bytes.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn check_range(op: Op, range: ByteRange, size: u64) -> Result<()> {
        if range.end() <= size {
            Ok(())
        } else {
            Err(Self::out_of_range(op, range, size))
        }
    }
}
