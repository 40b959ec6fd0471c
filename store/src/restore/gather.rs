//! Gathers what lies together in an image, region after region, to be written at once.
//!
//! ```text
//! chunks of regions -> | up to 1 MiB, at a page in memory | -> one write: it is full, or what comes next belongs elsewhere
//! ```
//!
//! A device that is written past the page cache takes a mebibyte at once much faster than sixteen pieces of it.

use block::PageBuf;

use super::{RestoreSink, Taker, sink_error};
use crate::error::Result;

const GATHER_BYTES: usize = 1 << 20;

/// What one thread has gathered.
pub(super) struct Gather<'a> {
    sink: &'a dyn RestoreSink,
    buf: PageBuf,
    /// Where the first byte belongs.
    start: u64,
    len: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new(sink: &'a dyn RestoreSink) -> Self {
        Self {
            sink,
            buf: PageBuf::zeroed(GATHER_BYTES),
            start: 0,
            len: 0,
        }
    }

    /// Writes what is gathered.
    fn write(&mut self) -> Result<()> {
        let len = std::mem::take(&mut self.len);
        if len > 0 {
            let written = self.sink.write(self.start, &self.buf[..len]);
            written.map_err(sink_error)?;
            self.start += len as u64;
        }
        Ok(())
    }
}

impl Taker for Gather<'_> {
    fn data(&mut self, offset: u64, mut data: &[u8]) -> Result<()> {
        if offset != self.start + self.len as u64 {
            self.write()?;
            self.start = offset;
        }
        while !data.is_empty() {
            let room = self.buf.len() - self.len;
            let (now, later) = data.split_at(data.len().min(room));
            self.buf[self.len..][..now.len()].copy_from_slice(now);
            self.len += now.len();
            data = later;
            if self.len == self.buf.len() {
                self.write()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.write()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use block::ByteRange;
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Writes(Mutex<Vec<(u64, Vec<u8>)>>);

    impl RestoreSink for Writes {
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.lock().push((offset, data.to_vec()));
            Ok(())
        }

        fn zero(&self, _: ByteRange) -> io::Result<()> {
            unreachable!("nothing is zero here")
        }
    }

    fn gathered(pieces: &[(u64, usize)]) -> Vec<(u64, Vec<u8>)> {
        let writes = Writes::default();
        let mut gather = Gather::new(&writes);
        for (i, (offset, len)) in (0..).zip(pieces) {
            let data = vec![i; *len];
            gather.data(*offset, &data).expect("taken");
        }
        gather.end().expect("written");
        writes.0.into_inner()
    }

    #[test]
    fn neighbours_are_written_at_once_and_others_by_themselves() {
        let writes = gathered(&[(8192, 4096), (12_288, 512), (0, 4096), (4096, 4096)]);
        let expected = [
            (8192, [vec![0; 4096], vec![1; 512]].concat()),
            (0, [vec![2; 4096], vec![3; 4096]].concat()),
        ];
        assert_eq!(writes, expected);
    }

    #[test]
    fn no_write_is_longer_than_the_memory_for_it() {
        let half = GATHER_BYTES / 2;
        let offset = half as u64;
        let writes = gathered(&[(0, half), (offset, 3 * half), (4 * offset, half + 1)]);
        let lens: Vec<_> = writes.iter().map(|(at, data)| (*at, data.len())).collect();
        let full = |n: u64| (n * 2 * offset, GATHER_BYTES);
        assert_eq!(lens, [full(0), full(1), (4 * offset, half + 1)]);
        assert_eq!(writes[0].1[half - 1..=half], [0, 1]);
    }

    #[test]
    fn what_comes_after_a_full_write_goes_on_behind_it() {
        let writes = gathered(&[(4096, GATHER_BYTES), (4096 + GATHER_BYTES as u64, 4096)]);
        let at: Vec<_> = writes.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [4096, 4096 + GATHER_BYTES as u64]);
    }
}
