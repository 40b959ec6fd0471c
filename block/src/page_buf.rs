//! Memory that begins at a page: the kernel moves it to and from a device as it is.

use std::ops::{Deref, DerefMut};

/// Bytes that begin at a multiple of [`PageBuf::ALIGN`] in memory.
#[derive(Debug, Default)]
pub struct PageBuf {
    memory: Vec<u8>,
    begin: usize,
    len: usize,
}

impl PageBuf {
    /// What the address of the first byte is a multiple of. No device wants more for `O_DIRECT`.
    pub const ALIGN: usize = 4096;

    /// `len` zeroes. Large ones cost nothing before they are touched.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let memory = vec![0_u8; len + Self::ALIGN];
        let begin = memory.as_ptr().align_offset(Self::ALIGN);
        Self { memory, begin, len }
    }
}

impl Deref for PageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.begin..][..self.len]
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_wherever_it_is_moved() {
        for len in [1, 511, 4096, 3 << 20] {
            let mut kept = Vec::new();
            for _ in 0..8 {
                kept.push(PageBuf::zeroed(len));
            }
            for mut buf in kept {
                assert_eq!(buf.len(), len);
                assert!(buf.as_ptr().addr().is_multiple_of(PageBuf::ALIGN));
                buf[len - 1] = 1;
            }
        }
        assert!(PageBuf::default().is_empty() && PageBuf::zeroed(0).is_empty());
    }
}
