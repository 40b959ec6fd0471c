//! Wrapped keys on their way from who has the secrets to who keeps the store, and has none of them.
//!
//! ```text
//! of a store that is to be made:  key id 16 | next slot u32 | slots u32 (1 to 16): slot..
//! one way more:                   slot
//! ```
//!
//! Rule: who keeps a store adds what it is given, and takes nothing away for it: it cannot tell who has a secret.

use block::{Random, UnixNanos};

use super::slot::Slot;
use super::{KeySlot, LABEL_BYTES_MAX, SLOTS_MAX, Secret, Slots, newest};
use crate::backend::Backend;
use crate::codec::{Decoded, Decoder};
use crate::error::{Result, StoreError};
use crate::format;
use crate::seal::{KeyId, MasterKey};

/// The key of a store that is to be made, wrapped for each of the first ways to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKeys {
    pub(super) key: KeyId,
    pub(super) slots: Slots,
}

/// One way more to open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey(pub(super) Slot);

impl NewKeys {
    /// A key that nobody has yet, and that each of `secrets` (1 to 16, with what their owners call them) opens.
    ///
    /// # Errors
    /// `Invalid` for another count, or a label of more than 256 bytes.
    pub fn make(secrets: &[(Secret, String)], random: &dyn Random, at: UnixNanos) -> Result<Self> {
        if secrets.is_empty() || secrets.len() > SLOTS_MAX {
            let sentence = "an encrypted store begins with 1 to 16 ways to open it";
            return Err(StoreError::Invalid(sentence));
        }
        let master = MasterKey::new(random);
        let mut slots = Slots::begin(1, Vec::new());
        for (secret, label) in secrets {
            let slot = slots.wrap(&master, secret, label, random, at)?;
            slots.push(slot);
        }
        let key = master.id();
        Ok(Self { key, slots })
    }

    /// The key of another store: what opens that is to open the new one. `None` if that is not encrypted.
    ///
    /// # Errors
    /// `NotFound` if there is no store, `Corrupt`, `Io`.
    pub fn of(place: &dyn Backend) -> Result<Option<Self>> {
        let theirs = format::read(place)?;
        let Some(key) = theirs.key else {
            return Ok(None);
        };
        let Slots { next, slots, .. } = newest(place, theirs.store)?;
        let slots = Slots::begin(next, slots);
        Ok(Some(Self { key, slots }))
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.key.to_vec();
        self.slots.put(&mut out);
        out
    }

    /// `None` if these bytes are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let decode = || -> Decoded<Self> {
            let mut d = Decoder::new(bytes);
            let key = d.array()?;
            let slots = Slots::take(&mut d, 1)?;
            d.check(!slots.slots.is_empty(), "nothing opens it")?;
            d.end()?;
            Ok(Self { key, slots })
        };
        decode().ok()
    }
}

impl WrappedKey {
    /// As its owner sees it.
    #[must_use]
    pub fn describe(&self) -> KeySlot {
        self.0.describe()
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.0.put(&mut out);
        out
    }

    /// `None` if these bytes are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut d = Decoder::new(bytes);
        let slot = Slot::decode(&mut d, LABEL_BYTES_MAX).ok()?;
        d.end().ok()?;
        Some(Self(slot))
    }
}
