//! The contract of [`BlockDevice`] as tests that every device passes, the simulated ones included.
//!
//! A device is compared with a `Vec<u8>` after every operation: written bytes are known, zeroed
//! ones are zero, trimmed ones are read once and must stay as they were read. A device that is not
//! writable is compared with its own first reading, and must refuse every change.
//!
//! Rule: a failure prints the seed; [`check_seeded`] with that seed replays it.

mod concurrent;
mod model;

use std::sync::Arc;

use crate::BlockDevice;

/// Checks devices made by `make`: the device, and whatever must live as long as it. Each call makes
/// a new one, of a size from 64 KiB to some MiB, with any content.
///
/// # Panics
/// If the device breaks its contract, saying where and with which seed.
pub fn check<K>(make: impl Fn() -> (Arc<dyn BlockDevice>, K)) {
    for seed in (1..=4).chain(fresh_seed()) {
        check_seeded(seed, &make);
    }
    let (device, _keep) = make();
    if device.features().writable {
        concurrent::disjoint_writes_do_not_disturb_each_other(device.as_ref());
        concurrent::overlapping_writes_leave_bytes_of_one_of_them(device.as_ref());
    }
}

/// The seed of this run of all tests (`tests/run.sh` sets it), so that each tries something else.
fn fresh_seed() -> Option<u64> {
    std::env::var("STANDIN_SEED").ok()?.parse().ok()
}

/// One run of random operations against the model.
///
/// # Panics
/// If the device breaks its contract.
pub fn check_seeded<K>(seed: u64, make: impl Fn() -> (Arc<dyn BlockDevice>, K)) {
    let (device, _keep) = make();
    let size = device.size();
    assert!(
        size.is_multiple_of(crate::SECTOR),
        "size {size} is no whole sectors"
    );
    assert!(size >= 64 << 10, "the suite needs at least 64 KiB");
    model::Run::new(seed, device.as_ref()).run();
}

/// A small random source (splitmix64): the suite must replay without any dependency.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
