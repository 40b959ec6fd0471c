//! Whether what a cut sealed makes of the images before it those of the moment of the cut.

use std::io;

use block::{GRANULE, index};
use splitter::{CutError, CutNote, Generation, RunContent, SealedGeneration};

use super::{Bench, Image, trace};

impl Bench {
    pub fn cut_and_check(&mut self, seed: u64) {
        match self.group().cut(CutNote::default()) {
            Ok(cut) => {
                let production = self.production();
                self.images.insert(cut.generation, production);
                self.answered.insert(cut.generation);
                trace(|| format!("cut {}", cut.generation));
                self.check_sealed_since(seed, cut.generation);
            }
            Err(CutError::Distrusted) => self.relearn(),
            Err(CutError::MapOnly) => assert!(self.group().copies_are_paused()),
            Err(
                error @ (CutError::Degraded { .. }
                | CutError::Io { .. }
                | CutError::Production { .. }),
            ) => {
                let excused = self.fault || self.writeback_failed || self.world.crashed();
                assert!(
                    excused,
                    "seed {seed}: a cut failed though nothing did: {error}"
                );
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }

    /// Each sealed generation, laid over the image of any cut it may build on, is its cut's image.
    pub fn check_sealed(&mut self, seed: u64) {
        self.check_sealed_since(seed, self.released.next());
    }

    fn check_sealed_since(&mut self, seed: u64, first: Generation) {
        for sealed in self.group().sealed() {
            // A cut that a kill interrupted after its store was made, but never answered.
            if !self.images.contains_key(&sealed.generation) {
                let production = self.production();
                self.images.insert(sealed.generation, production);
            }
        }
        for sealed in self.group().sealed() {
            let _ = self.group().finish_merge(&sealed);
        }
        if self.world.crashed() {
            return;
        }
        let sealed = self.group().sealed();
        // Of what was released, a part may be gone.
        let kept = sealed.iter().filter(|s| s.generation > self.released);
        for sealed in kept.filter(|s| s.is_unfinished()) {
            let mut parts = self.images.range(sealed.since.next()..=sealed.generation);
            let answered = parts.all(|(generation, _)| self.answered.contains(generation));
            let excused = self.writeback_failed || self.fault || !answered;
            assert!(excused, "seed {seed}: a merge is lost");
        }
        let sealed = sealed.into_iter().filter(|sealed| !sealed.is_unfinished());
        for sealed in sealed.filter(|s| s.generation >= first).collect::<Vec<_>>() {
            let expected = &self.images[&sealed.generation];
            let mut bases = self.images.range(sealed.since..sealed.generation);
            // The oldest and the newest that it may build on.
            let (oldest, newest) = (bases.next(), bases.next_back());
            assert!(
                oldest.is_some(),
                "seed {seed}: nothing to build on since {} of {:?}, released {}",
                sealed.since,
                self.images.keys(),
                self.released
            );
            for (base, images) in oldest.into_iter().chain(newest) {
                let Ok(built) = self.world.observe(|| try_lay_over(images, &sealed)) else {
                    // It is lost, and its reader says so; whoever ships it folds it.
                    let excused =
                        self.writeback_failed || !self.answered.contains(&sealed.generation);
                    assert!(excused, "seed {seed}: a sealed diff is lost");
                    continue;
                };
                assert!(
                    built == *expected,
                    "seed {seed}: {base} + {} differs in {}",
                    sealed.generation,
                    differing(&built, expected)
                );
            }
        }
    }

    /// The next point, on top of `base`, is production.
    pub fn check_next(&mut self, base: &[Image], story: &str) {
        self.group().cut(CutNote::default()).unwrap();
        let sealed = self.group().sealed().pop().unwrap();
        assert!(lay_over(base, &sealed) == self.production(), "{story}");
    }
}

/// The first granule that differs, for whoever looks for the reason.
fn differing(built: &[Image], expected: &[Image]) -> String {
    for (disk, (built, expected)) in built.iter().zip(expected).enumerate() {
        let both = built.chunks(4096).zip(expected.chunks(4096));
        let differ: Vec<_> = (0..)
            .zip(both)
            .filter(|(_, (b, e))| b != e)
            .map(|(at, _)| at)
            .collect::<Vec<u32>>();
        if !differ.is_empty() {
            return format!("granules {differ:?} of disk {disk}");
        }
    }
    "nothing".into()
}

/// What a target makes of a base and a sealed generation.
pub fn lay_over(base: &[Image], sealed: &SealedGeneration) -> Vec<Image> {
    try_lay_over(base, sealed).unwrap()
}

fn try_lay_over(base: &[Image], sealed: &SealedGeneration) -> io::Result<Vec<Image>> {
    let mut images = base.to_vec();
    for (image, disk) in images.iter_mut().zip(&sealed.disks) {
        let reader = disk.reader().map_err(io::Error::other)?;
        let mut past_the_end_is_zero = true;
        for run in reader.runs() {
            let mut bytes = vec![0; index(run.granules.count() * GRANULE)];
            if run.content == RunContent::Data {
                reader.read(run.granules, &mut bytes)?;
            }
            let range = run.granules.bytes(disk.size());
            let len = index(range.len());
            past_the_end_is_zero &= bytes[len..].iter().all(|b| *b == 0);
            image[index(range.start())..index(range.end())].copy_from_slice(&bytes[..len]);
        }
        reader.finish().map_err(io::Error::other)?;
        assert!(past_the_end_is_zero, "past the end of the disk is zero");
    }
    Ok(images)
}
