//! Drafts as the server has them: those that are shipped together, and each of them until it is listed or given up.
//!
//! ```text
//! begun --a point or a seed has it--> used
//!   +-----dropped-------------------> given up: the server is told
//! ```
//!
//! Rule: a draft that nobody goes on with is given up as well as can be: nothing waits for that, and nothing is told of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use block::{OsRandom, Random};
use parking_lot::Mutex;
use reqwest::Method;

use crate::client::connection::{Ask, Connection};
use crate::record;

/// How long an answer to that may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer to it.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Drafts that live together: whoever is at work on one of them will list the others with it.
#[derive(Debug)]
pub(super) struct Ship {
    name: String,
    begun: AtomicU64,
}

/// The ship that drafts are begun for. It is over once all of its drafts are.
#[derive(Clone, Default)]
pub(super) struct Current {
    ship: Arc<Mutex<Weak<Ship>>>,
}

/// A draft.
pub(super) struct Begun {
    connection: Arc<Connection>,
    /// Names it to the server.
    pub(super) id: String,
    /// Below the server.
    pub(super) path: String,
    is_used: AtomicBool,
    _ship: Arc<Ship>,
}

impl Current {
    pub(super) fn ship(&self) -> Arc<Ship> {
        let mut current = self.ship.lock();
        current.upgrade().unwrap_or_else(|| {
            let ship = Arc::new(Ship::new());
            *current = Arc::downgrade(&ship);
            ship
        })
    }
}

impl Ship {
    fn new() -> Self {
        let mut name = [0; 16];
        OsRandom.fill(&mut name);
        Self {
            name: record::lineage_text(&name),
            begun: AtomicU64::new(0),
        }
    }

    /// What names one draft more: asked for twice it is begun once.
    pub(super) fn next(&self) -> String {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        format!("ship={}&number={number}", self.name)
    }
}

impl Begun {
    pub(super) fn new(
        connection: &Arc<Connection>,
        ship: Arc<Ship>,
        id: String,
        path: String,
    ) -> Self {
        Self {
            connection: Arc::clone(connection),
            id,
            path,
            is_used: AtomicBool::new(false),
            _ship: ship,
        }
    }

    /// A point or a seed has it: the server has forgotten the draft.
    pub(super) fn set_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.is_used.load(Ordering::Relaxed) {
            return;
        }
        let mut ask = Ask::get(self.path.clone());
        ask.method = Method::DELETE;
        ask.patience = Some(PATIENCE);
        let connection = Arc::clone(&self.connection);
        self.connection.begin(async move {
            // One that is left behind is dropped by the server in time.
            let _ = connection.send(&ask, ANSWER_BYTES_MAX).await;
        });
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Begun").field(&self.id).finish()
    }
}
