//! Random operations, one after the other, against a `Vec<u8>`.

use super::Random;
use crate::{
    BlockDevice, ByteRange, ErrorKind, Extent, Fua, Hole, SECTOR, Speed, ZeroOptions, index,
};

const OPERATIONS: usize = 400;

/// One run over one device.
pub(super) struct Run<'a> {
    seed: u64,
    random: Random,
    device: &'a dyn BlockDevice,
    model: Vec<u8>,
}

impl<'a> Run<'a> {
    /// The model starts as what the device holds.
    pub(super) fn new(seed: u64, device: &'a dyn BlockDevice) -> Self {
        let mut model = vec![0xa5; index(device.size())];
        device.read_at(&mut model, 0).expect("the whole disk reads");
        Self {
            seed,
            random: Random::new(seed),
            device,
            model,
        }
    }

    pub(super) fn run(mut self) {
        for step in 0..OPERATIONS {
            let range = self.range();
            let what = self.operation(range);
            let context = format!("seed {}, step {step}: {what} of {range}", self.seed);
            self.compare(range, &context);
            if step % 16 == 0 {
                self.check_status(self.whole(), usize::MAX, &context);
                self.check_out_of_range(&context);
            }
        }
        self.device.flush().expect("flush");
        self.compare(self.whole(), &format!("seed {}, at the end", self.seed));
    }

