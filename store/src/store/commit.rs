//! Commits: each durable after all that it refers to, into the headroom where it makes room, and none after a failure
//! that leaves open what is durable.

use std::sync::Arc;

use crate::catalog::{AppendError, Change, State};
use crate::error::{ErrorKind, Result, StoreError};
use crate::inventory::Sums;
use crate::store::{Inner, Writer};

impl Inner {
    /// Commits what holds for the store as it is.
    pub(crate) fn commit(&self, state: &mut State, change: Change) -> Result<()> {
        self.commit_with(state, change, None)
    }

    /// Containers, trees and bundles, then the commit: each durable before the next is begun. `after`: what the store
    /// will hold, where that is less than what it holds. A change that makes room may use the headroom.
    pub(crate) fn commit_with(
        &self,
        state: &mut State,
        change: Change,
        after: Option<Sums>,
    ) -> Result<()> {
        let makes_room = matches!(
            change,
            Change::RemovePoints(..)
                | Change::DropSeed(_)
                | Change::Forget(_)
                | Change::Sweep(_)
                | Change::Purge(_)
        );
        match self.try_commit(state, change.clone(), after) {
            Err(e) if e.kind() == ErrorKind::Full && makes_room && self.use_headroom() => {
                let committed = self.try_commit(state, change, after);
                self.headroom.keep_the_rest();
                committed
            }
            other => other,
        }
    }

    /// Gives the headroom to whoever makes room; `false` if there is none. What is left of it is to be kept again.
    pub(crate) fn use_headroom(&self) -> bool {
        self.headroom.give_up()
    }

    /// Occupies what is left of the headroom.
    pub(crate) fn keep_headroom(&self) {
        self.headroom.keep_the_rest();
    }

    /// Occupies the headroom again, where there is room for it.
    pub(crate) fn restore_headroom(&self) {
        self.headroom.restore();
    }

    /// The same after a collection, where there may be less room.
    pub(crate) fn restore_some_headroom(&self) {
        self.headroom.restore_some();
    }

    /// Whether only the headroom, or not even that, is free.
    pub(crate) fn is_full(&self) -> bool {
        self.headroom.is_needed()
    }

    fn try_commit(&self, state: &mut State, change: Change, after: Option<Sums>) -> Result<()> {
        let writer = self.writer()?;
        writer.check_latch()?;
        writer.lease.check()?;
        let opener = &self.objects.opener;
        let synced = opener
            .containers
            .sync()
            .and_then(|()| opener.trees.sync())
            .and_then(|()| opener.bundles.sync());
        synced.map_err(|e| writer.latch(e))?;
        let epoch = writer.lease.epoch;
        let at = self.now();
        let mut held = writer.engine.held();
        if let Some(after) = after {
            held.set_sums(after);
        }
        match self.catalog.append(state, epoch, at, held, change) {
            Ok(true) => {}
            Ok(false) => {
                writer.lease.check().map_err(|e| writer.latch(e))?;
                // Nobody has taken over: it is one of the writer before, or of this one, that came late.
                let overtaken = StoreError::Overtaken(state.sequence + 1);
                return Err(writer.latch(overtaken));
            }
            Err(AppendError::NotDone(e)) => return Err(e),
            Err(AppendError::Unknown(e)) => return Err(writer.latch(e)),
        }
        if let Err(e) = self.catalog.checkpoint_if_due(state, epoch) {
            tracing::warn!(error = %e, "no checkpoint of the catalog could be written");
        }
        Ok(())
    }
}

impl Writer {
    pub(crate) fn check_latch(&self) -> Result<()> {
        match &*self.latch.lock() {
            None => Ok(()),
            Some(first) => Err(StoreError::Latched {
                first: Arc::clone(first),
            }),
        }
    }

    pub(crate) fn latch(&self, error: StoreError) -> StoreError {
        let mut latch = self.latch.lock();
        latch.get_or_insert_with(|| error.chain().into());
        error
    }
}
