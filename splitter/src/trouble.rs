//! Why copies of a disk's writes are missing, in words for a person.

use block::Name;
use parking_lot::Mutex;

pub(crate) struct Trouble {
    disk: Name,
    why: Mutex<Option<String>>,
}

impl Trouble {
    pub(crate) fn new(disk: Name) -> Self {
        let why = Mutex::new(None);
        Self { disk, why }
    }

    /// The first one counts, until all is well again.
    pub(crate) fn note(&self, why: &str) {
        let mut trouble = self.why.lock();
        if trouble.is_none() {
            tracing::warn!(disk = %self.disk, why, "a guest's write could not be copied");
            *trouble = Some(why.to_owned());
        }
    }

    pub(crate) fn clear(&self) {
        *self.why.lock() = None;
    }

    pub(crate) fn why(&self) -> Option<String> {
        self.why.lock().clone()
    }
}
