//! The store that stage two has open, for who looks after it meanwhile.

use std::time::Duration;

use block::{Clock, Name};
use dd_target::{Chore, Done, KeepError, KeepOptions, Kept, Used, do_chore, keep};

use crate::engine::{Engine, Stop};
use crate::{Error, Result};

/// Looks after the target until the exports close; a vault's server does that itself.
pub(crate) fn run(engine: &Engine) {
    if engine.target.vault().is_none() {
        keep(engine);
    }
}

impl Kept for Engine {
    fn clock(&self) -> &dyn Clock {
        &*self.world.clock
    }

    fn options(&self) -> &KeepOptions {
        &self.keep
    }

    fn group(&self) -> Option<&Name> {
        Some(&self.name)
    }

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn rest(&self, time: Duration) -> bool {
        self.wait(Some(time), Stop::No, |_| false).stop == Stop::No
    }

    fn is_ending(&self) -> bool {
        self.stop() != Stop::No
    }

    fn use_store(&self) -> Option<Used<'_>> {
        let used = self.open_target.use_it()?;
        Some(Used {
            store: used.store.clone(),
            is_over: Box::new(move || used.is_over()),
        })
    }
}

impl Engine {
    /// Does a chore on the target that stage two has open.
    pub(crate) fn chore(&self, chore: &Chore) -> Result<Done> {
        do_chore(self, chore).map_err(|error| match error {
            KeepError::NotOpen => Error::NotOpen {
                target: self.target.to_string(),
            },
            KeepError::Store(error) => self.target.failed("look after the store")(error),
        })
    }
}
