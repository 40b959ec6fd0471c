//! Where a chunk lies: a slot of a container.

use std::fmt;
use std::num::NonZeroU64;

/// Most slots of a container.
pub(crate) const SLOTS_MAX: usize = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 12;

/// A container or a tree object, numbered from 1 in the order of their making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectId(pub(crate) u64);

impl ObjectId {
    /// Ids stay below this, so that a place fits 64 bits.
    pub(crate) const END: u64 = 1 << (64 - SLOT_BITS);
}

/// A slot of a container. Invariant: the container's id is in `1..ObjectId::END`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place(NonZeroU64);

impl Place {
    /// `None` if either number is out of range.
    pub(crate) fn new(container: ObjectId, slot: u64) -> Option<Self> {
        let ok = container.0 < ObjectId::END && slot < SLOTS_MAX as u64;
        let packed = NonZeroU64::new(container.0 << SLOT_BITS | slot)?;
        (ok && container.0 > 0).then_some(Self(packed))
    }

    pub(crate) fn container(self) -> ObjectId {
        ObjectId(self.0.get() >> SLOT_BITS)
    }

    pub(crate) fn slot(self) -> usize {
        block::index(self.0.get() & (SLOTS_MAX as u64 - 1))
    }

    /// The place `by` slots further; `None` past the end of a container.
    pub(crate) fn after(self, by: u64) -> Option<Self> {
        Self::new(self.container(), (self.slot() as u64).checked_add(by)?)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container().0, self.slot())
    }
}
