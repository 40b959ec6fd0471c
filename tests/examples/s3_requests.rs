//! Requests, bytes and seconds of backups in a bucket, on a real S3 server of this machine: Standin and restic, in turn.
//!
//! ```text
//! cargo build --release -p cli && cargo run --release -p tests --example s3_requests -- day1.raw [day2.raw]
//! ```

#![allow(clippy::print_stdout, reason = "figures are its output")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::process;
use tests::s3::{ACCESS_KEY, Count, SECRET_KEY, Server};
use tests::standin;
use tests::time::elapsed;

const LIMIT: Duration = Duration::from_secs(3600);
const REPOSITORY: &str = "bucket/restic";

struct Bench {
    server: Server,
    place: tempfile::TempDir,
    /// GiB of data in the images.
    data_gib: f64,
}

impl Bench {
    /// Runs a command, and prints a row of what it asked the server for.
    fn row(&self, what: &str, command: &mut Command) -> Result<String> {
        let _ = self.server.take_counts();
        let start = elapsed();
        let said = process::run(command, LIMIT)?;
        let seconds = (elapsed() - start).as_secs_f64();
        let counts = self.server.take_counts();
        let of = |kinds: &[&str]| total(&counts, kinds);
        let (puts, gets) = (
            of(&["PUT", "PUT if none", "POST"]),
            of(&["GET", "GET range", "HEAD"]),
        );
        println!(
            "| {what} | {seconds:.1} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} |",
            puts.requests,
            gets.requests,
            of(&["LIST"]).requests,
            of(&["DELETE"]).requests,
            mib(puts.bytes),
            mib(gets.bytes),
            real(counts.values().map(|count| count.requests).sum()) / self.data_gib,
        );
        Ok(said)
    }

    fn restic(&self, args: &[&str]) -> Command {
        let mut command = process::command("restic");
        let [server, cache] = [self.server.settings()[0].1.clone(), self.path("cache")];
        command
            .args(args)
            .env("RESTIC_REPOSITORY", format!("s3:{server}/{REPOSITORY}"))
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_CACHE_DIR", cache)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    fn path(&self, name: &str) -> String {
        self.place.path().join(name).display().to_string()
    }
}

fn total(counts: &BTreeMap<&'static str, Count>, kinds: &[&str]) -> Count {
    let of = counts.iter().filter(|(kind, _)| kinds.contains(kind));
    of.fold(Count::default(), |sum, (_, count)| Count {
        requests: sum.requests + count.requests,
        bytes: sum.bytes + count.bytes,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn real(n: u64) -> f64 {
    n as f64
}

fn mib(bytes: u64) -> f64 {
    real(bytes) / 1_048_576.0
}

/// GiB of an image that are no holes.
fn data_gib(path: &Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let blocks = std::fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .blocks();
    Ok(mib(blocks * 512) / 1024.0)
}

fn main() -> Result<()> {
    let images: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let Some(first) = images.first() else {
        bail!("usage: s3_requests IMAGE [NEXT]");
    };
    let place = tempfile::tempdir()?;
    let bench = Bench {
        server: Server::start(&place.path().join("s3"), 1)?,
        data_gib: data_gib(first)?,
        place,
    };
    standin::set_environment(bench.server.settings());
    println!("{:.2} GiB of data in {}", bench.data_gib, first.display());
    println!("| | s | PUT | GET, HEAD | LIST | DELETE | MiB up | MiB down | requests per GiB |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let url = "s3://bucket/standin";
    let link = bench.place.path().join("disk.raw");
    for image in &images {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(image, &link)?;
        let what = format!("standin import {}", image.display());
        let disk = bench.path("disk.raw");
        bench.row(
            &what,
            &mut standin::command(["import", &disk, "--target", url]),
        )?;
    }
    let out = bench.path("out.raw");
    let restore = [
        "restore", "disk@1", "--target", url, "--output", &out, "--sparse",
    ];
    bench.row("standin restore", &mut standin::command(restore))?;
    std::fs::remove_file(&out)?;
    bench.row(
        "standin verify",
        &mut standin::command(["point", "verify", "disk@1", "--target", url]),
    )?;
    bench.row("standin gc", &mut standin::command(["store", "gc", url]))?;

    process::run(&mut bench.restic(&["init"]), LIMIT)?;
    for image in &images {
        let path = image.display().to_string();
        bench.row(
            &format!("restic backup {path}"),
            &mut bench.restic(&["backup", "--quiet", &path]),
        )?;
    }
    let listed = process::run(&mut bench.restic(&["snapshots", "--json"]), LIMIT)?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let id = listed[0]["short_id"].as_str().context("a snapshot")?;
    let out = bench.path("restic-out");
    bench.row(
        "restic restore",
        &mut bench.restic(&["restore", "--quiet", id, "--target", &out]),
    )?;
    // `restic check --read-data` misses packs on this server, from which it restores all the same: not measured.
    Ok(())
}
