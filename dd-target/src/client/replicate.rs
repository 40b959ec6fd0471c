//! Copying the points of a store to a vault: what a shipper may, so they are added in the order of their making.
//!
//! Rule: a point is listed under its own number, after the server has told that its images have the roots that they have here.

use std::sync::Arc;

use block::Name;
use store::{Base, PointDisk, PointRecord, Replicated, Store};

use crate::api;
use crate::client::RemoteError;
use crate::client::connection::Ask;
use crate::client::image_copy::{CopyError, RemoteCopy};
use crate::client::vault::{RemoteImage, RemotePoint, Vault};

/// What a point is of.
fn cut(point: &PointRecord) -> ([u8; 16], u64) {
    (point.lineage, point.generation)
}

/// A point, as the store has it and as the vault does.
type Common = (Arc<PointRecord>, Arc<PointRecord>);

impl Vault {
    /// The points of a store that come after those that the vault has, or had, of their groups; oldest first.
    ///
    /// # Errors
    /// If the server cannot be reached, or refuses; so of all calls here.
    pub fn points_to_copy(
        &self,
        from: &Store,
        group: Option<&Name>,
    ) -> Result<Vec<Arc<PointRecord>>, RemoteError> {
        let mut points = from.points();
        points.retain(|point| group.is_none_or(|group| point.group() == group));
        let mut groups: Vec<Name> = points.iter().map(|point| point.group().clone()).collect();
        groups.sort();
        groups.dedup();
        for group in &groups {
            let listed = self.list(group)?;
            let next = listed.next_sequence;
            self.check_origin(from, group, &listed)?;
            points.retain(|point| point.group() != group || point.id.sequence >= next);
        }
        Ok(points)
    }

    /// A number that others took would hide the point that has it here.
    fn check_origin(
        &self,
        from: &Store,
        group: &Name,
        listed: &api::PointList,
    ) -> Result<(), RemoteError> {
        let foreign = |point: String| {
            let server = self.connection.server();
            Err(RemoteError::ForeignPoint { server, point })
        };
        let given = from.next_number(group);
        if listed.next_sequence > given {
            return foreign(format!("a point after {group}@{}", given.saturating_sub(1)));
        }
        let here = from.points();
        for point in &listed.points {
            let there = self.point(point)?;
            let same = here.iter().find(|here| here.id == there.id);
            if same.is_some_and(|same| cut(same) != cut(&there)) {
                return foreign(there.id.to_string());
            }
        }
        Ok(())
    }

    /// Copies a point of a store. `progress` is told bytes looked at, and bytes in all.
    ///
    /// # Errors
    /// If the server refuses it; if something of it is damaged in the store.
    pub fn copy_point(
        &self,
        from: &Store,
        point: &PointRecord,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Replicated, CopyError> {
        let common = self.newest_in_common(from, point.group())?;
        let all = point.disks.iter().map(|disk| disk.size).sum();
        let (mut before, mut copied_bytes, mut disks) = (0, 0, Vec::new());
        for disk in &point.disks {
            let base = common.as_ref().and_then(|(theirs, ours)| {
                let same = |point: &PointRecord| point.disk(&disk.name).cloned();
                let both = same(theirs).zip(same(ours));
                both.filter(|(theirs, ours)| theirs.size == disk.size && ours.size == disk.size)
            });
            let tell = |done| progress(before + done, all);
            let copied = match self.copy_disk(from, disk, base.as_ref(), &tell) {
                // The vault's point only calls itself the same.
                Err(CopyError::To(RemoteError::OtherContent { .. })) if base.is_some() => {
                    self.copy_disk(from, disk, None, &tell)
                }
                copied => copied,
            };
            let (image, bytes) = copied?;
            disks.push((disk.name.clone(), image));
            copied_bytes += bytes;
            before += disk.size;
            progress(before, all);
        }
        let new = RemotePoint {
            group: point.group(),
            disks: &disks,
            at: point.at,
            lineage: point.lineage,
            generation: point.generation,
            labels: &point.labels,
            consistency: point.consistency,
        };
        let listed = self.commit(&new, Some(point.id.sequence))?;
        let same = |(name, image): &(Name, RemoteImage)| {
            let disk = listed.disk(name);
            disk.is_some_and(|disk| disk.image == *image.image())
        };
        let is_it = listed.id == point.id && cut(&listed) == cut(point);
        if !is_it || listed.disks.len() != disks.len() || !disks.iter().all(same) {
            let server = self.connection.server();
            let point = listed.id.to_string();
            return Err(RemoteError::ForeignPoint { server, point }.into());
        }
        Ok(Replicated {
            point: listed,
            copied_bytes,
        })
    }

    /// The newest of a group's points that both have: in the store, and in the vault.
    fn newest_in_common(&self, from: &Store, group: &Name) -> Result<Option<Common>, RemoteError> {
        let theirs = from.points();
        let same = |ours: &PointRecord| {
            let mut theirs = theirs.iter();
            theirs.find(|theirs| theirs.id == ours.id && cut(theirs) == cut(ours))
        };
        let listed = self.points(group, None)?.into_iter();
        let mut both = listed.filter_map(|ours| same(&ours).cloned().map(|theirs| (theirs, ours)));
        Ok(both.next())
    }

    fn copy_disk(
        &self,
        from: &Store,
        disk: &PointDisk,
        base: Option<&(PointDisk, PointDisk)>,
        tell: &dyn Fn(u64),
    ) -> Result<(RemoteImage, u64), CopyError> {
        let (since, on) = match base {
            Some((theirs, ours)) => (Some(&theirs.image), Base::Image(ours.image.clone())),
            None => (None, Base::Empty { size: disk.size }),
        };
        let mut copy = RemoteCopy::new(self.draft(on)?);
        let copied_bytes = from.copy_onto(&disk.image, since, &mut copy, tell)?;
        let root = from.image(&disk.image)?.root()?;
        Ok((copy.finish(root)?, copied_bytes))
    }

    fn list(&self, group: &Name) -> Result<api::PointList, RemoteError> {
        let ask = Ask::get(self.path(&format!("groups/{group}/points")));
        self.connection.json(ask)
    }
}
