//! What somebody else has hashed and packed: chunks by their fingerprints, and regions as they are to lie.
//!
//! Rule: a region is believed only as far as it was checked. Without the key of an encrypted store that is its shape.

use block::GranuleRange;

use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, Fingerprint};
use crate::place::Place;
use crate::region::PackedRegion;
use crate::runs::Run;

use super::ImageWriter;

impl ImageWriter {
    /// Sets a granule to the chunk of that fingerprint, if the store has it. `false` if it lacks it: then nothing was done.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_known(&mut self, granule: u64, fingerprint: &Fingerprint) -> Result<bool> {
        let granules = self.checked(granule, 1)?;
        if *fingerprint == Fingerprint::ZERO {
            return self.zero(granules).map(|()| true);
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

    /// Stores a region, and sets granules to its chunks, one by one; a chunk without a granule is only stored. Its chunks
    /// have these fingerprints: that is checked, but where the store is encrypted and its key is not here.
    ///
    /// # Errors
    /// `Invalid` if the region is not what it is said to be: then nothing was done. Else as [`put`](Self::put).
    pub fn put_packed(
        &mut self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
        region: PackedRegion,
    ) -> Result<()> {
        let count = region.chunk_count();
        if granules.len() != count || fingerprints.len() != count {
            let sentence = "a region needs a granule and a fingerprint for each of its chunks";
            return Err(StoreError::Invalid(sentence));
        }
        for granule in granules.iter().flatten() {
            self.checked(*granule, 1)?;
        }
        self.check_region(granules, fingerprints, &region)?;
        self.guarded(|writer| {
            for granule in granules.iter().flatten() {
                writer.before(GranuleRange {
                    start: *granule,
                    end: *granule + 1,
                })?;
            }
            let places = match writer.all_known(granules, fingerprints)? {
                // It came before, and its answer was lost.
                Some(places) => places,
                None => writer.packer.add_region(fingerprints, region)?,
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

    fn check_region(
        &self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
        region: &PackedRegion,
    ) -> Result<()> {
        if fingerprints.contains(&Fingerprint::ZERO) {
            let sentence = "a chunk of zeroes is never stored";
            return Err(StoreError::Invalid(sentence));
        }
        let Some(codec) = &self.engine.objects.opener.codec else {
            return match region.is_sealed() {
                true => Ok(()),
                false => Err(StoreError::Invalid(
                    "a region of an encrypted store is not encrypted",
                )),
            };
        };
        let chunks = codec.open(region, fingerprints);
        let chunks = chunks.map_err(StoreError::Invalid)?;
        for (granule, chunk) in granules.iter().zip(chunks.chunks(CHUNK)) {
            if let Some(granule) = granule {
                let granules = self.checked(*granule, 1)?;
                self.check_tail(granules, chunk)?;
            }
        }
        Ok(())
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
