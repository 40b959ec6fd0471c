//! streamOptimized as VMware streams it (directory at the end, found through a footer), which
//! qemu-img does not write but reads: built here, and mutated.

use std::io::Write;

use block::{BlockDevice, ErrorKind, open_production, vmdk};
use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::common::{run, scratch, sparse_content, text};

const SECTOR: usize = 512;
const GRAIN: usize = 64 << 10;
const END_OF_STREAM: usize = SECTOR;
const FOOTER: usize = 2 * SECTOR;

/// A stream of these grains; `order` is the order in which they lie in the file.
struct Stream {
    bytes: Vec<u8>,
    table: Vec<u32>,
}

fn header(capacity: u64, directory: u64) -> Vec<u8> {
    let mut h = Vec::new();
    h.extend(b"KDMV");
    h.extend(3_u32.to_le_bytes());
    h.extend(0x3_0001_u32.to_le_bytes());
    h.extend(capacity.to_le_bytes());
    h.extend(128_u64.to_le_bytes());
    h.extend(1_u64.to_le_bytes());
    h.extend(20_u64.to_le_bytes());
    h.extend(512_u32.to_le_bytes());
    h.extend(0_u64.to_le_bytes());
    h.extend(directory.to_le_bytes());
    h.extend(128_u64.to_le_bytes());
    h.push(0);
    h.extend(b"\n \r\n");
    h.extend(1_u16.to_le_bytes());
    h.resize(SECTOR, 0);
    h
}

impl Stream {
    fn new(capacity: u64) -> Self {
        let mut bytes = header(capacity, u64::MAX);
        let descriptor = format!(
            "# Disk DescriptorFile\nversion=1\nCID=7\nparentCID=ffffffff\n\
             createType=\"streamOptimized\"\nRW {capacity} SPARSE \"x.vmdk\"\n"
        );
        bytes.extend(descriptor.as_bytes());
        bytes.resize(128 * SECTOR, 0);
        let table = vec![0; 512];
        Self { bytes, table }
    }

    fn sector(&self) -> u32 {
        u32::try_from(self.bytes.len() / SECTOR).expect("small")
    }

    fn grain(&mut self, number: usize, says: usize, content: &[u8]) {
        self.table[number] = self.sector();
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).expect("memory");
        let stream = encoder.finish().expect("memory");
        let lba = (says * GRAIN / SECTOR) as u64;
        self.bytes.extend(lba.to_le_bytes());
        let size = u32::try_from(stream.len()).expect("small");
        self.bytes.extend(size.to_le_bytes());
        self.bytes.extend(stream);
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(SECTOR);
        self.bytes.resize(len, 0);
    }

    fn marker(&mut self, sectors: u64, kind: u32) {
        self.bytes.extend(sectors.to_le_bytes());
        self.bytes.extend(0_u32.to_le_bytes());
        self.bytes.extend(kind.to_le_bytes());
        self.pad();
    }

    fn finish(mut self, capacity: u64) -> Vec<u8> {
        self.marker(4, 1);
        let table_sector = self.sector();
        for entry in std::mem::take(&mut self.table) {
            self.bytes.extend(entry.to_le_bytes());
        }
        self.marker(1, 2);
        let directory = u64::from(self.sector());
        self.bytes.extend(table_sector.to_le_bytes());
        self.pad();
        self.marker(1, 3);
        self.bytes.extend(header(capacity, directory));
        self.marker(0, 0);
        self.bytes
    }
}

/// The content of a disk of five grains, the fourth a hole.
fn content() -> Vec<u8> {
    let mut content = sparse_content(5 * GRAIN, 11);
    content[3 * GRAIN..4 * GRAIN].fill(0);
    content[0] = 1;
    content
}

fn stream(order: &[usize], shift: usize) -> Vec<u8> {
    let content = content();
    let capacity = (content.len() / SECTOR) as u64;
    let mut stream = Stream::new(capacity);
    for &number in order {
        let grain = &content[number * GRAIN..(number + 1) * GRAIN];
        stream.grain(number, number + shift, grain);
    }
    stream.finish(capacity)
}

fn read(file: Vec<u8>) -> Result<Vec<u8>, block::Error> {
    let device = vmdk::read_sparse(file).expect("open");
    let mut found = vec![9; usize::try_from(device.size()).expect("small")];
    device.read_at(&mut found, 0).map(|()| found)
}

#[test]
fn a_stream_with_its_directory_at_the_end_reads_as_qemu_reads_it() {
    let dir = scratch();
    let file = stream(&[0, 1, 2, 4], 0);
    let (path, raw) = (dir.path().join("x.vmdk"), dir.path().join("raw"));
    std::fs::write(&path, &file).expect("write");
    std::fs::write(&raw, content()).expect("write");
    let arguments = [
        "compare",
        "-f",
        "raw",
        "-F",
        "vmdk",
        text(&raw),
        text(&path),
    ];
    run("qemu-img", &arguments);

    let disk = open_production(&path, block::Access::ReadOnly).expect("open");
    let mut found = vec![9; 5 * GRAIN];
    disk.device.read_at(&mut found, 0).expect("read");
    assert!(found == content());
    assert!(read(stream(&[4, 0, 2, 1], 0)).expect("any order") == content());
}

/// qemu-img, libvmdk and dissect read a grain that lies under another grain's number without a
/// word, so a damaged table would restore another part of the disk.
#[test]
fn a_grain_that_belongs_elsewhere_is_damage() {
    let error = read(stream(&[0, 1, 2, 4], 1)).expect_err("wrong place");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("belongs elsewhere"), "{error}");
}

#[test]
fn a_stream_that_was_cut_off_is_refused() {
    let whole = stream(&[0, 1, 2, 4], 0);
    for lost in [END_OF_STREAM, FOOTER, FOOTER + SECTOR, whole.len() / 2] {
        let cut = whole[..whole.len() - lost].to_vec();
        let error = vmdk::read_sparse(cut).err().expect("no footer").to_string();
        assert!(error.contains("footer"), "{error}");
    }
    let mut marker = whole.clone();
    let at = marker.len() - 3 * SECTOR + 12;
    marker[at] = 9;
    assert!(vmdk::read_sparse(marker).is_err(), "no footer marker");
}

#[test]
fn damaged_compressed_bytes_are_damage_and_not_zeroes() {
    let whole = stream(&[0, 1, 2, 4], 0);
    let at = 128 * SECTOR + 12 + 20;
    for flipped in at..at + 8 {
        let mut file = whole.clone();
        file[flipped] ^= 0x55;
        if let Ok(found) = read(file) {
            // A bit that the decoder does not need.
            assert!(found == content(), "byte {flipped} changed the disk");
        }
    }
    let mut huge = whole.clone();
    huge[128 * SECTOR + 8..128 * SECTOR + 12].fill(0xff);
    let error = read(huge).expect_err("4 GiB in a grain");
    assert!(error.to_string().contains("impossible size"), "{error}");
}

/// Otherwise the fuzzer would start in front of a closed door.
#[test]
fn the_seeds_of_the_fuzz_target_open_and_read() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for name in ["plain", "stream"] {
        let seed = std::fs::read(corpus.join("vmdk_sparse").join(name)).expect("seed");
        let found = read(seed).expect(name);
        assert!(found.iter().any(|b| *b != 0), "{name} holds data");
    }
}
