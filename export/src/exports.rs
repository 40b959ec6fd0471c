//! What is served: devices by name, with the bitmaps that go with them.
//!
//! Rule: a connection keeps the export it negotiated for as long as it lives; adding and removing
//! only decides what later handshakes find.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use block::{BlockDevice, DirtyBitmap};
use parking_lot::RwLock;

/// A device under a name.
pub struct Export {
    /// What clients ask for. Up to 4096 bytes of UTF-8, not empty.
    pub name: String,
    /// For people. Up to 4096 bytes.
    pub description: String,
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// Bitmap `b` is the meta context `qemu:dirty-bitmap:b`.
    pub bitmaps: Vec<(String, Arc<dyn DirtyBitmap>)>,
    /// Promises that a flush or a forced write on one connection covers the completed writes of all
    /// (any [`BlockDevice`] keeps that promise; a device that is not shared may still say no).
    pub multi_conn: bool,
}

/// Why an export was not added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddError {
    /// The name is taken.
    #[error("an export named `{0}` exists already")]
    Exists(String),
    /// Empty, or a name or description over 4096 bytes (NBD "Values": string limit).
    #[error("the export's names and description must have 1 to {STRING_LEN_MAX} bytes")]
    Text,
    /// The protocol's clients take sizes as signed numbers.
    #[error("the device of export `{0}` is larger than 2^63 - 1 bytes")]
    TooLarge(String),
}

/// NBD "Values": no string is longer.
pub(crate) const STRING_LEN_MAX: usize = 4096;
/// Room for `qemu:dirty-bitmap:` before the name.
const BITMAP_NAME_LEN_MAX: usize = STRING_LEN_MAX - 64;

/// The list of exports; clones share it.
#[derive(Clone, Default)]
pub struct Exports {
    table: Arc<RwLock<Table>>,
}

#[derive(Default)]
struct Table {
    by_name: BTreeMap<String, Arc<Export>>,
    default: Option<String>,
}

impl Exports {
    /// No exports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// If the name is taken or illegal, or the device too large for the protocol.
    pub fn add(&self, export: Export) -> Result<(), AddError> {
        let text_ok = (1..=STRING_LEN_MAX).contains(&export.name.len())
            && export.description.len() <= STRING_LEN_MAX
            && (export.bitmaps.iter()).all(|(name, _)| name.len() <= BITMAP_NAME_LEN_MAX);
        if !text_ok {
            return Err(AddError::Text);
        }
        if i64::try_from(export.device.size()).is_err() {
            return Err(AddError::TooLarge(export.name));
        }
        let mut table = self.table.write();
        if table.by_name.contains_key(&export.name) {
            return Err(AddError::Exists(export.name));
        }
        (table.by_name).insert(export.name.clone(), Arc::new(export));
        Ok(())
    }

    /// Hides an export from later handshakes. Connections that use it keep it.
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        self.table.write().by_name.remove(name)
    }

    /// The export that a client gets who names none.
    pub fn set_default(&self, name: Option<String>) {
        self.table.write().default = name;
    }

    /// The export that a client means by `name`; the empty name means the default.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        let table = self.table.read();
        let name = match (name, &table.default) {
            ("", Some(default)) => default,
            (name, _) => name,
        };
        table.by_name.get(name).cloned()
    }

    /// All exports, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Export>> {
        self.table.read().by_name.values().cloned().collect()
    }
}

impl fmt::Debug for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.read();
        f.debug_struct("Exports")
            .field("names", &table.by_name.keys().collect::<Vec<_>>())
            .field("default", &table.default)
            .finish()
    }
}
