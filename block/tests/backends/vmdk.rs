//! VMDK against qemu-img: what it wrote we read, what we wrote it reads.

use std::fs;
use std::path::{Path, PathBuf};

use block::{
    Access, BlockDevice, ByteRange, Caching, ExtentState, Fua, OpenError, ZeroOptions,
    open_production, vmdk,
};

use crate::common::{raw_file, run, scratch, sparse_content, text};

const KINDS: [&str; 5] = [
    "monolithicFlat",
    "twoGbMaxExtentFlat",
    "monolithicSparse",
    "twoGbMaxExtentSparse",
    "streamOptimized",
];

fn convert(raw: &Path, kind: &str) -> PathBuf {
    let vmdk = raw.with_file_name(format!("{kind}.vmdk"));
    let option = format!("subformat={kind}");
    let arguments = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        &option,
        text(raw),
        text(&vmdk),
    ];
    run("qemu-img", &arguments);
    vmdk
}

fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(device.size()).expect("small")];
    device.read_at(&mut bytes, 0).expect("read");
    bytes
}

fn compare(raw: &Path, vmdk: &Path) {
    let arguments = ["compare", "-f", "raw", "-F", "vmdk", text(raw), text(vmdk)];
    run("qemu-img", &arguments);
}

#[test]
fn every_kind_that_qemu_makes_reads_as_the_raw_disk() {
    // A whole number of grains, of sectors, and more than one grain table (32 MiB).
    for (size, seed) in [(1 << 20, 1), ((3 << 20) + 512 * 7, 2), (40 << 20, 3)] {
        let dir = scratch();
        let raw = dir.path().join("raw");
        let content = sparse_content(size, seed);
        raw_file(&raw, &content);
        for kind in KINDS {
            let path = convert(&raw, kind);
            let disk = open_production(&path, Access::ReadOnly).expect(kind);
            assert!(disk.description.contains(kind), "{}", disk.description);
            assert!(
                read_all(disk.device.as_ref()) == content,
                "{kind}, {size} bytes"
            );
        }
    }
}

#[test]
fn a_disk_split_at_two_gigabytes_reads_across_the_split() {
    const SPLIT: u64 = 2047 << 20;
    let dir = scratch();
    let raw = dir.path().join("raw");
    let content = sparse_content(1 << 20, 4);
    {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(&raw).expect("create");
        file.set_len(4200 << 20).expect("size");
        for at in [0, SPLIT - (512 << 10), 2 * SPLIT - 4096] {
            file.write_all_at(&content, at).expect("write");
        }
    }
    for kind in ["twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        let path = convert(&raw, kind);
        let disk = open_production(&path, Access::ReadOnly).expect(kind);
        assert_eq!(disk.device.size(), 4200 << 20, "{kind}");
        for at in [0, SPLIT - (512 << 10), 2 * SPLIT - 4096] {
            let mut found = vec![0; content.len()];
            disk.device.read_at(&mut found, at).expect("read");
            assert!(found == content, "{kind} at {at}");
        }
        let whole = ByteRange::at(0, 4200 << 20).expect("from zero");
        let extents = disk.device.block_status(whole, usize::MAX).expect("status");
        let data: u64 = extents
            .iter()
            .filter(|e| e.state == ExtentState::Data)
            .map(|e| e.range.len())
            .sum();
        assert!(
            data < 4 << 20,
            "{kind}: {data} bytes of data in a sparse disk"
        );
    }
}

#[test]
fn what_is_written_to_a_flat_vmdk_is_what_qemu_reads() {
    let dir = scratch();
    let raw = dir.path().join("raw");
    let mut content = sparse_content((2 << 20) + 512, 5);
    raw_file(&raw, &content);
    let path = convert(&raw, "twoGbMaxExtentFlat");
    let disk = open_production(&path, Access::ReadWrite).expect("open");
    for (number, at) in [0, 513, 70_001, content.len() - 3000]
        .into_iter()
        .enumerate()
    {
        let data = sparse_content(3000, number as u64 + 50);
        disk.device
            .write_at(&data, at as u64, Fua::Yes)
            .expect("write");
        content[at..at + 3000].copy_from_slice(&data);
    }
    let zeroed = ByteRange::new(100_000, 300_000).expect("ordered");
    disk.device
        .write_zeroes(zeroed, ZeroOptions::RELAXED)
        .expect("zero");
    content[100_000..300_000].fill(0);
    disk.device.flush().expect("flush");
    drop(disk);
    raw_file(&raw, &content);
    compare(&raw, &path);
}

