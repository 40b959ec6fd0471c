//! MB/s of the store on this machine: ingest of unique and of duplicate data, restore, verify, and
//! what small random points cost; first beside what the processors allow for the same content (`limits`).
//!
//! ```text
//! cargo bench -p store --bench ingest             on generated data
//! STANDIN_BENCH_IMAGES=a.raw:b.raw cargo bench ..  on disk images, one after the other
//! STANDIN_BENCH_DIR=/path                          where the store is made (default: the temporary directory)
//! ```

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures are its output")]

#[path = "../tests/common/mod.rs"]
mod common;
mod limits;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Dir, GRANULE, OsDir, SystemClock, index};
use common::{Nowhere, draft};
use limits::Limits;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use store::{Around, Base, Directory, FinishedImage, ImageRef, Store};

const STEP: u64 = 1 << 20;

struct Bench {
    clock: Arc<SystemClock>,
    store: Store,
}

impl Bench {
    /// Times `act` and prints it over `bytes`.
    fn timed<T>(&self, what: &str, bytes: u64, act: impl FnOnce() -> T) -> T {
        let start = self.clock.monotonic();
        let result = act();
        let took = self.clock.monotonic() - start;
        print(what, bytes, took);
        result
    }

    fn ingest(&self, what: &str, base: Base, source: &Source) -> FinishedImage {
        let before = self.store.figures().stored_bytes;
        let data = source.data_bytes;
        let image = self.timed(what, data, || {
            let mut writer = self.store.image_writer(base).unwrap();
            let mut buf = vec![0; index(STEP)];
            for offset in (0..source.size).step_by(index(STEP)) {
                let len = index(STEP.min(source.size - offset));
                source.read(&mut buf[..len], offset);
                let whole = len.next_multiple_of(4096);
                buf[len..whole].fill(0);
                writer.put(offset / GRANULE, &buf[..whole]).unwrap();
            }
            let image = writer.finish().unwrap();
            self.store
                .commit_point(draft("bench", image.clone()))
                .unwrap();
            image
        });
        let added = self.store.figures().stored_bytes - before;
        println!("{:28} {:9.1} MiB stored", "", mib(added));
        image
    }

    /// Content that lies in memory, beside what the processors allow for it.
    fn beside_limits(&self, content: &[u8], threads: usize) {
        let limits = Limits::measure(&*self.clock, content, threads);
        println!(
            "limits in MB/s: SHA-256 {:.0} on one core, {:.0} on {threads}; and zstd {:.0}; decompression and SHA-256 {:.0}",
            limits.hash_one, limits.hash, limits.pack, limits.open
        );
        let beside = |what: &str, rate: f64, limit: f64| {
            println!(
                "{what:44} {rate:8.1} MB/s of {limit:8.1}: {:.2}",
                rate / limit
            );
        };
        let bytes = content.len() as u64;
        let rate =
            |times: u64, took: Duration| ratio(times * bytes, 1_000_000) / took.as_secs_f64();
        let clock = &self.clock;
        let write = || {
            let empty = Base::Empty { size: bytes };
            let mut writer = self.store.image_writer(empty).unwrap();
            for (at, piece) in (0..).zip(content.chunks(index(STEP))) {
                writer.put(at * STEP / GRANULE, piece).unwrap();
            }
            writer.finish().unwrap()
        };
        let began = clock.monotonic();
        let image = write();
        let took = clock.monotonic() - began;
        beside("ingest, all of it new", rate(1, took), limits.pack);
        let began = clock.monotonic();
        write();
        let took = clock.monotonic() - began;
        beside("ingest, all of it known", rate(1, took), limits.hash_one);
        let began = clock.monotonic();
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(write)));
        });
        let took = clock.monotonic() - began;
        let all = rate(threads as u64, took);
        beside("the same, an image on each core", all, limits.hash);
        let nothing = |_: u64, _: u64| ();
        let opened = self.store.image(image.image()).unwrap();
        let began = clock.monotonic();
        let restored = opened.restore_to(&Nowhere, threads, threads, &nothing);
        restored.unwrap();
        let took = clock.monotonic() - began;
        beside("restore", rate(1, took), limits.open);
        let began = clock.monotonic();
        let report = self.store.verify_image(image.image(), &nothing).unwrap();
        let took = clock.monotonic() - began;
        assert!(report.is_whole(), "{report:?}");
        beside("verify", rate(1, took), limits.open);
    }

    fn read_back(&self, image: &ImageRef, data: u64, workers: usize) {
        let opened = self.store.image(image).unwrap();
        let nothing = |_: u64, _: u64| ();
        let sink = Nowhere;
        self.timed("restore to nowhere", data, || {
            opened
                .restore_to(&sink, workers, workers, &nothing)
                .unwrap();
        });
        let report = self.timed("verify", data, || {
            self.store.verify_image(image, &nothing).unwrap()
        });
        assert!(report.is_whole(), "{report:?}");
    }

    /// Points of 256 random 4 KiB writes each.
    fn small_points(&self, mut image: ImageRef, count: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let before = self.store.figures();
        let mut chunk = vec![0; 4096];
        let changed = count * 256 * GRANULE;
        self.timed("small points", changed, || {
            for _ in 0..count {
                let mut writer = self.store.image_writer(Base::Image(image.clone())).unwrap();
                for _ in 0..256 {
                    rng.fill_bytes(&mut chunk[..2048]);
                    let granule = rng.random_range(0..image.size() / GRANULE);
                    writer.put(granule, &chunk).unwrap();
                }
                let finished = writer.finish().unwrap();
                image = finished.image().clone();
                self.store.commit_point(draft("bench", finished)).unwrap();
            }
        });
        let after = self.store.figures();
        let containers = after.container_bytes - before.container_bytes;
        let trees = after.tree_bytes - before.tree_bytes;
        println!(
            "{count} points: changed {:.1} MiB (half of it random), containers {:.1} MiB, trees {:.2} MiB: {:.0} bytes per point",
            mib(changed),
            mib(containers),
            mib(trees),
            ratio(containers + trees, count),
        );
        let opened = self.timed("open the last of them", 0, || {
            self.store.image(&image).unwrap()
        });
        assert_eq!(opened.reference(), &image);
    }
}

