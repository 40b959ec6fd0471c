//! Verifying an image: every chunk is read and re-hashed, every node of the tree recomputed.
//!
//! Rule: an image is whole only if nothing is in the list of damage; each entry names the object and
//! the bytes of the image that it hits.

use block::{ByteRange, GranuleRange};
use parking_lot::Mutex;

use crate::error::{ErrorKind, Result, StoreError};
use crate::fingerprint::Fingerprint;
use crate::fold::hash_leaf;
use crate::image::Image;
use crate::restore::{self, Sweep};
use crate::tree::{self, ImageRef, NodeRef, Record};

/// What verifying an image found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bytes of the image that were checked, zeroes included.
    pub checked_bytes: u64,
    /// Bytes of them that are stored as chunks.
    pub data_bytes: u64,
    /// What is damaged; empty if the image is whole.
    pub damage: Vec<Damage>,
}

/// A damaged object, and what it hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong, naming the object.
    pub what: String,
    /// The bytes of the image that cannot be trusted.
    pub ranges: Vec<ByteRange>,
}

impl VerifyReport {
    /// Whether every byte is there and right.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty()
    }

    /// An image that cannot even be opened.
    pub(crate) fn lost(image: &ImageRef, error: &StoreError) -> Self {
        let all = ByteRange::at(0, image.size).into_iter().collect();
        Self {
            damage: vec![Damage {
                what: error.chain(),
                ranges: all,
            }],
            ..Self::default()
        }
    }
}

#[derive(Default)]
struct Findings(Mutex<VerifyReport>);

impl Findings {
    /// One object that is damaged in one way is one entry, however much it hits.
    fn note(&self, ranges: Vec<ByteRange>, error: &StoreError) {
        let mut report = self.0.lock();
        let what = error.chain();
        match report.damage.iter_mut().find(|known| known.what == what) {
            Some(known) => known.ranges.extend(ranges),
            None => report.damage.push(Damage { what, ranges }),
        }
    }
}

impl Sweep for Findings {
    fn data(&self, _offset: u64, data: &[u8]) -> Result<()> {
        let mut report = self.0.lock();
        report.checked_bytes += data.len() as u64;
        report.data_bytes += data.len() as u64;
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        self.0.lock().checked_bytes += range.len();
        Ok(())
    }

    fn damaged(&self, ranges: Vec<ByteRange>, error: StoreError) -> Result<()> {
        self.note(ranges, &error);
        Ok(())
    }
}

/// Checks every byte of `image`.
pub(crate) fn verify(
    image: &Image,
    workers: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<VerifyReport> {
    let findings = Findings::default();
    restore::sweep(image, &findings, workers, progress)?;
    verify_node(
        image,
        &findings,
        image.shape.height(),
        0,
        image.reference.root,
    )?;
    let mut report = findings.0.into_inner();
    for damage in &mut report.damage {
        damage.ranges = merged(std::mem::take(&mut damage.ranges));
    }
    Ok(report)
}

/// Recomputes the hashes of a stored subtree.
fn verify_node(
    image: &Image,
    findings: &Findings,
    level: u8,
    node: u64,
    stored: Option<NodeRef>,
) -> Result<()> {
    let Some(stored) = stored else { return Ok(()) };
    let under = image.shape.under(level, node);
    let record = match image.objects.node(&stored, level) {
        Ok(record) => record,
        Err(e) => return note(image, findings, under, e),
    };
    let hash = match &*record {
        Record::Inner(children) => {
            for (i, child) in (0..).zip(children.iter()) {
                let id = node * tree::LEAF_CHUNKS + i;
                let below = image.shape.under(level - 1, id);
                if child.is_some() && below.is_empty() {
                    let what = "a node has a child past the end of its disk";
                    let error = image.objects.damaged_record(&stored.record, what);
                    return note(image, findings, under, error);
                }
                verify_node(image, findings, level - 1, id, *child)?;
            }
            Ok(tree::hash_inner(level, children))
        }
        Record::Leaf(runs) => hash_leaf(&image.objects, runs),
        Record::List(_) => Ok(Fingerprint::ZERO),
    };
    let wrong = "a node does not have its hash";
    match hash {
        Ok(hash) if hash == stored.hash => Ok(()),
        Ok(_) => {
            let error = image.objects.damaged_record(&stored.record, wrong);
            note(image, findings, under, error)
        }
        // A container that the old tree needs, for chunks that may have changed since: the image
        // itself was swept already.
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(()),
        Err(e) => Err(e),
    }
}

fn note(image: &Image, findings: &Findings, under: GranuleRange, error: StoreError) -> Result<()> {
    if error.kind() != ErrorKind::Corrupt {
        return Err(error);
    }
    findings.note(vec![under.bytes(image.reference.size)], &error);
    Ok(())
}

/// Sorted, and joined where they touch.
pub(crate) fn merged(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable();
    let mut out: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start() <= last.end() => {
                let end = last.end().max(range.end());
                *last = ByteRange::new(last.start(), end).expect("grows only");
            }
            _ => out.push(range),
        }
    }
    out
}
