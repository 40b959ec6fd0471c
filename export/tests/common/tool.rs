//! Foreign programs: run with a time limit, told apart by what they say.

use std::ffi::OsStr;
use std::process::Command;

/// What a program said.
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a program for at most a minute. A program that is not installed fails the test: a peer
/// that is skipped proves nothing.
pub(crate) fn try_run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Said {
    let output = Command::new("timeout")
        .arg("60")
        .arg(program)
        .args(args)
        .output()
        .expect("timeout(1) is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_ne!(
        output.status.code(),
        Some(127),
        "{program} is not installed"
    );
    assert_ne!(output.status.code(), Some(124), "{program} hangs");
    Said {
        ok: output.status.success(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// Runs a program that must succeed; what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let said = try_run(program, args);
    assert!(said.ok, "{program} failed:\n{}\n{}", said.out, said.err);
    said.out
}

/// Runs a shell script that must succeed; what it printed.
pub(crate) fn sh(script: &str) -> String {
    run("sh", &["-euc", script])
}
