//! What a catalog says: the state after a commit, and what a commit changes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block::Name;

use super::commit::Commit;
use crate::armor::Kind;
use crate::fingerprint::Fingerprint;
use crate::inventory::Sums;
use crate::locations::Locations;
use crate::place::ObjectId;
use crate::protection::Protection;
use crate::records::{PointId, PointRecord, SeedRecord};
use crate::relocation::Relocation;
use crate::replacement::{self, Replacement};
use crate::scrub::LastScrub;
use crate::sweep::{Quarantine, Sweep};
use crate::tree::ImageRef;

/// What the store holds, as of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) next_container: u64,
    pub(crate) next_tree: u64,
    pub(crate) containers: u64,
    pub(crate) chunks: u64,
    pub(crate) container_bytes: u64,
    pub(crate) tree_bytes: u64,
}

impl Held {
    pub(crate) fn set_sums(&mut self, sums: Sums) {
        let Sums {
            containers,
            chunks,
            container_bytes,
            tree_bytes,
        } = sums;
        *self = Self {
            containers,
            chunks,
            container_bytes,
            tree_bytes,
            ..*self
        };
    }
}

/// An image that the catalog holds.
#[derive(Clone, Debug)]
pub(crate) struct HeldImage {
    /// The point that it is a part of; a seed's is of none yet.
    pub(crate) point: Option<PointId>,
    pub(crate) group: Name,
    pub(crate) disk: Name,
    pub(crate) image: ImageRef,
    /// Its point was removed, and can be brought back until then.
    pub(crate) removed_until: Option<u64>,
}

/// The catalog after some commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Number of the last commit; 0 before the first.
    pub(crate) sequence: u64,
    pub(super) epoch: u64,
    pub(super) last: Fingerprint,
    pub(super) checkpoint: u64,
    pub(crate) held: Held,
    /// In the order of their commits.
    pub(crate) points: Vec<Arc<PointRecord>>,
    pub(crate) seeds: BTreeMap<Name, Arc<SeedRecord>>,
    /// The highest number given to a point of each group.
    pub(super) numbers: BTreeMap<Name, u64>,
    /// Points that were removed and can be brought back, and until when.
    pub(crate) removed: BTreeMap<PointId, (Arc<PointRecord>, u64)>,
    /// What protects points that are listed.
    pub(crate) protections: BTreeMap<PointId, Protection>,
    /// The newest scrub of everything.
    pub(crate) scrubbed: Option<LastScrub>,
    /// Time of the last commit.
    pub(crate) at: u64,
    /// Where things lie that were moved.
    pub(crate) locations: Arc<Locations>,
    /// Objects that nothing refers to any more, until they are removed.
    pub(crate) quarantine: Quarantine,
    /// Bundles from here on were never written.
    pub(crate) next_bundle: u64,
}

/// One change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A point is listed; its group's seed is done.
    AddPoint(Arc<PointRecord>),
    /// A point that a lost commit listed is listed again, from a replica.
    ReturnPoint(Arc<PointRecord>),
    /// The progress of a seed, in place of what was saved before.
    SaveSeed(Arc<SeedRecord>),
    /// A group's seed is given up.
    DropSeed(Name),
    /// Points are listed no more. Before this time, ns since 1970, they can be brought back.
    RemovePoints(Vec<PointId>, u64),
    /// Points that were removed are listed again.
    BringBack(Vec<PointId>),
    /// Points that were removed are gone for good.
    Forget(Vec<PointId>),
    /// What protects a point from now on.
    Protect(PointId, Protection),
    /// A scrub of everything has ended.
    Scrubbed(LastScrub),
    /// Garbage collection has moved things, or found them to be needed by nothing.
    Sweep(Sweep),
    /// Objects that were in quarantine were removed.
    Purge(Vec<(Kind, ObjectId)>),
    /// A repair has found other copies of what was lost.
    Relocate(Relocation),
    /// A repair goes on after commits of these numbers, which are lost: the checkpoint of this commit's number says what
    /// is left.
    BeginAnew(Vec<u64>),
    /// A repair has copied images again of which something is lost.
    Replace(Vec<Replacement>),
}

impl State {
    pub(super) fn empty() -> Self {
        let held = Held {
            next_container: 1,
            next_tree: 1,
            ..Held::default()
        };
        Self {
            sequence: 0,
            epoch: 0,
            last: Fingerprint::ZERO,
            checkpoint: 0,
            held,
            points: Vec::new(),
            seeds: BTreeMap::new(),
            numbers: BTreeMap::new(),
            removed: BTreeMap::new(),
            protections: BTreeMap::new(),
            scrubbed: None,
            at: 0,
            locations: Arc::default(),
            quarantine: Quarantine::new(),
            next_bundle: 1,
        }
    }

