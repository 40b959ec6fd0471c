//! A checkpoint of the catalog: the whole state as bytes.

use std::sync::Arc;

use super::State;
use super::commit::{decode_held, put_held};
use crate::codec::{self, Decoded, Decoder, Encode};
use crate::fingerprint::Fingerprint;
use crate::locations::Locations;
use crate::protection::Protection;
use crate::records::{PointId, PointRecord, SeedRecord, decode_name};
use crate::scrub::LastScrub;
use crate::sweep;

pub(super) const MAGIC: [u8; 8] = *b"STDNCKP1";
pub(super) const VERSION: u32 = 2;

pub(super) fn encode_checkpoint(state: &State, store: [u8; 16]) -> Vec<u8> {
    let mut out = codec::begin_version(MAGIC, VERSION);
    out.put_bytes(&store);
    out.put_u64(state.sequence);
    out.put_u64(state.epoch);
    out.put_bytes(&state.last.0);
    put_held(&state.held, &mut out);
    out.put_count(state.numbers.len());
    for (group, last) in &state.numbers {
        out.put_text(group.as_str());
        out.put_u64(*last);
    }
    out.put_count(state.points.len());
    state.points.iter().for_each(|point| point.put(&mut out));
    out.put_count(state.seeds.len());
    state.seeds.values().for_each(|seed| seed.put(&mut out));
    out.put_u64(state.next_bundle);
    state.locations.put(&mut out);
    sweep::put_quarantine(&state.quarantine, &mut out);
    out.put_count(state.removed.len());
    for (point, until) in state.removed.values() {
        point.put(&mut out);
        out.put_u64(*until);
    }
    out.put_count(state.protections.len());
    for (id, protection) in &state.protections {
        id.put(&mut out);
        protection.put(&mut out);
    }
    out.put_u8(u8::from(state.scrubbed.is_some()));
    if let Some(scrub) = &state.scrubbed {
        scrub.put(&mut out);
    }
    out.put_u64(state.at);
    codec::seal(out)
}

/// Reads a checkpoint object.
pub(crate) fn decode_checkpoint(bytes: &[u8], store: [u8; 16]) -> Decoded<State> {
    const ANY: usize = usize::MAX;
    let (mut d, version) = codec::unseal_versions(bytes, MAGIC, VERSION)?;
    d.is(Decoder::array, store, "it belongs to another store")?;
    let mut state = State::empty();
    state.sequence = d.u64()?;
    state.checkpoint = state.sequence;
    state.epoch = d.u64()?;
    state.last = Fingerprint(d.array()?);
    state.held = decode_held(&mut d)?;
    for _ in 0..d.count(ANY, 11)? {
        let group = decode_name(&mut d)?;
        state.numbers.insert(group, d.u64()?);
    }
    for _ in 0..d.count(ANY, 68)? {
        state.points.push(Arc::new(PointRecord::decode(&mut d)?));
    }
    for _ in 0..d.count(ANY, 31)? {
        let seed = SeedRecord::decode(&mut d)?;
        state.seeds.insert(seed.group.clone(), Arc::new(seed));
    }
    if version >= 2 {
        state.next_bundle = d.u64()?;
        state.locations = Arc::new(Locations::decode(&mut d)?);
        state.quarantine = sweep::decode_quarantine(&mut d)?;
        for _ in 0..d.count(ANY, 76)? {
            let point = Arc::new(PointRecord::decode(&mut d)?);
            let until = d.u64()?;
            state.removed.insert(point.id.clone(), (point, until));
        }
        for _ in 0..d.count(ANY, 20)? {
            let id = PointId::decode(&mut d)?;
            state.protections.insert(id, Protection::decode(&mut d)?);
        }
        state.scrubbed = match d.u8()? {
            0 => None,
            1 => Some(LastScrub::decode(&mut d)?),
            _ => return Err(d.error("the last scrub is of an unknown kind")),
        };
        state.at = d.u64()?;
    }
    d.end()?;
    Ok(state)
}
