//! Who may open a disk while somebody has it: the table of `locks.rs`, with QEMU as the other.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use block::{Access, OpenError, Production, open_production};

use crate::common::{LoopDevice, attempt, raw_file, run, scratch, sparse_content, text};

fn in_use(result: Result<Production, OpenError>) {
    let error = result.expect_err("in use");
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}

/// qemu-io with an image open until it is dropped.
struct Qemu(Child);

impl Qemu {
    fn open(path: &Path, format: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", format])
            .args(arguments)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io; tests/setup.sh installs it");
        let stdin = child.stdin.as_mut().expect("piped");
        // `length` answers once the image is open.
        writeln!(stdin, "length").expect("qemu-io reads");
        let stdout = child.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("answer");
        assert!(line.contains("MiB"), "qemu-io could not open: {line}");
        Self(child)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn one_writer_and_nobody_beside_it() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    raw_file(&path, &sparse_content(1 << 20, 1));
    let writer = open_production(&path, Access::ReadWrite).expect("free");
    in_use(open_production(&path, Access::ReadWrite));
    in_use(open_production(&path, Access::ReadOnly));
    drop(writer);
    let reader = open_production(&path, Access::ReadOnly).expect("free again");
    let second = open_production(&path, Access::ReadOnly).expect("readers share");
    in_use(open_production(&path, Access::ReadWrite));
    drop((reader, second));
    open_production(&path, Access::ReadWrite).expect("free again");
}

#[test]
fn another_name_of_the_disk_is_the_same_disk() {
    let dir = scratch();
    let (path, link) = (dir.path().join("disk.img"), dir.path().join("hard.img"));
    raw_file(&path, &sparse_content(1 << 20, 1));
    std::fs::hard_link(&path, &link).expect("link");
    let _writer = open_production(&path, Access::ReadWrite).expect("free");
    in_use(open_production(&link, Access::ReadWrite));
}

#[test]
fn a_disk_that_qemu_has_open_is_refused() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    raw_file(&path, &sparse_content(1 << 20, 1));
    let writer = Qemu::open(&path, "raw", &[]);
    in_use(open_production(&path, Access::ReadWrite));
    in_use(open_production(&path, Access::ReadOnly));
    drop(writer);
    let _reader = Qemu::open(&path, "raw", &["-r"]);
    in_use(open_production(&path, Access::ReadWrite));
    open_production(&path, Access::ReadOnly).expect("readers share");
}

#[test]
fn qemu_is_refused_a_disk_that_we_have_open() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    raw_file(&path, &sparse_content(1 << 20, 1));
    let read = ["-r", "-f", "raw", "-c", "read 0 512", text(&path)];
    let write = ["-f", "raw", "-c", "write 0 512", text(&path)];
    let writer = open_production(&path, Access::ReadWrite).expect("free");
    assert!(!attempt("qemu-io", &read).status.success(), "a reader");
    assert!(!attempt("qemu-io", &write).status.success(), "a writer");
    drop(writer);
    let reader = open_production(&path, Access::ReadOnly).expect("free");
    assert!(attempt("qemu-io", &read).status.success(), "readers share");
    assert!(!attempt("qemu-io", &write).status.success(), "a writer");
    drop(reader);
    run("qemu-io", &write);
}

#[test]
fn a_vmdk_and_its_data_file_are_one_disk() {
    let dir = scratch();
    let path = dir.path().join("disk.vmdk");
    let create = [
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
        text(&path),
        "1M",
    ];
    run("qemu-img", &create);
    let data = dir.path().join("disk-flat.vmdk");
    let vmdk = open_production(&path, Access::ReadWrite).expect("free");
    in_use(open_production(&data, Access::ReadWrite));
    in_use(open_production(&path, Access::ReadWrite));
    drop(vmdk);
    let raw = open_production(&data, Access::ReadWrite).expect("free");
    in_use(open_production(&path, Access::ReadWrite));
    drop(raw);
    let _qemu = Qemu::open(&path, "vmdk", &[]);
    in_use(open_production(&path, Access::ReadWrite));
    in_use(open_production(&data, Access::ReadWrite));
}

#[test]
fn a_mounted_block_device_is_refused() {
    let disk = LoopDevice::new(4 << 20, 512);
    run("mkfs.ext4", &["-q", "-F", text(&disk.path)]);
    let at = scratch();
    run("mount", &[text(&disk.path), text(at.path())]);
    let write = open_production(&disk.path, Access::ReadWrite);
    let read = open_production(&disk.path, Access::ReadOnly);
    run("umount", &[text(at.path())]);
    in_use(write);
    in_use(read);
    let reader = open_production(&disk.path, Access::ReadOnly).expect("free");
    let second = open_production(&disk.path, Access::ReadOnly).expect("readers share");
    in_use(open_production(&disk.path, Access::ReadWrite));
    drop((reader, second));
    let writer = open_production(&disk.path, Access::ReadWrite).expect("free");
    in_use(open_production(&disk.path, Access::ReadWrite));
    in_use(open_production(&disk.path, Access::ReadOnly));
    assert!(
        !attempt("mount", &[text(&disk.path), text(at.path())])
            .status
            .success()
    );
    drop(writer);
}
