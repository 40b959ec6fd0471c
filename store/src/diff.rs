//! Where two images differ, from their trees: subtrees with equal hashes are passed over.
//!
//! Rule: exact. Where the same content lies in two places, fingerprints decide.

use std::sync::Arc;

use block::{ByteRange, GranuleRange, index};

use crate::error::{Result, StoreError};
use crate::fingerprint::FANOUT;
use crate::image::Image;
use crate::runs::{self, Run};
use crate::tree::NodeRef;

/// Ranges, in whole granules and in order, that differ between images of one size, of one store or of two with the same
/// fingerprints.
pub(crate) fn diff(a: &Image, b: &Image) -> Result<Vec<ByteRange>> {
    if a.reference.size != b.reference.size {
        return Err(StoreError::Invalid("the images have different sizes"));
    }
    let mut differ = Differ {
        a,
        b,
        found: Vec::new(),
    };
    let roots = [a.reference.root, b.reference.root];
    differ.nodes(a.shape.height(), 0, roots)?;
    let size = a.reference.size;
    Ok(differ.found.iter().map(|g| g.bytes(size)).collect())
}

struct Differ<'a> {
    a: &'a Image,
    b: &'a Image,
    found: Vec<GranuleRange>,
}

impl Differ<'_> {
    fn nodes(&mut self, level: u8, node: u64, stored: [Option<NodeRef>; 2]) -> Result<()> {
        let under = self.a.shape.under(level, node);
        let hashes = stored.map(|node| node.map(|node| node.hash));
        let untouched = |image: &Image| runs::touching(&image.changes, under).is_empty();
        let same = hashes[0] == hashes[1] && untouched(self.a) && untouched(self.b);
        if same || under.is_empty() || under.start >= self.a.shape.granules {
            return Ok(());
        }
        if level == 0 {
            return self.leaves(node, stored);
        }
        let [a, b] = stored;
        let children = [self.a.children(level, a)?, self.b.children(level, b)?];
        let pairs = children[0].iter().zip(children[1].iter());
        for (i, (a, b)) in (0..).zip(pairs) {
            let id = node * FANOUT as u64 + i;
            self.nodes(level - 1, id, [*a, *b])?;
        }
        Ok(())
    }

    fn leaves(&mut self, leaf: u64, [a, b]: [Option<NodeRef>; 2]) -> Result<()> {
        let [a_runs, b_runs] = [self.a.leaf_runs(leaf, a)?, self.b.leaf_runs(leaf, b)?];
        // What lies in one place is the same; of two stores places say nothing.
        if a_runs == b_runs && Arc::ptr_eq(&self.a.objects, &self.b.objects) {
            return Ok(());
        }
        let fingerprints = |image: &Image, runs: &[Run]| image.objects.leaf_fingerprints(runs);
        let [a, b] = [
            fingerprints(self.a, &a_runs)?,
            fingerprints(self.b, &b_runs)?,
        ];
        let under = self.a.shape.under(0, leaf);
        for chunk in under.start..under.end {
            let at = index(chunk - under.start);
            if a[at] != b[at] {
                self.push(chunk);
            }
        }
        Ok(())
    }

    fn push(&mut self, chunk: u64) {
        match self.found.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => self.found.push(GranuleRange {
                start: chunk,
                end: chunk + 1,
            }),
        }
    }
}