    fn operation(&mut self, range: ByteRange) -> &'static str {
        if !self.device.features().writable {
            self.check_refused(range);
            return "a refused change";
        }
        match self.random.below(10) {
            0..=3 => self.write(range),
            4..=5 => self.zero(range),
            6 => self.trim(range),
            7 => {
                self.device.flush().expect("flush");
                "flush"
            }
            8 => {
                self.device.prefetch(range).expect("prefetch");
                "prefetch"
            }
            _ => {
                let extents_max = index(1 + self.random.below(4));
                self.check_status(range, extents_max, "block status");
                "block status"
            }
        }
    }

    fn write(&mut self, range: ByteRange) -> &'static str {
        let mut data = vec![0; index(range.len())];
        match self.random.below(4) {
            0 => {}
            _ => self.random.fill(&mut data),
        }
        let fua = self.fua();
        if self.random.below(2) == 0 {
            self.device
                .write_at(&data, range.start(), fua)
                .expect("write");
        } else {
            self.write_and_read_at_answer(&data, range, fua);
        }
        self.model[span(range)].copy_from_slice(&data);
        "write"
    }

    /// The write counts from its answer on, not only from when the device is done with it.
    fn write_and_read_at_answer(&self, data: &[u8], range: ByteRange, fua: Fua) {
        let (device, mut answers) = (self.device, 0);
        device.write_and_answer(data, range.start(), fua, &mut |outcome| {
            answers += 1;
            outcome.expect("write");
            let mut read = vec![0xee; data.len()];
            device.read_at(&mut read, range.start()).expect("read");
            assert!(read == data, "{range:?}: an answered write is not there");
        });
        assert_eq!(answers, 1, "{range:?}: a write has one answer");
    }

    fn zero(&mut self, range: ByteRange) -> &'static str {
        let either = |random: &mut Random, a, b| if random.below(2) == 0 { a } else { b };
        let options = ZeroOptions {
            fua: self.fua(),
            hole: either(&mut self.random, Hole::Allowed, Hole::Forbidden),
            speed: if self.random.below(3) == 0 {
                Speed::FastOnly
            } else {
                Speed::Any
            },
        };
        match self.device.write_zeroes(range, options) {
            Ok(()) => self.model[span(range)].fill(0),
            // The comparison that follows sees that nothing changed.
            Err(e) if options.speed == Speed::FastOnly => {
                assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
            }
            Err(e) => panic!("seed {}: write-zeroes of {range}: {e}", self.seed),
        }
        "write-zeroes"
    }

    fn trim(&mut self, range: ByteRange) -> &'static str {
        let fua = self.fua();
        self.device.trim(range, fua).expect("trim");
        // Unspecified, but from here on they stay.
        self.device
            .read_at(&mut self.model[span(range)], range.start())
            .expect("trimmed bytes read");
        "trim"
    }

    fn check_refused(&self, range: ByteRange) {
        let data = vec![1; index(range.len())];
        let results = [
            self.device.write_at(&data, range.start(), Fua::No),
            self.device.write_zeroes(range, ZeroOptions::RELAXED),
            self.device.trim(range, Fua::No),
        ];
        for result in results {
            let error = result.expect_err("a device that is not writable took a change");
            assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        }
        self.device.flush().expect("flush of a read-only device");
    }

    /// Compares around `range`, and all of it now and then: a stray write shows somewhere else.
    fn compare(&mut self, range: ByteRange, context: &str) {
        let compared = if self.random.below(8) == 0 {
            self.whole()
        } else {
            let margin = 8192;
            let end = (range.end() + margin).min(self.device.size());
            ByteRange::new(range.start().saturating_sub(margin), end).expect("ordered")
        };
        let mut found = vec![0x5a; index(compared.len())];
        self.device
            .read_at(&mut found, compared.start())
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        let wrong = found
            .iter()
            .zip(&self.model[span(compared)])
            .position(|(found, expected)| found != expected);
        if let Some(at) = wrong {
            let byte = compared.start() + at as u64;
            let (found, expected) = (found[at], self.model[index(byte)]);
            panic!("{context}: byte {byte} is {found:#x} and should be {expected:#x}");
        }
    }

    /// Extents follow each other, cover what they must, and call no data a hole.
    fn check_status(&self, range: ByteRange, extents_max: usize, context: &str) {
        let extents = self
            .device
            .block_status(range, extents_max)
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(extents.len() <= extents_max, "{context}: too many extents");
        let mut at = range.start();
        for Extent { range, state } in &extents {
            assert_eq!(range.start(), at, "{context}: a gap");
            assert!(!range.is_empty(), "{context}: an empty extent");
            let is_zero = || self.model[span(*range)].iter().all(|b| *b == 0);
            assert!(
                !state.reads_zero() || is_zero(),
                "{context}: {range} is called {state:?}"
            );
            at = range.end();
        }
        assert!(at <= range.end(), "{context}: extents pass the range");
        if extents.len() < extents_max {
            assert_eq!(at, range.end(), "{context}: extents stop early");
        }
    }

    fn check_out_of_range(&mut self, context: &str) {
        let size = self.device.size();
        let writable = self.device.features().writable;
        let ranges = [
            (size, 1),
            (size - 1, 2),
            (0, size + 1),
            (u64::MAX - 512, 512),
        ];
        for (offset, len) in ranges {
            let range = ByteRange::at(offset, len).expect("does not wrap");
            let mut buf = vec![0; index(len)];
            let mut results = vec![
                self.device.read_at(&mut buf, offset),
                self.device.block_status(range, 1).map(drop),
            ];
            if writable {
                results.push(self.device.write_at(&buf, offset, Fua::No));
                let push = &mut |outcome| results.push(outcome);
                self.device.write_and_answer(&buf, offset, Fua::No, push);
                results.push(self.device.write_zeroes(range, ZeroOptions::RELAXED));
                results.push(self.device.trim(range, Fua::No));
            }
            for result in results {
                let error = result.expect_err("a request past the end succeeded");
                assert_eq!(error.kind(), ErrorKind::OutOfRange, "{context}: {error}");
            }
        }
        let edge = ByteRange::new(size.saturating_sub(64 << 10), size).expect("ordered");
        self.compare(edge, context);
    }

    /// Random ranges: unaligned, of whole sectors, of whole granules; empty ones, the very end.
    fn range(&mut self) -> ByteRange {
        let size = self.device.size();
        let unit = [1, SECTOR, 4096][index(self.random.below(3))];
        let len_max = match self.random.below(8) {
            0 => size,
            1..=3 => 16 << 10,
            _ => 200 << 10,
        };
        let len = self.random.below(len_max.min(size) / unit + 1) * unit;
        let start = match self.random.below(8) {
            0 => size - len,
            _ => self.random.below((size - len) / unit + 1) * unit,
        };
        ByteRange::at(start, len).expect("inside the device")
    }

    fn whole(&self) -> ByteRange {
        ByteRange::at(0, self.device.size()).expect("from zero")
    }

    fn fua(&mut self) -> Fua {
        // A sync may take milliseconds.
        if self.random.below(16) == 0 {
            Fua::Yes
        } else {
            Fua::No
        }
    }
}

fn span(range: ByteRange) -> std::ops::Range<usize> {
    index(range.start())..index(range.end())
}
