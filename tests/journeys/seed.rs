//! The first copy: while the guest writes, and through interruptions.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tests::ledger::{Origin, Window};
use tests::protect::How;
use tests::time::{count_from_env, elapsed, let_pass};
use tests::{Bench, Ledger, Load, Protect, Shape, image, process};

/// What one interruption may cost: progress is saved every 128 MiB or two seconds, in pieces of 1 MiB.
const UNSAVED_MAX: u64 = 136 << 20;

/// What the disk holds at first: `$STANDIN_SEED_IMAGE`, or 1 GiB of which three quarters are data.
fn original(bench: &Bench) -> Result<PathBuf> {
    if let Some(image) = std::env::var_os("STANDIN_SEED_IMAGE") {
        return Ok(image.into());
    }
    let path = bench.path("original.raw");
    image::sparse(&path, 1 << 30)?;
    image::scribble(&path, 0, 512 << 20, bench.seed)?;
    image::scribble(&path, 700 << 20, 256 << 20, bench.seed + 1)?;
    Ok(path)
}

/// A load all over the disk.
fn scattered(size: u64) -> Shape {
    Shape {
        connections: 2,
        pace: Duration::from_millis(2),
        reconnect: Some(Duration::from_secs(60)),
        ..Shape::mixed(0..image::sectors(size))
    }
}

#[test]
fn seed_under_write_load_interrupted_again_and_again() -> Result<()> {
    let interruptions = count_from_env("STANDIN_INTERRUPTIONS", 10);
    let bench = Bench::new()?;
    let mut rng = ChaCha8Rng::seed_from_u64(bench.seed);
    let original = original(&bench)?;
    let disk = bench.path("disk.raw");
    let mut cp = process::command("cp");
    cp.arg("--sparse=always").arg(&original).arg(&disk);
    process::run(&mut cp, Duration::from_secs(600))?;
    let size = std::fs::metadata(&disk)?.len();
    let ledger = Arc::new(Ledger::new(image::sectors(size), Origin::File));
    let how = How::new(&bench, &[&disk]);

    // How long it takes in one go, so that the interruptions fall into it.
    let spare = Bench::new()?;
    let began = elapsed();
    let mut alone = How::new(&spare, &[&disk]);
    alone.group = "alone".into();
    let protect = Protect::start(&spare, &alone)?;
    protect.cut()?;
    let whole = elapsed() - began;
    protect.kill9()?;
    drop(spare);

    let (mut copied, mut read) = (Vec::new(), 0);
    let mut protect = Protect::start(&bench, &how)?;
    let load = Load::start(
        &protect.address,
        "disk",
        &ledger,
        &scattered(size),
        bench.seed,
    );
    for number in 0..interruptions {
        let share = u32::try_from(interruptions + 2).expect("few");
        let_pass(whole / share + Duration::from_millis(rng.random_range(0..50)));
        let seed = protect.status()?["seed"].take();
        copied.push(bytes(&seed, "done_bytes")?);
        read += bytes(&seed, "read_bytes")?;
        if number % 3 == 2 {
            // An orderly stop in the middle of a seed ends soon, and is resumed as well.
            protect.interrupt(Signal::TERM)?;
        } else {
            protect.kill9()?;
        }
        protect = Protect::start(&bench, &how)?;
    }
    let under_load = protect.cut_beside(&ledger)?;
    load.wait_acked(20)?;
    let status = protect.status()?;
    let writes = load.stop()?;
    let last = protect.cut()?;
    bench.compare(&last, None, &disk)?;
    // The first point was cut while the guest wrote, as soon as the seed was whole.
    let points = bench.points()?;
    let first = points[0]["id"].as_str().context("a point has an id")?;
    bench.check_point_of(first, &ledger, Some(&original), Window::ANY)?;
    let (point, window) = &under_load;
    bench.check_point_of(point, &ledger, Some(&original), *window)?;
    read += bytes(&status["seed"], "read_bytes")?;
    let data = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&disk)?) * 512;
    eprintln!(
        "alone {whole:?}; {writes} writes meanwhile; first point {first} and {point} exact; bytes behind \
         the seed at each interruption {copied:?}; all processes together read {read} of {data} bytes \
         of data"
    );
    ensure!(
        copied.iter().any(|done| *done > 0),
        "no interruption fell into the seed: {copied:?}"
    );
    // What was read twice was read since the last time that progress was saved.
    let lost = interruptions * UNSAVED_MAX;
    ensure!(read <= data + lost, "{read} bytes were read to copy {data}");
    protect.stop()
}

/// A figure of the seed's status.
fn bytes(seed: &serde_json::Value, name: &str) -> Result<u64> {
    seed[name]
        .as_u64()
        .with_context(|| format!("no {name} in {seed}"))
}

/// During the seed there is no point, and a cut says so: try again.
#[test]
fn seed_answers_a_cut_with_try_again_or_a_whole_point() -> Result<()> {
    let bench = Bench::new()?;
    let path = bench.path("disk.raw");
    image::sparse(&path, 1 << 30)?;
    image::scribble(&path, 0, 512 << 20, bench.seed)?;
    let protect = Protect::start(&bench, &How::new(&bench, &[&path]))?;
    let said = protect.cut_only()?;
    if !said.status.success() {
        ensure!(said.code() == 4, "exit code {}\n{}", said.code(), said.err);
        ensure!(said.err.to_lowercase().contains("seed"), "{}", said.err);
    }
    let point = protect.cut()?;
    bench.compare(&point, None, &path)?;
    protect.stop()
}
