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

use crate::armor::Kind;
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
    let theirs = replica.points().into_iter();
    let theirs: BTreeMap<PointId, Arc<PointRecord>> =
        theirs.map(|point| (point.id.clone(), point)).collect();
    let mut found = Vec::new();
    for hit in hits {
        if let Some(disk) = disk_of(ours, hit, &theirs)
            && may_be_the_same(ours, hit, &disk, replica)?
        {
            found.extend(hit.point.clone().map(|point| Copyable {
                point,
                disk,
                lost_bytes: hit.ranges.iter().map(|range| range.len()).sum(),
            }));
        }
    }
    let is_all = !hits.is_empty() && found.len() == hits.len();
    Ok((found, is_all))
}

/// The disk of the same point there: the same cut of the same disk.
fn disk_of(
    ours: &Store,
    hit: &Hit,
    theirs: &BTreeMap<PointId, Arc<PointRecord>>,
) -> Option<PointDisk> {
    let id = hit.point.as_ref()?;
    let there = theirs.get(id)?;
    let here = ours.inner.state.lock().point(id).cloned()?;
    let cut = |point: &PointRecord| (point.lineage, point.generation, point.at);
    let (mine, its) = (here.disk(&hit.disk)?, there.disk(&hit.disk)?);
    (cut(&here) == cut(there) && mine.size == its.size).then(|| its.clone())
}

/// Whether the image has the root that it has here, as far as that can still be known.
fn may_be_the_same(ours: &Store, hit: &Hit, disk: &PointDisk, replica: &Store) -> Result<bool> {
    let id = hit.point.as_ref();
    let here = id.and_then(|id| ours.inner.state.lock().point(id).cloned());
    let here = here.and_then(|point| point.disk(&hit.disk).cloned());
    let Some(here) = here else { return Ok(false) };
    let root = ours.image(&here.image).and_then(|image| image.root());
    match root {
        Ok(root) => match replica.image(&disk.image).and_then(|image| image.root()) {
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(false),
            theirs => Ok(theirs? == root),
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
    let mut containers = BTreeSet::<ObjectId>::new();
    for (kind, id) in unreadable {
        match kind {
            Kind::Container => drop(containers.insert(*id)),
            Kind::Bundle => containers.extend(objects.containers_in(*id)),
            _ => {}
        }
    }
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
