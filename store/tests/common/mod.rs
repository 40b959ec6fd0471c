//! What the tests of the store share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, ByteRange, Dir, GRANULE, GranuleRange, Name, UnixNanos, index};
use sim::SimClock;
use store::{
    Around, Backend, Base, Consistency, Directory, FinishedImage, GcOptions, PointDraft,
    RestoreSink, Secret, SeedDisk, SeedDraft, Store,
};

pub(crate) mod damaged;
pub(crate) mod lost_sector;

pub(crate) fn around(workers: usize) -> Around {
    let clock = Arc::new(SimClock::new());
    Around {
        workers,
        headroom_bytes: 0,
        secret: secret().map(Arc::new),
        ..Around::new(clock)
    }
}

/// What opens the stores of this run. They are encrypted where the seed is odd: so what holds of stores is tried of both
/// kinds, and a seed replays its own.
pub(crate) fn secret() -> Option<Secret> {
    let encrypted = sim::seed_from_env(0) % 2 == 1;
    encrypted.then(|| key(7))
}

/// A key of that many same bytes.
pub(crate) fn key(byte: u8) -> Secret {
    Secret::Key([byte; 32].into())
}

/// What a store is opened with that has this secret, whatever the run's is.
pub(crate) fn with(secret: Option<Secret>) -> Around {
    Around {
        secret: secret.map(Arc::new),
        ..around(0)
    }
}

/// Makes a store.
pub(crate) fn create(place: &Arc<dyn Backend>) -> store::Result<()> {
    match secret() {
        None => Store::create(place),
        Some(secret) => Store::create_encrypted(place, &[(secret, "test".into())], &around(0)),
    }
}

pub(crate) fn open_writer(dir: &Arc<dyn Dir>, workers: usize) -> Store {
    Store::open_writer(&Directory::backend(dir), around(workers)).unwrap()
}

/// A collection that leaves no garbage, not even for a while.
pub(crate) fn thorough() -> GcOptions<'static> {
    GcOptions {
        quarantine: Duration::ZERO,
        compact_below: 1.0,
        ..GcOptions::default()
    }
}

/// How much a run shall do.
pub(crate) fn count_from_env(name: &str, fallback: u64) -> u64 {
    let asked = std::env::var(name);
    asked.map_or(fallback, |count| {
        count
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {count}"))
    })
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn draft(group: &str, image: FinishedImage) -> PointDraft {
    PointDraft {
        group: name(group),
        disks: vec![(name("disk"), image)],
        at: UnixNanos(1_780_000_000_000_000_000),
        lineage: [3; 16],
        generation: 9,
        labels: [("why".into(), "test".into())].into(),
        consistency: Consistency::Crash,
    }
}

/// Makes a point of the group `web`: chunks of these numbers, laid over its newest one.
pub(crate) fn commit(
    store: &Store,
    content: &mut Content,
    puts: impl IntoIterator<Item = (u64, u64)>,
) {
    let base = match store.newest(&name("web")) {
        Some(point) => Base::Image(point.disks[0].image.clone()),
        None => Base::Empty {
            size: content.bytes.len() as u64,
        },
    };
    let mut writer = store.image_writer(base).unwrap();
    for (granule, number) in puts {
        let mut data = chunk(number);
        content.put(granule, &mut data);
        writer.put(granule, &data).unwrap();
    }
    let image = writer.finish().unwrap();
    store.commit_point(draft("web", image)).unwrap();
}

pub(crate) fn seed_draft(group: &str, image: FinishedImage) -> SeedDraft {
    SeedDraft {
        group: name(group),
        lineage: [3; 16],
        generation: 0,
        disks: vec![SeedDisk {
            name: name("disk"),
            cursor_granule: 1,
            image,
        }],
    }
}

pub(crate) fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0xee; index(device.size())];
    device.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The model of a disk.
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
}

impl Content {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            bytes: vec![0; index(size)],
        }
    }

    pub(crate) fn zero(&mut self, granules: GranuleRange) {
        let range = granules.bytes(self.bytes.len() as u64);
        self.bytes[index(range.start())..index(range.end())].fill(0);
    }

    /// Puts whole granules; what of `data` lies past the end is made zero.
    pub(crate) fn put(&mut self, first: u64, data: &mut [u8]) {
        let from = index(first * GRANULE);
        let len = data.len().min(self.bytes.len() - from);
        data[len..].fill(0);
        self.bytes[from..from + len].copy_from_slice(&data[..len]);
    }
}

/// Takes a restored image, and keeps nothing of it.
pub(crate) struct Nowhere;

impl RestoreSink for Nowhere {
    fn write(&self, _: u64, data: &[u8]) -> std::io::Result<()> {
        std::hint::black_box(data);
        Ok(())
    }

    fn zero(&self, _: ByteRange) -> std::io::Result<()> {
        Ok(())
    }
}

/// A chunk of that number: compressible, and unlike every other.
pub(crate) fn chunk(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let mixed = ((number << 32) | (i as u64 / 3)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&(mixed >> 8).to_le_bytes());
    }
    bytes
}
