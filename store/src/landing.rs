//! Laying the content of an image elsewhere: chunks are named, and those that are lacking brought, region by region.
//!
//! ```text
//! a window of granules --fingerprints--> lay: known there? it is done
//!                                              lacking? its region, as it lies, by the first granule that holds the chunk
//!                                                       the other granules that hold it are laid again
//! ```

use block::{GRANULE, GranuleRange, index};

use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, Fingerprint};
use crate::image::Image;
use crate::image_writer::ImageWriter;
use crate::objects::{Objects, Opened};
use crate::place::{ObjectId, Place};
use crate::region::PackedRegion;

/// Granules that are looked at together: a region is read once for all of them.
const WINDOW: u64 = 16 << 10;

/// What an image is copied into.
pub trait Landing {
    /// Why it could not.
    type Error: From<StoreError>;

    /// Makes granules zero.
    ///
    /// # Errors
    /// Its own; so of all calls here.
    fn zero(&mut self, granules: GranuleRange) -> Result<(), Self::Error>;

    /// Sets granules to the chunks of these fingerprints, where it has them; tells, of each, whether it did. It does not
    /// either where it must see the chunk: a disk may end within the granule.
    ///
    /// # Errors
    /// See [`zero`](Self::zero).
    fn lay(&mut self, entries: &[(u64, Fingerprint)]) -> Result<Vec<bool>, Self::Error>;

    /// Stores a region, and sets granules to its chunks, one by one.
    ///
    /// # Errors
    /// See [`zero`](Self::zero).
    fn bring(
        &mut self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
        region: PackedRegion,
    ) -> Result<(), Self::Error>;
}

impl Landing for ImageWriter {
    type Error = StoreError;

    fn zero(&mut self, granules: GranuleRange) -> Result<()> {
        self.zero(granules)
    }

    fn lay(&mut self, entries: &[(u64, Fingerprint)]) -> Result<Vec<bool>> {
        let mut lay = |(granule, print): &(u64, Fingerprint)| self.put_known(*granule, print);
        entries.iter().map(&mut lay).collect()
    }

    fn bring(
        &mut self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
        region: PackedRegion,
    ) -> Result<()> {
        self.put_packed(granules, fingerprints, region)
    }
}

/// A chunk that is to be brought.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lacking {
    place: Place,
    granule: u64,
    fingerprint: Fingerprint,
}

/// Lays parts of an image, of which nothing was written there yet; the bytes of the regions that were brought. `tell` is told how far in the image it is, in bytes.
pub(crate) fn copy<L: Landing>(
    image: &Image,
    parts: impl IntoIterator<Item = GranuleRange>,
    landing: &mut L,
    tell: &dyn Fn(u64),
) -> Result<u64, L::Error> {
    let mut copy = Copy {
        image,
        landing,
        brought_bytes: 0,
    };
    for part in parts {
        for start in (part.start..part.end).step_by(index(WINDOW)) {
            let end = part.end.min(start + WINDOW);
            copy.window(GranuleRange { start, end })?;
            tell((end * GRANULE).min(image.reference.size()));
        }
    }
    Ok(copy.brought_bytes)
}

struct Copy<'a, L> {
    image: &'a Image,
    landing: &'a mut L,
    brought_bytes: u64,
}

