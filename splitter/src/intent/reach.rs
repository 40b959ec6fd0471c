//! How many regions a write to a cold one makes hot: the more, the more often that happened lately.
//!
//! A guest that begins to write all over a disk that was quiet would wait for a sync with nearly every
//! write, thousands of times. So what is made hot doubles with every such wait that follows soon on the
//! last. What turns out not to be written leaves the log with the next rounds.
//!
//! Rule: this only ever adds regions. One too many costs a re-read after a power cut, no more; all that
//! is added so stays within [`HOT_BYTES_MAX`].

use std::ops::Range;
use std::time::Duration;

use block::UnixNanos;

/// A wait that comes later than this after the last one says nothing of the next.
const SOON: Duration = Duration::from_secs(1);
/// Of a disk at once: this part of it at most, and so many bytes.
const PART_MAX: u64 = 16;
const BYTES_MAX: u64 = 256 << 20;
/// No more is added for reach's sake where so much of a disk is hot: seconds of re-reading.
const HOT_BYTES_MAX: u64 = 4 << 30;

/// The reach of one disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    regions: u64,
    last: UnixNanos,
}

/// What a disk's part of the log looks like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) region_bytes: u64,
    pub(super) region_count: u64,
    pub(super) hot_count: u64,
}

impl Reach {
    pub(super) fn new() -> Self {
        Self {
            regions: 1,
            last: UnixNanos(0),
        }
    }

    /// A write at `now` has to wait for `regions`; which to make hot together with them.
    pub(super) fn widen(
        &mut self,
        regions: Range<u64>,
        disk: Extent,
        now: UnixNanos,
    ) -> Range<u64> {
        let most = (disk.region_count / PART_MAX)
            .min(BYTES_MAX / disk.region_bytes)
            .max(1);
        let soon = now.since(self.last) < SOON;
        self.regions = if soon {
            (self.regions * 2).min(most)
        } else {
            1
        };
        self.last = now;
        if disk.hot_count.saturating_mul(disk.region_bytes) >= HOT_BYTES_MAX {
            return regions;
        }
        let start = regions.start / self.regions * self.regions;
        let end = regions.end.next_multiple_of(self.regions);
        start..end.min(disk.region_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Extent = Extent {
        region_bytes: 256 << 10,
        region_count: 4096,
        hot_count: 0,
    };

    fn at(ms: u64) -> UnixNanos {
        UnixNanos(1_000_000_000_000 + ms * 1_000_000)
    }

    /// Four thousand writes to a disk of 1 GiB waited for a sync each: 20 s of random writes.
    #[test]
    fn writes_all_over_a_cold_disk_wait_a_few_times() {
        let (mut reach, mut hot, mut waits) = (Reach::new(), vec![false; 4096], 0);
        for write in 0..100_000_u64 {
            let region = write * 2_654_435_761 % 4096;
            if hot[block::index(region)] {
                continue;
            }
            waits += 1;
            let wide = reach.widen(region..region + 1, DISK, at(waits * 8));
            assert!(wide.contains(&region) && wide.end <= DISK.region_count);
            hot[block::index(wide.start)..block::index(wide.end)].fill(true);
        }
        assert!(waits <= 40, "{waits} waits");
    }

    #[test]
    fn a_write_now_and_then_makes_its_own_region_hot() {
        let mut reach = Reach::new();
        for second in 0..10 {
            assert_eq!(reach.widen(7..9, DISK, at(second * 1000)), 7..9);
        }
    }

    #[test]
    fn where_much_is_hot_nothing_is_added() {
        let mut reach = Reach::new();
        let disk = Extent {
            region_bytes: 4 << 20,
            region_count: 1 << 18,
            hot_count: 1024,
        };
        for ms in 0..20 {
            assert_eq!(reach.widen(70..71, disk, at(ms)), 70..71);
        }
    }
}
