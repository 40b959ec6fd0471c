//! How a group ends, and what it is when it is opened again: after a kill, a power cut, a clean close.

use std::collections::BTreeSet;

use block::{Clock, Stamp};
use rand::RngExt;
use rand::seq::IteratorRandom;
use sim::SimWorld;
use splitter::{Group, How, OpenError, Opened};

use super::{Bench, trace};

impl Bench {
    pub fn open_again(&self) -> Result<(Group, Opened), OpenError> {
        Group::open("web".parse().unwrap(), self.specs(), self.around())
    }

    pub(super) fn start(&mut self) -> How {
        let (group, opened) = self.open_through_crashes();
        self.group = Some(group);
        // A restart of tracking may have been complete although its caller never heard of it.
        if opened.lineage != self.lineage {
            self.forget();
        }
        // Whoever recovers leaves a gap, and may be killed before he says so.
        let newest = self
            .images
            .last_key_value()
            .map_or(0, |(newest, _)| newest.0);
        if self.group().open_generation().0 > newest + 1000 {
            self.lose_cuts();
        }
        match opened.how {
            How::Resumed { .. } => {}
            How::Recovered { .. } => self.recoveries += 1,
            // The agent copies the disks anew; here at once.
            How::Fresh | How::Distrusted { .. } => self.forget(),
        }
        opened.how
    }

    /// In a rough history, opening is killed and loses power now and then, too.
    fn open_through_crashes(&mut self) -> (Group, Opened) {
        loop {
            if self.rough && self.rng.random_bool(0.2) {
                self.world.crash_after(self.rng.random_range(1..60));
            }
            match self.open_again() {
                // What did not come in here comes later.
                Ok(opened) => {
                    self.will_crash = self.rough;
                    return opened;
                }
                Err(error) => assert!(self.world.crashed(), "{error}"),
            }
            self.world = if self.rng.random_bool(0.5) {
                self.lose_power()
            } else {
                self.world.kill()
            };
        }
    }

    pub fn restart(&mut self, world: SimWorld, boot: &str) -> How {
        self.group = None;
        self.world = world;
        self.production_failed = false;
        self.fault = false;
        self.boot = boot.into();
        self.start()
    }

    /// Cuts that the target has not are gone; it may have committed more than was released.
    pub(super) fn lose_cuts(&mut self) {
        trace(|| format!("cuts are lost, {} is released", self.released));
        let listed = self.images.keys().copied();
        let may_be_newest = listed.filter(|g| *g >= self.released);
        if let Some(newest) = may_be_newest.choose(&mut self.rng) {
            self.images.split_off(&newest.next());
        }
    }

    fn lose_power(&mut self) -> SimWorld {
        self.boot = format!("boot-{}", self.rng.random::<u32>());
        self.cut_power()
    }

    /// The world in which the machine starts again.
    pub fn cut_power(&mut self) -> SimWorld {
        self.booted_at = self.clock.wall();
        self.world.cut_power()
    }

    pub fn restart_after_kill(&mut self, seed: u64) {
        let boot = self.boot.clone();
        let world = self.world.kill();
        if self.rough && self.rng.random_bool(0.3) {
            let lost = [".diff", ".diff", ".map", "live."][self.rng.random_range(0..4)];
            self.writeback_failed = true;
            trace(|| format!("lost {lost}"));
            world.fail_writeback(|name| name.contains(lost), self.rng.random_bool(0.5));
        }
        let how = self.restart(world, &boot);
        trace(|| format!("{how:?}, open is {}", self.group().open_generation()));
        // A kill while the very first files were being made leaves nothing to go on from.
        let fine = matches!(
            &how,
            How::Resumed { .. } | How::Recovered { .. } | How::Fresh
        ) || matches!(&how, How::Distrusted { why } if is_legal(why));
        assert!(fine, "seed {seed}: {how:?}");
        self.check_sealed(seed);
    }

    pub fn restart_after_power_cut(&mut self, seed: u64) {
        let world = self.lose_power();
        let boot = self.boot.clone();
        let how = self.restart(world, &boot);
        // Killed once more while it recovered, it goes on from what it had recovered.
        let fine = self.rough || !matches!(how, How::Resumed { .. });
        assert!(fine, "seed {seed}: {how:?}");
        self.check_flushed(seed);
    }

    /// What a flush promised is on the disk, where nothing was written since.
    fn check_flushed(&mut self, seed: u64) {
        let production = self.production();
        let void = usize::from(std::mem::take(&mut self.promises_void));
        let kept = production.iter().zip(&self.flushed).skip(void);
        for (found, (flushed, touched)) in kept {
            let sectors = found.chunks(512).zip(flushed.chunks(512)).enumerate();
            for (sector, (found, flushed)) in sectors {
                let lost = found != flushed && !touched.contains(&(sector as u64));
                assert!(!lost, "seed {seed}: sector {sector} lost a flushed write");
            }
        }
        // All that survived is on the disk.
        let images = production.into_iter();
        self.flushed = images.map(|image| (image, BTreeSet::new())).collect();
    }

    pub fn restart_after_clean_close(&mut self, seed: u64, power: bool) {
        self.world.set_fault(None);
        let stamp = |(len, at): (&u64, &u64)| {
            Some(Stamp {
                len: *len,
                mtime_ns: *at,
            })
        };
        let stamps: Vec<_> = self.sizes.iter().zip(&self.mtime_ns).map(stamp).collect();
        let healthy = self.group.take().unwrap().close(&stamps).is_ok();
        // Who closes may be the first to be told.
        let excused = self.production_failed || self.writeback_failed;
        if self.world.crashed() || (excused && !healthy) {
            return self.restart_after_kill(seed);
        }
        assert!(healthy, "seed {seed}: a clean close failed");
        let boot = format!("boot-{}", self.rng.random::<u32>());
        self.booted_at = self.clock.wall();
        let world = if power {
            self.world.cut_power()
        } else {
            self.world.restart()
        };
        let how = self.restart(world, &boot);
        // An intent log that could not be written leaves nothing to go on from.
        let lost = matches!(&how, How::Distrusted { why } if is_legal(why));
        let fine = matches!(
            how,
            How::Resumed { .. } | How::Recovered { .. } | How::Fresh
        );
        assert!(fine || lost, "seed {seed}: {how:?}");
        self.check_sealed(seed);
    }
}

/// Whether a history may make tracking begin anew for this reason: something failed.
fn is_legal(why: &str) -> bool {
    ["untracked", "a flush of a disk failed", "the live state"]
        .iter()
        .any(|reason| why.contains(reason))
}