#[test]
fn a_vmdk_made_for_a_restore_is_one_for_qemu() {
    let dir = scratch();
    let content = sparse_content((5 << 20) + 512, 6);
    let raw = dir.path().join("raw");
    raw_file(&raw, &content);
    let path = dir.path().join("restored disk.vmdk");
    let new = vmdk::create_flat(&path, content.len() as u64, Caching::Buffered).expect("create");
    new.device().write_at(&content, 0, Fua::No).expect("write");
    assert!(!path.exists(), "no disk before its bytes are durable");
    new.publish().expect("publish");
    compare(&raw, &path);
    let info = run("qemu-img", &["info", "--output=json", text(&path)]);
    assert!(info.contains("monolithicFlat"), "{info}");
    let disk = open_production(&path, Access::ReadWrite).expect("open");
    assert!(read_all(disk.device.as_ref()) == content);

    let names: Vec<_> = fs::read_dir(dir.path())
        .expect("list")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(names.len(), 3, "raw, descriptor and data: {names:?}");
}

#[test]
fn a_restore_never_replaces_a_disk() {
    let dir = scratch();
    let path = dir.path().join("disk.vmdk");
    vmdk::create_flat(&path, 1 << 20, Caching::Buffered)
        .expect("create")
        .publish()
        .expect("publish");
    let taken = vmdk::create_flat(&path, 1 << 20, Caching::Buffered)
        .err()
        .expect("taken");
    assert!(matches!(taken, OpenError::Io { .. }), "{taken}");
    let other = dir.path().join("other.vmdk");
    fs::write(other.with_file_name("other-flat.vmdk"), b"data").expect("write");
    vmdk::create_flat(&other, 1 << 20, Caching::Buffered)
        .err()
        .expect("data file taken");
    for name in [
        "disk.img",
        "disk-flat.vmdk",
        ".vmdk",
        "a\"b.vmdk",
        "a\nb.vmdk",
    ] {
        let error = vmdk::create_flat(&dir.path().join(name), 1 << 20, Caching::Buffered)
            .err()
            .expect(name);
        assert!(error.to_string().contains("name of a VMDK"), "{error}");
    }
}

#[test]
fn grains_that_are_marked_as_zero_are_told_as_zero() {
    let dir = scratch();
    let path = dir.path().join("zeroed.vmdk");
    let create = [
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        "zeroed_grain=on",
        text(&path),
        "1M",
    ];
    run("qemu-img", &create);
    let write = [
        "-f",
        "vmdk",
        "-c",
        "write -z 64k 64k",
        "-c",
        "write -P 7 256k 64k",
        text(&path),
    ];
    run("qemu-io", &write);
    let disk = open_production(&path, Access::ReadOnly).expect("open");
    let whole = ByteRange::at(0, 1 << 20).expect("from zero");
    let extents = disk.device.block_status(whole, usize::MAX).expect("status");
    let told: Vec<_> = extents
        .iter()
        .map(|e| (e.range.start() >> 10, e.state))
        .collect();
    use ExtentState::{Data, Hole, Zero};
    let expected = [(0, Hole), (64, Zero), (128, Hole), (256, Data), (320, Hole)];
    assert_eq!(told, expected);
}

#[test]
fn a_sparse_vmdk_is_refused_for_writing_with_the_way_out() {
    let dir = scratch();
    let raw = dir.path().join("raw");
    raw_file(&raw, &sparse_content(1 << 20, 7));
    for kind in [
        "monolithicSparse",
        "twoGbMaxExtentSparse",
        "streamOptimized",
    ] {
        let path = convert(&raw, kind);
        let error = open_production(&path, Access::ReadWrite)
            .expect_err(kind)
            .to_string();
        assert!(
            error.contains(kind) && error.contains("qemu-img convert"),
            "{error}"
        );
    }
}

#[test]
fn a_snapshot_is_refused_because_its_parent_holds_the_rest() {
    let dir = scratch();
    let base = dir.path().join("base.vmdk");
    let child = dir.path().join("child.vmdk");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vmdk", text(&base), "1M"],
    );
    let create = [
        "create",
        "-q",
        "-f",
        "vmdk",
        "-b",
        text(&base),
        "-F",
        "vmdk",
        text(&child),
    ];
    run("qemu-img", &create);
    let error = open_production(&child, Access::ReadOnly)
        .expect_err("a parent")
        .to_string();
    assert!(error.contains("snapshot of another disk"), "{error}");
}

#[test]
fn the_size_that_qemu_sees_is_ours() {
    let dir = scratch();
    let raw = dir.path().join("raw");
    raw_file(&raw, &sparse_content((1 << 20) + 512, 8));
    for kind in KINDS {
        let path = convert(&raw, kind);
        let info = run("qemu-img", &["info", "--output=json", text(&path)]);
        let disk = open_production(&path, Access::ReadOnly).expect(kind);
        let expected = format!("\"virtual-size\": {}", disk.device.size());
        assert!(info.contains(&expected), "{kind}: {info}");
    }
}
