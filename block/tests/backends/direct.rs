//! Disks that are read and written past the page cache: it stays empty, nothing grows, and requests of any size and
//! place meet nobody else's bytes.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{
    Access, ByteRange, Caching, Dir, Fua, Hole, OpenError, OsDir, Speed, ZeroOptions,
    open_production_with,
};

use crate::common::{LoopDevice, raw_file, scratch, sparse_content};

fn open(path: &std::path::Path) -> block::Production {
    open_production_with(path, Access::ReadWrite, Caching::Direct).expect("open")
}

#[test]
fn what_guests_read_and_write_is_not_kept_in_the_cache() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![7; 8 << 20]).expect("write");
    let file = OsDir::open(dir.path())
        .and_then(|dir| dir.open("disk.img"))
        .expect("open");
    file.sync_data().expect("synced");
    let all = ByteRange::at(0, 8 << 20).expect("small");
    file.let_go(all).expect("let go");
    assert!(!file.is_cached(all).expect("asked"), "nothing before");

    let disk = open(&path);
    let mut read = vec![0; 1 << 20];
    for offset in [0, 4096, (3 << 20) + 512] {
        disk.device.read_at(&mut read, offset).expect("read");
        assert!(read.iter().all(|byte| *byte == 7));
        disk.device
            .write_at(&read, offset, Fua::No)
            .expect("written");
    }
    disk.device.prefetch(all).expect("a hint");
    disk.device.flush().expect("flushed");
    assert!(!file.is_cached(all).expect("asked"), "nothing after");
}

/// One lock stands for 32 MiB, one copy for 256 KiB: requests that cross several of both.
#[test]
fn requests_cross_places_and_pieces() {
    let dir = scratch();
    let path = dir.path().join("disk.img");
    // It ends within a page, whatever the blocks are.
    let size = (100 << 20) + 512;
    raw_file(&path, &[]);
    fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(size))
        .expect("sized");
    let disk = open(&path);
    let mut model = vec![0_u8; usize::try_from(size).expect("small")];
    let content = sparse_content(40 << 20, 3);
    let mut write = |offset: usize, len: usize| {
        disk.device
            .write_at(&content[..len], offset as u64, Fua::No)
            .expect("written");
        model[offset..offset + len].copy_from_slice(&content[..len]);
    };
    write(31 << 20, 40 << 20);
    write((30 << 20) + 1, 38 << 20);
    write((32 << 20) - 1, 2);
    write((100 << 20) + 512 - 70_000, 70_000);
    let zeroed = ByteRange::new((1 << 20) + 1, (65 << 20) - 1).expect("ordered");
    for hole in [Hole::Allowed, Hole::Forbidden] {
        let options = ZeroOptions {
            hole,
            speed: Speed::Any,
            fua: Fua::No,
        };
        disk.device.write_zeroes(zeroed, options).expect("zeroed");
    }
    let place = |at: u64| usize::try_from(at).expect("small");
    model[place(zeroed.start())..place(zeroed.end())].fill(0);
    let mut read = vec![0; model.len()];
    disk.device.read_at(&mut read, 0).expect("read");
    assert!(read == model, "as the model has it");
    assert_eq!(fs::metadata(&path).expect("there").len(), size);
}

/// Zeroing goes to the kernel, which knows nothing of who changes a part of a block meanwhile.
#[test]
fn zeroes_are_not_undone_by_who_changes_a_part_of_their_block() {
    const ROUNDS: usize = 300;
    let disk = LoopDevice::new(1 << 20, 4096);
    let device = open(&disk.path).device;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                device.write_at(&[1; 512], 0, Fua::No).expect("written");
            }
        });
        let blocks = ByteRange::new(0, 8192).expect("ordered");
        let mut read = vec![0; 7680];
        let mut round = || {
            device.write_at(&[5; 7680], 512, Fua::No).expect("written");
            device
                .write_zeroes(blocks, ZeroOptions::RELAXED)
                .expect("zeroed");
            device.read_at(&mut read, 512).expect("read");
            read.iter().all(|byte| *byte == 0)
        };
        let bad = (0..ROUNDS).find(|_| !round());
        done.store(true, Ordering::Relaxed);
        assert_eq!(bad, None, "it is as it was zeroed");
    });
}

#[test]
fn where_the_cache_cannot_be_passed_it_is_said() {
    // Files of the kernel's own have no O_DIRECT.
    let path = std::path::Path::new("/sys/kernel/uevent_seqnum");
    let error = open_production_with(path, Access::ReadOnly, Caching::Direct).expect_err("refused");
    assert!(matches!(error, OpenError::Io { .. }));
    assert!(error.to_string().contains("O_DIRECT"), "{error}");
}
