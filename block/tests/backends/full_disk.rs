//! A full file system is `Full`, or an error of the operating system; never a signal, and what was
//! there before still reads.

use std::io;
use std::path::Path;

use block::{
    Access, ByteRange, Caching, Dir, ErrorKind, Fua, OsDir, ZeroOptions, create_raw,
    open_production,
};

use crate::common::{attempt, run, scratch, text};

/// A file system of 2 MiB.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let dir = scratch();
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=2m", "tmpfs", text(dir.path())],
        );
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = attempt("umount", &["--lazy", text(self.0.path())]);
    }
}

#[test]
fn a_sparse_disk_that_outgrows_its_file_system_is_full_and_goes_on_when_there_is_space() {
    let small = Small::new();
    let disk =
        create_raw(&small.path().join("disk.img"), 64 << 20, Caching::Buffered).expect("sparse");
    let device = disk.device.as_ref();
    device.write_at(&[1; 1 << 20], 0, Fua::Yes).expect("fits");
    let error = device
        .write_at(&vec![2; 4 << 20], 8 << 20, Fua::Yes)
        .expect_err("does not fit");
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    let mut found = vec![0; 1 << 20];
    device.read_at(&mut found, 0).expect("read");
    assert!(found.iter().all(|b| *b == 1), "what was written stays");

    // A full disk loses nothing that was acknowledged, so the latch must not trip.
    let all = ByteRange::at(1 << 20, 32 << 20).expect("inside");
    device
        .write_zeroes(all, ZeroOptions::RELAXED)
        .expect("frees space");
    device
        .write_at(&[3; 4096], 8 << 20, Fua::Yes)
        .expect("fits again");
    device.flush().expect("flush");
}

/// A store to a mapped page on a full file system killed the process with SIGBUS.
#[test]
fn mapped_words_on_a_full_file_system_are_an_error_before_they_are_stored() {
    let small = Small::new();
    let dir = OsDir::open(small.path()).expect("open");
    let map = dir.create("map").expect("create");
    map.set_len(1 << 30).expect("sparse");
    let words = map.map(1 << 30).expect("a map reserves nothing");
    let page = ByteRange::at(4096, 4096).expect("inside");
    map.allocate(page).expect("one page fits");
    words.words()[512].store(7, std::sync::atomic::Ordering::Release);

    let all = ByteRange::at(0, 1 << 30).expect("inside");
    let error = map.allocate(all).expect_err("does not fit");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    let mut found = [0; 8];
    map.read_exact_at(&mut found, 4096).expect("read");
    assert_eq!(found[0], 7);
}

/// The kernel drops the pages that it could not write and reports it once. Whoever asks again is
/// told that all is well.
#[test]
fn after_a_failed_flush_a_disk_refuses_to_write_until_it_is_opened_again() {
    let small = Small::new();
    let backing = small.path().join("backing");
    drop(create_raw(&backing, 64 << 20, Caching::Buffered).expect("sparse"));
    let attach = ["--find", "--show", text(&backing)];
    let path = std::path::PathBuf::from(run("losetup", &attach).trim());
    let outcome = std::panic::catch_unwind(|| {
        let disk = open_production(&path, Access::ReadWrite).expect("open");
        let device = disk.device.as_ref();
        // The page cache takes it; the file behind the loop device cannot.
        device
            .write_at(&vec![1; 8 << 20], 0, Fua::No)
            .expect("buffered");
        let first = device.flush().expect_err("the device is full").to_string();
        let range = ByteRange::at(0, 4096).expect("inside");
        let later = [
            device.flush(),
            device.write_at(&[1; 512], 0, Fua::No),
            device.write_zeroes(range, ZeroOptions::RELAXED),
            device.trim(range, Fua::No),
        ];
        for result in later {
            let error = result.expect_err("latched").to_string();
            assert!(error.contains("an earlier sync failed"), "{first}: {error}");
        }
        device.read_at(&mut [0; 512], 0).expect("reads go on");
        drop(disk);
        let again = open_production(&path, Access::ReadWrite).expect("open");
        again
            .device
            .write_at(&[1; 512], 0, Fua::Yes)
            .expect("a fresh start");
    });
    run("losetup", &["--detach", text(&path)]);
    outcome.expect("as above");
}
