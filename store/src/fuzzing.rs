//! Entry points for fuzz/: every parser of bytes that this crate reads from a disk.

use block::GranuleRange;

use crate::armor::{self, Kind, Owner};
use crate::bundle;
use crate::catalog;
use crate::codec::{Decoder, seal};
use crate::container::{self, FOOTER_LEN, Footer, Manifest};
use crate::keys;
use crate::place::ObjectId;
use crate::region::ChunkCodec;
use crate::runs;
use crate::tree::{ImageRef, Record};

/// The id that the fuzzed store has.
const STORE: [u8; 16] = [7; 16];

/// Arbitrary bytes as a container: header, footer, manifest, and every region that it names.
pub fn container(bytes: &[u8]) {
    let id = ObjectId(1);
    for codec in [Some(ChunkCodec::plain()), None] {
        let _ = container::check_whole(bytes, STORE, id, codec.as_ref());
    }
    // Past the checksums that such bytes rarely have.
    let at = bytes.len().saturating_sub(FOOTER_LEN);
    let Ok(footer) = Footer::decode(&bytes[at..], STORE, id, bytes.len() as u64) else {
        return;
    };
    let _ = Manifest::decode(&bytes[block::index(footer.manifest_at)..at], &footer);
}

/// Arbitrary bytes as an armored object, as a bundle and as what is left of a tree object.
pub fn armor(bytes: &[u8]) {
    for kind in [Kind::Container, Kind::Tree, Kind::Bundle] {
        let owner = Owner {
            store: STORE,
            kind,
            id: 1,
        };
        let _ = armor::heal(bytes, owner);
    }
    let _ = bundle::decode(bytes, STORE, ObjectId(1));
    if let Ok(len) = bundle::TreeTable::len_of(bytes, STORE, ObjectId(1))
        && let Some(table) = bytes.get(..len)
    {
        let _ = bundle::TreeTable::decode(table, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
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

/// Arbitrary bytes as the keys of a store, with and without a checksum that matches, as those that travel, and as the text of
/// a key.
pub fn keys(bytes: &[u8]) {
    let sealed = seal(bytes.to_vec());
    for bytes in [bytes, &sealed] {
        for id in [1, u64::MAX] {
            let owner = Owner {
                store: STORE,
                kind: Kind::Keys,
                id,
            };
            let _ = keys::check(bytes, owner);
        }
    }
    // As clients send them to servers.
    if let Some(new) = keys::NewKeys::from_bytes(bytes) {
        assert_eq!(new.to_bytes(), bytes, "keys of a new store");
    }
    if let Some(wrapped) = keys::WrappedKey::from_bytes(bytes) {
        assert_eq!(wrapped.to_bytes(), bytes, "a wrapped key");
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(key) = keys::Secret::key(text)
    {
        let again = key.to_text().expect("it is a key");
        assert!(keys::Secret::key(&again).is_ok(), "a key survives its text");
    }
}

/// Arbitrary bytes as a commit and as a checkpoint, with and without a checksum that matches.
pub fn catalog(bytes: &[u8]) {
    let sealed = seal(bytes.to_vec());
    for bytes in [bytes, &sealed] {
        let _ = catalog::decode_commit(bytes, STORE);
        let _ = catalog::decode_checkpoint(bytes, STORE);
    }
}
