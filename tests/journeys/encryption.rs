//! Targets that are encrypted before anything leaves the machine: what opens them, and what can be done without.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::protect::How;
use tests::time::wait_for;
use tests::{Bench, Protect, image, process, standin};

use crate::places::MIB;

const SIZE: u64 = 32 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);

fn secret_file(bench: &Bench, name: &str, text: &str) -> Result<String> {
    let path = bench.path(name);
    std::fs::write(&path, format!("{text}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(bench.text(name))
}

fn scribbled(bench: &Bench) -> Result<std::path::PathBuf> {
    let path = bench.path("disk.raw");
    image::sparse(&path, SIZE)?;
    image::scribble(&path, 0, 8 * MIB, bench.seed)?;
    Ok(path)
}

/// Commands of this thread open targets with that key file from now on.
fn open_with(key: &str) {
    standin::set_environment(vec![("STANDIN_KEY_FILE".into(), key.into())]);
}

#[test]
fn an_encrypted_target_opens_with_its_keys_alone() -> Result<()> {
    let bench = Bench::new()?;
    let (target, disk) = (bench.target(), scribbled(&bench)?);
    let key = bench.text("key");
    let made = standin::json(["store", "init", &target, "--encrypt", "--key-file", &key])?;
    let recovery = made["recovery_key"].as_str().context("a recovery key")?;
    let recovery = secret_file(&bench, "recovery", recovery)?;
    let import = [
        "import",
        &bench.text("disk.raw"),
        "--target",
        &target,
        "--group",
        "vm",
    ];

    // Nothing is written by who has no key, or another one.
    standin::refuse(import, 1, &["encrypted", "--key-file"])?;
    let other = secret_file(&bench, "other", "correct horse battery staple")?;
    let with_other = ["--passphrase-file", &other];
    standin::refuse(
        import.into_iter().chain(with_other),
        1,
        &["not with this key"],
    )?;
    open_with(&key);
    standin::run(import)?;
    bench.compare("vm@1", None, &disk)?;
    standin::run(["point", "verify", "--all", "--target", &target])?;
    let status = standin::json(["store", "status", &target])?;
    ensure!(status["encrypted"] == true, "{status}");

    // The recovery key is a key like any other; a passphrase takes the place of the key file.
    open_with(&recovery);
    bench.compare("vm@1", None, &disk)?;
    let added = standin::json([
        "store",
        "key",
        "add",
        &target,
        "--new-passphrase-file",
        &other,
        "--label",
        "ops",
    ])?;
    ensure!(
        added["number"] == 3 && added["recovery_key"].is_null(),
        "{added}"
    );
    standin::refuse(
        ["store", "key", "remove", &target, "2"],
        1,
        &["cannot be taken away"],
    )?;
    standin::run(["store", "key", "remove", &target, "1"])?;
    standin::set_environment(vec![("STANDIN_PASSPHRASE_FILE".into(), other)]);
    bench.compare("vm@1", None, &disk)?;
    open_with(&key);
    standin::refuse(
        ["point", "verify", "--all", "--target", &target],
        1,
        &["not with this key"],
    )?;
    // No key file is made that would open nothing.
    let unborn = bench.text("unborn");
    let add = ["store", "key", "add", &target, "--new-key-file", &unborn];
    standin::refuse(add, 1, &["not with this key"])?;
    ensure!(!Path::new(&unborn).exists(), "it was made");

    // What needs no key is done without.
    standin::set_environment(Vec::new());
    let ways = standin::json(["store", "key", "list", &target])?;
    let labels: Vec<_> = ways["ways"]
        .as_array()
        .context("ways")?
        .iter()
        .map(|way| &way["label"])
        .collect();
    ensure!(labels == ["recovery key", "ops"], "{ways}");
    standin::run(["point", "list", "--target", &target])?;
    standin::run([
        "point",
        "hold",
        "vm@1",
        "--target",
        &target,
        "--state",
        &bench.state(),
    ])?;
    standin::run(["store", "gc", &target, "--state", &bench.state()])?;
    let scrubbed = standin::json(["store", "scrub", &target, "--state", &bench.state()])?;
    ensure!(scrubbed["whole"] == true, "{scrubbed}");
    let output = bench.text("out.raw");
    let restore = ["restore", "vm@1", "--target", &target, "--output", &output];
    standin::refuse(restore, 1, &["its key was not given"])?;
    ensure!(!Path::new(&output).exists(), "nothing is left of it");
    Ok(())
}

#[test]
fn secrets_come_from_files_that_nobody_else_can_read() -> Result<()> {
    let bench = Bench::new()?;
    let target = bench.target();
    let open = secret_file(&bench, "open", "hunter2")?;
    process::sh(bench.dir(), "chmod 644 open", PATIENCE)?;
    let init = ["store", "init", &target, "--encrypt"];
    let plain = ["store", "init", &target, "--key-file", &open];
    standin::refuse(plain, 2, &["would not be encrypted"])?;
    standin::refuse(
        init.into_iter().chain(["--passphrase-file", &open]),
        2,
        &["others can read it", "chmod 600"],
    )?;
    let said = standin::refuse(
        init.into_iter().chain(["--key-file", &open]),
        2,
        &["others"],
    )?;
    ensure!(!said.err.contains("hunter2"), "{}", said.err);
    standin::refuse(init, 2, &["nothing is named that opens the store"])?;
    // A key for a store that has none: it may not be the store that is meant.
    standin::run(["store", "init", &target])?;
    process::sh(bench.dir(), "chmod 600 open", PATIENCE)?;
    standin::refuse(
        [
            "point",
            "list",
            "--target",
            &target,
            "--passphrase-file",
            &open,
        ],
        1,
        &["the store is not encrypted", "another one in its place"],
    )?;
    Ok(())
}

#[test]
fn a_protection_encrypts_what_it_ships_and_goes_on_while_keys_change() -> Result<()> {
    let bench = Bench::new()?;
    let (disk, ledger) = bench.stamped_disk("vm", SIZE)?;
    // No store yet: the first start makes an encrypted one.
    let key = secret_file(&bench, "pass", "correct horse battery staple")?;
    let how =
        How::new(&bench, &[&disk]).with(&["--passphrase-file", &key, "--audit-rate", "1GiB/s"]);
    let protect = Protect::start(&bench, &how)?;
    protect.wait_point(PATIENCE)?;
    standin::set_environment(vec![("STANDIN_PASSPHRASE_FILE".into(), key.clone())]);
    let target = bench.target();
    ensure!(standin::json(["store", "status", &target])?["encrypted"] == true);
    let (new, state) = (bench.text("new"), bench.state());
    standin::run(["store", "key", "add", &target, "--new-key-file", &new])?;
    let mut client = tests::nbd::Client::connect(&protect.address, "vm")?;
    client.write(MIB, &vec![0x5a; 70_000])?;
    drop(client);
    let point = protect.cut()?;
    open_with(&new);
    standin::run(["store", "key", "remove", &target, "1"])?;
    // The process that protects has the key, whoever asks it.
    standin::set_environment(Vec::new());
    standin::run(["store", "gc", &target, "--state", &state])?;
    wait_for("the audit to go round", PATIENCE, || {
        let audit = protect.status()?["audit"].clone();
        ensure!(audit["misses"] == 0, "{audit}");
        Ok(audit["passes"].as_u64().filter(|passes| *passes > 0))
    })?;
    protect.stop()?;
    open_with(&new);
    bench.compare(&point, None, &disk)?;
    drop(ledger);

    // The next start needs a way that is left.
    standin::set_environment(Vec::new());
    let old = Protect::spawn(&bench, &how)?;
    wait_for("the old passphrase to be refused", PATIENCE, || {
        let trouble = old.status()?["trouble"].to_string();
        Ok(trouble.contains("not with this key").then_some(()))
    })?;
    old.kill9()
}
