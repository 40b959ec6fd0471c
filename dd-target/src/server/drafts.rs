//! Drafts: images that clients write through the server, each an image writer of the vault's store.
//!
//! Rule: a draft is its token's, and of the store as it was opened when the draft began: when that is given up, so is the
//! draft. Whoever asks for one that is gone begins the image again; chunks that have arrived are known by then. One lives as
//! long as somebody is at work on it, or on another one of its ship, or until it is given up. However many
//! there are, they hold no more than [`DRAFT_BYTES_MAX`] in memory, and what is being written.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use block::{Clock, Random};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use store::{Base, ImageWriter, StoreError};

use crate::server::draft::{Draft, OfShip, Owner, gone};
use crate::server::guard::Caller;
use crate::server::limits::{
    DRAFT_BYTES_KEPT_MAX, DRAFT_BYTES_MAX, DRAFT_GIVES_WAY, DRAFT_IDLE_MAX, DRAFTS_PER_TOKEN,
};
use crate::server::refusal::{Answer, Refusal};
use crate::server::vaults::Vault;

/// All drafts.
pub(crate) struct Drafts {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    all: Mutex<HashMap<String, Arc<Draft>>>,
}

impl Drafts {
    pub(crate) fn new(clock: &Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            clock: Arc::clone(clock),
            random,
            all: Mutex::default(),
        }
    }

    /// Begins a draft. Returns its name; of one that was begun before under the same number of its ship, that one's.
    pub(crate) fn begin(
        &self,
        caller: &Caller,
        vault: &Arc<Vault>,
        (base, of): (Base, Option<OfShip>),
    ) -> Answer<String> {
        self.drop_idle();
        let store = vault.store()?;
        let turn = vault.turn();
        let owner = Owner {
            token: caller.token.id.clone(),
            vault: Arc::clone(vault),
            turn,
            of,
        };
        if let Some(begun) = begun(&self.all.lock(), &owner, &base)? {
            return Ok(begun);
        }
        if vault.is_full(&store, 0) {
            return Err(full(vault));
        }
        self.make_place(&owner.token)?;
        self.admit(&owner.token, base.kept_bytes())?;
        let writer = store.image_writer(base.clone())?;
        let mut id = [0; 16];
        self.random.fill(&mut id);
        let id = HEXLOWER.encode(&id);
        self.add(id, Draft::new(owner, base, self.clock.monotonic(), writer))
    }

    /// Lists it, unless meanwhile another request has.
    fn add(&self, id: String, draft: Draft) -> Answer<String> {
        let mut all = self.all.lock();
        if let Some(begun) = begun(&all, &draft.owner, &draft.base)? {
            return Ok(begun);
        }
        if of_token(&all, &draft.owner.token) >= DRAFTS_PER_TOKEN {
            return Err(too_many());
        }
        all.insert(id.clone(), Arc::new(draft));
        Ok(id)
    }

    /// Where a token has as many as it may, another one of its drafts gives way.
    fn make_place(&self, token: &str) -> Answer<()> {
        while of_token(&self.all.lock(), token) >= DRAFTS_PER_TOKEN {
            if !self.gives_way(token) {
                return Err(too_many());
            }
        }
        Ok(())
    }

    /// Before a draft is begun that is to keep so many bytes. What all keep leaves room for what is written: else each would
    /// write smaller and smaller containers, and that would not help.
    fn admit(&self, token: &str, kept: u64) -> Answer<()> {
        while self.sum(Draft::kept).saturating_add(kept) > DRAFT_BYTES_KEPT_MAX {
            if !self.gives_way(token) {
                return Err(no_memory());
            }
        }
        Ok(())
    }

    /// Drops one draft of a token: one that has failed, or the one that was left alone for longest. `false` if it is at work on
    /// all of them.
    fn gives_way(&self, token: &str) -> bool {
        let now = self.clock.monotonic();
        let all = self.all.lock();
        let own = all.iter().filter(|(_, draft)| draft.owner.token == token);
        let left = own.map(|(id, draft)| (draft.is_lost(), draft.idle(now), id));
        let may = |(lost, idle, _): &(bool, Duration, &String)| *lost || *idle >= DRAFT_GIVES_WAY;
        let longest = left.max().filter(may).map(|(.., id)| id.clone());
        drop(all);
        longest.inspect(|id| self.forget(id)).is_some()
    }

    /// The caller's draft of that name.
    pub(crate) fn find(&self, caller: &Caller, vault: &str, id: &str) -> Answer<Arc<Draft>> {
        self.drop_idle();
        let all = self.all.lock();
        let found = all.get(id).cloned().filter(|draft| {
            let owner = &draft.owner;
            owner.token == caller.token.id && owner.vault.name.as_str() == vault
        });
        let draft = found.filter(|draft| draft.is_current()).ok_or_else(gone)?;
        // The disks of a point are written one after the other: who is at work on one has not left the others of its ship.
        let now = self.clock.monotonic();
        let ship = all
            .values()
            .filter(|other| other.owner.ships_with(&draft.owner));
        ship.for_each(|other| other.touch(now));
        draft.touch(now);
        Ok(draft)
    }

    pub(crate) fn forget(&self, id: &str) {
        let gone = self.all.lock().remove(id);
        drop(gone);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.all.lock().len()
    }

    /// Writes to a draft, then makes room.
    pub(crate) fn write<T>(
        &self,
        draft: &Draft,
        act: impl FnOnce(&mut ImageWriter) -> Result<T, StoreError>,
    ) -> Answer<T> {
        let done = draft.write(act);
        self.make_room();
        done
    }

    /// Bytes that they hold in memory.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.sum(Draft::held)
    }

    fn sum(&self, of: impl Fn(&Draft) -> u64) -> u64 {
        let all = self.all.lock();
        let each = all.values().map(|draft| of(draft));
        each.fold(0, u64::saturating_add)
    }

    /// While they hold more than they may, those that hold most hold less. One that somebody writes to is passed over: he
    /// makes room after that, too.
    fn make_room(&self) {
        if self.held_bytes() <= DRAFT_BYTES_MAX {
            return;
        }
        let mut all: Vec<_> = self.all.lock().values().cloned().collect();
        all.sort_by_cached_key(|draft| Reverse(draft.held()));
        for draft in all {
            if self.held_bytes() <= DRAFT_BYTES_MAX {
                return;
            }
            draft.hold_less();
        }
    }

    pub(crate) fn drop_all(&self) {
        drop(take_out(&self.all, |_| true));
    }

    /// Drops those that nobody touches, and those whose store was given up.
    pub(crate) fn drop_idle(&self) {
        let now = self.clock.monotonic();
        let is_over = |draft: &Arc<Draft>| !draft.is_current() || draft.idle(now) > DRAFT_IDLE_MAX;
        drop(take_out(&self.all, is_over));
    }
}

