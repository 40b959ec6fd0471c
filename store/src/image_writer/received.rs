//! What somebody else has hashed and packed: chunks by their fingerprints, and regions as they are to lie.
//!
//! Rule: a region is believed only as far as it was checked. Without the key of an encrypted store that is its shape.

use block::GranuleRange;

use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, Fingerprint, ZERO_CHUNK};
use crate::place::Place;
use crate::region::{ChunkCodec, PackedRegion};
use crate::runs::Run;

use super::ImageWriter;
use super::bounds::Bounds;

const ZEROES_STORED: &str = "a chunk of zeroes is never stored";

/// Checks regions for one image: what takes a processor, while others write to it.
#[derive(Clone)]
pub struct RegionCheck {
    /// None where the store is encrypted, and its key is not known.
    codec: Option<ChunkCodec>,
    image: ImageOf,
}

/// A region that was found to be what it is said to be, as far as that can be seen.
pub struct CheckedRegion {
    image: ImageOf,
    granules: Vec<Option<u64>>,
    fingerprints: Vec<Fingerprint>,
    region: PackedRegion,
}

/// For what a region was checked: an image of this size in this store.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ImageOf {
    store: [u8; 16],
    size: u64,
    /// Whether content was checked.
    with_key: bool,
}

impl RegionCheck {
    /// Checks that the chunks of a region have these fingerprints, and that they may lie in these granules; a chunk without a
    /// granule is only stored. Where the store is encrypted and its key is not here, nothing but the shape can be checked: who
    /// writes to such a store is believed by all who write to it after him.
    ///
    /// # Errors
    /// `Invalid` if the region is not what it is said to be.
    pub fn check(
        &self,
        granules: Vec<Option<u64>>,
        fingerprints: Vec<Fingerprint>,
        region: PackedRegion,
    ) -> Result<CheckedRegion> {
        let count = region.chunk_count();
        if granules.len() != count || fingerprints.len() != count {
            let sentence = "a region needs a granule and a fingerprint for each of its chunks";
            return Err(StoreError::Invalid(sentence));
        }
        let bounds = Bounds::of(self.image.size);
        for granule in granules.iter().flatten() {
            bounds.granules(*granule, 1)?;
        }
        if fingerprints.contains(&Fingerprint::ZERO) {
            return Err(StoreError::Invalid(ZEROES_STORED));
        }
        match &self.codec {
            Some(codec) => {
                let chunks = codec.open(&region, &fingerprints);
                let chunks = chunks.map_err(StoreError::Invalid)?;
                check_chunks(&bounds, &granules, &chunks)?;
            }
            None if region.is_sealed() => {}
            None => {
                let sentence = "a region of an encrypted store is not encrypted";
                return Err(StoreError::Invalid(sentence));
            }
        }
        Ok(CheckedRegion {
            image: self.image,
            granules,
            fingerprints,
            region,
        })
    }
}

fn check_chunks(bounds: &Bounds, granules: &[Option<u64>], chunks: &[u8]) -> Result<()> {
    for (granule, chunk) in granules.iter().zip(chunks.chunks(CHUNK)) {
        if *chunk == ZERO_CHUNK {
            return Err(StoreError::Invalid(ZEROES_STORED));
        }
        if let Some(granule) = granule {
            bounds.check_tail(bounds.granules(*granule, 1)?, chunk)?;
        }
    }
    Ok(())
}

impl ImageWriter {
    /// Checks regions for this image.
    #[must_use]
    pub fn region_check(&self) -> RegionCheck {
        RegionCheck {
            codec: self.engine.objects.opener.codec.clone(),
            image: self.image_of(),
        }
    }

    fn image_of(&self) -> ImageOf {
        ImageOf {
            store: self.engine.objects.store(),
            size: self.base.size,
            with_key: self.engine.objects.opener.codec.is_some(),
        }
    }

    /// Sets a granule to the chunk of that fingerprint, if the store has it. `false` if it lacks it, or if the disk ends within
    /// the granule, so that its bytes must be seen: then nothing was done.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_known(&mut self, granule: u64, fingerprint: &Fingerprint) -> Result<bool> {
        let granules = self.bounds.granules(granule, 1)?;
        if *fingerprint == Fingerprint::ZERO {
            return self.zero(granules).map(|()| true);
        }
        if self.bounds.is_short(granules) && self.engine.objects.opener.codec.is_some() {
            return Ok(false);
        }
        let mut known = false;
        self.guarded(|writer| {
            writer.before(granules)?;
            let Some(place) = writer.place_if_known(Some(granule), fingerprint)? else {
                return Ok(());
            };
            known = true;
            writer.changed_granules += 1;
            writer.record(Run {
                start: granule,
                count: 1,
                place: Some(place),
            })
        })?;
        Ok(known)
    }

    /// Stores a region, and sets granules to its chunks, one by one.
    ///
    /// # Errors
    /// `Invalid` if it was checked for another image: then nothing was done. Else as [`put`](Self::put).
    pub fn put_checked(&mut self, checked: CheckedRegion) -> Result<()> {
        let CheckedRegion {
            image,
            granules,
            fingerprints,
            region,
        } = checked;
        if image != self.image_of() {
            let sentence = "a region was checked for another image";
            return Err(StoreError::Invalid(sentence));
        }
        self.guarded(|writer| {
            for granule in granules.iter().flatten() {
                writer.before(GranuleRange {
                    start: *granule,
                    end: *granule + 1,
                })?;
            }
            let places = match writer.all_known(&granules, &fingerprints)? {
                // It came before, and its answer was lost.
                Some(places) => places,
                // It may be a small part of what brought it, which would be kept as long.
                None => writer
                    .packer
                    .add_region(&fingerprints, region.by_itself())?,
            };
            for (granule, place) in granules.iter().zip(places) {
                let Some(granule) = granule else { continue };
                writer.changed_granules += 1;
                writer.record(Run {
                    start: *granule,
                    count: 1,
                    place: Some(place),
                })?;
            }
            Ok(())
        })
    }

    /// [Checks](RegionCheck::check) a region and [puts](Self::put_checked) it.
    ///
    /// # Errors
    /// Those of both.
    pub fn put_packed(
        &mut self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
        region: PackedRegion,
    ) -> Result<()> {
        let check = self.region_check();
        let checked = check.check(granules.to_vec(), fingerprints.to_vec(), region)?;
        self.put_checked(checked)
    }

    /// Where chunks lie, if all of them do.
    fn all_known(
        &mut self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
    ) -> Result<Option<Vec<Place>>> {
        let pairs = granules.iter().zip(fingerprints);
        pairs
            .map(|(granule, fingerprint)| self.place_if_known(*granule, fingerprint))
            .collect()
    }

    /// What waits for one of `granules` comes before what comes now.
    fn before(&mut self, granules: GranuleRange) -> Result<()> {
        match self.waiting.touches(granules) {
            true => self.place_waiting(&mut Vec::new()),
            false => Ok(()),
        }
    }
}