impl<L: Landing> Copy<'_, L> {
    fn window(&mut self, range: GranuleRange) -> Result<(), L::Error> {
        let mut chunks = self.chunks_of(range)?;
        let laid = self.lay(&chunks)?;
        let mut laid = laid.iter();
        chunks.retain(|_| laid.next() == Some(&false));
        // What lies in one region comes with it.
        chunks.sort_unstable();
        let mut again = Vec::new();
        let mut last = None;
        chunks.retain(|chunk| {
            let is_first = last.replace(chunk.place) != Some(chunk.place);
            if !is_first {
                again.push(*chunk);
            }
            is_first
        });
        self.fetch(&chunks)?;
        if again.is_empty() {
            return Ok(());
        }
        // All are there now; of the granule in which the disk ends the chunk must be seen.
        let laid = self.lay(&again)?;
        let unlaid = again.iter().zip(laid).filter(|(_, laid)| !laid);
        unlaid
            .into_iter()
            .try_for_each(|(chunk, _)| self.fetch(&[*chunk]))
    }

    /// Makes zero what is zero; what is not.
    fn chunks_of(&mut self, range: GranuleRange) -> Result<Vec<Lacking>, L::Error> {
        let mut runs = Vec::new();
        self.image.each_run(range, &mut |run| {
            runs.push(run);
            Ok(())
        })?;
        let mut chunks = Vec::new();
        let mut fingerprints = Vec::new();
        let mut reached = range.start;
        for run in runs {
            self.zero(reached, run.start)?;
            fingerprints.resize(index(run.count), Fingerprint::ZERO);
            let objects = &self.image.objects;
            objects.run_fingerprints(&run, &mut fingerprints)?;
            for (i, fingerprint) in (0..).zip(&fingerprints) {
                let place = run.place.and_then(|place| place.after(i));
                chunks.push(Lacking {
                    place: place.expect("data runs stay in their container"),
                    granule: run.start + i,
                    fingerprint: *fingerprint,
                });
            }
            reached = run.end();
        }
        self.zero(reached, range.end)?;
        Ok(chunks)
    }

    fn zero(&mut self, start: u64, end: u64) -> Result<(), L::Error> {
        match start < end {
            true => self.landing.zero(GranuleRange { start, end }),
            false => Ok(()),
        }
    }

    fn lay(&mut self, chunks: &[Lacking]) -> Result<Vec<bool>, L::Error> {
        let entries = chunks.iter().map(|c| (c.granule, c.fingerprint));
        let laid = self.landing.lay(&entries.collect::<Vec<_>>())?;
        match laid.len() == chunks.len() {
            true => Ok(laid),
            false => {
                Err(StoreError::Invalid("a landing tells of each chunk whether it was laid").into())
            }
        }
    }

    /// Brings chunks, in the order of their places.
    fn fetch(&mut self, chunks: &[Lacking]) -> Result<(), L::Error> {
        let by_container = |a: &Lacking, b: &Lacking| a.place.container() == b.place.container();
        for some in chunks.chunk_by(by_container) {
            let mut rest = some;
            while let Some(first) = rest.first() {
                let parcel = self.parcel(first.place.container(), rest)?;
                rest = &rest[parcel.taken..];
                self.brought_bytes += parcel.region.stored().len() as u64;
                self.landing
                    .bring(&parcel.granules, &parcel.fingerprints, parcel.region)?;
            }
        }
        Ok(())
    }

    fn parcel(&self, container: ObjectId, chunks: &[Lacking]) -> Result<Parcel> {
        let objects = &self.image.objects;
        objects.following(container, |opened| Parcel::of(objects, opened, chunks))
    }
}

/// A region that is sent, and where its chunks belong.
struct Parcel {
    region: PackedRegion,
    fingerprints: Vec<Fingerprint>,
    granules: Vec<Option<u64>>,
    /// How many of those that lack something are served by it.
    taken: usize,
}

impl Parcel {
    /// The region of the first of `chunks`, for as many of them as lie in it.
    fn of(objects: &Objects, opened: &Opened, chunks: &[Lacking]) -> Result<Self> {
        let (region, _) = objects.chunk_in(opened, chunks[0].place)?;
        let named = opened.manifest.of_region(&opened.manifest.regions[region]);
        let mut parcel = Self {
            region: objects.packed_region(opened, region)?,
            fingerprints: named.to_vec(),
            granules: vec![None; named.len()],
            taken: 0,
        };
        for one in chunks {
            let (found, chunk) = objects.chunk_in(opened, one.place)?;
            if found != region {
                break;
            }
            parcel.taken += 1;
            parcel.granules[chunk] = Some(one.granule);
        }
        parcel.leave_out_the_rest(objects)?;
        Ok(parcel)
    }

    /// Where the region can be opened, only what is needed of it is sent.
    fn leave_out_the_rest(&mut self, objects: &Objects) -> Result<()> {
        let needed: Vec<usize> = (0..self.granules.len())
            .filter(|at| self.granules[*at].is_some())
            .collect();
        let Some(codec) = &objects.opener.codec else {
            return Ok(());
        };
        if needed.len() == self.granules.len() {
            return Ok(());
        }
        let raw = codec.open(&self.region, &self.fingerprints);
        let raw = raw.map_err(|what| StoreError::corrupt("a region".into(), what))?;
        let chunks = needed.iter().flat_map(|at| &raw[at * CHUNK..][..CHUNK]);
        self.region = codec.pack(chunks.copied().collect());
        self.fingerprints = needed.iter().map(|at| self.fingerprints[*at]).collect();
        self.granules = needed.iter().map(|at| self.granules[*at]).collect();
        Ok(())
    }
}
