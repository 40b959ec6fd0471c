//! Folding: changes become part of the tree, node by node along the paths that they touch.
//!
//! Rule: a fold writes only nodes whose content changes; it needs the fingerprints of the leaves it
//! touches (from manifests), never a chunk.

use std::sync::Arc;

use crate::armor::Kind;
use crate::codec::Encode;
use crate::error::Result;
use crate::fingerprint::{FANOUT, Fingerprint};
use crate::inventory::HeldTree;
use crate::objects::Objects;
use crate::packer::Engine;
use crate::pins::Holder;
use crate::place::ObjectId;
use crate::runs::{self, Run};
use crate::tree::{self, Children, NodeRef, Record, RecordRef, Shape};

/// A tree object is put when it has this many bytes.
const OBJECT_TARGET: usize = 4 << 20;

/// Collects records into tree objects.
pub(crate) struct TreeWriter {
    engine: Arc<Engine>,
    holder: Arc<Holder>,
    open: Option<(ObjectId, Vec<u8>)>,
    /// Bytes of the objects that were put.
    pub(crate) put_bytes: u64,
}

impl TreeWriter {
    pub(crate) fn new(engine: Arc<Engine>, holder: Arc<Holder>) -> Self {
        Self {
            engine,
            holder,
            open: None,
            put_bytes: 0,
        }
    }

    /// Bytes of the object that is being filled.
    pub(crate) fn held_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |(_, bytes)| bytes.capacity())
    }

    pub(crate) fn add(&mut self, record: &[u8]) -> Result<RecordRef> {
        let objects = &self.engine.objects;
        let (id, bytes) = self.open.get_or_insert_with(|| {
            let id = objects.opener.trees.allocate();
            self.holder.pin_tree(id);
            (id, tree::begin_object(objects.store(), id))
        });
        let len = u32::try_from(record.len()).expect("records are bounded");
        assert!(len <= tree::RECORD_LEN_MAX, "a record of {len} bytes");
        let offset = u32::try_from(bytes.len()).expect("objects are bounded");
        bytes.put_bytes(record);
        let place = RecordRef {
            object: *id,
            offset,
            len,
            crc: crc32c::crc32c(record),
        };
        if bytes.len() >= OBJECT_TARGET {
            self.flush()?;
        }
        Ok(place)
    }

    /// Puts the open object; all records that were added can be read then.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let Some((id, mut bytes)) = self.open.take() else {
            return Ok(());
        };
        let crc = crc32c::crc32c(&bytes);
        bytes.put_u32(crc);
        let engine = &self.engine;
        let opener = &engine.objects.opener;
        let len = opener.put(Kind::Tree, id, &bytes, engine.epoch)?;
        let held = HeldTree {
            bytes: len,
            own: true,
        };
        engine.inventory.lock().put_tree(id, held);
        self.put_bytes += len;
        Ok(())
    }
}

/// The root of the tree `root` of a disk of `size` bytes, with `changes` laid over it.
pub(crate) fn fold(
    writer: &mut TreeWriter,
    size: u64,
    root: Option<NodeRef>,
    changes: &[Run],
) -> Result<Option<NodeRef>> {
    let shape = Shape::of(size);
    let root = fold_node(writer, shape, [u64::from(shape.height()), 0], root, changes)?;
    writer.flush()?;
    Ok(root)
}

/// `changes` all touch the node; the first and the last may reach out of it.
fn fold_node(
    writer: &mut TreeWriter,
    shape: Shape,
    [level, node]: [u64; 2],
    old: Option<NodeRef>,
    changes: &[Run],
) -> Result<Option<NodeRef>> {
    let narrow = u8::try_from(level).expect("trees are low");
    let under = shape.under(narrow, node);
    let becomes_zero = match changes {
        [] => return Ok(old),
        [one] if one.place.is_none() => one.start <= under.start && under.end <= one.end(),
        _ => false,
    };
    let nothing_there = old.is_none() && changes.iter().all(|run| run.place.is_none());
    if becomes_zero || nothing_there {
        return Ok(None);
    }
    if level == 0 {
        return fold_leaf(writer, shape, node, old, changes);
    }
    let mut children: Box<Children> = Box::new([None; FANOUT]);
    if let Some(old) = &old
        && let Record::Inner(stored) = &*writer.engine.objects.node(old, narrow)?
    {
        children.clone_from(stored);
    }
    for (i, child) in (0..).zip(children.iter_mut()) {
        let id = [level - 1, node * FANOUT as u64 + i];
        let inside = runs::touching(changes, shape.under(narrow - 1, id[1]));
        *child = fold_node(writer, shape, id, *child, inside)?;
    }
    let hash = tree::hash_inner(narrow, &children);
    put_node(writer, old, hash, || tree::encode_inner(narrow, &children))
}

fn fold_leaf(
    writer: &mut TreeWriter,
    shape: Shape,
    node: u64,
    old: Option<NodeRef>,
    changes: &[Run],
) -> Result<Option<NodeRef>> {
    let under = shape.under(0, node);
    let relative = |run: &Run| {
        let inside = run.clip(under)?;
        Some(Run {
            start: inside.start - under.start,
            ..inside
        })
    };
    let changes: Vec<Run> = changes.iter().filter_map(relative).collect();
    let objects = Arc::clone(&writer.engine.objects);
    let stored = old.map(|old| objects.node(&old, 0)).transpose()?;
    let mut leaf = match stored.as_deref() {
        Some(Record::Leaf(stored)) => runs::overlay(stored, &changes),
        _ => changes,
    };
    leaf.retain(|run| run.place.is_some());
    let hash = hash_leaf(&objects, &leaf)?;
    put_node(writer, old, hash, || tree::encode_leaf(&leaf))
}

/// The fingerprint of a leaf.
pub(crate) fn hash_leaf(objects: &Objects, leaf: &[Run]) -> Result<Fingerprint> {
    let chunks = objects.leaf_fingerprints(leaf)?;
    Ok(Fingerprint::of_children(0, &chunks))
}

fn put_node(
    writer: &mut TreeWriter,
    old: Option<NodeRef>,
    hash: Fingerprint,
    encode: impl FnOnce() -> Vec<u8>,
) -> Result<Option<NodeRef>> {
    if hash == Fingerprint::ZERO {
        return Ok(None);
    }
    if let Some(old) = old.filter(|old| old.hash == hash) {
        return Ok(Some(old));
    }
    let record = writer.add(&encode())?;
    Ok(Some(NodeRef { record, hash }))
}
