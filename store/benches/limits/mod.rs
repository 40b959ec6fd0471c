//! What the processors allow: hashing, compressing and decompressing of chunks that lie in memory, where nothing is looked up, read
//! or written. A store cannot be faster; how close it comes is what its own work costs.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use block::{Clock, index};
use store::{ChunkCodec, Fingerprint, PackedRegion};

use crate::{Source, ratio};

const CHUNK: usize = 4096;
const REGION: usize = 32 * CHUNK;
/// Regions that a thread takes at once.
const TURN: usize = 8;

/// Different chunks of a source that are not zeroes, in its order: at most `max` bytes, whole regions.
pub(crate) fn different_chunks(source: &Source, max: u64) -> Vec<u8> {
    let codec = ChunkCodec::plain();
    let (mut seen, mut out) = (HashSet::new(), Vec::new());
    let mut piece = vec![0; 1 << 20];
    for offset in (0..source.size).step_by(piece.len()) {
        let len = index((source.size - offset).min(piece.len() as u64)) / CHUNK * CHUNK;
        source.read(&mut piece[..len], offset);
        let prints = codec.fingerprints(&piece[..len]);
        for (chunk, print) in piece[..len].chunks(CHUNK).zip(prints) {
            if print != Fingerprint::ZERO && seen.insert(print) {
                out.extend_from_slice(chunk);
            }
        }
        if out.len() as u64 >= max {
            break;
        }
    }
    out.truncate(out.len().min(index(max)) / REGION * REGION);
    out
}

/// MB/s of content.
pub(crate) struct Limits {
    /// SHA-256, one thread.
    pub(crate) hash_one: f64,
    /// SHA-256, all threads.
    pub(crate) hash: f64,
    /// SHA-256 and zstd, all threads.
    pub(crate) pack: f64,
    /// Decompression and SHA-256, all threads.
    pub(crate) open: f64,
}

impl Limits {
    /// Of this content, the best of three rounds each.
    pub(crate) fn measure(clock: &dyn Clock, content: &[u8], threads: usize) -> Self {
        let codec = ChunkCodec::plain();
        let regions: Vec<&[u8]> = content.chunks(REGION).collect();
        let packed: Vec<(Vec<Fingerprint>, PackedRegion)> = regions
            .iter()
            .map(|raw| (codec.fingerprints(raw), codec.pack(raw.to_vec())))
            .collect();
        let rate = |threads, act: &(dyn Fn(usize) + Sync)| {
            let once = |_| timed(clock, regions.len(), threads, act);
            let best = (0..3).map(once).min().expect("three rounds");
            ratio(content.len() as u64, 1_000_000) / best.as_secs_f64()
        };
        let hash = |at: usize| drop(codec.fingerprints(regions[at]));
        Self {
            hash_one: rate(1, &hash),
            hash: rate(threads, &hash),
            pack: rate(threads, &|at| {
                hash(at);
                drop(codec.pack(regions[at].to_vec()));
            }),
            open: rate(threads, &|at| {
                let (prints, region) = &packed[at];
                codec.open(region, prints).expect("it was packed so");
            }),
        }
    }
}

fn timed(
    clock: &dyn Clock,
    count: usize,
    threads: usize,
    act: &(dyn Fn(usize) + Sync),
) -> Duration {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let first = next.fetch_add(TURN, Ordering::Relaxed);
            if first >= count {
                return;
            }
            (first..count.min(first + TURN)).for_each(act);
        }
    };
    let began = clock.monotonic();
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    clock.monotonic() - began
}
