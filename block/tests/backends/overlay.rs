//! What an overlay promises beyond the suite: the base stays as it is, and space follows changes.

use std::sync::Arc;

use block::{
    BlockDevice, ByteRange, Dir, ExtentState, Features, Fua, MemoryDevice, OsDir, Overlay, Result,
    ZeroOptions,
};

use crate::common::{scratch, sparse_content};

const SIZE: usize = (3 << 20) + 512;

fn base() -> (Arc<MemoryDevice>, Vec<u8>) {
    let content = sparse_content(SIZE, 21);
    let base = MemoryDevice::new(SIZE as u64);
    base.write_at(&content, 0, Fua::No).expect("write");
    (Arc::new(base), content)
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("ordered")
}

#[test]
fn the_base_is_never_written() {
    let (base, content) = base();
    let dir = scratch();
    let file = OsDir::open(dir.path())
        .and_then(|d| d.create("o"))
        .expect("create");
    let overlay = Overlay::new(base.clone(), file.clone()).expect("overlay");
    overlay.write_at(&[9; 5000], 100, Fua::Yes).expect("write");
    overlay
        .write_zeroes(range(1 << 20, 2 << 20), ZeroOptions::RELAXED)
        .expect("zero");
    overlay
        .trim(range(2 << 20, SIZE as u64), Fua::No)
        .expect("trim");
    let mut found = vec![0; SIZE];
    base.read_at(&mut found, 0).expect("read");
    assert!(found == content);
    assert!(
        file.allocated().expect("stat") <= 16 << 10,
        "two granules were written"
    );
}

#[test]
fn a_new_overlay_shows_nothing_of_what_its_file_held() {
    let (base, content) = base();
    let dir = scratch();
    let file = OsDir::open(dir.path())
        .and_then(|d| d.create("o"))
        .expect("create");
    file.write_all_at(&vec![0xdd; SIZE], 0).expect("write");
    let overlay = Overlay::new(base, file).expect("overlay");
    overlay
        .write_zeroes(range(8192, 16384), ZeroOptions::RELAXED)
        .expect("zero");
    overlay.write_at(&[1], 9000, Fua::No).expect("write");
    let mut expected = content;
    expected[8192..16384].fill(0);
    expected[9000] = 1;
    let mut found = vec![0; SIZE];
    overlay.read_at(&mut found, 0).expect("read");
    assert!(found == expected);
}

/// A base of 64 TiB that is all hole, as a store's image of a large disk.
struct Huge;

impl BlockDevice for Huge {
    fn size(&self) -> u64 {
        64 << 40
    }
    fn features(&self) -> Features {
        Features::READ_ONLY
    }
    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write_at(&self, _data: &[u8], _offset: u64, _fua: Fua) -> Result<()> {
        unreachable!("the base is never written")
    }
    fn write_zeroes(&self, _range: ByteRange, _options: ZeroOptions) -> Result<()> {
        unreachable!("the base is never written")
    }
    fn trim(&self, _range: ByteRange, _fua: Fua) -> Result<()> {
        unreachable!("the base is never written")
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn block_status(&self, range: ByteRange, _extents_max: usize) -> Result<Vec<block::Extent>> {
        let state = ExtentState::Hole;
        Ok(vec![block::Extent { range, state }])
    }
    fn prefetch(&self, _range: ByteRange) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_overlay_over_a_huge_disk_costs_what_was_changed() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmpfs has files of any size");
    let file = OsDir::open(dir.path())
        .and_then(|d| d.create("o"))
        .expect("create");
    let overlay = Overlay::new(Arc::new(Huge), file).expect("overlay");
    overlay
        .write_at(&[5; 512], 63 << 40, Fua::No)
        .expect("write");
    let extents = overlay
        .block_status(range(0, 64 << 40), 16)
        .expect("status");
    let told: Vec<_> = extents.iter().map(|e| (e.range.start(), e.state)).collect();
    use ExtentState::{Data, Hole};
    let at = 63 << 40;
    assert_eq!(told, [(0, Hole), (at, Data), (at + 4096, Hole)]);
}
