//! Which sealed generations an earlier process left whole.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block::GRANULE;

use crate::coalesce::joined;
use crate::diff::OpenDiff;
use crate::group::{DiskSpec, Surroundings};
use crate::lineage::load_note;
use crate::sealed::{SealedDiff, SealedGeneration};
use crate::uses::Uses;
use crate::{Generation, Lineage};

/// The newest sealed generations that are complete and chain without a gap up to the open one.
pub(super) fn find_sealed(
    specs: &[DiskSpec],
    around: &Surroundings,
    left: (Lineage, bool),
    diffs: &[OpenDiff],
    released: Generation,
) -> Vec<Arc<SealedGeneration>> {
    let mut sealed: Vec<Arc<SealedGeneration>> = Vec::new();
    let mut needed = diffs
        .iter()
        .map(|diff| diff.map.since())
        .min()
        .unwrap_or_default();
    // A power cut may have brought back the files of one that was released long ago.
    while needed > released {
        let Some((generation, absorbed_into)) = open_sealed(specs, around, left, needed) else {
            break;
        };
        needed = generation.since.min(needed.previous());
        let generation = Arc::new(generation);
        let Some(later) = absorbed_into else {
            sealed.push(generation);
            continue;
        };
        // It may have holes: it counts as a part of the later one, or not at all.
        match sealed.last_mut() {
            Some(newer) if newer.generation == later && newer.absorbing.is_none() => {
                let broken = newer.uses.is_broken() || generation.uses.is_broken();
                *newer = Arc::new(joined(generation, newer));
                if broken {
                    newer.uses.spoil();
                }
            }
            _ => break,
        }
    }
    for sealed in &sealed {
        if sealed.is_unfinished() && sealed.absorbing.is_none() {
            // What it lacks was in an older one that is released and gone: the ship folds it.
            sealed.uses.spoil();
        }
    }
    sealed.reverse();
    sealed
}

fn open_sealed(
    specs: &[DiskSpec],
    around: &Surroundings,
    (lineage, killed): (Lineage, bool),
    generation: Generation,
) -> Option<(SealedGeneration, Option<Generation>)> {
    let note = load_note(&*around.state, lineage, generation).unwrap_or_else(|error| {
        tracing::warn!(%generation, %error, "what was said of a cut is lost");
        Default::default()
    });
    let (mut since, mut at, mut disks) = (generation, None, Vec::new());
    let (uses, mut absorbed_into) = (Uses::unfinished(), None);
    let (mut stale_count, mut lacking) = (0, false);
    for spec in specs {
        let mut diff = SealedDiff {
            maps: Arc::clone(&around.maps),
            diffs: Arc::clone(&around.diffs),
            name: spec.name.clone(),
            size: spec.production.size(),
            lineage,
            generation,
            dirty_bytes: AtomicU64::new(0),
            kept: None,
            uses: Arc::clone(&uses),
        };
        let map = diff.open_map().ok()?;
        if !killed {
            map.forget_doubts();
        }
        lacking |= map.lacks_staged();
        // Open from here on: what is lost later is told to this handle.
        diff.kept = diff.open().ok();
        at = Some(map.sealed_at()?);
        since = since.min(map.since());
        stale_count += map.stale_count();
        absorbed_into = absorbed_into.max(map.absorbed_into());
        diff.dirty_bytes = AtomicU64::new(map.dirty_count() * GRANULE);
        disks.push(diff);
    }
    match stale_count {
        _ if lacking => uses.spoil(),
        0 => uses.finish(),
        _ => {}
    }
    let sealed = SealedGeneration {
        lineage,
        generation,
        since,
        at: at?,
        note,
        disks,
        absorbing: None,
        uses,
    };
    Some((sealed, absorbed_into))
}
