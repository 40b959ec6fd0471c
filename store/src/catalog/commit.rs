//! A commit of the catalog: one change, and what it follows.

use std::sync::Arc;

use super::{Change, Held};
use crate::codec::{self, Decoded, Decoder, Encode};
use crate::fingerprint::Fingerprint;
use crate::protection::Protection;
use crate::records::{PointId, PointRecord, SeedRecord, decode_name};
use crate::relocation::Relocation;
use crate::replacement::Replacement;
use crate::scrub::LastScrub;
use crate::sweep::{self, Sweep};

pub(super) const MAGIC: [u8; 8] = *b"STDNCMT1";

/// A commit as it stands in its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(super) sequence: u64,
    pub(super) epoch: u64,
    pub(super) previous: Fingerprint,
    pub(super) at: u64,
    pub(super) held: Held,
    pub(super) change: Change,
}

impl Commit {
    pub(super) fn begins_anew(&self) -> bool {
        matches!(self.change, Change::BeginAnew(_))
    }

    /// Whether it may come in this place; `last`: the hash of the commit before it, where that is known.
    pub(super) fn check_follows(
        &self,
        sequence: u64,
        epoch: u64,
        last: Option<Fingerprint>,
    ) -> std::result::Result<(), &'static str> {
        if self.sequence != sequence {
            return Err("it is another commit");
        }
        // Whoever went on after a lost commit may not have known its hash.
        let unknown = self.begins_anew() && self.previous == Fingerprint::ZERO;
        if !unknown && last.is_some_and(|last| self.previous != last) {
            return Err("it does not follow the commit before it");
        }
        if self.epoch < epoch {
            return Err("it was written by a writer that had been fenced");
        }
        Ok(())
    }

    pub(super) fn encode(&self, store: [u8; 16]) -> Vec<u8> {
        let mut out = codec::begin(MAGIC);
        out.put_bytes(&store);
        out.put_u64(self.sequence);
        out.put_u64(self.epoch);
        out.put_bytes(&self.previous.0);
        out.put_u64(self.at);
        put_held(&self.held, &mut out);
        match &self.change {
            Change::AddPoint(point) => {
                out.put_u8(1);
                point.put(&mut out);
            }
            Change::SaveSeed(seed) => {
                out.put_u8(2);
                seed.put(&mut out);
            }
            Change::ReturnPoint(point) => {
                out.put_u8(14);
                point.put(&mut out);
            }
            Change::DropSeed(group) => {
                out.put_u8(13);
                out.put_text(group.as_str());
            }
            Change::RemovePoints(ids, until) => {
                out.put_u8(3);
                put_ids(ids, &mut out);
                out.put_u64(*until);
            }
            Change::Sweep(sweep) => {
                out.put_u8(4);
                sweep.put(&mut out);
            }
            Change::Purge(objects) => {
                out.put_u8(5);
                sweep::put_objects(objects, &mut out);
            }
            Change::BringBack(ids) => {
                out.put_u8(6);
                put_ids(ids, &mut out);
            }
            Change::Forget(ids) => {
                out.put_u8(7);
                put_ids(ids, &mut out);
            }
            Change::Protect(id, protection) => {
                out.put_u8(8);
                id.put(&mut out);
                protection.put(&mut out);
            }
            Change::Scrubbed(scrub) => {
                out.put_u8(9);
                scrub.put(&mut out);
            }
            Change::Relocate(relocation) => {
                out.put_u8(10);
                relocation.put(&mut out);
            }
            Change::BeginAnew(lost) => {
                out.put_u8(11);
                out.put_count(lost.len());
                lost.iter().for_each(|number| out.put_u64(*number));
            }
            Change::Replace(images) => {
                out.put_u8(12);
                out.put_count(images.len());
                images.iter().for_each(|image| image.put(&mut out));
            }
        }
        codec::seal(out)
    }
}

/// Reads a commit object, with its hash.
pub(super) fn decode_hashed_commit(
    bytes: &[u8],
    store: [u8; 16],
) -> Decoded<(Commit, Fingerprint)> {
    let commit = decode_commit(bytes, store)?;
    Ok((commit, Fingerprint::of_bytes(bytes)))
}

/// Reads a commit object.
pub(crate) fn decode_commit(bytes: &[u8], store: [u8; 16]) -> Decoded<Commit> {
    let mut d = codec::unseal(bytes, MAGIC)?;
    d.is(Decoder::array, store, "it belongs to another store")?;
    let [sequence, epoch] = [d.u64()?, d.u64()?];
    let previous = Fingerprint(d.array()?);
    let at = d.u64()?;
    let held = decode_held(&mut d)?;
    let change = match d.u8()? {
        1 => Change::AddPoint(Arc::new(PointRecord::decode(&mut d)?)),
        2 => Change::SaveSeed(Arc::new(SeedRecord::decode(&mut d)?)),
        3 => Change::RemovePoints(decode_ids(&mut d)?, d.u64()?),
        4 => Change::Sweep(Sweep::decode(&mut d)?),
        5 => Change::Purge(sweep::decode_objects(&mut d)?),
        6 => Change::BringBack(decode_ids(&mut d)?),
        7 => Change::Forget(decode_ids(&mut d)?),
        8 => Change::Protect(PointId::decode(&mut d)?, Protection::decode(&mut d)?),
        9 => Change::Scrubbed(LastScrub::decode(&mut d)?),
        10 => Change::Relocate(Relocation::decode(&mut d)?),
        11 => {
            let count = d.count(usize::MAX, 8)?;
            Change::BeginAnew((0..count).map(|_| d.u64()).collect::<Decoded<_>>()?)
        }
        12 => {
            let count = d.count(usize::MAX, 22)?;
            let images = (0..count).map(|_| Replacement::decode(&mut d));
            Change::Replace(images.collect::<Decoded<_>>()?)
        }
        13 => Change::DropSeed(decode_name(&mut d)?),
        14 => Change::ReturnPoint(Arc::new(PointRecord::decode(&mut d)?)),
        _ => return Err(d.error("its kind of change is unknown")),
    };
    d.end()?;
    Ok(Commit {
        sequence,
        epoch,
        previous,
        at,
        held,
        change,
    })
}

fn put_ids(ids: &[PointId], out: &mut Vec<u8>) {
    out.put_count(ids.len());
    ids.iter().for_each(|id| id.put(out));
}

fn decode_ids(d: &mut Decoder<'_>) -> Decoded<Vec<PointId>> {
    let count = d.count(usize::MAX, 11)?;
    (0..count).map(|_| PointId::decode(d)).collect()
}

pub(super) fn put_held(held: &Held, out: &mut Vec<u8>) {
    for number in [
        held.next_container,
        held.next_tree,
        held.containers,
        held.chunks,
        held.container_bytes,
        held.tree_bytes,
    ] {
        out.put_u64(number);
    }
}

pub(super) fn decode_held(d: &mut Decoder<'_>) -> Decoded<Held> {
    Ok(Held {
        next_container: d.u64()?,
        next_tree: d.u64()?,
        containers: d.u64()?,
        chunks: d.u64()?,
        container_bytes: d.u64()?,
        tree_bytes: d.u64()?,
    })
}
