//! Which points are listed: removing them and bringing them back, holds and locks, what rules say of them. And which seeds
//! there are no more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use block::{Name, UnixNanos};
use jiff::tz::TimeZone;

use crate::catalog::Change;
use crate::error::{Result, StoreError};
use crate::protection::{Protection, REASON_BYTES_MAX};
use crate::records::{PointId, PointRecord};
use crate::retention::{self, Policy, Verdict};
use crate::store::{Inner, Store};

impl Store {
    /// Takes points off the list, all of them or none. For `delay` they can be brought back; then what only they needed
    /// is free for a collection.
    ///
    /// # Errors
    /// `NotFound` if one is not listed, `Protected` if one is held or locked, `Fenced`, `Invalid` for a reader, `Full`,
    /// `Io`: nothing has changed.
    pub fn remove_points(&self, ids: &[PointId], delay: Duration) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let now = self.inner.now();
        let mut state = self.inner.state.lock();
        let listed: HashSet<&PointId> = state.points.iter().map(|point| &point.id).collect();
        if let Some(unknown) = ids.iter().find(|id| !listed.contains(id)) {
            return Err(StoreError::NoPoint(unknown.to_string()));
        }
        for id in ids {
            let protection = state.protections.get(id);
            if let Some(protection) = protection
                && (protection.hold.is_some() || protection.is_locked(now))
            {
                return Err(StoreError::Protected {
                    point: id.to_string(),
                    protection: protection.clone(),
                });
            }
        }
        let until = match u64::try_from(delay.as_nanos()) {
            Ok(0) => 0,
            Ok(delay) => now.saturating_add(delay),
            Err(_) => u64::MAX,
        };
        let change = Change::RemovePoints(ids.to_vec(), until);
        self.inner.commit(&mut state, change)
    }

    /// Gives a group's seed up: what only it needs is free for a collection. A first copy that is under way is begun again.
    ///
    /// # Errors
    /// `NotFound` if the group has none; as [`remove_points`](Self::remove_points).
    pub fn drop_seed(&self, group: &Name) -> Result<()> {
        let mut state = self.inner.state.lock();
        if !state.seeds.contains_key(group) {
            return Err(StoreError::NoSeed(group.to_string()));
        }
        let change = Change::DropSeed(group.clone());
        self.inner.commit(&mut state, change)
    }

    /// Points that were removed and can be brought back, and until when.
    #[must_use]
    pub fn removed_points(&self) -> Vec<(Arc<PointRecord>, UnixNanos)> {
        let state = self.inner.state.lock();
        let removed = state.removed.values();
        let removed = removed.map(|(point, until)| (Arc::clone(point), UnixNanos(*until)));
        removed.collect()
    }

    /// Lists a point again that was removed.
    ///
    /// # Errors
    /// `NotFound` if it was not, or if it is gone for good; as [`remove_points`](Self::remove_points).
    pub fn bring_back(&self, id: &PointId) -> Result<()> {
        let mut state = self.inner.state.lock();
        // Asked with the catalog locked: a dry run counts what is over as garbage from then on.
        let now = self.inner.now();
        let removed = state.removed.get(id);
        if removed.is_none_or(|(_, until)| *until <= now) {
            return Err(StoreError::NoPoint(id.to_string()));
        }
        let change = Change::BringBack(vec![id.clone()]);
        self.inner.commit(&mut state, change)
    }

    /// What protects a point that is listed.
    #[must_use]
    pub fn protection(&self, id: &PointId) -> Protection {
        let state = self.inner.state.lock();
        state.protections.get(id).cloned().unwrap_or_default()
    }

    /// The time that locks go by. It never runs backwards.
    #[must_use]
    pub fn now(&self) -> UnixNanos {
        UnixNanos(self.inner.now())
    }

    /// Holds a point, with a reason, or lifts the hold.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` if the reason is too long; as [`remove_points`](Self::remove_points).
    pub fn hold(&self, id: &PointId, reason: Option<&str>) -> Result<()> {
        if reason.is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
            let sentence = "the reason of a hold has at most 4096 bytes";
            return Err(StoreError::Invalid(sentence));
        }
        self.inner.protect(id, |protection| {
            protection.hold = reason.map(str::to_owned);
            Ok(())
        })
    }

    /// Locks a point until that time: before it nothing removes it, and nothing shortens the lock.
    ///
    /// # Errors
    /// `Protected` if it is locked for longer already; `NotFound`; as [`remove_points`](Self::remove_points).
    pub fn lock_until(&self, id: &PointId, until: UnixNanos) -> Result<()> {
        self.inner.protect(id, |protection| {
            if until.0 < protection.locked_until {
                return Err(StoreError::Protected {
                    point: id.to_string(),
                    protection: protection.clone(),
                });
            }
            protection.locked_until = until.0;
            Ok(())
        })
    }

    /// What `policy` says of the points of a group, or of all, group by group, newest first. Nothing is removed.
    #[must_use]
    pub fn verdicts(&self, group: Option<&Name>, policy: &Policy, zone: &TimeZone) -> Vec<Verdict> {
        let now = self.inner.now();
        let state = self.inner.state.lock();
        let of_group = |point: &&Arc<PointRecord>| group.is_none_or(|g| point.group() == g);
        let points: Vec<_> = state.points.iter().filter(of_group).cloned().collect();
        retention::verdicts(&points, &state.protections, policy, zone, now)
    }
}

impl Inner {
    fn protect(
        &self,
        id: &PointId,
        change: impl FnOnce(&mut Protection) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock();
        if !state.points.iter().any(|point| point.id == *id) {
            return Err(StoreError::NoPoint(id.to_string()));
        }
        let mut protection = state.protections.get(id).cloned().unwrap_or_default();
        change(&mut protection)?;
        let change = Change::Protect(id.clone(), protection);
        self.commit(&mut state, change)
    }
}
