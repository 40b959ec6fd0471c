//! Points on a target, for who reads them: list, verify, diff.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{ByteRange, Clock, Name, UnixNanos};
use store::{
    Image, LastScrub, PointDisk, PointRecord, PointRef, Store, StoreFigures, VerifyReport,
};

use crate::{Error, Result, Target};
use dd_target::api::SeedFigures;
use dd_target::{Progress, ProtectionFigures, protection_of, seeds_of};

/// The points of a target, as they were when it was opened.
pub struct Points {
    store: Store,
    target: Target,
}

/// What verifying a point found.
#[derive(Debug)]
pub struct Verified {
    /// The point.
    pub point: Arc<PointRecord>,
    /// Its disks, in the group's order.
    pub disks: Vec<VerifiedDisk>,
}

/// What verifying one disk's image found.
#[derive(Debug)]
pub struct VerifiedDisk {
    /// The disk.
    pub name: Name,
    /// What was found.
    pub report: VerifyReport,
}

impl Verified {
    /// Whether every byte of every disk is there and right.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.disks.iter().all(|disk| disk.report.is_whole())
    }
}

impl Points {
    /// Opens a target to read.
    ///
    /// # Errors
    /// If there is no store, or its catalog is damaged.
    pub fn open(target: &Target, clock: &Arc<dyn Clock>) -> Result<Self> {
        let store = target.reader(clock)?;
        let target = target.clone();
        Ok(Self { store, target })
    }

    /// All points, oldest first; of one group if one is named.
    #[must_use]
    pub fn list(&self, group: Option<&Name>) -> Vec<Arc<PointRecord>> {
        let mut points = self.store.points();
        points.retain(|point| group.is_none_or(|group| point.group() == group));
        points
    }

    /// What the store holds.
    #[must_use]
    pub fn figures(&self) -> StoreFigures {
        self.store.figures()
    }

