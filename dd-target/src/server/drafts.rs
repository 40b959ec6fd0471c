//! Drafts: images that clients write through the server, each an image writer of the vault's store.
//!
//! Rule: a draft is its token's, and of the store as it was opened when the draft began: when that is given up, so is the
//! draft. Whoever asks for one that is gone begins the image again; chunks that have arrived are known by then. However many
//! there are, they hold no more than [`DRAFT_BYTES_MAX`] in memory, and what is being written.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use block::{Clock, Random};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use store::{Base, ImageWriter, StoreError};

use crate::server::draft::{Draft, gone};
use crate::server::guard::Caller;
use crate::server::limits::{DRAFT_BYTES_MAX, DRAFT_IDLE_MAX, DRAFTS_PER_TOKEN};
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

    /// Begins a draft. Returns its name.
    pub(crate) fn begin(&self, caller: &Caller, vault: &Arc<Vault>, base: Base) -> Answer<String> {
        self.drop_idle();
        let store = vault.store()?;
        let turn = vault.turn();
        if vault.is_full(&store, 0) {
            return Err(full(vault));
        }
        let writer = store.image_writer(base)?;
        let mut id = [0; 16];
        self.random.fill(&mut id);
        let id = HEXLOWER.encode(&id);
        let now = self.clock.monotonic();
        let draft = Draft::new(caller.token.id.clone(), (vault, turn), now, writer);
        let mut all = self.all.lock();
        let of_token = all.values().filter(|draft| draft.token == caller.token.id);
        if of_token.count() >= DRAFTS_PER_TOKEN {
            let sentence = "this token has too many drafts";
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, sentence));
        }
        all.insert(id.clone(), Arc::new(draft));
        Ok(id)
    }

    /// The caller's draft of that name.
    pub(crate) fn find(&self, caller: &Caller, vault: &str, id: &str) -> Answer<Arc<Draft>> {
        self.drop_idle();
        self.touch(caller, vault);
        let draft = self.all.lock().get(id).cloned();
        let draft = draft.filter(|draft| {
            draft.token == caller.token.id
                && draft.vault().name.as_str() == vault
                && draft.is_current()
        });
        draft.ok_or_else(gone)
    }

    /// Who is at work on one draft has not left the others: the disks of a point are written one after the other.
    fn touch(&self, caller: &Caller, vault: &str) {
        let now = self.clock.monotonic();
        for draft in self.all.lock().values() {
            if draft.token == caller.token.id && draft.vault().name.as_str() == vault {
                *draft.touched.lock() = now;
            }
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        self.all.lock().remove(id);
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
        self.all.lock().values().map(|draft| draft.held()).sum()
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
        self.all.lock().clear();
    }

    /// Drops those that nobody touches, and those whose store was given up.
    pub(crate) fn drop_idle(&self) {
        let now = self.clock.monotonic();
        let idle = |draft: &Draft| now.saturating_sub(*draft.touched.lock()) > DRAFT_IDLE_MAX;
        let mut all = self.all.lock();
        all.retain(|_, draft| draft.is_current() && !idle(draft));
    }
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
