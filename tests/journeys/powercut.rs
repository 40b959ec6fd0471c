//! The power of a real kernel, cut: production and state lie behind dm-flakey in a guest, in which the
//! protection itself runs. See `lab/powercut.sh` for what is checked after each cut.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::guest::{Guest, lab};
use tests::time::count_from_env;
use tests::{Bench, image, standin};

/// Of production. Everything is emulated: a small disk makes for many cuts.
const DISK: u64 = 24 << 20;
const STATE: u64 = 512 << 20;
/// Time for one cut of power, with two recoveries, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn powercut_of_a_real_kernel_loses_no_flush_and_the_next_point_is_exact() -> Result<()> {
    let cuts = count_from_env("STANDIN_POWER_CUTS", 4);
    let bench = Bench::new()?;
    let (disk, state) = (bench.text("disk.raw"), bench.text("state.raw"));
    image::sparse(disk.as_ref(), DISK)?;
    image::scribble(disk.as_ref(), 0, DISK / 3, bench.seed)?;
    image::sparse(state.as_ref(), STATE)?;
    let script = bench.path("script.sh");
    let text = format!(
        "export STANDIN={} CUTS={cuts} SEED={}\nexec bash {}/powercut.sh\n",
        standin::program().display(),
        bench.seed,
        lab().display()
    );
    std::fs::write(&script, text)?;
    let drive = |path: &str| format!("file={path},format=raw,if=virtio,cache=unsafe");
    let qemu = ["-drive", &drive(&disk), "-drive", &drive(&state)];
    let limit = Duration::from_secs(120) + PATIENCE * u32::try_from(cuts)?;
    let said = Guest::run_for(&script, &qemu, limit)?.finish(limit)?;
    let mut lines = said.iter().filter(|line| line.starts_with("powercut: "));
    lines.clone().for_each(|line| eprintln!("{line}"));
    let done = lines.next_back().context("it said something")?;
    anyhow::ensure!(done.starts_with("powercut: done"), "{done}");
    Ok(())
}
