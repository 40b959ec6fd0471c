//! What a sealed generation may be laid upon. Pure: the one place where a wrong answer would make a
//! wrong point.
//!
//! ```text
//!   diff: everything written after cut `since`, sealed by cut `generation`
//!   base: an image of the disks as of cut `b`, or a seed with everything but what was written after `b`
//!   exact if both are of one lineage, and since <= b < generation
//! ```
//!
//! Rule: anything else is not a base. The disks are then copied anew; nothing is guessed.

use std::sync::Arc;

use block::Name;
use splitter::{Generation, Lineage};
use store::{ImageRef, PointRecord, SeedRecord};

/// What the target has of a group.
#[derive(Clone, Default)]
pub(crate) struct Held {
    /// The newest point of the lineage in question.
    pub(crate) point: Option<Arc<PointRecord>>,
    /// The saved seed.
    pub(crate) seed: Option<Arc<SeedRecord>>,
    /// There was something of this lineage that was not made here; it is left out.
    pub(crate) foreign: bool,
}

/// Why nothing is laid upon a history with something foreign in it.
pub(crate) const FOREIGN: &str = "the target has a point of this history that was not made here";

/// A sealed generation, as far as it matters here.
pub(crate) struct Sealed<'a> {
    pub(crate) lineage: Lineage,
    pub(crate) since: Generation,
    pub(crate) generation: Generation,
    /// The generation that takes the guest's writes: it has not been cut.
    pub(crate) open: Generation,
    pub(crate) disks: &'a [(Name, u64)],
}

/// What to do with a sealed generation.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    /// Its point is listed: release it.
    AlreadyThere(Arc<PointRecord>),
    /// Lay it over these images, one per disk.
    Over(Vec<ImageRef>),
    /// There is no base: copy the disks anew.
    Missing(&'static str),
}

/// Decides.
pub(crate) fn plan(held: &Held, sealed: &Sealed<'_>) -> Plan {
    if held.foreign {
        return Plan::Missing(FOREIGN);
    }
    let fits = |base: u64| sealed.since.0 <= base && base < sealed.generation.0;
    let own = |lineage: &[u8; 16]| *lineage == sealed.lineage.0;
    if let Some(point) = held.point.as_ref().filter(|point| own(&point.lineage)) {
        if point.generation >= sealed.open.0 {
            // Whoever made it, it is not of this history. To release diffs for it would be to lose them.
            return Plan::Missing("the target has a point of a cut that was never made");
        }
        if point.generation >= sealed.generation.0 {
            return Plan::AlreadyThere(Arc::clone(point));
        }
        if fits(point.generation) {
            let disks = point.disks.iter().map(|d| (&d.name, d.size, &d.image));
            return over(disks, sealed.disks);
        }
    }
    match held.seed.as_ref().filter(|seed| own(&seed.lineage)) {
        Some(seed) if !is_complete(seed) => Plan::Missing("the first copy is not complete"),
        Some(seed) if fits(seed.generation) => {
            let disks = seed.disks.iter().map(|d| (&d.name, d.size, &d.image));
            over(disks, sealed.disks)
        }
        _ if held.point.is_none() && held.seed.is_none() => {
            Plan::Missing("the target has no point of this group's history")
        }
        _ => Plan::Missing("the target lacks the point that this one builds on"),
    }
}

fn over<'a>(
    held: impl Iterator<Item = (&'a Name, u64, &'a ImageRef)> + Clone,
    wanted: &[(Name, u64)],
) -> Plan {
    let image = |(name, size): &(Name, u64)| {
        let mut held = held.clone();
        held.find(|(n, s, _)| *n == name && s == size)
            .map(|(_, _, image)| image.clone())
    };
    let images: Option<Vec<_>> = wanted.iter().map(image).collect();
    match images {
        Some(images) if held.count() == wanted.len() => Plan::Over(images),
        _ => Plan::Missing("the target's newest point has other disks"),
    }
}

/// Whether all disks of a seed are copied.
pub(crate) fn is_complete(seed: &SeedRecord) -> bool {
    let done = |disk: &store::SeedDiskRecord| {
        disk.cursor_granule >= block::GranuleRange::of_size(disk.size).end
    };
    seed.disks.iter().all(done)
}

#[cfg(test)]
mod tests;
