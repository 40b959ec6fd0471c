//! Replies as bytes.
//!
//! ```text
//! simple:     magic u32 | errno u32 | cookie u64
//! structured: magic u32 | flags u16 | type u16 | cookie u64 | length u32
//! extended:   magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u64
//! ```
//!
//! Which is used: extended headers, when negotiated, for everything; else chunks for reads, block
//! status and errors once structured replies are negotiated; else simple replies.

use super::proto::{
    EXTENDED_REPLY_MAGIC, Errno, Mode, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};

/// The longest head: an extended chunk's, with the offset of `OFFSET_DATA`.
const HEAD_LEN_MAX: usize = 40;

/// The first bytes of a reply, on the stack.
pub(crate) struct Head {
    bytes: [u8; HEAD_LEN_MAX],
    len: usize,
}

impl Head {
    fn new() -> Self {
        Self {
            bytes: [0; HEAD_LEN_MAX],
            len: 0,
        }
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// "Simple reply message".
    pub(crate) fn simple(cookie: u64, errno: Errno) -> Self {
        Self::new()
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&errno.0.to_be_bytes())
            .put(&cookie.to_be_bytes())
    }

    /// "Structured reply chunk message", or its extended form. `to` is the request's cookie and
    /// offset.
    fn chunk(mode: Mode, to: To, flags: u16, kind: u16, len: usize) -> Self {
        let extended = mode == Mode::Extended;
        let magic = if extended {
            EXTENDED_REPLY_MAGIC
        } else {
            STRUCTURED_REPLY_MAGIC
        };
        let head = Self::new()
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&to.cookie.to_be_bytes());
        if extended {
            head.put(&to.offset.to_be_bytes())
                .put(&(len as u64).to_be_bytes())
        } else {
            let len = u32::try_from(len).expect("a reply holds at most 64 MiB");
            head.put(&len.to_be_bytes())
        }
    }

    /// The reply to a request that succeeded and has nothing to tell.
    pub(crate) fn done(mode: Mode, to: To) -> Self {
        match mode {
            Mode::Simple | Mode::Structured => Self::simple(to.cookie, Errno(0)),
            Mode::Extended => Self::none(mode, to),
        }
    }

    /// `NBD_REPLY_TYPE_NONE`, the last chunk.
    pub(crate) fn none(mode: Mode, to: To) -> Self {
        Self::chunk(mode, to, chunk::FLAG_DONE, chunk::NONE, 0)
    }

    /// `NBD_REPLY_TYPE_OFFSET_DATA`; `len` bytes of data at `offset` follow.
    pub(crate) fn data(mode: Mode, to: To, last: Last, offset: u64, len: usize) -> Self {
        Self::chunk(mode, to, last.flags(), chunk::OFFSET_DATA, 8 + len).put(&offset.to_be_bytes())
    }

    /// The whole error reply: in chunks a `NBD_REPLY_TYPE_ERROR` with a sentence.
    pub(crate) fn error(mode: Mode, to: To, errno: Errno, reason: &'static str) -> Vec<u8> {
        if mode == Mode::Simple {
            return Self::simple(to.cookie, errno).bytes().to_vec();
        }
        let text_len = u16::try_from(reason.len()).expect("reasons are short sentences");
        let len = 6 + reason.len();
        let head = Self::chunk(mode, to, chunk::FLAG_DONE, chunk::ERROR, len);
        let mut bytes = head.bytes().to_vec();
        bytes.extend(errno.0.to_be_bytes());
        bytes.extend(text_len.to_be_bytes());
        bytes.extend(reason.as_bytes());
        bytes
    }
}

/// `NBD_REPLY_TYPE_OFFSET_HOLE`, whole.
pub(crate) fn hole(mode: Mode, to: To, last: Last, offset: u64, len: u32) -> Vec<u8> {
    let head = Head::chunk(mode, to, last.flags(), chunk::OFFSET_HOLE, 12);
    let mut bytes = head.bytes().to_vec();
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// One extent of a block status reply: length and status flags.
pub(crate) type Descriptor = (u64, u32);

/// `NBD_REPLY_TYPE_BLOCK_STATUS`, or `_EXT` with extended headers, appended to `out`.
pub(crate) fn put_status(
    out: &mut Vec<u8>,
    mode: Mode,
    to: To,
    last: Last,
    context: u32,
    extents: &[Descriptor],
) {
    let count = u32::try_from(extents.len()).expect("bounded by STATUS_EXTENTS_MAX");
    if mode == Mode::Extended {
        let len = 8 + 16 * extents.len();
        let head = Head::chunk(mode, to, last.flags(), chunk::BLOCK_STATUS_EXT, len);
        out.extend(head.bytes());
        out.extend(context.to_be_bytes());
        out.extend(count.to_be_bytes());
        for (len, flags) in extents {
            out.extend(len.to_be_bytes());
            out.extend(u64::from(*flags).to_be_bytes());
        }
    } else {
        let len = 4 + 8 * extents.len();
        let head = Head::chunk(mode, to, last.flags(), chunk::BLOCK_STATUS, len);
        out.extend(head.bytes());
        out.extend(context.to_be_bytes());
        for (len, flags) in extents {
            let len = u32::try_from(*len).expect("the request's own length has 32 bits");
            out.extend(len.to_be_bytes());
            out.extend(flags.to_be_bytes());
        }
    }
}

/// The request that is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct To {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

/// Whether a chunk is the last of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Yes,
    No,
}

impl Last {
    pub(crate) fn when(last: bool) -> Self {
        if last { Self::Yes } else { Self::No }
    }

    fn flags(self) -> u16 {
        match self {
            Self::Yes => chunk::FLAG_DONE,
            Self::No => 0,
        }
    }
}
