//! What is needed of a container, laid out to lie in a bundle.
//!
//! | who collects | what is kept |
//! |---|---|
//! | can open regions | the chunks that are needed, packed anew |
//! | has no key | the regions of which any chunk is needed, as they are |
//!
//! Rule: chunks keep their slots.

use crate::container;
use crate::error::{Result, StoreError};
use crate::fingerprint::{CHUNK, Fingerprint};
use crate::objects::{Objects, Opened};
use crate::place::{ObjectId, Place};
use crate::region::{ChunkCodec, PackedRegion, REGION_CHUNKS_MAX};

use super::mark::Marks;

/// A container for a bundle.
pub(super) struct Section {
    pub(super) id: ObjectId,
    pub(super) bytes: Vec<u8>,
    pub(super) chunks: u32,
    /// What is not needed of it.
    pub(super) left_out: Vec<(Fingerprint, Place)>,
}

impl Section {
    /// A container as it is, or what is needed of it.
    pub(super) fn of(objects: &Objects, id: ObjectId, marks: &Marks) -> Result<Self> {
        let opened = objects.container(id)?;
        let manifest = &opened.manifest;
        let needed = |slot| marks.is_live(id, slot);
        if manifest.chunks().all(|(slot, _)| needed(slot)) {
            return Self::whole(objects, id, &opened);
        }
        let mut kept = Kept::default();
        match &objects.opener.codec {
            Some(codec) => kept.chunks(objects, &opened, codec, &needed)?,
            None => kept.regions(objects, &opened, &needed)?,
        }
        let left_out = manifest.chunks();
        let left_out = left_out.filter(|(slot, _)| !kept.has(*slot));
        let place =
            |(slot, fingerprint): (u64, &Fingerprint)| Some((*fingerprint, Place::new(id, slot)?));
        Ok(Self {
            id,
            chunks: u32::try_from(kept.slots.len()).expect("at most SLOTS_MAX"),
            left_out: left_out.filter_map(place).collect(),
            bytes: kept.encode(objects.store(), id),
        })
    }

    fn whole(objects: &Objects, id: ObjectId, opened: &Opened) -> Result<Self> {
        let bytes = objects.container_bytes(opened)?;
        let codec = objects.opener.codec.as_ref();
        let checked = container::check_whole(&bytes, objects.store(), id, codec);
        checked.map_err(|m| StoreError::malformed(objects.container_path(id), m))?;
        let chunks = opened.manifest.chunk_count();
        Ok(Self {
            id,
            bytes,
            chunks: u32::try_from(chunks).expect("at most SLOTS_MAX"),
            left_out: Vec::new(),
        })
    }
}

/// Chunks that stay.
#[derive(Default)]
struct Kept {
    slots: Vec<u16>,
    fingerprints: Vec<Fingerprint>,
    regions: Vec<PackedRegion>,
}

impl Kept {
    fn has(&self, slot: u64) -> bool {
        let slot = u16::try_from(slot).ok();
        slot.is_some_and(|slot| self.slots.binary_search(&slot).is_ok())
    }

    fn note(&mut self, slot: u64, fingerprint: Fingerprint) {
        let slot = u16::try_from(slot).expect("below SLOTS_MAX");
        self.slots.push(slot);
        self.fingerprints.push(fingerprint);
    }

    /// Keeps the chunks that are needed.
    fn chunks(
        &mut self,
        objects: &Objects,
        opened: &Opened,
        codec: &ChunkCodec,
        needed: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        let mut raw = Vec::new();
        for (i, region) in opened.manifest.regions.iter().enumerate() {
            let all = opened.manifest.chunks_of(region);
            if !all.clone().any(|(slot, _)| needed(slot)) {
                continue;
            }
            let chunks = objects.load_region(opened, i)?;
            for ((slot, fingerprint), chunk) in all.zip(chunks.chunks(CHUNK)) {
                if !needed(slot) {
                    continue;
                }
                self.note(slot, *fingerprint);
                raw.extend_from_slice(chunk);
                if raw.len() == REGION_CHUNKS_MAX * CHUNK {
                    self.regions.push(codec.pack(std::mem::take(&mut raw)));
                }
            }
        }
        if !raw.is_empty() {
            self.regions.push(codec.pack(raw));
        }
        Ok(())
    }

    /// Keeps the regions of which anything is needed.
    fn regions(
        &mut self,
        objects: &Objects,
        opened: &Opened,
        needed: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        for (i, region) in opened.manifest.regions.iter().enumerate() {
            let all = opened.manifest.chunks_of(region);
            if !all.clone().any(|(slot, _)| needed(slot)) {
                continue;
            }
            self.regions.push(objects.packed_region(opened, i)?);
            all.for_each(|(slot, fingerprint)| self.note(slot, *fingerprint));
        }
        Ok(())
    }

    fn encode(self, store: [u8; 16], id: ObjectId) -> Vec<u8> {
        let slots = Some(self.slots);
        let (bytes, _) = container::encode(store, id, self.fingerprints, slots, &self.regions);
        bytes
    }
}
