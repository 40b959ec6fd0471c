//! What an image has lost, of all that was found to be damaged or missing.

use std::collections::{BTreeSet, HashSet};

use block::{ByteRange, GranuleRange, index};

use crate::error::{ErrorKind, Result, StoreError};
use crate::fingerprint::FANOUT;
use crate::image::Image;
use crate::place::ObjectId;
use crate::runs::{self, Run};
use crate::tree::NodeRef;

/// Looks for what an image has lost.
pub(super) struct Search<'a> {
    pub(super) image: &'a Image,
    /// Containers that cannot be read.
    pub(super) bad: &'a HashSet<ObjectId>,
    /// Containers that lacked something when they were looked at; they are looked at again.
    pub(super) lacking: HashSet<ObjectId>,
    /// Those that are to blame.
    pub(super) hit: &'a mut HashSet<ObjectId>,
    /// Nodes under which nothing is lost, in any image.
    pub(super) whole: &'a mut HashSet<(ObjectId, u32)>,
    pub(super) trees: BTreeSet<(String, String)>,
    pub(super) lost: Vec<ByteRange>,
}

impl Search<'_> {
    /// Looks under a node.
    pub(super) fn node(&mut self, level: u8, node: u64, stored: Option<NodeRef>) -> Result<()> {
        let image = self.image;
        let under = image.shape.under(level, node);
        let changed = !runs::touching(&image.changes, under).is_empty();
        if under.is_empty() || stored.is_none() && !changed {
            return Ok(());
        }
        let key = stored.map(|node| (node.record.object, node.record.offset));
        if !changed && key.is_some_and(|key| self.whole.contains(&key)) {
            return Ok(());
        }
        let before = self.lost.len();
        self.under(level, node, stored)?;
        if !changed && self.lost.len() == before {
            self.whole.extend(key);
        }
        Ok(())
    }

    fn under(&mut self, level: u8, node: u64, stored: Option<NodeRef>) -> Result<()> {
        let image = self.image;
        let under = image.shape.under(level, node);
        if level == 0 {
            return match image.leaf_runs(node, stored) {
                Ok(runs) => runs.iter().try_for_each(|run| self.run(run, under.start)),
                Err(e) => self.lose(e, under),
            };
        }
        let children = match image.children(level, stored) {
            Ok(children) => children,
            Err(e) => return self.lose(e, under),
        };
        for (i, child) in (0..).zip(children.iter()) {
            self.node(level - 1, node * FANOUT as u64 + i, *child)?;
        }
        Ok(())
    }

    fn run(&mut self, run: &Run, base: u64) -> Result<()> {
        let Some(place) = run.place else {
            return Ok(());
        };
        let id = place.container();
        let lost = self.bad.contains(&id)
            || self.lacking.contains(&id)
                && match self.image.objects.load_manifest(id) {
                    Ok(manifest) => {
                        let slots = manifest.fingerprints(place.slot(), index(run.count));
                        slots.is_none()
                    }
                    Err(e) if e.kind() == ErrorKind::Corrupt => true,
                    Err(e) => return Err(e),
                };
        if lost {
            self.hit.insert(id);
            self.push(base + run.start, base + run.end());
        }
        Ok(())
    }

    fn lose(&mut self, error: StoreError, under: GranuleRange) -> Result<()> {
        match &error {
            StoreError::Corrupt { object, .. } | StoreError::Missing { object, .. } => {
                self.trees.insert((object.clone(), error.chain()));
                self.push(under.start, under.end);
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn push(&mut self, start: u64, end: u64) {
        let size = self.image.reference.size;
        self.lost.push(GranuleRange { start, end }.bytes(size));
    }
}
