//! Entry points for fuzz/: every parser of bytes that this crate reads from a disk.

use block::GranuleRange;

use crate::catalog;
use crate::codec::{Decoder, seal};
use crate::container::{FOOTER_LEN, Footer, Manifest, check_header};
use crate::place::ObjectId;
use crate::runs;
use crate::tree::{ImageRef, Record};

/// The id that the fuzzed store has.
const STORE: [u8; 16] = [7; 16];

/// Arbitrary bytes as a container: header, footer, manifest, and every region that it names.
pub fn container(bytes: &[u8]) {
    let _ = check_header(bytes, STORE, ObjectId(1));
    let Some(at) = bytes.len().checked_sub(FOOTER_LEN) else {
        return;
    };
    let len = bytes.len() as u64;
    let Ok(footer) = Footer::decode(&bytes[at..], STORE, ObjectId(1), len) else {
        return;
    };
    let from = block::index(footer.manifest_at);
    let Ok(manifest) = Manifest::decode(&bytes[from..at], &footer) else {
        return;
    };
    for (i, region) in manifest.regions.iter().enumerate() {
        let from = region.offset as usize;
        let _ = manifest.open_region(i, &bytes[from..from + region.stored as usize]);
    }
}

/// Arbitrary bytes as a node of a tree, of every level, and as a reference to an image.
pub fn tree_node(bytes: &[u8]) {
    for level in 0..7 {
        let _ = Record::decode_node(bytes, level);
    }
    let _ = ImageRef::decode(&mut Decoder::new(bytes));
}

/// Arbitrary bytes as a change list; what is read is written and read again.
pub fn change_list(bytes: &[u8]) {
    const GRANULES: u64 = 1 << 40;
    let Ok(Record::List(read)) = Record::decode_list(bytes, GRANULES) else {
        return;
    };
    let mut out = Vec::new();
    runs::encode(&read, 0, &mut out);
    let disk = GranuleRange {
        start: 0,
        end: GRANULES,
    };
    let again = runs::decode(&mut Decoder::new(&out), disk);
    assert_eq!(again, Ok(read), "runs survive their own encoding");
}

/// Arbitrary bytes as a commit and as a checkpoint, with and without a checksum that matches.
pub fn catalog(bytes: &[u8]) {
    let sealed = seal(bytes.to_vec());
    for bytes in [bytes, &sealed] {
        let _ = catalog::decode_commit(bytes, STORE);
        let _ = catalog::decode_checkpoint(bytes, STORE);
    }
}
