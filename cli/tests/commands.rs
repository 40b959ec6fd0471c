//! Whole invocations: what is printed where, in which shape, with which exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A directory with a disk, a state directory and a target.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().expect("a directory"));
        let mut disk: Vec<u8> = (0..1 << 20)
            .map(|i| u8::try_from(i % 251).expect("small"))
            .collect();
        disk.resize(3 << 20, 0);
        fs::write(bench.path("web.raw"), disk).expect("written");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standin"));
        command
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .env("STANDIN_STATE", self.path("state"))
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end; with exit code `code`.
    fn run(&self, line: &str, code: i32) -> (String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(line).output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let (out, err) = (text(stdout), text(stderr));
        assert_eq!(status.code(), Some(code), "standin {line}\n{out}{err}");
        (out, err)
    }

    fn json(&self, line: &str) -> Value {
        let (out, _) = self.run(&format!("{line} --json"), 0);
        serde_json::from_str(&out).expect("one document")
    }

    fn protect(&self) -> Protect {
        let line = "protect web.raw --target dir:backup --every manual";
        let mut command = self.command(line);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        Protect(child)
    }
}

struct Protect(Child);

impl Protect {
    /// The first line on standard output.
    fn first_line(&mut self) -> String {
        use std::io::{BufRead, BufReader};
        let out = self.0.stdout.as_mut().expect("a pipe");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("a line");
        line
    }

