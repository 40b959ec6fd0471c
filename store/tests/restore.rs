//! Restoring images: every byte arrives once and right, or the restore fails and says why.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use block::{ByteRange, GRANULE, GranuleRange, index};
use common::{Content, Nowhere, chunk, create, open_writer};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{Base, Directory, ErrorKind, FinishedImage, RestoreSink, Store};

/// A restore once took what failed in its first window for a leaf of the tree that could not be read, found that all of them could, and
/// went on behind it: an image of more than 262,144 runs was "restored", with the chunks of a lost container as holes.
#[test]
fn what_is_lost_early_in_an_image_of_many_runs_fails_its_restore() {
    let dir = SimWorld::new(1).dir();
    create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let granules = 600_000;
    let base = Base::Empty {
        size: granules * GRANULE,
    };
    let mut writer = store.image_writer(base).unwrap();
    writer.put(0, &chunk(1)).unwrap();
    let lost = writer.finish().unwrap();
    let mut writer = store
        .image_writer(Base::Image(lost.image().clone()))
        .unwrap();
    for granule in (2..granules).step_by(2) {
        writer.put(granule, &chunk(2)).unwrap();
    }
    let image = writer.finish().unwrap();
    let image = image.image();
    let place = Directory::backend(&dir);
    let containers = place.list("containers/000000").unwrap();
    let (first, _) = containers.into_iter().min().unwrap();
    place.remove(&format!("containers/000000/{first}")).unwrap();
    let report = store.verify_image(image, &|_, _| ()).unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    let restored = store
        .image(image)
        .unwrap()
        .restore_to(&Nowhere, 2, 2, &|_, _| ());
    assert_eq!(restored.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A disk that is restored to; knows what of it was written.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    written: AtomicU64,
    /// The write of that number fails.
    fails_at: Option<u64>,
    writes: AtomicU64,
}

impl Memory {
    fn new(size: u64, fails_at: Option<u64>) -> Self {
        Self {
            bytes: Mutex::new(vec![0xee; index(size)]),
            written: AtomicU64::new(0),
            fails_at,
            writes: AtomicU64::new(0),
        }
    }

    fn put(&self, offset: u64, data: &[u8]) {
        self.written.fetch_add(data.len() as u64, Relaxed);
        self.bytes.lock()[index(offset)..][..data.len()].copy_from_slice(data);
    }
}

impl RestoreSink for Memory {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(data.len() <= 1 << 20 && data.as_ptr().addr().is_multiple_of(4096));
        if self.fails_at == Some(self.writes.fetch_add(1, Relaxed)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.put(offset, data);
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.put(range.start(), &vec![0; index(range.len())]);
        Ok(())
    }
}

/// An image of some hundred mebibytes with runs of all lengths and of old and new containers, and what it holds.
fn shuffled(store: &Store, rng: &mut ChaCha8Rng) -> (FinishedImage, Vec<u8>) {
    let granules = rng.random_range(30_000..50_000);
    let size = granules * GRANULE - rng.random_range(0..8) * 512;
    let mut content = Content::new(size);
    let kinds = 9000;
    let mut image: Option<FinishedImage> = None;
    for _ in 0..3 {
        let base = match &image {
            Some(image) => Base::Image(image.image().clone()),
            None => Base::Empty { size },
        };
        let mut writer = store.image_writer(base).unwrap();
        for _ in 0..rng.random_range(100..400) {
            let start = rng.random_range(0..granules);
            let end = granules.min(start + 1 + rng.random_range(0_u64..30).pow(2));
            let first = rng.random_range(0..kinds);
            if rng.random_bool(0.2) {
                let hole = GranuleRange { start, end };
                content.zero(hole);
                writer.zero(hole).unwrap();
                continue;
            }
            for granule in start..end {
                let mut data = chunk(first + granule - start);
                content.put(granule, &mut data);
                writer.put(granule, &data).unwrap();
            }
        }
        image = Some(writer.finish().unwrap());
    }
    (image.unwrap(), content.bytes)
}

fn store_and_image() -> (Store, FinishedImage, Vec<u8>, ChaCha8Rng) {
    let seed = sim::seed_from_env(std::process::id().into());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let dir = SimWorld::new(1).dir();
    create(&Directory::backend(&dir)).unwrap();
    let store = open_writer(&dir, 2);
    let (image, bytes) = shuffled(&store, &mut rng);
    (store, image, bytes, rng)
}

#[test]
fn every_byte_of_an_image_is_written_once_and_right() {
    let (store, image, bytes, _) = store_and_image();
    let opened = store.image(image.image()).unwrap();
    for (readers, writers) in [(1, 1), (1, 3), (3, 1), (4, 4)] {
        let disk = Memory::new(bytes.len() as u64, None);
        let done = AtomicU64::new(0);
        let progress = |now, all| {
            assert_eq!(all, bytes.len() as u64);
            done.fetch_max(now, Relaxed);
        };
        opened
            .restore_to(&disk, readers, writers, &progress)
            .unwrap();
        assert_eq!(disk.written.into_inner(), bytes.len() as u64);
        assert_eq!(done.into_inner(), bytes.len() as u64);
        assert!(
            *disk.bytes.lock() == bytes,
            "{readers} readers, {writers} writers"
        );
    }
}

#[test]
fn a_write_that_fails_ends_the_restore_with_its_error() {
    let (store, image, bytes, mut rng) = store_and_image();
    let opened = store.image(image.image()).unwrap();
    for _ in 0..6 {
        let (readers, writers) = (rng.random_range(1..5), rng.random_range(1..5));
        let disk = Memory::new(bytes.len() as u64, Some(rng.random_range(0..100)));
        let restored = opened.restore_to(&disk, readers, writers, &|_, _| ());
        assert_eq!(restored.unwrap_err().kind(), ErrorKind::Full);
    }
}

/// A thread that panicked would leave the others waiting for the memory that it held.
#[test]
fn a_panic_in_the_disk_is_a_panic_of_the_restore() {
    struct Broken;
    impl RestoreSink for Broken {
        fn write(&self, offset: u64, _: &[u8]) -> io::Result<()> {
            assert!(offset < 8 << 20, "this disk is broken");
            Ok(())
        }

        fn zero(&self, _: ByteRange) -> io::Result<()> {
            Ok(())
        }
    }
    let (store, image, ..) = store_and_image();
    let opened = store.image(image.image()).unwrap();
    let restore = || opened.restore_to(&Broken, 3, 2, &|_, _| ());
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(restore));
    assert!(ended.is_err());
}
