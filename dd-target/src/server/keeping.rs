//! Vaults are looked after while the server runs, each by a thread of its own.

use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Name};
use tracing::warn;

use crate::keeper::{KeepOptions, Kept, Used, keep};
use crate::server::Inner;
use crate::server::vaults::Vault;

/// A vault that is looked after.
struct Keeping {
    shared: Arc<Inner>,
    vault: Arc<Vault>,
}

impl Inner {
    /// Begins to look after a vault.
    pub(crate) fn look_after(self: &Arc<Self>, vault: Arc<Vault>) {
        let name = vault.name.clone();
        let shared = Arc::clone(self);
        let keeping = Keeping { shared, vault };
        let thread = std::thread::Builder::new().name("keeper".into());
        match thread.spawn(move || keep(&keeping)) {
            Ok(keeper) => self.keepers.lock().push(keeper),
            Err(error) => warn!(vault = %name, %error, "nobody looks after the vault"),
        }
    }
}

impl Kept for Keeping {
    fn clock(&self) -> &dyn Clock {
        &*self.shared.clock
    }

    fn options(&self) -> &KeepOptions {
        &self.shared.keep
    }

    fn group(&self) -> Option<&Name> {
        None
    }

    fn name(&self) -> &str {
        self.vault.name.as_str()
    }

    fn rest(&self, time: Duration) -> bool {
        self.shared.ending.rest(time)
    }

    fn is_ending(&self) -> bool {
        self.shared.is_ending()
    }

    fn use_store(&self) -> Option<Used<'_>> {
        // What nobody goes on with keeps garbage from being collected.
        self.shared.drafts.drop_idle();
        let opened = self.vault.store();
        let failed = |error| warn!(vault = %self.vault.name, %error, "the vault cannot be opened");
        opened.map_err(failed).ok()?;
        let (store, turn) = self.vault.open_store()?;
        Some(Used {
            store,
            is_over: Box::new(move || self.vault.turn() != turn),
        })
    }
}
