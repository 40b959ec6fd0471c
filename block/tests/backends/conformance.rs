//! One suite, every device.

use std::sync::Arc;

use block::{
    Access, BlockDevice, Caching, Dir, MemoryDevice, OsDir, Overlay, Production, conformance,
    open_production, open_production_with, vmdk,
};
use tempfile::TempDir;

use crate::common::{LoopDevice, raw_file, run, scratch, sparse_content, text};

const SIZE: usize = (1 << 20) + 512 * 3;

type Kept<K> = (Arc<dyn BlockDevice>, K);

#[test]
fn memory_device() {
    conformance::check(|| {
        (
            Arc::new(MemoryDevice::new(SIZE as u64)) as Arc<dyn BlockDevice>,
            (),
        )
    });
}

fn raw(dir: TempDir, caching: Caching) -> Kept<(Production, TempDir)> {
    let path = dir.path().join("disk.img");
    raw_file(&path, &sparse_content(SIZE, 1));
    let production = open_production_with(&path, Access::ReadWrite, caching).expect("open");
    (production.device.clone(), (production, dir))
}

#[test]
fn raw_file_with_holes() {
    conformance::check(|| raw(scratch(), Caching::Buffered));
}

#[test]
fn raw_file_on_a_file_system_that_cannot_zero_ranges() {
    let tmpfs = || tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    conformance::check(|| raw(tmpfs(), Caching::Buffered));
}

#[test]
fn raw_file_past_the_page_cache() {
    conformance::check(|| raw(scratch(), Caching::Direct));
}

#[test]
fn raw_file_read_only() {
    conformance::check(|| {
        let dir = scratch();
        let path = dir.path().join("disk.img");
        raw_file(&path, &sparse_content(SIZE, 2));
        let production = open_production(&path, Access::ReadOnly).expect("open");
        (production.device, dir)
    });
}

fn loop_device(sector_bytes: u32, caching: Caching) -> Kept<(Production, LoopDevice)> {
    let disk = LoopDevice::new(1 << 20, sector_bytes);
    let production = open_production_with(&disk.path, Access::ReadWrite, caching).expect("open");
    // The device is closed before the loop is detached: fields drop in order.
    (production.device.clone(), (production, disk))
}

#[test]
fn block_device() {
    for sector_bytes in [512, 4096] {
        conformance::check(|| loop_device(sector_bytes, Caching::Buffered));
    }
}

/// With large sectors most requests of the suite change a part of one.
#[test]
fn block_device_past_the_page_cache() {
    for sector_bytes in [512, 4096] {
        conformance::check(|| loop_device(sector_bytes, Caching::Direct));
    }
}

#[test]
fn overlay_over_a_sparse_image() {
    conformance::check(|| {
        let dir = scratch();
        let path = dir.path().join("disk.img");
        raw_file(&path, &sparse_content(SIZE, 3));
        let base = open_production(&path, Access::ReadOnly).expect("open");
        let file = OsDir::open(dir.path())
            .and_then(|dir| dir.create("overlay"))
            .expect("create");
        let overlay = Overlay::new(base.device, file).expect("overlay");
        (Arc::new(overlay) as Arc<dyn BlockDevice>, dir)
    });
}

fn qemu_vmdk(subformat: &str, size: usize) -> (std::path::PathBuf, TempDir) {
    let dir = scratch();
    let (raw, vmdk) = (dir.path().join("raw"), dir.path().join("disk.vmdk"));
    raw_file(&raw, &sparse_content(size, 4));
    let option = format!("subformat={subformat}");
    let arguments = [
        "convert",
        "-O",
        "vmdk",
        "-o",
        &option,
        text(&raw),
        text(&vmdk),
    ];
    run("qemu-img", &arguments);
    (vmdk, dir)
}

#[test]
fn vmdk_flat() {
    for subformat in ["monolithicFlat", "twoGbMaxExtentFlat"] {
        conformance::check(|| {
            let (path, dir) = qemu_vmdk(subformat, SIZE);
            let production = open_production(&path, Access::ReadWrite).expect("open");
            (production.device.clone(), (production, dir))
        });
    }
}

#[test]
fn vmdk_flat_of_several_extents() {
    for caching in [Caching::Buffered, Caching::Direct] {
        conformance::check(|| split_vmdk(scratch(), caching));
    }
}

/// Its extents begin and end anywhere, and so do those of its files.
fn split_vmdk(dir: TempDir, caching: Caching) -> Kept<(Production, TempDir)> {
    let mut extents = String::new();
    for (number, sectors) in [200_u64, 1, 999, 777].into_iter().enumerate() {
        let name = format!("disk-f{number:03}.vmdk");
        let bytes = usize::try_from(sectors * 512).expect("small");
        raw_file(&dir.path().join(&name), &sparse_content(bytes + 512, 5));
        extents.push_str(&format!("RW {sectors} FLAT \"{name}\" 1\n"));
    }
    let head = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n";
    let path = dir.path().join("disk.vmdk");
    std::fs::write(&path, format!("{head}{extents}")).expect("write");
    let production = open_production_with(&path, Access::ReadWrite, caching).expect("open");
    (production.device.clone(), (production, dir))
}

#[test]
fn vmdk_kinds_that_are_only_read() {
    for subformat in [
        "monolithicSparse",
        "twoGbMaxExtentSparse",
        "streamOptimized",
    ] {
        conformance::check(|| {
            let (path, dir) = qemu_vmdk(subformat, SIZE);
            let production = open_production(&path, Access::ReadOnly).expect("open");
            (production.device, dir)
        });
    }
}

#[test]
fn vmdk_made_for_a_restore() {
    conformance::check(|| {
        let dir = scratch();
        let path = dir.path().join("disk.vmdk");
        let new = vmdk::create_flat(&path, SIZE as u64, Caching::Buffered).expect("create");
        (new.device().clone(), (new, dir))
    });
}
