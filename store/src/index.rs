//! The index: from a fingerprint to a place where such a chunk may lie. A cache in memory, rebuilt
//! from manifests; every answer is a guess that the asker checks against the manifest.
//!
//! It is exact while it fits its budget. Past it, it keeps one in 2, then one in 4 ... of the
//! fingerprints, chosen by their bits ("hooks"): a stream that repeats meets a hook every few
//! chunks, and the manifest that the hook leads to answers for the neighbours ([`Neighbours`]).

use std::collections::{BTreeSet, VecDeque};

use hashbrown::HashTable;

use crate::container::Manifest;
use crate::fingerprint::Fingerprint;
use crate::place::{ObjectId, Place};

/// Entries of an index of about 64 MiB: 17 bytes each, 7/8 full.
pub(crate) const ENTRIES_MAX: usize = (4 << 20) / 8 * 7;

#[derive(Clone, Copy)]
struct Entry {
    prefix: u64,
    place: Place,
}

/// Places by fingerprint.
pub(crate) struct Index {
    table: HashTable<Entry>,
    entries_max: usize,
    /// A fingerprint is kept if this many of its bits are zero.
    sampling: u32,
}

impl Index {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            table: HashTable::new(),
            entries_max,
            sampling: 0,
        }
    }

    /// Whether every chunk that was inserted is found.
    pub(crate) fn is_exact(&self) -> bool {
        self.sampling == 0
    }

    /// One in 2 to this many fingerprints is kept.
    pub(crate) fn sampling(&self) -> u32 {
        self.sampling
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Where a chunk with this fingerprint may lie.
    pub(crate) fn find(&self, fingerprint: &Fingerprint) -> Option<Place> {
        let prefix = fingerprint.prefix();
        let found = self.table.find(prefix, |entry| entry.prefix == prefix);
        found.map(|entry| entry.place)
    }

    /// All chunks of a container; what is known already keeps its place.
    pub(crate) fn insert_all(&mut self, id: ObjectId, manifest: &Manifest) {
        for (slot, fingerprint) in manifest.chunks() {
            if let Some(place) = Place::new(id, slot) {
                self.insert(fingerprint, place);
            }
        }
    }

    /// A chunk that is about to leave its place.
    pub(crate) fn forget(&mut self, fingerprint: &Fingerprint, place: Place) {
        let prefix = fingerprint.prefix();
        let same = |entry: &Entry| entry.prefix == prefix && entry.place == place;
        if let Ok(entry) = self.table.find_entry(prefix, same) {
            entry.remove();
        }
    }

    /// Containers on which nothing is to be built any more.
    pub(crate) fn forget_containers(&mut self, ids: &BTreeSet<ObjectId>) {
        let is_kept = |entry: &mut Entry| !ids.contains(&entry.place.container());
        self.table.retain(is_kept);
    }

    fn insert(&mut self, fingerprint: &Fingerprint, place: Place) {
        let prefix = fingerprint.prefix();
        if !is_hook(prefix, self.sampling) || self.find(fingerprint).is_some() {
            return;
        }
        if self.table.len() >= self.entries_max {
            self.sampling += 1;
            let sampling = self.sampling;
            self.table.retain(|entry| is_hook(entry.prefix, sampling));
        }
        if is_hook(prefix, self.sampling) {
            let entry = Entry { prefix, place };
            self.table
                .insert_unique(prefix, entry, |entry| entry.prefix);
        }
    }
}

/// The table spreads by the low and the highest bits of the prefix; sampling takes bits between.
fn is_hook(prefix: u64, sampling: u32) -> bool {
    (prefix >> 24).trailing_zeros() >= sampling
}

/// The chunks of the last few containers that a sampled index led to.
#[derive(Default)]
pub(crate) struct Neighbours {
    containers: VecDeque<(ObjectId, HashTable<Entry>)>,
}

impl Neighbours {
    const CONTAINERS_MAX: usize = 16;

    pub(crate) fn find(&self, fingerprint: &Fingerprint) -> Option<Place> {
        let prefix = fingerprint.prefix();
        let find = |(_, table): &(_, HashTable<Entry>)| {
            let found = table.find(prefix, |entry| entry.prefix == prefix);
            found.map(|entry| entry.place)
        };
        self.containers.iter().rev().find_map(find)
    }

    pub(crate) fn remember(&mut self, id: ObjectId, manifest: &Manifest) {
        if self.containers.iter().any(|(known, _)| *known == id) {
            return;
        }
        let mut table = HashTable::with_capacity(manifest.chunk_count());
        for (slot, fingerprint) in manifest.chunks() {
            let prefix = fingerprint.prefix();
            if let Some(place) = Place::new(id, slot) {
                table.insert_unique(prefix, Entry { prefix, place }, |entry| entry.prefix);
            }
        }
        if self.containers.len() == Self::CONTAINERS_MAX {
            self.containers.pop_front();
        }
        self.containers.push_back((id, table));
    }

    /// Bytes in memory, about.
    pub(crate) fn held_bytes(&self) -> usize {
        let entries = self.containers.iter().map(|(_, table)| table.capacity());
        entries.sum::<usize>() * (size_of::<Entry>() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(i: u64) -> Fingerprint {
        Fingerprint::of_bytes(&i.to_le_bytes())
    }

    fn place(i: u64) -> Place {
        Place::new(ObjectId(1 + i / 4096), i % 4096).unwrap()
    }

    #[test]
    fn exact_until_the_budget_then_one_in_two_then_in_four() {
        let mut index = Index::new(1000);
        for i in 0..1000 {
            index.insert(&fingerprint(i), place(i));
        }
        assert!(index.is_exact());
        assert!((0..1000).all(|i| index.find(&fingerprint(i)) == Some(place(i))));
        for i in 1000..3000 {
            index.insert(&fingerprint(i), place(i));
        }
        assert!(!index.is_exact() && index.len() <= 1000, "{}", index.len());
        let found = (0..3000).filter(|i| index.find(&fingerprint(*i)).is_some());
        let found = found.count();
        assert!((500..=1000).contains(&found), "{found}");
    }
}
