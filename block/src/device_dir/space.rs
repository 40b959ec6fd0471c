//! Which segments of a device are free.

use std::io;

/// A bit for each segment.
#[derive(Debug)]
pub(super) struct FreeSpace {
    /// Set where it is taken.
    taken: Vec<u64>,
    total: u32,
    free: u32,
    /// Where to look next: after what was taken last, so that what is written in sequence lies in sequence, and the
    /// device is used evenly.
    next: u32,
}

impl FreeSpace {
    pub(super) fn new(total: u32) -> Self {
        let words = crate::index(u64::from(total).div_ceil(64));
        Self {
            taken: vec![0; words],
            total,
            free: total,
            next: 0,
        }
    }

    pub(super) fn free(&self) -> u32 {
        self.free
    }

    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Takes `count` segments, in sequence where it can be.
    ///
    /// # Errors
    /// `StorageFull`, and none is taken.
    pub(super) fn take(&mut self, count: usize) -> io::Result<Vec<u32>> {
        if u32::try_from(count).map_or(true, |count| count > self.free) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the device has no free segment",
            ));
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let (word, bit) = place(self.next);
            let full = bit == 1 && self.taken[word] == u64::MAX;
            if self.taken[word] & bit == 0 {
                self.taken[word] |= bit;
                self.free -= 1;
                taken.push(self.next);
            }
            self.next += if full { 64 } else { 1 };
            if self.next >= self.total {
                self.next = 0;
            }
        }
        Ok(taken)
    }

    /// Takes this one; `false` if it is taken.
    pub(super) fn take_at(&mut self, segment: u32) -> bool {
        let (word, bit) = place(segment);
        let was_free = self.taken[word] & bit == 0;
        if was_free {
            self.taken[word] |= bit;
            self.free -= 1;
        }
        was_free
    }

    pub(super) fn give_back(&mut self, segment: u32) {
        let (word, bit) = place(segment);
        assert!(self.taken[word] & bit != 0, "segment {segment} is free");
        self.taken[word] &= !bit;
        self.free += 1;
    }
}

fn place(segment: u32) -> (usize, u64) {
    (crate::index((segment / 64).into()), 1 << (segment % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_segment_is_taken_once_and_the_next_after_the_last() {
        for total in [1, 63, 64, 65, 200] {
            let mut space = FreeSpace::new(total);
            let all: BTreeSet<u32> = (0..total)
                .flat_map(|_| space.take(1).expect("free"))
                .collect();
            assert_eq!(all.len(), crate::index(total.into()));
            assert_eq!(
                space.take(1).expect_err("full").kind(),
                io::ErrorKind::StorageFull
            );
            space.give_back(total - 1);
            assert_eq!(space.take(1).expect("one"), [total - 1]);
            assert!(space.take(0).expect("none").is_empty());
        }
        let mut space = FreeSpace::new(300);
        assert_eq!(space.take(3).expect("free"), [0, 1, 2]);
        space.give_back(1);
        assert_eq!(space.take(2).expect("free"), [3, 4], "in sequence");
        assert!(!space.take_at(3) && space.take_at(1));
        assert_eq!(space.free(), 295);
    }
}
