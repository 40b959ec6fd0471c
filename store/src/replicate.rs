//! Copying points from another store: what differs, by the trees, and of that the chunks that are not here.
//!
//! ```text
//! their image, our newest --hashes--> ranges that differ --fingerprints--> known here? it is laid there
//!                                                                    no? its region, as it lies, into a container of ours
//! ```
//!
//! No key is needed: hashes and fingerprints are the same in both stores, or there is nothing to copy. Rule: a point is listed
//! under its own number, after its images were found to have the roots that they have there.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{GranuleRange, Name};

use crate::backend::Backend;
use crate::diff;
use crate::error::{Result, StoreError};
use crate::format;
use crate::image::Image;
use crate::image_writer::{Base, FinishedImage};
use crate::landing::{self, Landing};
use crate::records::{PointDisk, PointDraft, PointId, PointRecord};
use crate::store::Store;
use crate::tree::ImageRef;

/// A point that was copied.
#[derive(Clone, Debug)]
pub struct Replicated {
    /// As it is listed here.
    pub point: Arc<PointRecord>,
    /// Bytes of regions that came from there.
    pub copied_bytes: u64,
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

    /// The points of another store that this one has lost: those of commits that a repair went on without. Reads all commits.
    ///
    /// # Errors
    /// Those of the place.
    pub fn lost_points_in(
        &self,
        from: &Self,
        group: Option<&Name>,
    ) -> Result<Vec<Arc<PointRecord>>> {
        let lost = self.lost_points()?;
        let mut points = from.points();
        points.retain(|point| {
            group.is_none_or(|group| point.group() == group) && lost.contains(&point.id)
        });
        Ok(points)
    }

    /// All that it may have lost: of each lost commit one of these at most.
    fn lost_points(&self) -> Result<BTreeSet<PointId>> {
        let survey = self.inner.catalog.survey()?;
        Ok(survey.lost_points().cloned().collect())
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

    /// The same of the store in a place, without opening it.
    ///
    /// # Errors
    /// As [`check_key_of`](Self::check_key_of); `NotFound` if there is none, `Io`.
    pub fn check_key_at(&self, place: &Arc<dyn Backend>) -> Result<()> {
        match self.inner.key == format::read(&**place)?.key {
            true => Ok(()),
            false => Err(StoreError::OtherKey),
        }
    }

    /// Copies a point of another store: one that comes after those of its group, or that this one has lost
    /// ([`lost_points_in`](Self::lost_points_in)), which is listed in its place among them. `progress` is told bytes looked at, and
    /// bytes in all.
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
        let is_lost = id.sequence < self.next_number(&id.group) && self.lost_points()?.contains(id);
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
        let point = match is_lost {
            false => self.commit_replica(&draft, id.sequence),
            true => self.commit_returned(&draft, id.sequence),
        }?;
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
        let (mut writer, differing) = match base.filter(|base| base.size == disk.size) {
            Some(base) => {
                let differing = differing(&self.image(base)?, &theirs)?;
                (self.image_writer(Base::Image(base.clone()))?, differing)
            }
            None => {
                let size = disk.size;
                let whole = GranuleRange::of_size(size);
                (self.image_writer(Base::Empty { size })?, vec![whole])
            }
        };
        let copied_bytes = landing::copy(&theirs, differing, &mut writer, tell)?;
        let image = writer.finish()?;
        self.check_root(image.image(), &theirs)?;
        Ok((image, copied_bytes))
    }

    /// Lays what an image of this store has over `landing`, which has what `since` has, another image of this store, or
    /// zeroes. The bytes of the regions that were brought; `tell` is told how far in the image it is, in bytes.
    ///
    /// # Errors
    /// The landing's; `Corrupt` naming what is damaged here.
    pub fn copy_onto<L: Landing>(
        &self,
        image: &ImageRef,
        since: Option<&ImageRef>,
        landing: &mut L,
        tell: &dyn Fn(u64),
    ) -> Result<u64, L::Error> {
        let image = self.image(image)?;
        let differing = match since {
            None => vec![GranuleRange::of_size(image.reference.size())],
            Some(since) => differing(&self.image(since)?, &image)?,
        };
        landing::copy(&image, differing, landing, tell)
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

/// The granules in which two images differ.
fn differing(a: &Image, b: &Image) -> Result<Vec<GranuleRange>> {
    let ranges = diff::diff(a, b)?.into_iter();
    Ok(ranges.map(|range| range.granules_touched()).collect())
}
