//! Requests: bytes to [`Command`]s that are legal on this export, or to a refusal.
//!
//! ```text
//! compact:  magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u32
//! extended: magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u64
//! ```
//!
//! Rule: whatever the verdict, [`Judged::payload`] says how many bytes follow the header, so that a
//! refused request never costs the connection.

use block::{ByteRange, Fua, Hole, Speed, ZeroOptions};

use super::option::Fields;
use super::proto::{
    EXTENDED_REQUEST_LEN, EXTENDED_REQUEST_MAGIC, Errno, Mode, REQUEST_LEN, REQUEST_MAGIC, cmd,
    cmd_flag,
};
use crate::limits::REQUEST_BYTES_MAX;

/// A request's header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Header {
    /// Bytes of a header in `mode`.
    pub(crate) const fn len_in(mode: Mode) -> usize {
        match mode {
            Mode::Simple | Mode::Structured => REQUEST_LEN,
            Mode::Extended => EXTENDED_REQUEST_LEN,
        }
    }

    /// `None` if the magic is wrong: the stream is out of step for good.
    pub(crate) fn decode(mode: Mode, bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u32().ok()?;
        let flags = fields.u16().ok()?;
        let kind = fields.u16().ok()?;
        let cookie = fields.u64().ok()?;
        let offset = fields.u64().ok()?;
        let (wanted, len) = match mode {
            Mode::Simple | Mode::Structured => (REQUEST_MAGIC, u64::from(fields.u32().ok()?)),
            Mode::Extended => (EXTENDED_REQUEST_MAGIC, fields.u64().ok()?),
        };
        (magic == wanted).then_some(Self {
            flags,
            kind,
            cookie,
            offset,
            len,
        })
    }
}

/// What was negotiated, as far as it decides which requests are legal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) mode: Mode,
    /// Size of the device in bytes.
    pub(crate) size: u64,
    pub(crate) writable: bool,
    /// Number of meta contexts.
    pub(crate) contexts: usize,
}

/// A legal request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read {
        range: ByteRange,
        fragments: Fragments,
    },
    Write {
        range: ByteRange,
        fua: Fua,
    },
    Flush,
    Trim {
        range: ByteRange,
        fua: Fua,
    },
    WriteZeroes {
        range: ByteRange,
        options: ZeroOptions,
    },
    Cache {
        range: ByteRange,
    },
    BlockStatus {
        range: ByteRange,
        extents: Extents,
    },
    /// Block status whose payload names length and contexts; see [`StatusFilter`].
    FilteredStatus {
        offset: u64,
        extents: Extents,
    },
    Disconnect,
}

/// Whether a read may be answered in pieces (`NBD_CMD_FLAG_DF`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragments {
    Allowed,
    Forbidden,
}

/// How many extents a block status reply may hold (`NBD_CMD_FLAG_REQ_ONE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extents {
    Many,
    One,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) reason: &'static str,
}

const fn refusal(errno: Errno, reason: &'static str) -> Refusal {
    Refusal { errno, reason }
}

const READ_ONLY: Refusal = refusal(Errno::EPERM, "the export is read-only");
const PAST_END: Refusal = refusal(
    Errno::EINVAL,
    "the request reaches past the end of the export",
);
const PAST_END_WRITE: Refusal = refusal(
    Errno::ENOSPC,
    "the request reaches past the end of the export",
);
const TOO_LARGE: Refusal = refusal(Errno::EINVAL, "the request is larger than 64 MiB");
const BAD_FLAGS: Refusal = refusal(Errno::EINVAL, "a flag is not valid for this command");
const BAD_COMMAND: Refusal = refusal(Errno::EINVAL, "the command is unknown");
const NO_CONTEXT: Refusal = refusal(Errno::EINVAL, "no meta context was negotiated");
const EMPTY: Refusal = refusal(Errno::EINVAL, "a block status request needs a length");
pub(crate) const BAD_FILTER: Refusal =
    refusal(Errno::EINVAL, "the block status payload is malformed");

/// A request with its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) cookie: u64,
    /// Bytes that follow the header.
    pub(crate) payload: u64,
    pub(crate) verdict: Result<Command, Refusal>,
}

impl Terms {
    /// Says what `header` asks for and whether it is legal here.
    pub(crate) fn judge(self, header: Header) -> Judged {
        Judged {
            cookie: header.cookie,
            payload: self.payload(header),
            verdict: self.verdict(header),
        }
    }

    /// "Request message": writes have a payload; with extended headers whoever sets
    /// `NBD_CMD_FLAG_PAYLOAD_LEN` has one. A write without that flag breaks the rules, but its
    /// sender can only mean the payload to follow (QEMU reads it so).
    fn payload(self, header: Header) -> u64 {
        let declared = self.mode == Mode::Extended && header.flags & cmd_flag::PAYLOAD_LEN != 0;
        if header.kind == cmd::WRITE || declared {
            header.len
        } else {
            0
        }
    }

