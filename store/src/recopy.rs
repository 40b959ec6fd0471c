//! Images of which something is lost, copied again from a replica: another store that lists the same points.
//!
//! ```text
//! what points have lost --the replica lists that point?--> its image, as replicate copies it, beside what is left here
//!                                              some of them --one commit--> the points have the new images
//! ```
//!
//! Rule: nothing is built on an object that cannot be read; and where the old image still tells its root, the new one has the
//! same. Crash: before the commit, chunks that nothing refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block::Name;

use crate::catalog::Change;
use crate::copies::Thing;
use crate::error::{ErrorKind, Result, StoreError};
use crate::image_writer::FinishedImage;
use crate::place::ObjectId;
use crate::records::{PointDisk, PointId, PointRecord};
use crate::replacement::Replacement;
use crate::scrub::Hit;
use crate::store::Store;
use crate::tree::ImageRef;

/// Images that one commit names, at most.
const AT_ONCE: usize = 1000;

/// An image that a replica has.
#[derive(Clone, Debug)]
pub(crate) struct Copyable {
    pub(crate) point: PointId,
    /// As the replica has it.
    pub(crate) disk: PointDisk,
    /// Bytes of it that cannot be read here.
    pub(crate) lost_bytes: u64,
}

/// Which of what is lost a replica has; and whether that is all.
pub(crate) fn find(ours: &Store, replica: &Store, hits: &[Hit]) -> Result<(Vec<Copyable>, bool)> {
    ours.check_key_of(replica)?;
    let removed = ours.removed_points().into_iter().map(|(point, _)| point);
    let here = by_id(ours.points().into_iter().chain(removed));
    let there = by_id(replica.points());
    let mut found = Vec::new();
    for hit in hits {
        let Some(id) = &hit.point else { continue };
        let Some((mine, its)) = same_disk(here.get(id), there.get(id), &hit.disk) else {
            continue;
        };
        if may_be_the_same(ours, mine, replica, its)? {
            found.push(Copyable {
                point: id.clone(),
                disk: its.clone(),
                lost_bytes: hit.ranges.iter().map(|range| range.len()).sum(),
            });
        }
    }
    let is_all = !hits.is_empty() && found.len() == hits.len();
    Ok((found, is_all))
}

fn by_id(
    points: impl IntoIterator<Item = Arc<PointRecord>>,
) -> BTreeMap<PointId, Arc<PointRecord>> {
    let pair = |point: Arc<PointRecord>| (point.id.clone(), point);
    points.into_iter().map(pair).collect()
}

/// The disk of two points, if they are the same cut of disks of one size.
fn same_disk<'a>(
    here: Option<&'a Arc<PointRecord>>,
    there: Option<&'a Arc<PointRecord>>,
    disk: &Name,
) -> Option<(&'a PointDisk, &'a PointDisk)> {
    let (here, there) = (here?, there?);
    let cut = |point: &PointRecord| (point.lineage, point.generation, point.at);
    let (mine, its) = (here.disk(disk)?, there.disk(disk)?);
    (cut(here) == cut(there) && mine.size == its.size).then_some((mine, its))
}

/// Whether an image has the root that it has here, as far as that can still be known.
fn may_be_the_same(
    ours: &Store,
    mine: &PointDisk,
    replica: &Store,
    its: &PointDisk,
) -> Result<bool> {
    let root = |store: &Store, disk: &PointDisk| store.image(&disk.image)?.root();
    match root(ours, mine) {
        Ok(known) => match root(replica, its) {
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(false),
            found => Ok(found? == known),
        },
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(true),
        Err(e) => Err(e),
    }
}

/// Copies them. What the replica has lost, too, stays as it is; the first such failure is the answer, after all others were
/// done. `unreadable`: objects on which nothing is built.
pub(crate) fn copy_again(
    ours: &Store,
    replica: &Store,
    wanted: &[Copyable],
    unreadable: &BTreeSet<Thing>,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    forget(ours, unreadable)?;
    let all: u64 = wanted.iter().map(|image| image.disk.size).sum();
    let mut reached = 0;
    let mut failed = None;
    // The newest copy of each disk: the next one differs little from it.
    let mut bases = BTreeMap::<(Name, Name), ImageRef>::new();
    let mut done: Vec<(Replacement, FinishedImage)> = Vec::new();
    for Copyable { point, disk, .. } in wanted {
        let key = (point.group.clone(), disk.name.clone());
        let tell = |bytes| progress(reached + bytes, all);
        match ours.copy_image(replica, disk, bases.get(&key), &tell) {
            Ok((image, _)) => {
                bases.insert(key, image.image().clone());
                let replacement = Replacement {
                    point: point.clone(),
                    disk: disk.name.clone(),
                    image: image.image().clone(),
                };
                done.push((replacement, image));
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => drop(failed.get_or_insert(e)),
            Err(e) => {
                commit(ours, &mut done)?;
                return Err(e);
            }
        }
        reached += disk.size;
        progress(reached, all);
        if done.len() == AT_ONCE {
            commit(ours, &mut done)?;
        }
    }
    commit(ours, &mut done)?;
    failed.map_or(Ok(()), |e| Err(StoreError::Replica(Box::new(e))))
}

/// No chunk of what cannot be read is a chunk that the store has.
fn forget(ours: &Store, unreadable: &BTreeSet<Thing>) -> Result<()> {
    let objects = &ours.inner.objects;
    let containers = unreadable
        .iter()
        .flat_map(|object| objects.containers_of(*object));
    let containers: BTreeSet<ObjectId> = containers.collect();
    let engine = &ours.inner.writer()?.engine;
    engine.index.lock().forget_containers(&containers);
    Ok(())
}

/// The images are kept until the catalog names them.
fn commit(ours: &Store, done: &mut Vec<(Replacement, FinishedImage)>) -> Result<()> {
    if done.is_empty() {
        return Ok(());
    }
    ours.inner
        .check_holders(done.iter().map(|(_, image)| image))?;
    let images = done.iter().map(|(image, _)| image.clone()).collect();
    let mut state = ours.inner.state.lock();
    ours.inner.commit(&mut state, Change::Replace(images))?;
    drop(state);
    done.clear();
    Ok(())
}