/// Those that are over, to be dropped once nobody waits for the others: the last draft of a store that was given up ends its
/// threads, which may be at work for minutes.
fn take_out<D>(all: &Mutex<HashMap<String, D>>, is_over: impl Fn(&D) -> bool) -> Vec<D> {
    let mut all = all.lock();
    let over = all.extract_if(|_, draft| is_over(draft));
    over.map(|(_, draft)| draft).collect()
}

/// The draft that the same ship has begun under this number: its answer was lost, and it is asked for again.
fn begun(all: &HashMap<String, Arc<Draft>>, owner: &Owner, base: &Base) -> Answer<Option<String>> {
    let mut all = all.iter();
    let again = all.find(|(_, draft)| draft.owner.is_same(owner) && !draft.is_lost());
    match again {
        None => Ok(None),
        Some((id, draft)) if draft.base == *base => Ok(Some(id.clone())),
        Some(_) => Err(Refusal::invalid(
            "the ship has another draft of this number",
        )),
    }
}

fn of_token(all: &HashMap<String, Arc<Draft>>, token: &str) -> usize {
    let own = all.values().filter(|draft| draft.owner.token == token);
    own.count()
}

fn too_many() -> Refusal {
    let sentence = "this token has too many drafts, and is at work on all of them";
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, sentence)
}

fn no_memory() -> Refusal {
    let sentence = "the images in the making hold all the memory that the server has for them";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
        .hint("it has room again once some of them are finished")
}

/// Beyond the quota.
pub(crate) fn full(vault: &Vault) -> Refusal {
    let quota = vault.settings().quota_bytes.unwrap_or(0);
    let sentence = format!(
        "the vault {} is full: its quota is {quota} bytes",
        vault.name
    );
    Refusal::new(StatusCode::INSUFFICIENT_STORAGE, sentence)
        .hint("remove points and collect garbage, or give the vault a larger quota (standin vault set-quota)")
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type All = Mutex<HashMap<String, Slow>>;

    struct Slow {
        all: Weak<All>,
        free: Arc<AtomicUsize>,
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let all = self.all.upgrade();
            let free = all.is_some_and(|all| all.try_lock().is_some());
            self.free.fetch_add(usize::from(free), Ordering::Relaxed);
        }
    }

    /// A store was given up while it wrote: its last draft was dropped under the lock of all drafts, waited there for the store's
    /// threads, and every request to every vault waited with it.
    #[test]
    fn nobody_waits_for_drafts_to_be_dropped() {
        let all = Arc::new(All::default());
        let free = Arc::new(AtomicUsize::new(0));
        for id in ["a", "b"] {
            let (all_too, free) = (Arc::downgrade(&all), Arc::clone(&free));
            let slow = Slow { all: all_too, free };
            all.lock().insert(id.to_owned(), slow);
        }
        drop(take_out(&all, |_| true));
        assert_eq!(free.load(Ordering::Relaxed), 2);
        assert!(all.lock().is_empty());
    }
}
