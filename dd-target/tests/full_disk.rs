//! A state directory whose disk is full.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Bench;
use dd_target::api::{NewToken, Role};

mod common;

/// A small file system in memory, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where that takes rights that the test has not.
    fn new(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"]);
        let done = mount
            .arg(path)
            .status()
            .is_ok_and(|status| status.success());
        done.then(|| Self(path.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// On a full state disk no token could be revoked: neither its line nor the file of tokens found room.
#[test]
fn a_full_disk_keeps_no_token_from_being_revoked() {
    let mut bench = Bench::stopped();
    let Some(_mounted) = Mounted::new(&bench.path("state")) else {
        eprintln!("SKIPPED: no file system can be mounted here");
        return;
    };
    bench.start();
    bench.make_vault("v", None);
    let (admin, stolen) = (bench.token(&[Role::Admin]), bench.token(&[Role::Restore]));
    let (format, range) = ("/v1/vaults/v/objects/format", "bytes=0-9");
    let read = || {
        bench
            .ask_with("GET", format, Some(&stolen), |r| r.header("range", range))
            .0
    };
    assert_eq!(read(), 206);

    let mut rest = fs::File::create(bench.path("state/rest")).unwrap();
    while rest.write_all(&[7; 4096]).is_ok() {}
    let new = NewToken {
        name: "another".into(),
        roles: vec![Role::Restore],
        ..NewToken::default()
    };
    assert!(bench.tokens().create(new).is_err());
    let id = stolen.split('-').nth(1).unwrap();
    let revoked = bench.remote(&admin).revoke_token(id).unwrap();
    assert!(revoked.token.revoked_unix_ns.is_some());
    assert_eq!(read(), 401);
}