struct Source {
    size: u64,
    data_bytes: u64,
    file: Option<File>,
    generated: Vec<u8>,
}

impl Source {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut source = Self {
            size,
            data_bytes: 0,
            file: Some(file),
            generated: Vec::new(),
        };
        // Also brings the image into the page cache: disk reads are not measured.
        let mut buf = vec![0; index(STEP)];
        for offset in (0..size).step_by(index(STEP)) {
            let len = index(STEP.min(size - offset));
            source.read(&mut buf[..len], offset);
            let chunks = buf[..len].chunks(4096);
            let data = chunks.filter(|chunk| chunk.iter().any(|byte| *byte != 0));
            source.data_bytes += data.map(<[u8]>::len).sum::<usize>() as u64;
        }
        source
    }

    /// Half random, half repeating: compresses about 2:1.
    fn generate(size: u64) -> Self {
        let mut generated = vec![0; index(size)];
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for chunk in generated.chunks_exact_mut(64) {
            rng.fill_bytes(&mut chunk[..32]);
        }
        Self {
            size,
            data_bytes: size,
            file: None,
            generated,
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        match &self.file {
            Some(file) => file.read_exact_at(buf, offset).unwrap(),
            None => buf.copy_from_slice(&self.generated[index(offset)..][..buf.len()]),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

fn mib(bytes: u64) -> f64 {
    ratio(bytes, 1 << 20)
}

fn print(what: &str, bytes: u64, took: Duration) {
    let seconds = took.as_secs_f64();
    let cpu = cpu_seconds();
    println!(
        "{what:28} {:9.1} MiB of data {seconds:7.2} s {:8.1} MB/s   (cpu so far {cpu:.1} s, peak memory {} MiB)",
        mib(bytes),
        ratio(bytes, 1_000_000) / seconds,
        peak_mib(),
    );
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

fn main() {
    let place =
        std::env::var_os("STANDIN_BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    let tmp = tempfile::tempdir_in(&place).unwrap();
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
    Store::create(&Directory::backend(&dir)).unwrap();
    let clock = Arc::new(SystemClock::new());
    let around = Around::new(Arc::clone(&clock) as Arc<dyn Clock>);
    let workers = around.workers;
    let store = Store::open_writer(&Directory::backend(&dir), around.clone()).unwrap();
    let bench = Bench { clock, store };
    let images = std::env::var("STANDIN_BENCH_IMAGES").unwrap_or_default();
    let mut sources: Vec<Source> = images
        .split(':')
        .filter(|path| !path.is_empty())
        .map(|path| Source::open(Path::new(path)))
        .collect();
    if sources.is_empty() {
        sources.push(Source::generate(512 << 20));
    }
    // In a store of its own: what is new there must not be known to what follows.
    {
        let content = limits::different_chunks(&sources[0], 1 << 30);
        let apart = tempfile::tempdir_in(&place).unwrap();
        let dir: Arc<dyn Dir> = Arc::new(OsDir::open(apart.path()).unwrap());
        Store::create(&Directory::backend(&dir)).unwrap();
        let store = Store::open_writer(&Directory::backend(&dir), around.clone()).unwrap();
        let clock = Arc::clone(&bench.clock);
        let cores = std::thread::available_parallelism().unwrap().get();
        Bench { clock, store }.beside_limits(&content, cores);
    }
    // The peak is that of what follows: the content lay in memory twice.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let mut last = None;
    for source in &sources {
        let empty = Base::Empty { size: source.size };
        let image = bench.ingest("ingest", empty.clone(), source);
        bench.ingest("ingest again, no base", empty, source);
        let same = Base::Image(image.image().clone());
        bench.ingest("ingest again, on the base", same, source);
        bench.read_back(image.image(), source.data_bytes, workers);
        last = Some(image.image().clone());
    }
    bench.small_points(last.unwrap(), 1000);
    let figures = bench.store.figures();
    println!("{figures:?}");
    drop(bench);
    let clock = Arc::new(SystemClock::new());
    let start = clock.monotonic();
    let store = Store::open_writer(&Directory::backend(&dir), around).unwrap();
    let took = clock.monotonic() - start;
    println!(
        "open again as the writer: {took:?}, {} fingerprints",
        store.figures().index_entries
    );
}
