//! Options and their replies as bytes (proto.md, "Fixed newstyle negotiation").
//!
//! ```text
//! option: IHAVEOPT u64 | code u32 | length u32 | data      reply: magic u64 | code u32 | type u32 | length u32 | data
//! INFO, GO:            name length u32 | name | count u16 | information type u16 ...
//! LIST/SET_META_CONTEXT: name length u32 | name | count u32 | (length u32 | query) ...
//! ```
//!
//! Rule: nothing is allocated by a count that the data cannot hold.

use super::proto::{IHAVEOPT, OPTION_REPLY_MAGIC};
use crate::exports::STRING_LEN_MAX;

pub(crate) const OPTION_HEAD_LEN: usize = 16;

/// An option's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionHead {
    pub(crate) code: u32,
    pub(crate) data_len: u32,
}

impl OptionHead {
    /// `None` if the magic is wrong: the stream is out of step for good.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u64().ok()?;
        let code = fields.u32().ok()?;
        let data_len = fields.u32().ok()?;
        (magic == IHAVEOPT).then_some(Self { code, data_len })
    }
}

/// Data that is not what its option asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the option's data ends early")]
    Short,
    #[error("the option's data goes on after its end")]
    Long,
    #[error("a name is not UTF-8")]
    NotText,
    #[error("a name is longer than 4096 bytes")]
    TooLong,
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) wanted: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(data);
        let name = fields.text()?;
        let count = fields.u16()?;
        let mut wanted = Vec::new();
        for _ in 0..count {
            wanted.push(fields.u16()?);
        }
        fields.end()?;
        Ok(Self { name, wanted })
    }
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) queries: Vec<&'a str>,
}

impl<'a> MetaRequest<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(data);
        let name = fields.text()?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.text()?);
        }
        fields.end()?;
        Ok(Self { name, queries })
    }
}

/// Appends an option reply to `out`; `data` is its parts.
pub(crate) fn put_reply(out: &mut Vec<u8>, code: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).expect("our option replies are a few KiB");
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(code.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(len.to_be_bytes());
    data.iter().for_each(|part| out.extend_from_slice(part));
}

/// What is left of some bytes in network order.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A length, then so many bytes of text.
    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed::TooLong)?;
        if len > STRING_LEN_MAX {
            return Err(Malformed::TooLong);
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed::NotText)
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Long)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
        out.extend(text.as_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = InfoRequest::decode(&data);
            let _ = MetaRequest::decode(&data);
            let _ = OptionHead::decode(&data);
        }

        #[test]
        fn requests_come_back_as_they_were(
            name in ".{0,40}",
            wanted in proptest::collection::vec(any::<u16>(), 0..8),
            queries in proptest::collection::vec(".{0,20}", 0..8),
        ) {
            let mut data = Vec::new();
            text(&mut data, &name);
            data.extend(u16::try_from(wanted.len()).expect("few").to_be_bytes());
            wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
            let got = InfoRequest::decode(&data).expect("well formed");
            prop_assert_eq!((got.name, &got.wanted), (name.as_str(), &wanted));
            data.push(0);
            prop_assert_eq!(InfoRequest::decode(&data), Err(Malformed::Long));

            let mut data = Vec::new();
            text(&mut data, &name);
            data.extend(u32::try_from(queries.len()).expect("few").to_be_bytes());
            queries.iter().for_each(|query| text(&mut data, query));
            let got = MetaRequest::decode(&data).expect("well formed");
            prop_assert_eq!(got.queries, queries.iter().map(String::as_str).collect::<Vec<_>>());
            data.pop();
            prop_assert!(MetaRequest::decode(&data).is_err() );
        }
    }

    #[test]
    fn a_huge_count_with_no_data_is_short() {
        let mut data = Vec::new();
        text(&mut data, "x");
        data.extend(u32::MAX.to_be_bytes());
        assert_eq!(MetaRequest::decode(&data), Err(Malformed::Short));
    }
}
