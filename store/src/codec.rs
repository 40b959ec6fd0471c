//! Little-endian bytes of our own formats: a bounds-checked reader, writers, and the checksum that
//! seals a small object.
//!
//! Rule: a count or length that was read is compared with a named maximum, or with the bytes that
//! are really there, before anything is allocated for it.

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(crate) struct Malformed {
    pub(crate) what: &'static str,
    pub(crate) at: usize,
}

/// What a decoder returns.
pub(crate) type Decoded<T> = Result<T, Malformed>;

/// Reads forward over bytes, never past their end.
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn error(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    pub(crate) fn check(&self, holds: bool, what: &'static str) -> Decoded<()> {
        if holds { Ok(()) } else { Err(self.error(what)) }
    }

    /// Reads a value that can only be `expected`.
    pub(crate) fn is<T: PartialEq>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Decoded<T>,
        expected: T,
        what: &'static str,
    ) -> Decoded<()> {
        let found = read(self)?;
        self.check(found == expected, what)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Decoded<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..count) else {
            return Err(self.error("the data ends too early"));
        };
        self.at += count;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("exactly N bytes were taken"))
    }

    pub(crate) fn u8(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Decoded<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// LEB128, at most ten bytes.
    pub(crate) fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            self.check(bits << shift >> shift == bits, "a number is too large")?;
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number is too long"))
    }

    /// A number that may be negative, as zigzag.
    pub(crate) fn signed(&mut self) -> Decoded<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// A `u32` count of at most `max`, of items that take at least `item_bytes` each.
    pub(crate) fn count(&mut self, max: usize, item_bytes: usize) -> Decoded<usize> {
        let count = self.u32()? as usize;
        self.check(count <= max, "a count is above its maximum")?;
        let fits = count.saturating_mul(item_bytes) <= self.remaining();
        self.check(fits, "a count is more than the data holds")?;
        Ok(count)
    }

    /// A `u16` length and that many bytes of UTF-8, at most `max`.
    pub(crate) fn text(&mut self, max: usize) -> Decoded<&'a str> {
        let len = usize::from(self.u16()?);
        self.check(len <= max, "a text is too long")?;
        let bytes = self.bytes(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.error("a text is not UTF-8"))
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Decoded<()> {
        self.check(self.remaining() == 0, "data follows the end")
    }
}

/// Appends the encodings that [`Decoder`] reads.
pub(crate) trait Encode {
    fn put_bytes(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put_bytes(&[value]);
    }
    fn put_u16(&mut self, value: u16) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.put_bytes(&value.to_le_bytes());
    }
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8((value & 0x7f) as u8);
    }
    fn put_signed(&mut self, value: i64) {
        self.put_varint(((value << 1) ^ (value >> 63)).cast_unsigned());
    }
    /// Callers keep their lists below the maximum that the decoder checks.
    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).expect("lists are bounded far below 2^32"));
    }
    /// Callers check the length first.
    fn put_text(&mut self, text: &str) {
        self.put_u16(u16::try_from(text.len()).expect("texts are bounded below 2^16"));
        self.put_bytes(text.as_bytes());
    }
}

impl Encode for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The version of every format in this crate that this code writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Begins a small object: magic, version.
pub(crate) fn begin(magic: [u8; 8]) -> Vec<u8> {
    begin_version(magic, VERSION)
}

/// The same, of another version.
pub(crate) fn begin_version(magic: [u8; 8], version: u32) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.put_u32(version);
    out
}

/// Ends a small object with the checksum of all before it.
pub(crate) fn seal(mut object: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&object);
    object.put_u32(crc);
    object
}

/// Checks what [`begin`] and [`seal`] wrote; the decoder stands after the version.
pub(crate) fn unseal(bytes: &[u8], magic: [u8; 8]) -> Decoded<Decoder<'_>> {
    unseal_versions(bytes, magic, VERSION).map(|(decoder, _)| decoder)
}

/// The same, of any version up to `newest`. Returns the version as well.
pub(crate) fn unseal_versions(
    bytes: &[u8],
    magic: [u8; 8],
    newest: u32,
) -> Decoded<(Decoder<'_>, u32)> {
    let mut whole = Decoder::new(bytes);
    whole.is(Decoder::array, magic, "the magic number is wrong")?;
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(whole.error("the data ends too early"));
    };
    let matches = u32::from_le_bytes(*crc) == crc32c::crc32c(body);
    whole.check(matches, "the checksum does not match")?;
    let mut decoder = Decoder::new(body);
    decoder.bytes(magic.len())?;
    let version = decoder.u32()?;
    let known = (1..=newest).contains(&version);
    decoder.check(known, "the version is unknown")?;
    Ok((decoder, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_survive(a: u64, b: i64) {
            let mut out = Vec::new();
            out.put_varint(a);
            out.put_signed(b);
            let mut decoder = Decoder::new(&out);
            prop_assert_eq!(decoder.varint(), Ok(a));
            prop_assert_eq!(decoder.signed(), Ok(b));
            prop_assert_eq!(decoder.end(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_are_a_number_or_an_error(bytes: Vec<u8>) {
            let mut decoder = Decoder::new(&bytes);
            while decoder.varint().is_ok() {}
        }
    }

    #[test]
    fn a_number_past_64_bits_is_refused() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert!(Decoder::new(&bytes).varint().is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_object_is_noticed() {
        let object = seal([begin(*b"STDNTEST"), vec![1, 2, 3]].concat());
        assert!(unseal(&object, *b"STDNTEST").is_ok());
        for bit in 0..object.len() * 8 {
            let mut bad = object.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(&bad, *b"STDNTEST").is_err(), "bit {bit}");
        }
    }
}
