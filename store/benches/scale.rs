//! What a chunk costs in a store of 1, 10 and 100 million of them: real formats, made-up content.
//!
//! ```text
//! cargo bench -p store --bench scale
//! STANDIN_SCALE=1,10,100     millions of chunks, one store that grows
//! STANDIN_BENCH_DIR=/path    where it is made (default: the temporary directory); 8 GiB at 100
//! ```
//!
//! At each size: the ingest that led there, the store opened anew, a repeat of one image as if it were new (a cloned
//! machine), a verification of one image, a collection of garbage that moves small things, one that finds nothing to do, and
//! one that frees an image.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures are its output")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use block::{Clock, Dir, GRANULE, OsDir, SystemClock, index};
use common::draft;
use store::{Around, Backend, Base, Directory, GcOptions, ImageRef, Store, Watch, Watched};

/// Chunks of an image: 4 GiB.
const IMAGE: u64 = 1 << 20;
const STEP: u64 = 256;

/// Counts what is read of containers.
struct Counting {
    reads: AtomicU64,
}

impl Watch for Counting {
    fn reads(&self, name: &str, _bytes: Range<u64>) -> io::Result<()> {
        if name.starts_with("containers/") || name.starts_with("bundles/") {
            self.reads.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

struct Bench {
    clock: Arc<SystemClock>,
    counting: Arc<Watched<Counting>>,
    store: Option<Store>,
    images: Vec<ImageRef>,
    row: BTreeMap<&'static str, String>,
}

impl Bench {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn open(&mut self) {
        drop(self.store.take());
        let place: Arc<dyn Backend> = Arc::clone(&self.counting) as Arc<dyn Backend>;
        let around = Around::new(Arc::clone(&self.clock) as Arc<dyn Clock>);
        self.store = Some(Store::open_writer(&place, around).unwrap());
    }

    fn timed<T>(&mut self, what: &'static str, chunks: u64, act: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.clock.monotonic();
        let result = act(self);
        let took = self.clock.monotonic() - start;
        let figure = format!("{:.3}", micros(took) / real(chunks));
        self.row.insert(what, figure);
        result
    }

    /// Writes image `number` as if the store knew nothing of it.
    fn ingest(&self, number: u64) -> store::FinishedImage {
        let size = IMAGE * GRANULE;
        let mut writer = self.store().image_writer(Base::Empty { size }).unwrap();
        let mut data = vec![0; index(STEP * GRANULE)];
        for first in (0..IMAGE).step_by(index(STEP)) {
            for (i, chunk) in (first..).zip(data.chunks_exact_mut(4096)) {
                let mixed = (number * IMAGE + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                chunk[..8].copy_from_slice(&mixed.to_le_bytes());
            }
            writer.put(first, &data).unwrap();
        }
        writer.finish().unwrap()
    }

    fn grow_to(&mut self, images: u64) {
        let new = images - self.images.len() as u64;
        self.timed("ingest", new * IMAGE, |bench| {
            for _ in 0..new {
                let number = bench.images.len() as u64;
                let image = bench.ingest(number);
                bench.images.push(image.image().clone());
                bench.store().commit_point(draft("bench", image)).unwrap();
            }
        });
        self.note_memory("memory of ingest");
    }

    /// Peak memory since the last call.
    fn note_memory(&mut self, what: &'static str) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 = peak
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        self.row.insert(what, format!("{} MiB", kib >> 10));
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
    }

    fn measure(&mut self) {
        let all = self.images.len() as u64 * IMAGE;
        self.timed("open", all, Self::open);
        self.note_memory("memory of open");
        let middle = self.images.len() as u64 / 2;
        let reads = self.counting.watch.reads.load(Relaxed);
        let stored = self.store().figures().container_bytes;
        self.timed("repeat", IMAGE, |bench| drop(bench.ingest(middle)));
        let reads = self.counting.watch.reads.load(Relaxed) - reads;
        let missed = self.store().figures().container_bytes - stored;
        self.row.insert(
            "reads in a repeat",
            format!("{:.4} %", 100.0 * real(reads) / real(IMAGE)),
        );
        self.row.insert(
            "stored by a repeat",
            format!("{:.2} MiB", real(missed) / 1_048_576.0),
        );
        self.note_memory("memory of repeat");
        let image = self.images[index(middle)].clone();
        self.timed("verify", IMAGE, |bench| {
            let report = bench.store().verify_image(&image, &|_, _| ()).unwrap();
            assert!(report.is_whole(), "{report:?}");
        });
        self.note_memory("memory of verify");
        let options = GcOptions {
            quarantine: Duration::ZERO,
            ..GcOptions::default()
        };
        // Made-up chunks compress to next to nothing: their containers are small, and are moved together once.
        self.timed("gc that moves", all, |bench| {
            bench.store().collect_garbage(&options).unwrap();
        });
        self.timed("gc of nothing", all, |bench| {
            bench.store().collect_garbage(&options).unwrap();
        });
        let newest = self.store().points().last().unwrap().id.clone();
        self.store()
            .remove_points(&[newest], Duration::ZERO)
            .unwrap();
        self.images.pop();
        let report = self.timed("gc of an image", all, |bench| {
            bench.store().collect_garbage(&options).unwrap()
        });
        assert!(report.removed_bytes > 0, "{report:?}");
        self.note_memory("memory of gc");
        let figures = self.store().figures();
        self.row
            .insert("stored", format!("{} MiB", figures.stored_bytes >> 20));
        self.row
            .insert("in the index", format!("{}", figures.index_entries));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn real(n: u64) -> f64 {
    n as f64
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn main() {
    let sizes = std::env::var("STANDIN_SCALE").unwrap_or_else(|_| "1,10,100".into());
    let sizes: Vec<u64> = sizes.split(',').map(|size| size.parse().unwrap()).collect();
    let place = std::env::var_os("STANDIN_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let tmp = tempfile::tempdir_in(place).unwrap();
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
    let place = Directory::backend(&dir);
    Store::create(&place).unwrap();
    let counting = Counting {
        reads: AtomicU64::new(0),
    };
    let mut bench = Bench {
        clock: Arc::new(SystemClock::new()),
        counting: Arc::new(Watched::new(place, counting)),
        store: None,
        images: Vec::new(),
        row: BTreeMap::new(),
    };
    bench.open();
    for size in sizes {
        bench.row.clear();
        bench.grow_to(size);
        bench.measure();
        println!("{size} million chunks (times in us per chunk)");
        for (what, figure) in &bench.row {
            println!("  {what:20} {figure:>14}");
        }
    }
}
