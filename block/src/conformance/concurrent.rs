//! What holds when requests are in flight together.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Random;
use crate::{BlockDevice, ByteRange, Fua, ZeroOptions, index};

const THREADS: u64 = 4;
const ROUNDS: u64 = 150;

/// Bytes of a stripe: not aligned to anything, so threads meet inside sectors and granules.
const STRIPE: u64 = 700;

/// Thread `t` owns every fourth stripe: it changes them in any way, and always reads what it left.
pub(super) fn disjoint_writes_do_not_disturb_each_other(device: &dyn BlockDevice) {
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let failed = &failed;
            scope.spawn(move || {
                let mut owner = Owner::new(thread, device);
                for _ in 0..ROUNDS {
                    if failed.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(what) = owner.round() {
                        failed.store(true, Ordering::Relaxed);
                        panic!("{what}");
                    }
                }
            });
        }
    });
}

struct Owner<'a> {
    random: Random,
    device: &'a dyn BlockDevice,
    thread: u64,
    stripes: Vec<Vec<u8>>,
}

impl<'a> Owner<'a> {
    fn new(thread: u64, device: &'a dyn BlockDevice) -> Self {
        // Few stripes, so that they are hit often.
        let count = (device.size() / STRIPE / THREADS).min(24);
        let mut stripes = vec![vec![0; index(STRIPE)]; index(count)];
        for (number, stripe) in stripes.iter_mut().enumerate() {
            let range = place(thread, number as u64);
            device.read_at(stripe, range.start()).expect("read");
        }
        Self {
            random: Random::new(thread + 100),
            device,
            thread,
            stripes,
        }
    }

    fn round(&mut self) -> Result<(), String> {
        let number = self.random.below(self.stripes.len() as u64);
        let range = place(self.thread, number);
        let stripe = &mut self.stripes[index(number)];
        let mut found = vec![0; stripe.len()];
        self.device
            .read_at(&mut found, range.start())
            .expect("read");
        if &found != stripe {
            return Err(format!("a neighbour's request changed bytes {range}"));
        }
        match self.random.below(6) {
            0 => {
                let zeroed = self.device.write_zeroes(range, ZeroOptions::RELAXED);
                zeroed.expect("write-zeroes");
                stripe.fill(0);
            }
            1 => {
                self.device.trim(range, Fua::No).expect("trim");
                self.device.read_at(stripe, range.start()).expect("read");
            }
            _ => {
                self.random.fill(stripe);
                let written = self.device.write_at(stripe, range.start(), Fua::No);
                written.expect("write");
            }
        }
        Ok(())
    }
}

fn place(thread: u64, number: u64) -> ByteRange {
    ByteRange::at((number * THREADS + thread) * STRIPE, STRIPE).expect("inside the device")
}

/// All threads write one range, each its own byte: at the end every byte is somebody's.
pub(super) fn overlapping_writes_leave_bytes_of_one_of_them(device: &dyn BlockDevice) {
    const OFFSET: u64 = 1000;
    const LEN: usize = 20_000;
    device
        .write_at(&vec![0xff; LEN], OFFSET, Fua::No)
        .expect("write");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let byte = u8::try_from(thread).expect("few threads") + 1;
                for _ in 0..ROUNDS {
                    let data = vec![byte; LEN];
                    device.write_at(&data, OFFSET, Fua::No).expect("write");
                }
            });
        }
    });
    let mut found = vec![0; LEN];
    device.read_at(&mut found, OFFSET).expect("read");
    let stray = found
        .iter()
        .position(|b| !(1..=THREADS).contains(&u64::from(*b)));
    assert_eq!(stray, None, "a byte that nobody wrote last");
}
