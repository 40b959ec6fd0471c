//! Cost follows what changed, never the size of the disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tests::nbd::Client;
use tests::process::Work;
use tests::protect::How;
use tests::time::{count_from_env, elapsed};
use tests::{Bench, Protect};

const MIB: u64 = 1 << 20;

/// A sparse disk under protection, and the cheapest ship of it so far.
struct Side {
    bench: Bench,
    protect: Protect,
    client: Client,
    size: u64,
    took: Duration,
    work: Work,
    stored: u64,
}

impl Side {
    fn new(size: u64) -> Result<Self> {
        let bench = Bench::new()?;
        let (disk, _) = bench.empty_disk("disk", size)?;
        let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
        protect.cut()?;
        let client = Client::connect(&protect.address, "disk")?;
        let (bytes, calls) = (u64::MAX, u64::MAX);
        Ok(Self {
            bench,
            protect,
            client,
            size,
            took: Duration::MAX,
            work: Work { bytes, calls },
            stored: u64::MAX,
        })
    }

    /// Writes 64 MiB in 1 MiB pieces all over the disk, and ships them.
    fn ship(&mut self, round: u64) -> Result<()> {
        // The same bytes for every size of disk, and new ones each round.
        let mut rng = ChaCha8Rng::seed_from_u64(round);
        let mut data = vec![0; 1 << 20];
        for piece in 0..64 {
            rng.fill_bytes(&mut data);
            self.client.write(self.size / 64 * piece, &data)?;
        }
        let before = stored(&self.bench)?;
        let work = self.protect.process.work()?;
        let began = elapsed();
        self.protect.cut()?;
        self.took = self.took.min(elapsed() - began);
        let work = self.protect.process.work()?.since(work);
        self.work = self.work.least(work);
        self.stored = self.stored.min(stored(&self.bench)? - before);
        Ok(())
    }
}

/// Bytes in the target directory.
fn stored(bench: &Bench) -> Result<u64> {
    let out = tests::process::sh(bench.dir(), "du -sb target", Duration::from_secs(60))?;
    Ok(out
        .split_whitespace()
        .next()
        .context("du prints a number")?
        .parse()?)
}

#[test]
fn changes_of_a_large_disk_ship_like_those_of_a_small_one() -> Result<()> {
    // Time is a claim only where nothing else runs: see must-show.sh. What is done is one anywhere.
    let rounds_max = count_from_env("STANDIN_TIMED_ROUNDS", 0);
    let (mut small, mut large) = (Side::new(1 << 30)?, Side::new(256 << 30)?);
    // In turn, and the best of each: other work on the machine only ever adds, so more rounds bring
    // both closer to what they really take.
    let mut time = f64::MAX;
    for round in 0..rounds_max.max(4) {
        small.ship(round)?;
        large.ship(round)?;
        time = large.took.as_secs_f64() / small.took.as_secs_f64();
        if round >= 3 && time < 1.1 {
            break;
        }
    }
    let memory = large.protect.process.peak_memory()?;
    eprintln!(
        "64 MiB of changes: 1 GiB disk {:?}, {} bytes, {:?}; 256 GiB disk {:?}, {} bytes, {:?}, {} MiB of memory",
        small.took,
        small.stored,
        small.work,
        large.took,
        large.stored,
        large.work,
        memory / MIB
    );
    let ratio = |large: u64, small: u64| large as f64 / small as f64;
    let bytes = ratio(large.stored, small.stored);
    ensure!(bytes < 1.2, "256 GiB stores {bytes:.2} times the bytes");
    let bytes = ratio(large.work.bytes, small.work.bytes);
    ensure!(
        bytes < 1.2,
        "256 GiB reads and writes {bytes:.2} times the bytes"
    );
    let calls = ratio(large.work.calls, small.work.calls);
    ensure!(calls < 1.2, "256 GiB takes {calls:.2} times the calls");
    if rounds_max > 0 {
        ensure!(time < 1.2, "256 GiB takes {time:.2} times as long");
    }
    ensure!(memory < 200 * MIB, "{} MiB of memory", memory / MIB);
    small.protect.stop()?;
    large.protect.stop()
}

