//! The real directory keeps what [`Dir`] and [`File`](crate::File) promise.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use super::*;
use crate::{ByteRange, index};

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("ordered")
}

fn scratch() -> (tempfile::TempDir, OsDir) {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = OsDir::open(temp.path()).expect("it was just made");
    (temp, dir)
}

#[test]
fn a_created_file_is_listed_and_opens_with_its_bytes() {
    let (_temp, dir) = scratch();
    let file = dir.create("a").expect("create");
    file.write_all_at(b"hello", 3).expect("write");
    assert_eq!(file.len().expect("len"), 8);
    file.sync_data().expect("sync");
    dir.sync().expect("sync names");
    dir.subdir("below").expect("subdir");
    assert_eq!(dir.list().expect("list"), ["a"], "directories are no files");

    let again = dir.open("a").expect("open");
    let mut buf = [9; 8];
    again.read_exact_at(&mut buf, 0).expect("read");
    assert_eq!(&buf, b"\0\0\0hello");
    let past = again.read_exact_at(&mut buf, 1).expect_err("past the end");
    assert_eq!(past.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_taken_name_is_refused_and_rename_new_never_replaces() {
    let (_temp, dir) = scratch();
    dir.create("a").expect("create");
    dir.create("b").expect("create");
    assert_eq!(
        dir.create("a").err().expect("taken").kind(),
        ErrorKind::AlreadyExists
    );
    let taken = dir.rename_new("a", "b").expect_err("taken");
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    dir.rename_new("a", "c").expect("free");
    dir.rename("c", "b").expect("replaces");
    assert_eq!(dir.list().expect("list"), ["b"]);
    dir.remove("b").expect("remove");
    assert_eq!(
        dir.open("b").err().expect("gone").kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn linking_renames_as_atomically_where_the_file_system_has_no_exclusive_rename() {
    let (_temp, dir) = scratch();
    dir.create("a").expect("create");
    dir.create("b").expect("create");
    let relink = |from: &str, to: &str| relink(dir.fd.as_fd(), from.as_ref(), to.as_ref());
    assert_eq!(relink("a", "b"), Err(Errno::EXIST));
    relink("a", "c").expect("free");
    let mut names = dir.list().expect("list");
    names.sort();
    assert_eq!(names, ["b", "c"]);
}

#[test]
fn names_never_leave_the_directory() {
    let (_temp, dir) = scratch();
    for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b"] {
        let error = dir.create(bad).err().expect(bad);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        assert!(dir.open(bad).is_err() && dir.remove(bad).is_err());
        assert!(dir.subdir(bad).is_err() && dir.lock_exclusive(bad).is_err());
        assert!(dir.existing_subdir(bad).is_err());
        assert!(dir.rename(bad, "x").is_err() && dir.rename_new("x", bad).is_err());
    }
}

#[test]
fn a_lock_has_one_holder_until_it_is_dropped() {
    let (temp, dir) = scratch();
    let held = dir.lock_exclusive("lock").expect("free");
    let other = OsDir::open(temp.path()).expect("open");
    let busy = other.lock_exclusive("lock").expect_err("held");
    assert_eq!(busy.kind(), ErrorKind::WouldBlock);
    drop(held);
    other.lock_exclusive("lock").expect("free again");
}

#[test]
fn an_error_names_the_file() {
    let (temp, dir) = scratch();
    let error = dir.open("missing").err().expect("missing").to_string();
    let path = temp.path().join("missing");
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(error.starts_with("cannot open"), "{error}");
}

#[test]
fn create_all_makes_the_whole_path_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (temp, _) = scratch();
    let path = temp.path().join("a/b/c");
    let dir = OsDir::create_all(&path).expect("create");
    dir.create("f").expect("create");
    OsDir::create_all(&path).expect("it may exist");
    let mode = |p: &Path| std::fs::metadata(p).expect("stat").permissions().mode() & 0o077;
    assert_eq!((mode(&path), mode(&path.join("f"))), (0, 0));
    let file = OsDir::create_all(path.join("f/g")).expect_err("a file is in the way");
    assert_eq!(file.kind(), ErrorKind::NotADirectory);
}

#[test]
fn what_is_written_early_and_let_go_is_still_there() {
    let (_temp, dir) = scratch();
    let file = dir.create("a").expect("create");
    let bytes: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    file.write_all_at(&bytes, 0).expect("write");
    for piece in [range(0, 1 << 20), range(5, 5), range(1 << 30, 2 << 30)] {
        file.start_writeback(piece).expect("begin");
        file.let_go(piece).expect("let go");
        file.fetch(piece).expect("fetch");
    }
    let mut read = vec![0; 1 << 20];
    file.read_exact_at(&mut read, 0).expect("read");
    assert!(read == bytes);
    file.check_writeback().expect("nothing failed");
}

#[test]
fn holes_cost_nothing_and_punching_gives_space_back() {
    let (_temp, dir) = scratch();
    let file = dir.create("a").expect("create");
    file.set_len(1 << 30).expect("sparse");
    assert_eq!(file.allocated().expect("stat"), 0);
    file.write_all_at(&vec![7; 1 << 20], 0).expect("write");
    file.sync_data().expect("sync");
    assert!(file.allocated().expect("stat") >= 1 << 20);
    file.punch_hole(range(0, 1 << 20)).expect("punch");
    file.punch_hole(range(5, 5)).expect("nothing to punch");
    assert_eq!(file.allocated().expect("stat"), 0);
    let mut byte = [9];
    file.read_exact_at(&mut byte, 77).expect("read");
    assert_eq!((byte, file.len().expect("len")), ([0], 1 << 30));
}

#[test]
fn allocate_reserves_space_and_keeps_content_and_length() {
    let (_temp, dir) = scratch();
    let file = dir.create("a").expect("create");
    file.set_len(1 << 20).expect("sparse");
    file.write_all_at(b"kept", 4096).expect("write");
    file.allocate(range(0, 65536)).expect("reserve");
    file.allocate(range(9, 9)).expect("nothing to reserve");
    assert!(file.allocated().expect("stat") >= 65536);
    let mut buf = [1; 5];
    file.read_exact_at(&mut buf, 4096).expect("read");
    assert_eq!((&buf, file.len().expect("len")), (b"kept\0", 1 << 20));
}

#[test]
fn mapped_words_and_file_bytes_are_the_same_bytes() {
    let (_temp, dir) = scratch();
    let file = dir.create("a").expect("create");
    file.set_len(8192).expect("size");
    file.allocate(range(0, 8192)).expect("reserve");
    let map = file.map(8192).expect("map");
    map.words()[3].store(0x0102_0304_0506_0708, Ordering::Release);
    let mut buf = [0; 8];
    file.read_exact_at(&mut buf, 24).expect("read");
    assert_eq!(buf, [8, 7, 6, 5, 4, 3, 2, 1]);
    file.write_all_at(&[1], 8191).expect("write");
    assert_eq!(map.words()[1023].load(Ordering::Acquire), 1 << 56);
    drop(file);
    assert_eq!(map.words().len(), 1024, "the map outlives the handle");
}

#[test]
fn a_map_past_the_file_is_refused_rather_than_deadly() {
    let (_temp, dir) = scratch();
    let file = dir.create("a").expect("create");
    file.set_len(64).expect("size");
    for len in [12, 72, !7] {
        let error = file.map(len).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{len}");
    }
    assert!(file.map(0).expect("nothing").words().is_empty());
}

/// Past the page cache, and where that cannot be: what is read afterwards, in any way, is what was written last.
#[test]
fn writes_past_the_page_cache_and_others_see_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let dir = OsDir::open(temp.path()).unwrap();
    let file = dir.create("f").unwrap();
    let memory = vec![0; 5 * 4096];
    let aligned = memory.as_ptr().align_offset(4096);
    let mut memory = memory;
    let mut expected = vec![0; 8 * 4096];
    let mut put = |offset: usize, unaligned: usize, len: usize, byte: u8, past: bool| {
        let bytes = &mut memory[aligned + unaligned..][..len];
        bytes.fill(byte);
        if past {
            file.write_past_cache(bytes, offset as u64).unwrap();
        } else {
            file.write_all_at(bytes, offset as u64).unwrap();
        }
        expected[offset..offset + len].fill(byte);
        let end = index(file.len().unwrap());
        let mut found = vec![0xFF; end];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected[..end], "after {byte}");
    };
    put(0, 0, 2 * 4096, 1, false);
    // Over what is cached and dirty, beyond the end, over a part of what is cached.
    put(4096, 0, 2 * 4096, 2, true);
    put(6 * 4096, 0, 2 * 4096, 3, true);
    put(7 * 4096 + 5, 0, 10, 4, false);
    put(7 * 4096, 0, 4096, 5, true);
    // What cannot go past the cache is written all the same.
    put(100, 0, 4096, 6, true);
    put(3 * 4096, 7, 4096, 7, true);
    put(4 * 4096, 0, 100, 8, true);
}
