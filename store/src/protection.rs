//! What keeps a point from being removed: a hold, until it is lifted; a lock, until its time has come.
//!
//! Rule: a lock is never shortened, and its time is the store's own (`Inner::now`), which never runs backwards.

use crate::codec::{Decoded, Decoder, Encode};

/// Most bytes of the reason of a hold.
pub(crate) const REASON_BYTES_MAX: usize = 4096;

/// What protects a point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Why somebody holds it.
    pub hold: Option<String>,
    /// It is locked before this time, ns since 1970; 0: it never was.
    pub locked_until: u64,
}

impl Protection {
    /// Whether its lock holds at this time, ns since 1970.
    #[must_use]
    pub fn is_locked(&self, now: u64) -> bool {
        now < self.locked_until
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.hold.is_some()));
        if let Some(reason) = &self.hold {
            out.put_text(reason);
        }
        out.put_u64(self.locked_until);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        let hold = match d.u8()? {
            0 => None,
            1 => Some(d.text(REASON_BYTES_MAX)?.to_owned()),
            _ => return Err(d.error("a hold is of an unknown kind")),
        };
        Ok(Self {
            hold,
            locked_until: d.u64()?,
        })
    }
}