    fn verdict(self, header: Header) -> Result<Command, Refusal> {
        if header.flags & !self.flags_allowed(header.kind)? != 0 {
            return Err(BAD_FLAGS);
        }
        let has = |flag| header.flags & flag != 0;
        let fua = if has(cmd_flag::FUA) {
            Fua::Yes
        } else {
            Fua::No
        };
        let extents = if has(cmd_flag::REQ_ONE) {
            Extents::One
        } else {
            Extents::Many
        };
        Ok(match header.kind {
            cmd::READ => Command::Read {
                range: small(self.inside(header, PAST_END)?)?,
                fragments: if has(cmd_flag::DF) {
                    Fragments::Forbidden
                } else {
                    Fragments::Allowed
                },
            },
            cmd::WRITE => Command::Write {
                range: small(self.writable(header)?)?,
                fua,
            },
            cmd::FLUSH => Command::Flush,
            cmd::TRIM => Command::Trim {
                range: self.writable(header)?,
                fua,
            },
            cmd::WRITE_ZEROES => Command::WriteZeroes {
                range: self.writable(header)?,
                options: ZeroOptions {
                    fua,
                    hole: if has(cmd_flag::NO_HOLE) {
                        Hole::Forbidden
                    } else {
                        Hole::Allowed
                    },
                    speed: if has(cmd_flag::FAST_ZERO) {
                        Speed::FastOnly
                    } else {
                        Speed::Any
                    },
                },
            },
            cmd::CACHE => Command::Cache {
                range: self.inside(header, PAST_END)?,
            },
            cmd::BLOCK_STATUS if self.contexts == 0 => return Err(NO_CONTEXT),
            cmd::BLOCK_STATUS if has(cmd_flag::PAYLOAD_LEN) => {
                StatusFilter::check_len(header.len, self.contexts)?;
                Command::FilteredStatus {
                    offset: header.offset,
                    extents,
                }
            }
            cmd::BLOCK_STATUS if header.len == 0 => return Err(EMPTY),
            cmd::BLOCK_STATUS => Command::BlockStatus {
                range: self.inside(header, PAST_END)?,
                extents,
            },
            cmd::DISC => Command::Disconnect,
            _ => return Err(BAD_COMMAND),
        })
    }

    /// "Command flags": FUA is taken everywhere, the others where they mean something.
    fn flags_allowed(self, kind: u16) -> Result<u16, Refusal> {
        let extended = if self.mode == Mode::Extended {
            cmd_flag::PAYLOAD_LEN
        } else {
            0
        };
        let own = match kind {
            cmd::READ if self.mode >= Mode::Structured => cmd_flag::DF,
            cmd::WRITE => extended,
            cmd::WRITE_ZEROES => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            cmd::BLOCK_STATUS => cmd_flag::REQ_ONE | extended,
            cmd::READ | cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
            // A client that leaves is let go, whatever its flags.
            cmd::DISC => u16::MAX,
            _ => return Err(BAD_COMMAND),
        };
        Ok(own | cmd_flag::FUA)
    }

    fn inside(self, header: Header, past_end: Refusal) -> Result<ByteRange, Refusal> {
        ByteRange::at(header.offset, header.len)
            .filter(|range| range.end() <= self.size)
            .ok_or(past_end)
    }

    fn writable(self, header: Header) -> Result<ByteRange, Refusal> {
        if !self.writable {
            return Err(READ_ONLY);
        }
        self.inside(header, PAST_END_WRITE)
    }
}

fn small(range: ByteRange) -> Result<ByteRange, Refusal> {
    if range.len() <= REQUEST_BYTES_MAX as u64 {
        Ok(range)
    } else {
        Err(TOO_LARGE)
    }
}

/// Payload of a block status request: `effect length u64 | context id u32 ...`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StatusFilter {
    pub(crate) range: ByteRange,
    /// Different from each other, at least one.
    pub(crate) ids: Vec<u32>,
}

impl StatusFilter {
    fn check_len(len: u64, contexts: usize) -> Result<(), Refusal> {
        let ids = len.checked_sub(8).ok_or(BAD_FILTER)?;
        if ids % 4 == 0 && (1..=contexts as u64).contains(&(ids / 4)) {
            Ok(())
        } else {
            Err(BAD_FILTER)
        }
    }

    /// `payload` has passed [`Self::check_len`]; the ids are not known to exist.
    pub(crate) fn decode(offset: u64, size: u64, payload: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields(payload);
        let len = fields.u64().map_err(|_| BAD_FILTER)?;
        if len == 0 {
            return Err(EMPTY);
        }
        let range = ByteRange::at(offset, len)
            .filter(|range| range.end() <= size)
            .ok_or(PAST_END)?;
        let mut ids = Vec::new();
        while fields.end().is_err() {
            let id = fields.u32().map_err(|_| BAD_FILTER)?;
            if ids.contains(&id) {
                return Err(BAD_FILTER);
            }
            ids.push(id);
        }
        Ok(Self { range, ids })
    }
}

#[cfg(test)]
mod tests;
