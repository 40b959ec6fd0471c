//! Who adds points to a target: a store that this process has open, or a vault behind a server.
//!
//! Rule: both do the same; what only a store can (reading images for the audit, chores) goes by [`TargetWriter::store`].
//! Rule: a store has one writer. A vault has many: what it lists of a protection's history is believed where the
//! protection has made it (`made_here.rs`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use block::{GranuleRange, Name, UnixNanos};
use dd_target::client::{
    RemoteError, RemoteImage, RemoteImageWriter, RemotePoint, RemoteSeed, Vault,
};
use store::{
    Base, Consistency, FinishedImage, ImageRef, ImageWriter, PointDraft, PointId, PointRecord,
    SeedDisk, SeedDraft, Store, StoreError,
};

use crate::base::Held;
use crate::made_here::{Made, MadeHere};

/// A target that points are added to.
#[derive(Clone)]
pub(crate) enum TargetWriter {
    Store(Store),
    Vault(Shipper),
}

/// One of those who add points to a vault.
#[derive(Clone)]
pub(crate) struct Shipper {
    vault: Vault,
    /// What it made before; `None` if it builds on nothing that it finds.
    made_here: Option<Arc<MadeHere>>,
}

/// Why a target could not.
#[derive(Debug)]
pub(crate) enum WriteError {
    Store(StoreError),
    Vault(RemoteError),
    /// The account of what was made here cannot be written.
    Account(io::Error),
    /// The vault lists another point in place of the one that it was asked to list.
    Foreign(PointId),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<RemoteError> for WriteError {
    fn from(error: RemoteError) -> Self {
        Self::Vault(error)
    }
}

/// Writes one image.
pub(crate) enum TargetImageWriter {
    Store(Box<ImageWriter>),
    Vault(RemoteImageWriter),
}

/// An image that is complete, but that no point or seed names yet.
pub(crate) enum TargetImage {
    Store(FinishedImage),
    Vault(RemoteImage),
}

impl TargetImage {
    pub(crate) fn image(&self) -> &ImageRef {
        match self {
            Self::Store(image) => image.image(),
            Self::Vault(image) => image.image(),
        }
    }

    fn of_store(&self) -> &FinishedImage {
        match self {
            Self::Store(image) => image,
            Self::Vault(_) => unreachable!("a target's images are its own"),
        }
    }

    fn of_vault(&self) -> &RemoteImage {
        match self {
            Self::Vault(image) => image,
            Self::Store(_) => unreachable!("a target's images are its own"),
        }
    }
}

/// A point to be listed.
pub(crate) struct NewPoint {
    pub(crate) group: Name,
    pub(crate) disks: Vec<(Name, TargetImage)>,
    pub(crate) at: UnixNanos,
    pub(crate) lineage: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) consistency: Consistency,
}

/// The progress of a first copy, to be saved.
pub(crate) struct NewSeed<'a> {
    pub(crate) group: &'a Name,
    pub(crate) lineage: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) disks: &'a [NewSeedDisk],
}

/// A disk of it.
pub(crate) struct NewSeedDisk {
    pub(crate) name: Name,
    /// Granules below this one are copied.
    pub(crate) cursor_granule: u64,
    pub(crate) image: TargetImage,
}

type Written<T> = std::result::Result<T, WriteError>;

impl Shipper {
    pub(crate) fn new(vault: Vault) -> Self {
        let made_here = None;
        Self { vault, made_here }
    }

    fn about_to_ask(&self, made: Made) -> Written<()> {
        let made_here = self.made_here.as_ref();
        let written = made_here.map(|made_here| made_here.ask(made));
        written.transpose().map_err(WriteError::Account)?;
        Ok(())
    }

    fn counts(&self, point: &PointRecord) -> bool {
        let made_here = self.made_here.as_ref();
        made_here.is_none_or(|made_here| made_here.has_point(point))
    }

    fn held(&self, group: &Name, lineage: &[u8; 16]) -> Written<Held> {
        let points = self.vault.points(group, Some(lineage))?;
        let seed = self.vault.seed(group)?;
        Ok(match &self.made_here {
            Some(made_here) => made_here.only_ours(lineage, points, seed),
            None => Held {
                point: points.into_iter().next(),
                seed,
                foreign: false,
            },
        })
    }

    fn commit_point(&self, new: NewPoint) -> Written<Arc<PointRecord>> {
        let made = |image: &TargetImage| image.image().clone();
        let images: Vec<_> = new.disks.iter().map(|(n, i)| (n, made(i))).collect();
        let images = images.iter().map(|(name, image)| (*name, image));
        self.about_to_ask(Made::point(&new.lineage, new.generation, images))?;
        let disks = new.disks.iter();
        let disks: Vec<_> = disks
            .map(|(name, image)| (name.clone(), image.of_vault().clone()))
            .collect();
        let point = self.vault.commit_point(&RemotePoint {
            group: &new.group,
            disks: &disks,
            at: new.at,
            lineage: new.lineage,
            generation: new.generation,
            labels: &new.labels,
            consistency: new.consistency,
        })?;
        match self.counts(&point) {
            true => Ok(point),
            false => Err(WriteError::Foreign(point.id.clone())),
        }
    }

