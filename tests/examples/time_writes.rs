//! `time_writes SECONDS CONNECTIONS SOCKET EXPORT...`: random 4 KiB writes as fast as answers come,
//! from so many connections to each export, one write in flight on each. Prints a line per write:
//! when it was sent (nanoseconds of the wall clock) and how long it took (nanoseconds).
//! `bench/cut_pause.sh` looks in it for the writes that a cut met.
#![allow(clippy::print_stdout, reason = "the times are its output")]

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use block::{Clock, SystemClock, UnixNanos};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tests::nbd::{Address, Client};

const USAGE: &str = "usage: time_writes SECONDS CONNECTIONS SOCKET EXPORT...";

struct Timed {
    at: UnixNanos,
    took: Duration,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let limit = Duration::from_secs(args.next().context(USAGE)?.parse()?);
    let connections: u64 = args.next().context(USAGE)?.parse()?;
    let address = Address::Unix(PathBuf::from(args.next().context(USAGE)?));
    let exports: Vec<String> = args.collect();
    ensure!(!exports.is_empty(), USAGE);
    let found = thread::scope(|scope| {
        let mut writers = Vec::new();
        for export in &exports {
            for seed in 0..connections {
                let address = &address;
                writers.push(scope.spawn(move || write(address, export, seed, limit)));
            }
        }
        writers
            .into_iter()
            .map(|writer| writer.join().expect("a writer does not panic"))
            .collect::<io::Result<Vec<_>>>()
    })?;
    let mut out = BufWriter::new(io::stdout().lock());
    for timed in found.iter().flatten() {
        writeln!(out, "{} {}", timed.at.0, timed.took.as_nanos())?;
    }
    Ok(out.flush()?)
}

fn write(address: &Address, export: &str, seed: u64, limit: Duration) -> io::Result<Vec<Timed>> {
    let mut client = Client::connect(address, export)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let granules = client.size() / 4096;
    let clock = SystemClock::new();
    let mut found = Vec::new();
    let mut sent = clock.monotonic();
    while sent < limit {
        let at = clock.wall();
        client.write(rng.random_range(0..granules) * 4096, &[0x5a; 4096])?;
        let answered = clock.monotonic();
        let took = answered.saturating_sub(sent);
        found.push(Timed { at, took });
        sent = clock.monotonic();
    }
    Ok(found)
}
