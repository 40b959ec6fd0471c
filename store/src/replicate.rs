//! Copying points from another store: what differs, by the trees, and of that the chunks that are not here.
//!
//! ```text
//! their image, our newest --hashes--> ranges that differ --fingerprints--> known here? it is laid there
//!                                                                    no? its region, as it lies, into a container of ours
//! ```
//!
//! No key is needed: hashes and fingerprints are the same in both stores, or there is nothing to copy. Rule: a point is listed
//! under its own number, after its images were found to have the roots that they have there.

use std::sync::Arc;

use block::{GRANULE, GranuleRange, Name, index};

use crate::diff;
use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, Fingerprint};
use crate::image::Image;
use crate::image_writer::{Base, FinishedImage, ImageWriter};
use crate::objects::{Objects, Opened};
use crate::place::{ObjectId, Place};
use crate::records::{PointDisk, PointDraft, PointId, PointRecord};
use crate::region::PackedRegion;
use crate::runs::Run;
use crate::store::Store;
use crate::tree::ImageRef;

/// Granules that are looked at together: a region is read once for all of them.
const WINDOW: u64 = 16 << 10;

/// A point that was copied.
#[derive(Clone, Debug)]
pub struct Replicated {
    /// As it is listed here.
    pub point: Arc<PointRecord>,
    /// Bytes of regions that came from there.
    pub copied_bytes: u64,
}

/// A chunk that is to be copied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lacking {
    place: Place,
    granule: u64,
}

impl Store {
    /// The points of another store that come after those that this one has, or had, of their groups; oldest first.
    #[must_use]
    pub fn points_to_copy(&self, from: &Self, group: Option<&Name>) -> Vec<Arc<PointRecord>> {
        let mut points = from.points();
        points.retain(|point| {
            group.is_none_or(|group| point.group() == group)
                && point.id.sequence >= self.next_number(point.group())
        });
        points
    }

    /// Whether chunks of another store can be chunks of this one.
    ///
    /// # Errors
    /// `Invalid` if they are not encrypted with the same key.
    pub fn check_key_of(&self, from: &Self) -> Result<()> {
        match self.inner.key == from.inner.key {
            true => Ok(()),
            false => Err(StoreError::OtherKey),
        }
    }

    /// Copies a point of another store. `progress` is told bytes looked at, and bytes in all.
    ///
    /// # Errors
    /// `NotFound` if it is not there, `Invalid` if this store has its number or another key, `Corrupt` naming what is damaged
    /// there; as [`commit_point`](Self::commit_point).
    pub fn copy_point(
        &self,
        from: &Self,
        id: &PointId,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Replicated> {
        self.check_key_of(from)?;
        let theirs = from.points().into_iter().find(|point| point.id == *id);
        let theirs = theirs.ok_or_else(|| StoreError::NoPoint(id.to_string()))?;
        let mut copied_bytes = 0;
        let mut disks = Vec::new();
        let all: u64 = theirs.disks.iter().map(|disk| disk.size).sum();
        let mut before = 0;
        for disk in &theirs.disks {
            let tell = |done| progress(before + done, all);
            let (image, bytes) = self.copy_disk(from, &theirs, disk, &tell)?;
            disks.push((disk.name.clone(), image));
            copied_bytes += bytes;
            before += disk.size;
            progress(before, all);
        }
        let draft = PointDraft {
            group: theirs.group().clone(),
            disks,
            at: theirs.at,
            lineage: theirs.lineage,
            generation: theirs.generation,
            labels: theirs.labels.clone(),
            consistency: theirs.consistency,
        };
        let point = self.commit_replica(&draft, theirs.id.sequence)?;
        Ok(Replicated {
            point,
            copied_bytes,
        })
    }

    fn copy_disk(
        &self,
        from: &Self,
        point: &PointRecord,
        disk: &PointDisk,
        tell: &dyn Fn(u64),
    ) -> Result<(FinishedImage, u64)> {
        let ours = self.newest(point.group());
        let ours = ours.and_then(|ours| ours.disk(&disk.name).cloned());
        self.copy_image(from, disk, ours.map(|ours| ours.image).as_ref(), tell)
    }

    /// Copies an image of another store; what it has in common with `base`, one of this store, is not looked at. `tell` is
    /// told bytes of it that were.
    pub(crate) fn copy_image(
        &self,
        from: &Self,
        disk: &PointDisk,
        base: Option<&ImageRef>,
        tell: &dyn Fn(u64),
    ) -> Result<(FinishedImage, u64)> {
        let theirs = from.image(&disk.image)?;
        let (writer, differing) = match base.filter(|base| base.size == disk.size) {
            Some(base) => {
                let differing = diff::diff(&self.image(base)?, &theirs)?;
                let differing = differing.into_iter().map(|range| range.granules_touched());
                let differing = differing.collect();
                (self.image_writer(Base::Image(base.clone()))?, differing)
            }
            None => {
                let size = disk.size;
                let whole = GranuleRange::of_size(size);
                (self.image_writer(Base::Empty { size })?, vec![whole])
            }
        };
        let mut copy = Copy {
            theirs: &theirs,
            writer,
            copied_bytes: 0,
        };
        for range in differing {
            for start in (range.start..range.end).step_by(index(WINDOW)) {
                let end = range.end.min(start + WINDOW);
                copy.window(GranuleRange { start, end })?;
                tell((end * GRANULE).min(disk.size));
            }
        }
        let image = copy.writer.finish()?;
        self.check_root(image.image(), &theirs)?;
        Ok((image, copy.copied_bytes))
    }

    /// The proof that the whole content is the same.
    fn check_root(&self, ours: &ImageRef, theirs: &Image) -> Result<()> {
        match self.image(ours)?.root()? == theirs.root()? {
            true => Ok(()),
            false => Err(StoreError::Invalid(
                "a copied image has not the root that it has there; this is a bug, and nothing was listed",
            )),
        }
    }
}

/// An image on its way.
struct Copy<'a> {
    theirs: &'a Image,
    writer: ImageWriter,
    copied_bytes: u64,
}

