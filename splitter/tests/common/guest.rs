//! What guests do to the disks: writes, zeroes, trims, here and there and where they wrote before.

use std::time::Duration;

use block::{BlockDevice, ByteRange, Clock, Fua, GRANULE, Hole, Speed, ZeroOptions, index};
use rand::RngExt;

use super::{Bench, trace};

impl Bench {
    fn some_range(&mut self, disk: usize) -> ByteRange {
        // Guests write the same runs again: journals, logs.
        if self.rng.random_bool(0.2)
            && let Some(again) = self.long_range[disk]
        {
            return again;
        }
        let sectors = self.sizes[disk] / 512;
        let start = self.rng.random_range(0..sectors);
        let most = if self.rng.random_bool(0.1) { 800 } else { 24 };
        let count = self.rng.random_range(1..=most).min(sectors - start);
        let range = ByteRange::at(start * 512, count * 512).unwrap();
        if range.granules_touched().count() > 8 {
            self.long_range[disk] = Some(range);
        }
        range
    }

    pub(super) fn some_disk(&mut self) -> usize {
        self.rng.random_range(0..self.sizes.len())
    }

    /// Requests fail only when production does, or the world has ended.
    fn guest(&mut self, disk: usize, answer: block::Result<()>) {
        // The last request may have ended before it came to production.
        if !self.world.crashed() {
            self.mtime_ns[disk] = self.clock.wall().0;
        }
        let excused = self.world.crashed() || (self.production_failed && disk == 0);
        assert!(answer.is_ok() || excused, "{answer:?}");
        if self.rng.random_bool(0.02) {
            self.clock.advance(Duration::from_secs(30));
        }
    }

    pub fn write(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        trace(|| format!("write disk {disk} {:?}", range.granules_touched()));
        let byte: u8 = self.rng.random();
        let salt: u8 = self.rng.random();
        let data: Vec<u8> = (0..range.len())
            .map(|i| byte ^ (i as u8).wrapping_mul(salt))
            .collect();
        let fua = if self.rng.random_bool(0.03) {
            Fua::Yes
        } else {
            Fua::No
        };
        self.note_touched(disk, range);
        let mut answer = None;
        self.group().disks()[disk].write_and_answer(&data, range.start(), fua, &mut |outcome| {
            assert!(answer.replace(outcome).is_none(), "a second answer");
        });
        let answer = answer.expect("an answer");
        if answer.is_ok() && fua == Fua::Yes {
            self.note_flush(disk);
        }
        self.guest(disk, answer);
    }

    /// Writes granules of the first disk.
    pub fn fill(&mut self, granules: std::ops::Range<u64>, byte: u8) {
        let data = vec![byte; index((granules.end - granules.start) * GRANULE)];
        let answer = self.group().disks()[0].write_at(&data, granules.start * GRANULE, Fua::No);
        self.guest(0, answer);
    }

    pub fn zero(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        trace(|| format!("zero disk {disk} {:?}", range.granules_touched()));
        let options = ZeroOptions {
            fua: Fua::No,
            hole: Hole::Allowed,
            speed: Speed::Any,
        };
        self.note_touched(disk, range);
        let answer = self.group().disks()[disk].write_zeroes(range, options);
        self.guest(disk, answer);
    }

    pub fn trim(&mut self) {
        let disk = self.some_disk();
        let range = self.some_range(disk);
        self.note_touched(disk, range);
        let answer = self.group().disks()[disk].trim(range, Fua::No);
        if range.granules_covered().is_empty() {
            // Ignored: the file's time does not change either.
            return answer.unwrap_or_default();
        }
        self.guest(disk, answer);
    }
}