    /// Every image that is not to be lost: by group, and in it by age.
    pub(crate) fn images(&self) -> Vec<HeldImage> {
        let listed = self.points.iter().map(|point| (point, None));
        let removed = self.removed.values();
        let removed = removed.map(|(point, until)| (point, Some(*until)));
        let of_point = |(point, removed_until): (&Arc<PointRecord>, Option<u64>)| {
            let point = Arc::clone(point);
            (0..point.disks.len()).map(move |at| HeldImage {
                point: Some(point.id.clone()),
                group: point.id.group.clone(),
                disk: point.disks[at].name.clone(),
                image: point.disks[at].image.clone(),
                removed_until,
            })
        };
        let mut images: Vec<HeldImage> = listed.chain(removed).flat_map(of_point).collect();
        for seed in self.seeds.values() {
            images.extend(seed.disks.iter().map(|disk| HeldImage {
                point: None,
                group: seed.group.clone(),
                disk: disk.name.clone(),
                image: disk.image.clone(),
                removed_until: None,
            }));
        }
        // A seed is the youngest.
        let number = |held: &HeldImage| held.point.as_ref().map_or(u64::MAX, |id| id.sequence);
        images.sort_by(|a, b| (&a.group, number(a)).cmp(&(&b.group, number(b))));
        images
    }

    /// Whether a point or a seed has this very image.
    pub(crate) fn holds_image(&self, image: &ImageRef) -> bool {
        let of_point = |point: &Arc<PointRecord>| point.disks.iter().any(|d| d.image == *image);
        let of_seed = |seed: &Arc<SeedRecord>| seed.disks.iter().any(|d| d.image == *image);
        let removed = self.removed.values().map(|(point, _)| point);
        // What is asked for is nearly always one of the newest.
        self.points.iter().rev().chain(removed).any(of_point) || self.seeds.values().any(of_seed)
    }

    /// The first free numbers of containers, tree objects and bundles.
    pub(crate) fn next(&self) -> [u64; 3] {
        [
            self.held.next_container,
            self.held.next_tree,
            self.next_bundle,
        ]
    }

    /// The number that the group's next point gets.
    pub(crate) fn next_number(&self, group: &Name) -> u64 {
        self.numbers.get(group).map_or(1, |last| last + 1)
    }

    /// In its place among the points of its group.
    fn list_again(&mut self, point: Arc<PointRecord>) {
        let later = |other: &Arc<PointRecord>| {
            other.id.group == point.id.group && other.id.sequence > point.id.sequence
        };
        let place = self.points.iter().position(later);
        let place = place.unwrap_or(self.points.len());
        self.points.insert(place, point);
    }

    /// After one commit more.
    pub(super) fn enter(&mut self, commit: Commit, hash: Fingerprint) {
        self.sequence = commit.sequence;
        self.epoch = commit.epoch;
        self.last = hash;
        self.held = commit.held;
        self.apply(commit.change, commit.at);
    }

    /// The same with another copy of some things.
    pub(crate) fn relocated(&self, relocation: &Relocation) -> Self {
        let mut state = self.clone();
        relocation.apply(Arc::make_mut(&mut state.locations), &mut state.quarantine);
        state
    }

    /// After a commit of which nothing is known.
    pub(super) fn enter_lost(&mut self) {
        self.sequence += 1;
        self.last = Fingerprint::ZERO;
        // It may have listed a point of any group, and no number is given twice.
        for number in self.numbers.values_mut() {
            *number += 1;
        }
    }

    /// `at`: when it was committed.
    pub(super) fn apply(&mut self, change: Change, at: u64) {
        self.at = self.at.max(at);
        match change {
            Change::AddPoint(point) => {
                self.seeds.remove(&point.id.group);
                let number = self.numbers.entry(point.id.group.clone()).or_default();
                *number = (*number).max(point.id.sequence);
                self.points.push(point);
            }
            // Its number was passed over when its commit was found to be lost.
            Change::ReturnPoint(point) => self.list_again(point),
            Change::SaveSeed(seed) => {
                self.seeds.insert(seed.group.clone(), seed);
            }
            Change::DropSeed(group) => {
                self.seeds.remove(&group);
            }
            Change::RemovePoints(ids, until) => {
                let ids: BTreeSet<_> = ids.into_iter().collect();
                let (gone, kept) = std::mem::take(&mut self.points)
                    .into_iter()
                    .partition(|point| ids.contains(&point.id));
                self.points = kept;
                let gone: Vec<Arc<PointRecord>> = gone;
                for point in gone {
                    self.protections.remove(&point.id);
                    if until > at {
                        self.removed.insert(point.id.clone(), (point, until));
                    }
                }
            }
            Change::BringBack(ids) => {
                for id in ids {
                    if let Some((point, _)) = self.removed.remove(&id) {
                        self.list_again(point);
                    }
                }
            }
            Change::Forget(ids) => {
                ids.iter().for_each(|id| drop(self.removed.remove(id)));
            }
            Change::Protect(id, protection) if protection.is_none() => {
                self.protections.remove(&id);
            }
            Change::Protect(id, protection) => {
                self.protections.insert(id, protection);
            }
            Change::Scrubbed(scrub) => self.scrubbed = Some(scrub),
            Change::Sweep(sweep) => {
                let locations = Arc::make_mut(&mut self.locations);
                sweep.apply(locations, &mut self.quarantine, at);
                self.next_bundle = self.next_bundle.max(sweep.next_bundle);
            }
            Change::Relocate(relocation) => {
                let locations = Arc::make_mut(&mut self.locations);
                relocation.apply(locations, &mut self.quarantine);
            }
            Change::Replace(images) => {
                let removed = self.removed.values_mut().map(|(point, _)| point);
                replacement::apply(images, self.points.iter_mut().chain(removed));
            }
            // Its checkpoint says it.
            Change::BeginAnew(_) => {}
            Change::Purge(objects) => {
                for object in objects {
                    self.quarantine.remove(&object);
                }
            }
        }
    }
}