    /// Whether what it holds is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.store.is_encrypted()
    }

    /// Whether what points hold can be read.
    ///
    /// # Errors
    /// If the target is encrypted, and was opened without its key.
    pub fn check_key(&self) -> Result<()> {
        let codec = self.store.codec().map(drop);
        codec.map_err(self.target.failed("read points"))
    }

    /// What holds the space of the target.
    ///
    /// # Errors
    /// If a tree cannot be read.
    pub fn explain(&self) -> Result<store::ExplainedStore> {
        let explained = self.store.explain();
        explained.map_err(self.target.failed("explain the store"))
    }

    /// What holds the space of a point.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub fn explain_point(&self, point: &PointRecord) -> Result<store::ExplainedPoint> {
        let explained = self.store.explain_point(&point.id);
        explained.map_err(self.target.failed("explain the point"))
    }

    /// Which points need the chunk at a byte of a disk.
    ///
    /// # Errors
    /// As [`explain`](Self::explain); if the disk ends before it.
    pub fn explain_chunk(
        &self,
        disk: &PointDisk,
        offset: u64,
    ) -> Result<Option<store::ExplainedChunk>> {
        if offset >= disk.size {
            return Err(Error::usage(
                format!("disk {} has {} bytes", disk.name, disk.size),
                "name a byte that it has",
            ));
        }
        let explained = self.store.explain_chunk(&disk.image, offset);
        explained.map_err(self.target.failed("explain the chunk"))
    }

    /// The newest scrub of everything.
    #[must_use]
    pub fn last_scrub(&self) -> Option<LastScrub> {
        self.store.last_scrub()
    }

    /// Points that were removed and can be brought back, and until when.
    #[must_use]
    pub fn removed(&self) -> Vec<(Arc<PointRecord>, UnixNanos)> {
        self.store.removed_points()
    }

    /// First copies that are under way.
    #[must_use]
    pub fn seeds(&self) -> Vec<SeedFigures> {
        seeds_of(&self.store)
    }

    /// The groups, with how many points each has, and when its newest was cut.
    #[must_use]
    pub fn groups(&self) -> Vec<(Name, u64, UnixNanos)> {
        let mut groups: BTreeMap<Name, (u64, UnixNanos)> = BTreeMap::new();
        for point in self.store.points() {
            let group = groups.entry(point.group().clone()).or_default();
            group.0 += 1;
            group.1 = group.1.max(point.at);
        }
        let groups = groups.into_iter();
        groups
            .map(|(name, (count, newest))| (name, count, newest))
            .collect()
    }

    /// What protects a point.
    #[must_use]
    pub fn protection(&self, point: &PointRecord) -> ProtectionFigures {
        protection_of(&self.store, &point.id)
    }

    /// The time that locks go by.
    #[must_use]
    pub fn now(&self) -> UnixNanos {
        self.store.now()
    }

    /// Why a point cannot be removed at this moment.
    #[must_use]
    pub fn in_the_way(&self, point: &PointRecord) -> Option<String> {
        let protection = self.store.protection(&point.id);
        let stays = protection.hold.is_some() || protection.is_locked(self.store.now().0);
        let point = point.id.to_string();
        let why = store::StoreError::Protected { point, protection };
        stays.then(|| why.to_string())
    }

    /// One point.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn find(&self, point: &PointRef) -> Result<Arc<PointRecord>> {
        let found = self.store.point(point);
        found.map_err(self.target.failed("find the point"))
    }

    /// A disk of a point, to be read.
    ///
    /// # Errors
    /// If its tree is damaged.
    pub fn image(&self, disk: &PointDisk) -> Result<Image> {
        let opened = self.store.image(&disk.image);
        opened.map_err(self.target.failed("open the image of a disk"))
    }

    /// Reads and checks every byte of a point.
    ///
    /// # Errors
    /// If the target cannot be read. Damage is no error but in the answer.
    pub fn verify(&self, point: &Arc<PointRecord>, progress: Progress<'_>) -> Result<Verified> {
        let all: u64 = point.disks.iter().map(|disk| disk.size).sum();
        let mut before = 0;
        let mut disks = Vec::new();
        for disk in &point.disks {
            let tell = |done, _| progress(before + done, all);
            let report = self.store.verify_image(&disk.image, &tell);
            disks.push(VerifiedDisk {
                name: disk.name.clone(),
                report: report.map_err(self.target.failed("verify the point"))?,
            });
            before += disk.size;
        }
        let point = Arc::clone(point);
        Ok(Verified { point, disks })
    }

    /// The ranges in which each disk that both points have differs, from the trees alone.
    ///
    /// # Errors
    /// If a tree is damaged, or a disk has another size in each point.
    pub fn diff(&self, a: &PointRecord, b: &PointRecord) -> Result<Vec<(Name, Vec<ByteRange>)>> {
        let pairs = a
            .disks
            .iter()
            .filter_map(|disk| Some((disk, b.disk(&disk.name)?)));
        let differ = |(x, y): (&PointDisk, &PointDisk)| {
            if x.size != y.size {
                return Err(Error::usage(
                    format!(
                        "disk {} has {} bytes in {} and {} in {}",
                        x.name, x.size, a.id, y.size, b.id
                    ),
                    "only disks of one size can be compared",
                ));
            }
            let ranges = self.store.diff_images(&x.image, &y.image);
            Ok((
                x.name.clone(),
                ranges.map_err(self.target.failed("compare the points"))?,
            ))
        };
        pairs.map(differ).collect()
    }
}

/// The disk that a user means: by name, or the only one.
///
/// # Errors
/// `Usage`, naming the disks that there are.
pub fn find_disk<'a>(point: &'a PointRecord, name: Option<&Name>) -> Result<&'a PointDisk> {
    let names: Vec<_> = point.disks.iter().map(|disk| disk.name.as_str()).collect();
    let names = names.join(", ");
    match (name, point.disks.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => Err(Error::usage(
            format!("{} has several disks: {names}", point.id),
            "name one of them with --disk",
        )),
        (Some(name), _) => point.disk(name).ok_or_else(|| {
            Error::usage(
                format!("{} has no disk {name}; it has {names}", point.id),
                "name one of its disks with --disk",
            )
        }),
    }
}
