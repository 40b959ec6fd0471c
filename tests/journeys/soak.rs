//! The short form of `make soak`: the same events with a fresh seed, for as long as a test may take.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::soak::{Options, soak};
use tests::time::count_from_env;

/// `STANDIN_SOAK_S` is how long, `STANDIN_SEED` replays the events.
#[test]
fn soak_nothing_is_wrong_under_random_kills_and_faults() -> Result<()> {
    let lasting = Duration::from_secs(count_from_env("STANDIN_SOAK_S", 40));
    let seed = sim::seed_from_env(u64::from(std::process::id()));
    let never = AtomicBool::new(false);
    let options = Options::short(seed, lasting);
    let report = soak(&options, &never, |line| eprintln!("{line}"))?;
    eprintln!("{report}");
    // What grows shows in hours: the figures of so short a run are of processes that are still warming up.
    ensure!(report.failure.is_none(), "{report}");
    Ok(())
}
