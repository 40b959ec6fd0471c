//! What a path is taken for, how a disk is known again, and what a refusal says.

use std::fs;
use std::os::unix::fs::symlink;

use block::{
    Access, BlockDevice, ByteRange, Caching, ExtentState, Fua, Hole, Identity, OpenError, Speed,
    ZeroOptions, create_raw, open_production,
};

use crate::common::{LoopDevice, raw_file, run, scratch, sparse_content, text};

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("ordered")
}

#[test]
fn a_refusal_says_what_to_do() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    let refused = |name: &str, because: &str| {
        let error = open_production(&at(name), Access::ReadWrite).expect_err(name);
        let error = error.to_string();
        assert!(error.contains(because) && error.contains(name), "{error}");
    };
    refused("missing.img", "No such file");
    fs::write(at("odd.img"), vec![0; 1000]).expect("write");
    refused("odd.img", "truncate -s %512");
    fs::write(at("empty.img"), b"").expect("write");
    refused("empty.img", "is empty");
    fs::create_dir(at("folder")).expect("mkdir");
    refused("folder", "neither a file nor a block device");
    run("mkfifo", &[text(&at("pipe"))]);
    refused("pipe", "neither a file nor a block device");
    for format in ["qcow2", "vhdx", "vdi", "qed"] {
        let name = format!("disk.{format}");
        run(
            "qemu-img",
            &["create", "-q", "-f", format, text(&at(&name)), "1M"],
        );
        refused(&name, "qemu-img convert -O raw");
    }
}

#[test]
fn the_command_that_a_refusal_names_helps() {
    let dir = scratch();
    let path = dir.path().join("odd.img");
    fs::write(&path, vec![3; 1000]).expect("write");
    open_production(&path, Access::ReadWrite).expect_err("odd");
    run("truncate", &["-s", "%512", text(&path)]);
    let disk = open_production(&path, Access::ReadWrite).expect("whole sectors");
    assert_eq!(disk.device.size(), 1024);
}

#[test]
fn a_disk_has_one_identity_by_whatever_path() {
    let dir = scratch();
    let (path, link) = (dir.path().join("disk.img"), dir.path().join("link.img"));
    raw_file(&path, &sparse_content(1 << 20, 1));
    symlink(&path, &link).expect("link");
    let one = open_production(&path, Access::ReadOnly).expect("open");
    let other = open_production(&link, Access::ReadOnly).expect("open");
    assert_eq!(one.identity, other.identity);
    let copy = dir.path().join("copy.img");
    fs::copy(&path, &copy).expect("copy");
    let copy = open_production(&copy, Access::ReadOnly).expect("open");
    assert_ne!(one.identity, copy.identity);
}

#[test]
fn a_stamp_tells_a_disk_that_was_changed_outside() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    raw_file(&path, &sparse_content(1 << 20, 1));
    let disk = open_production(&path, Access::ReadWrite).expect("open");
    disk.device.write_at(&[1; 512], 0, Fua::Yes).expect("write");
    let after = disk.stamp_now().expect("stamp");
    drop(disk);
    let again = open_production(&path, Access::ReadWrite).expect("open");
    assert_eq!(again.stamp, after, "opening and closing is no change");
    drop(again);
    // The kernel's clock for file times ticks; a moved time stands for a later write.
    run("touch", &["-d", "+1 second", text(&path)]);
    let touched = open_production(&path, Access::ReadWrite).expect("open");
    assert_ne!(touched.stamp, after);
}

#[test]
fn a_block_device_is_known_by_what_it_says_of_itself_and_has_no_stamp() {
    let disk = LoopDevice::new(1 << 20, 512);
    let opened = open_production(&disk.path, Access::ReadWrite).expect("open");
    assert_eq!(opened.stamp, None);
    let Identity { text, lasts } = &opened.identity;
    assert!(text.starts_with("block loop/backing_file /"), "{text}");
    assert!(lasts);
    let loop_features = opened.device.features();
    assert!(loop_features.writable && loop_features.fast_zero && loop_features.trim);
}

#[test]
fn holes_of_the_file_are_told_and_zeroing_makes_or_fills_them() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    let disk = create_raw(&path, 8 << 20, Caching::Buffered).expect("create");
    let device = disk.device.as_ref();
    device
        .write_at(&[1; 1 << 20], 1 << 20, Fua::Yes)
        .expect("write");
    let states = |device: &dyn BlockDevice| -> Vec<_> {
        let extents = device.block_status(range(0, 8 << 20), usize::MAX);
        let extents = extents.expect("status");
        extents
            .iter()
            .map(|e| (e.range.start() >> 20, e.state))
            .collect()
    };
    use ExtentState::{Data, Hole as Gap};
    assert_eq!(states(device), [(0, Gap), (1, Data), (2, Gap)]);
    device
        .write_zeroes(range(1 << 20, 2 << 20), ZeroOptions::RELAXED)
        .expect("zero");
    assert_eq!(states(device), [(0, Gap)]);

    let allocated = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&path).expect("stat").blocks() * 512
    };
    assert_eq!(allocated(), 0, "zeroing gave the space back");
    let fill = ZeroOptions {
        fua: Fua::Yes,
        hole: Hole::Forbidden,
        speed: Speed::FastOnly,
    };
    device.write_zeroes(range(0, 1 << 20), fill).expect("zero");
    assert!(allocated() >= 1 << 20, "the space is reserved");
}

#[test]
fn a_taken_name_is_not_overwritten() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![1; 512]).expect("write");
    let error = create_raw(&path, 1 << 20, Caching::Buffered).expect_err("taken");
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert_eq!(fs::read(&path).expect("read"), vec![1; 512]);
}
