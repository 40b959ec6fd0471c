//! `make soak HOURS=8`: the long run, with a report and an exit code (0 passed, 1 something is wrong or
//! grows).
//!
//! SIGINT and SIGTERM end it after the event under way, with a report of what was.
//! The seed decides which events come in which order. It is printed first, and `--seed` replays it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tests::soak::{Options, Schedule, soak};

/// Guests write, cuts are made each second, and kills and faults come at random: nothing may be wrong,
/// nothing may grow.
#[derive(Debug, Parser)]
struct Args {
    /// How long; fractions are allowed.
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
    /// Replays the events of another run; random, or $STANDIN_SEED, if left out.
    #[arg(long)]
    seed: Option<u64>,
    /// Small disks, short faults and little calm between them: many events in few minutes.
    #[arg(long)]
    dense: bool,
    /// Where the report goes, besides standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the report goes as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print so many events of the schedule, and do nothing.
    #[arg(long, value_name = "COUNT")]
    plan: Option<usize>,
}

#[expect(clippy::print_stdout, reason = "the report is what was asked for")]
#[expect(clippy::print_stderr, reason = "progress of hours")]
fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let lasting = Duration::try_from_secs_f64(args.hours * 3600.0).context("--hours")?;
    let seed = args
        .seed
        .unwrap_or_else(|| sim::seed_from_env(u64::from(std::process::id())));
    let options = match args.dense {
        true => Options::short(seed, lasting),
        false => Options::long(seed, lasting),
    };
    if let Some(count) = args.plan {
        let events = Schedule::new(seed, options.tempo).take(count);
        events.for_each(|event| println!("{event}"));
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("soak: seed {seed}, {} h", args.hours);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The first one ends the run after its event; the second one ends it at once.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    let report = soak(&options, &stop, |line| eprintln!("soak: {line}"))?;
    print!("{report}");
    if let Some(path) = args.report {
        std::fs::write(&path, report.to_string()).with_context(|| format!("{}", path.display()))?;
    }
    if let Some(path) = args.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
    }
    Ok(match report.passed() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