    fn stop(mut self) -> Option<i32> {
        let pid = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::TERM)
            .expect("told");
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Protect {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The keys of an object, for documented shapes.
fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_session() {
    let bench = Bench::new();
    let mut protect = bench.protect();
    let socket = bench.path("state/web/nbd.sock");
    let line = protect.first_line();
    assert_eq!(
        line,
        format!("listening on nbd+unix:///web?socket={}\n", socket.display())
    );

    let (out, _) = bench.run("cut web --label why=test --wait", 0);
    let id = out.split_whitespace().last().expect("a word").to_owned();
    assert!(id.starts_with("web@"), "{out}");
    assert!(out.starts_with("cut web: "), "{out}");
    let (out, _) = bench.run("cut web", 0);
    assert!(
        out.trim_end()
            .rsplit(' ')
            .next()
            .is_some_and(|word| word.parse::<u64>().is_ok()),
        "{out}"
    );

    let cut = bench.json("cut web --wait");
    assert_eq!(
        keys(&cut),
        [
            "at_unix_ns",
            "consistency",
            "dirty_bytes",
            "generation",
            "group",
            "pause_us",
            "point"
        ]
    );

    let status = bench.json("status web");
    let group = &status["groups"][0];
    assert_eq!(group["name"], "web");
    assert_eq!(group["state"], "protected");
    assert_eq!(group["point"], cut["point"]);
    assert_eq!(
        keys(group),
        [
            "audit",
            "cut_lateness_us",
            "cut_pause_us",
            "cuts",
            "diff_bytes",
            "dirty_bytes",
            "disks",
            "every",
            "exports",
            "gap",
            "generation",
            "ladder",
            "last_cut",
            "last_ship",
            "lineage",
            "name",
            "pid",
            "point",
            "point_age_s",
            "reread_bytes",
            "rung",
            "sealed",
            "seed",
            "ship_bytes_per_s",
            "ship_priority",
            "state",
            "target",
            "ticks_skipped",
            "trouble"
        ]
    );
    assert_eq!(group["rung"], "every-write");
    let of_ladder = ["cause", "since_unix_ns", "steps", "steps_total"];
    assert_eq!(keys(&group["ladder"]), of_ladder);
    let (out, _) = bench.run("status", 0);
    assert!(out.starts_with("web: protected\n"), "{out}");
    let gaps = bench.json("gaps web --since 1h");
    let of_ledger = ["clock", "damaged_lines", "gaps", "group", "older"];
    assert_eq!(keys(&gaps["groups"][0]), of_ledger);
    assert_eq!(bench.run("gaps", 0).0, "web: no gaps\n");
    let (_, err) = bench.run("protect web.raw --target dir:backup", 1);
    assert!(
        err.contains("already protected") && err.contains("\n\nhint: "),
        "{err}"
    );
    assert_eq!(protect.stop(), Some(0));
    assert!(!socket.exists());
    let (out, _) = bench.run("status", 0);
    assert!(out.starts_with("web: stopped"), "{out}");

    points(&bench, &id);
    restores(&bench, &id);
}

fn points(bench: &Bench, id: &str) {
    let list = bench.json("point list --target dir:backup");
    assert_eq!(keys(&list), ["points", "stored_bytes", "target"]);
    let all = list["points"].as_array().expect("points");
    let point = all.iter().find(|point| point["id"] == id).expect("listed");
    assert_eq!(
        keys(point),
        [
            "at",
            "at_unix_ns",
            "changed_bytes",
            "consistency",
            "disks",
            "generation",
            "group",
            "hold",
            "id",
            "labels",
            "lineage",
            "locked_until_unix_ns",
            "sequence",
            "stored_bytes"
        ]
    );
    assert_eq!(point["labels"]["why"], "test");
    assert_eq!(
        bench.json(&format!("point show {id} --target dir:backup")),
        *point
    );
    let none = bench.json("point list --target dir:backup --group other");
    assert_eq!(none["points"].as_array().map(Vec::len), Some(0));
    let (out, _) = bench.run("point list --target dir:backup", 0);
    assert!(
        out.starts_with("POINT ") && out.contains("why=test"),
        "{out}"
    );

    let verified = bench.json("point verify --all --target dir:backup");
    assert_eq!(verified["whole"], true);
    assert_eq!(verified["points"][0]["disks"][0]["checked_bytes"], 3 << 20);
    let diff = bench.json(&format!("point diff {id} web@latest --target dir:backup"));
    assert_eq!(keys(&diff), ["a", "b", "disks", "only_in_a", "only_in_b"]);
    assert_eq!(diff["disks"][0]["differing_bytes"], 0);
}

fn restores(bench: &Bench, id: &str) {
    let disk = fs::read(bench.path("web.raw")).expect("read");
    let restored = bench.json(&format!(
        "restore {id} --target dir:backup --output out.raw"
    ));
    assert_eq!(
        keys(&restored),
        [
            "disk", "format", "output", "point", "root", "size", "took_s"
        ]
    );
    assert!(fs::read(bench.path("out.raw")).expect("read") == disk);
    let (_, err) = bench.run(
        &format!("restore {id} --target dir:backup --output out.raw"),
        2,
    );
    assert!(err.contains("--force"), "{err}");
    bench.run(
        &format!("restore {id} --target dir:backup --output out.raw --force --sparse"),
        0,
    );
    assert!(fs::read(bench.path("out.raw")).expect("read") == disk);
    bench.run(
        &format!("restore {id} --target dir:backup --output out.vmdk --format vmdk"),
        0,
    );
    assert!(fs::read(bench.path("out-flat.vmdk")).expect("read") == disk);
    bench.run(
        &format!("restore {id} --target dir:backup --output out.vmdk --format vmdk"),
        2,
    );
    bench.run(
        &format!("restore {id} --target dir:backup --output out.vmdk --format vmdk --force"),
        0,
    );
    assert!(fs::read(bench.path("out-flat.vmdk")).expect("read") == disk);
    let (_, err) = bench.run(
        &format!("restore {id} --target dir:backup --output x --disk db"),
        2,
    );
    assert!(err.contains("it has web"), "{err}");
    let left = fs::read_dir(bench.0.path()).expect("listed");
    let names: Vec<_> = left
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    let partial = names
        .iter()
        .any(|name| name.to_string_lossy().contains("partial"));
    assert!(!partial, "{names:?}");
}

#[test]
fn damage_is_exit_code_5_and_names_the_object() {
    let bench = Bench::new();
    let mut protect = bench.protect();
    protect.first_line();
    bench.run("cut web --wait", 0);
    assert_eq!(protect.stop(), Some(0));
    let container = biggest(&bench.path("backup/containers"));
    let mut bytes = fs::read(&container).expect("read");
    // More than its armor heals.
    let half = bytes.len() / 2;
    bytes[half / 2..half / 2 + half].fill(0x5a);
    fs::write(&container, bytes).expect("written");
    let (out, err) = bench.run("point verify --all --target dir:backup --json", 5);
    let document: Value = serde_json::from_str(&out).expect("one document, in spite of the damage");
    assert_eq!(document["whole"], false);
    let name = container
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    assert!(out.contains(name), "{out}");
    assert!(
        err.starts_with("error: ") && err.contains("hint: "),
        "{err}"
    );
    let (_, err) = bench.run("restore web@latest --target dir:backup --output out.raw", 5);
    assert!(err.contains(name), "{err}");
    assert!(!bench.path("out.raw").exists() && !bench.path("out.raw.partial").exists());
}

fn biggest(dir: &Path) -> PathBuf {
    let mut files = vec![];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("listed") {
            let entry = entry.expect("an entry");
            let meta = entry.metadata().expect("meta");
            match meta.is_dir() {
                true => dirs.push(entry.path()),
                false => files.push((meta.len(), entry.path())),
            }
        }
    }
    files.into_iter().max().expect("a file").1
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let bench = Bench::new();
    fs::write(bench.path("odd name.raw"), [0; 512]).expect("written");
    for (line, code, words) in [
        ("", 2, "Usage"),
        ("protect", 2, "required"),
        ("protect web.raw --target /backup", 2, "dir:"),
        ("protect web.raw --target gs://bucket", 2, "supported yet"),
        (
            "protect web.raw --target s3://key:secret@bucket",
            2,
            "s3://...@bucket",
        ),
        ("protect web.raw --target dir:b --every 5", 2, "interval"),
        (
            "protect web.raw --target dir:b --listen tcp:0.0.0.0:0",
            2,
            "--insecure-plaintext",
        ),
        ("protect web.raw --target dir:b --tls required", 2, "keys"),
        (
            "protect web.raw ./web.raw --target dir:b",
            2,
            "different file names",
        ),
        ("protect none.raw --target dir:b", 1, "none.raw"),
        ("protect web.raw --target dir:web.raw", 1, "web.raw"),
        ("cut web", 1, "hint: start `standin protect`"),
        ("cut web --label x", 2, "KEY=VALUE"),
        ("cut ../x", 2, "not a name"),
        ("status web", 1, "not being protected"),
        ("point list --target dir:none", 1, "no store"),
        ("point show web --target dir:none", 2, "GROUP@NUMBER"),
        ("point verify --target dir:none", 2, "--all"),
        ("restore web@1 --target dir:none --output x", 1, "no store"),
        (
            "restore web@1 --target dir:none --output x --format qcow2",
            2,
            "raw or vmdk",
        ),
        (
            "serve web@1 --target dir:none --listen unix:s",
            1,
            "no store",
        ),
        ("serve web@1 --target dir:none", 2, "--listen"),
    ] {
        let (out, err) = bench.run(line, code);
        assert!(err.contains(words), "standin {line}\n{err}");
        assert!(out.is_empty(), "standin {line}\n{out}");
    }
    assert!(!bench.path("none").exists(), "reading creates nothing");
    let (out, _) = bench.run("status", 0);
    assert!(out.starts_with("no group"), "{out}");
    let (out, err) = bench.run("cut web --json", 1);
    let problem: Value = serde_json::from_str(&out).expect("a document");
    assert_eq!(keys(&problem), ["error", "hint", "kind"]);
    assert_eq!(problem["kind"], "failed");
    assert!(err.starts_with("error: "), "{err}");
}
