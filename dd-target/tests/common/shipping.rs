//! What a shipper does, and what of it can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{BlockDevice, UnixNanos, index};
use dd_target::api::Role;
use dd_target::client::{Objects, RemoteError, RemoteImage, RemotePoint, Vault};
use store::{Around, Base, Consistency, PointRecord, Store};

use super::Bench;

/// Of the disks that are shipped.
pub(crate) const SIZE: u64 = 16 << 20;

/// Content of which a half repeats, a quarter is zeroes, and the rest is like nothing else.
pub(crate) fn content(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::new();
    for granule in 0..SIZE / 4096 {
        let word = match granule % 4 {
            0 => 0,
            1 => granule / 64 + 1,
            2 => 7 + seed,
            _ => {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state
            }
        };
        out.extend(word.to_le_bytes().repeat(512));
    }
    out
}

pub(crate) fn ship(vault: &Vault, base: Base, content: &[u8]) -> Result<RemoteImage, RemoteError> {
    let mut writer = vault.image_writer(base)?;
    for (at, piece) in (0..).step_by(256).zip(content.chunks(1 << 20)) {
        writer.put(at, piece)?;
    }
    writer.finish()
}

pub(crate) fn commit(
    vault: &Vault,
    image: RemoteImage,
    generation: u64,
    at: u64,
) -> Result<Arc<PointRecord>, RemoteError> {
    commit_to(vault, "g", image, generation, at)
}

pub(crate) fn commit_to(
    vault: &Vault,
    group: &str,
    image: RemoteImage,
    generation: u64,
    at: u64,
) -> Result<Arc<PointRecord>, RemoteError> {
    vault.commit_point(&RemotePoint {
        group: &group.parse().unwrap(),
        disks: &[("disk".parse().unwrap(), image)],
        at: UnixNanos(at),
        lineage: [3; 16],
        generation,
        labels: &BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        consistency: Consistency::Application,
    })
}

pub(crate) fn vault(bench: &Bench) -> Vault {
    let access = bench.access(&bench.token(&[Role::Ship]));
    Vault::open(&bench.vault("v"), &access).unwrap()
}

/// What the newest point reads as, by a token that may.
pub(crate) fn restored(bench: &Bench) -> Vec<u8> {
    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&bench.vault("v"), &access).unwrap();
    let store = Store::open_reader(&objects, Around::new(Arc::clone(&bench.clock))).unwrap();
    let point = store.points().pop().unwrap();
    let mut read = vec![0; index(SIZE)];
    store
        .image(&point.disks[0].image)
        .unwrap()
        .read_at(&mut read, 0)
        .unwrap();
    read
}

/// Bytes that do not compress, and are like no others of another number.
pub(crate) fn noise(number: u64) -> impl Iterator<Item = u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state ^ (state >> 29)).to_le_bytes()
    });
    words.flatten()
}