    fn save_seed(&self, seed: &NewSeed<'_>) -> Written<()> {
        let disks = seed.disks.iter();
        let images = disks.map(|disk| (&disk.name, disk.cursor_granule, disk.image.image()));
        self.about_to_ask(Made::seed(&seed.lineage, seed.generation, images))?;
        let disks = seed.disks.iter();
        Ok(self.vault.save_seed(&RemoteSeed {
            group: seed.group,
            lineage: seed.lineage,
            generation: seed.generation,
            disks: disks
                .map(|d| (&d.name, d.cursor_granule, d.image.of_vault()))
                .collect(),
        })?)
    }
}

impl TargetWriter {
    /// The same, for a protection: what it finds of its history counts where it was made here.
    pub(crate) fn accounted(self, made_here: &Arc<MadeHere>) -> Self {
        match self {
            Self::Vault(shipper) => Self::Vault(Shipper {
                made_here: Some(Arc::clone(made_here)),
                ..shipper
            }),
            store => store,
        }
    }

    /// The store, if this process has it open.
    pub(crate) fn store(&self) -> Option<&Store> {
        match self {
            Self::Store(store) => Some(store),
            Self::Vault(_) => None,
        }
    }

    /// The newest points of a group, newest first, whatever their history; of `lineage` only those that count.
    pub(crate) fn newest(
        &self,
        group: &Name,
        lineage: &[u8; 16],
    ) -> Written<Vec<Arc<PointRecord>>> {
        Ok(match self {
            Self::Store(store) => {
                let points = store.points();
                let of_group = points.iter().rev().filter(|p| p.group() == group);
                of_group.take(2).cloned().collect()
            }
            Self::Vault(shipper) => {
                let mut points = shipper.vault.points(group, None)?;
                points.retain(|p| p.lineage != *lineage || shipper.counts(p));
                points
            }
        })
    }

    /// What it has that concerns a group's history.
    pub(crate) fn held(&self, group: &Name, lineage: &[u8; 16]) -> Written<Held> {
        Ok(match self {
            Self::Store(store) => {
                let own = |point: &Arc<PointRecord>| point.lineage == *lineage;
                // Nearly always the newest point of the group; another one if somebody else shipped to it.
                let newest = store.newest(group).filter(own);
                let point = newest.or_else(|| {
                    let points = store.points();
                    let mut of_group = points.iter().rev().filter(|p| p.group() == group);
                    of_group.find(|point| own(point)).cloned()
                });
                let seed = store.seed(group);
                Held {
                    point,
                    seed,
                    foreign: false,
                }
            }
            Self::Vault(shipper) => shipper.held(group, lineage)?,
        })
    }

    pub(crate) fn image_writer(&self, base: Base) -> Written<TargetImageWriter> {
        Ok(match self {
            Self::Store(store) => TargetImageWriter::Store(Box::new(store.image_writer(base)?)),
            Self::Vault(shipper) => TargetImageWriter::Vault(shipper.vault.image_writer(base)?),
        })
    }

    pub(crate) fn commit_point(&self, new: NewPoint) -> Written<Arc<PointRecord>> {
        match self {
            Self::Store(store) => {
                let disks = new.disks.iter();
                let disks = disks
                    .map(|(name, image)| (name.clone(), image.of_store().clone()))
                    .collect();
                Ok(store.commit_point(PointDraft {
                    group: new.group,
                    disks,
                    at: new.at,
                    lineage: new.lineage,
                    generation: new.generation,
                    labels: new.labels,
                    consistency: new.consistency,
                })?)
            }
            Self::Vault(shipper) => shipper.commit_point(new),
        }
    }

    pub(crate) fn save_seed(&self, seed: &NewSeed<'_>) -> Written<()> {
        match self {
            Self::Store(store) => {
                let disk = |disk: &NewSeedDisk| SeedDisk {
                    name: disk.name.clone(),
                    cursor_granule: disk.cursor_granule,
                    image: disk.image.of_store().clone(),
                };
                Ok(store.save_seed(SeedDraft {
                    group: seed.group.clone(),
                    lineage: seed.lineage,
                    generation: seed.generation,
                    disks: seed.disks.iter().map(disk).collect(),
                })?)
            }
            Self::Vault(shipper) => shipper.save_seed(seed),
        }
    }

    /// Whether it must be opened again before it is of use.
    pub(crate) fn must_be_opened_again(&self) -> bool {
        self.store().is_some_and(Store::must_be_opened_again)
    }
}

impl TargetImageWriter {
    pub(crate) fn put(&mut self, first_granule: u64, data: &[u8]) -> Written<()> {
        match self {
            Self::Store(writer) => Ok(writer.put(first_granule, data)?),
            Self::Vault(writer) => Ok(writer.put(first_granule, data)?),
        }
    }

    pub(crate) fn zero(&mut self, granules: GranuleRange) -> Written<()> {
        match self {
            Self::Store(writer) => Ok(writer.zero(granules)?),
            Self::Vault(writer) => Ok(writer.zero(granules)?),
        }
    }

    pub(crate) fn finish(self) -> Written<TargetImage> {
        Ok(match self {
            Self::Store(writer) => TargetImage::Store(writer.finish()?),
            Self::Vault(writer) => TargetImage::Vault(writer.finish()?),
        })
    }
}
