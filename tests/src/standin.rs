//! The `standin` program: built once, called as a user calls it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, Said};

/// How long one command may take.
pub const LIMIT: Duration = Duration::from_secs(240);

/// The program under test: `$STANDIN_BIN`, or this workspace's, built if it is out of date.
///
/// # Panics
/// If it does not build.
#[must_use]
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        std::env::var_os("STANDIN_BIN").map_or_else(|| build().expect("standin builds"), Into::into)
    })
}

fn build() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // A test or example lies in TARGET/PROFILE/deps or examples, a program in TARGET/PROFILE, whatever
    // CARGO_TARGET_DIR was.
    let me = std::env::current_exe()?;
    let directory = me.parent().context("a program lies in a directory")?;
    let below = directory.ends_with("deps") || directory.ends_with("examples");
    let profile_dir = match below {
        true => directory.parent().context("it lies in a profile")?,
        false => directory,
    };
    let target = profile_dir
        .parent()
        .context("a profile lies in the target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "build",
            "--quiet",
            "--locked",
            "-p",
            "cli",
            "--manifest-path",
        ])
        .arg(manifest);
    cargo.arg("--target-dir").arg(target);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    process::run(&mut cargo, Duration::from_secs(1200))?;
    Ok(profile_dir.join("standin"))
}

thread_local! {
    static ENVIRONMENT: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// What commands that this thread starts from now on find in their environment.
pub fn set_environment(variables: Vec<(String, String)>) {
    ENVIRONMENT.set(variables);
}

/// `standin ARGS`, not yet started.
#[must_use]
pub fn command<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = process::command(program());
    command
        .args(args)
        .env_remove("STANDIN_STATE")
        .env("NO_COLOR", "1")
        .envs(ENVIRONMENT.with_borrow(Clone::clone));
    command
}

/// Runs `standin ARGS` to its end, whatever its exit code.
///
/// # Errors
/// If it cannot be started or hangs.
pub fn say<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Said> {
    process::say(&mut command(args), LIMIT)
}

/// Runs `standin ARGS`; its standard output.
///
/// # Errors
/// If it fails, with everything it said.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Result<String> {
    process::run(&mut command(args), LIMIT)
}

/// Runs `standin ARGS --json`; the document it printed.
///
/// # Errors
/// If it fails, or prints anything but one JSON document.
pub fn json<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Value> {
    let mut command = command(args);
    let text = process::run(command.arg("--json"), LIMIT)?;
    serde_json::from_str(&text).with_context(|| format!("not one JSON document: {text}"))
}

/// Runs `standin ARGS`, which must fail with `code` and a message that holds each of `words`
/// (in any case), and no panic.
///
/// # Errors
/// If it succeeds, fails otherwise, or says something else.
pub fn refuse<S: AsRef<std::ffi::OsStr>>(
    args: impl IntoIterator<Item = S>,
    code: i32,
    words: &[&str],
) -> Result<Said> {
    let said = say(args)?;
    let text = said.err.to_lowercase();
    if said.code() != code {
        bail!(
            "wanted exit code {code}, got {}\n{}{}",
            said.code(),
            said.out,
            said.err
        );
    }
    if let Some(word) = words
        .iter()
        .find(|word| !text.contains(&word.to_lowercase()))
    {
        bail!("the message lacks `{word}`:\n{}", said.err);
    }
    if text.contains("panicked") {
        bail!("a panic is no message:\n{}", said.err);
    }
    Ok(said)
}