impl Copy<'_> {
    /// Lays a part of the image, a few MiB, over what the writer began with.
    fn window(&mut self, range: GranuleRange) -> Result<()> {
        let mut runs = Vec::new();
        self.theirs.each_run(range, &mut |run| {
            runs.push(run);
            Ok(())
        })?;
        let mut lacking = Vec::new();
        let mut reached = range.start;
        for run in runs {
            self.zero(reached, run.start)?;
            self.lay(run, &mut lacking)?;
            reached = run.end();
        }
        self.zero(reached, range.end)?;
        // What lies in one region comes with it.
        lacking.sort_unstable();
        let by_container = |a: &Lacking, b: &Lacking| a.place.container() == b.place.container();
        for some in lacking.chunk_by(by_container) {
            self.fetch(some[0].place.container(), some)?;
        }
        Ok(())
    }

    fn zero(&mut self, start: u64, end: u64) -> Result<()> {
        match start < end {
            true => self.writer.zero(GranuleRange { start, end }),
            false => Ok(()),
        }
    }

    /// Lays what is known here; what is not is added to `lacking`.
    fn lay(&mut self, run: Run, lacking: &mut Vec<Lacking>) -> Result<()> {
        let mut fingerprints = vec![Fingerprint::ZERO; index(run.count)];
        self.theirs
            .objects
            .run_fingerprints(&run, &mut fingerprints)?;
        for (i, fingerprint) in (0..).zip(&fingerprints) {
            let granule = run.start + i;
            if self.writer.put_known(granule, fingerprint)? {
                continue;
            }
            let place = run.place.and_then(|place| place.after(i));
            let place = place.expect("data runs stay in their container");
            lacking.push(Lacking { place, granule });
        }
        Ok(())
    }

    /// Brings chunks of one container, in the order of their slots.
    fn fetch(&mut self, id: ObjectId, lacking: &[Lacking]) -> Result<()> {
        let objects = &self.theirs.objects;
        let mut rest = lacking;
        while let Some(first) = rest.first() {
            let parcel =
                objects.following(id, |opened| Parcel::of(objects, opened, first.place, rest))?;
            rest = &rest[parcel.taken..];
            self.copied_bytes += parcel.region.stored().len() as u64;
            self.writer
                .put_packed(&parcel.granules, &parcel.fingerprints, parcel.region)?;
            for (granule, fingerprint) in parcel.again {
                if !self.writer.put_known(granule, &fingerprint)? {
                    let sentence = "a chunk that was just stored is not there; this is a bug";
                    return Err(StoreError::Invalid(sentence));
                }
            }
        }
        Ok(())
    }
}

/// A region that is sent, and where its chunks belong.
struct Parcel {
    region: PackedRegion,
    fingerprints: Vec<Fingerprint>,
    granules: Vec<Option<u64>>,
    /// Chunks that belong to further granules.
    again: Vec<(u64, Fingerprint)>,
    /// How many of those that lack something are served by it.
    taken: usize,
}

impl Parcel {
    /// The region at `place`, for as many of `lacking` as lie in it.
    fn of(objects: &Objects, opened: &Opened, place: Place, lacking: &[Lacking]) -> Result<Self> {
        let (region, _) = objects.chunk_in(opened, place)?;
        let named = opened.manifest.of_region(&opened.manifest.regions[region]);
        let mut parcel = Self {
            region: objects.packed_region(opened, region)?,
            fingerprints: named.to_vec(),
            granules: vec![None; named.len()],
            again: Vec::new(),
            taken: 0,
        };
        for one in lacking {
            let (found, chunk) = objects.chunk_in(opened, one.place)?;
            if found != region {
                break;
            }
            parcel.taken += 1;
            match &mut parcel.granules[chunk] {
                free @ None => *free = Some(one.granule),
                Some(_) => parcel.again.push((one.granule, named[chunk])),
            }
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