/// Random 4 KiB writes must not cost much more than their own bytes: here they do not compress.
#[test]
fn changes_of_scattered_small_writes_cost_about_their_bytes() -> Result<()> {
    let points = count_from_env("STANDIN_SMALL_POINTS", 120);
    let bench = Bench::new()?;
    let size: u64 = 1 << 30;
    let (disk, _) = bench.empty_disk("disk", size)?;
    tests::image::scribble(&disk, 0, 128 * MIB, bench.seed)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    protect.cut()?;
    let mut client = Client::connect(&protect.address, "disk")?;
    let mut rng = ChaCha8Rng::seed_from_u64(bench.seed);
    let before = stored(&bench)?;
    let mut changed = 0_u32;
    let mut slowest = Duration::ZERO;
    for _ in 0..points {
        let mut data = vec![0; 4096];
        for _ in 0..16 {
            rng.fill_bytes(&mut data);
            client.write(rng.random_range(0..128 * MIB / 4096) * 4096, &data)?;
            changed += 4096;
        }
        let began = elapsed();
        protect.cut()?;
        slowest = slowest.max(elapsed() - began);
    }
    let grew = stored(&bench)? - before;
    let ratio = grew as f64 / f64::from(changed);
    eprintln!(
        "{points} points: {} bytes changed and {} stored per point ({ratio:.2}), {} MiB of memory, \
         slowest cut to durable {slowest:?}",
        u64::from(changed) / points,
        grew / points,
        protect.process.peak_memory()? / MIB
    );
    ensure!(bench.points()?.len() as u64 > points);
    bench.compare("g@latest", None, &disk)?;
    ensure!(
        ratio < 1.5,
        "a point stores {ratio:.2} times the bytes changed"
    );
    protect.stop()
}

/// Two points differ where something was written between them, and `point diff` says so.
#[test]
fn changes_between_two_points_are_named() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, _) = bench.empty_disk("disk", 256 * MIB)?;
    tests::image::scribble(&disk, 0, 64 * MIB, bench.seed)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&disk]))?;
    let first = protect.cut()?;
    let mut client = Client::connect(&protect.address, "disk")?;
    let places = [0_u64, 5 * MIB + 4096, 200 * MIB, 256 * MIB - 4096];
    for (number, place) in (1_u8..).zip(places) {
        client.write(place, &[number; 4096])?;
    }
    let second = protect.cut()?;
    let target = bench.target();
    let diff = tests::standin::json(["point", "diff", &first, &second, "--target", &target])?;
    let ranges = find_ranges(&diff).with_context(|| format!("no ranges in {diff}"))?;
    let found: Vec<(u64, u64)> = ranges
        .iter()
        .map(|range| {
            let offset = range["offset"].as_u64().or_else(|| range["start"].as_u64());
            let len = range["len"].as_u64().or_else(|| range["length"].as_u64());
            Ok((offset.context("an offset")?, len.context("a length")?))
        })
        .collect::<Result<_>>()?;
    ensure!(found == places.map(|place| (place, 4096)), "{diff}");
    let same = tests::standin::json(["point", "diff", &second, &second, "--target", &target])?;
    ensure!(
        find_ranges(&same).is_none_or(|ranges| ranges.is_empty()),
        "{same}"
    );
    protect.stop()
}

/// The ranges of the only disk, wherever the document keeps them.
fn find_ranges(document: &Value) -> Option<&Vec<Value>> {
    match document {
        Value::Object(map) => match map.get("ranges") {
            Some(Value::Array(ranges)) => Some(ranges),
            _ => map.values().find_map(find_ranges),
        },
        Value::Array(list) => list.iter().find_map(find_ranges),
        _ => None,
    }
}
