//! Meta contexts: `base:allocation` and `qemu:dirty-bitmap:NAME` (proto.md, "Metadata querying";
//! QEMU's docs/interop/nbd.txt).

use std::sync::Arc;

use block::{BlockDevice, ByteRange, DirtyBitmap, Error, ErrorKind, ExtentState, Op, Result};

use super::proto::status;
use super::reply::Descriptor;
use super::request::Extents;
use crate::Export;
use crate::limits::STATUS_EXTENTS_MAX;

const ALLOCATION: &str = "base:allocation";
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
const ALLOCATION_ID: u32 = 0;
const FIRST_BITMAP_ID: u32 = 1;

/// A context of an export.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) id: u32,
    pub(crate) name: String,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Allocation,
    Bitmap(Arc<dyn DirtyBitmap>),
}

/// Everything the export can tell.
pub(crate) fn all_of(export: &Export) -> Vec<Context> {
    let allocation = Context {
        id: ALLOCATION_ID,
        name: ALLOCATION.to_owned(),
        source: Source::Allocation,
    };
    let bitmaps = (FIRST_BITMAP_ID..)
        .zip(&export.bitmaps)
        .map(|(id, (name, bitmap))| Context {
            id,
            name: format!("{DIRTY_BITMAP}{name}"),
            source: Source::Bitmap(Arc::clone(bitmap)),
        });
    std::iter::once(allocation).chain(bitmaps).collect()
}

impl Context {
    /// Whether a query of `NBD_OPT_SET_META_CONTEXT` selects this context: names only.
    pub(crate) fn is_named_by(&self, query: &str) -> bool {
        query == self.name
    }

    /// Whether a query of `NBD_OPT_LIST_META_CONTEXT` lists this context: names, and the
    /// namespaces before them, as in `base:` or `qemu:dirty-bitmap:`.
    pub(crate) fn is_listed_by(&self, query: &str) -> bool {
        query == self.name || (query.ends_with(':') && self.name.starts_with(query))
    }

    /// What the context says of a prefix of `range`, which is not empty; neighbours that say the
    /// same are one.
    pub(crate) fn extents(
        &self,
        device: &dyn BlockDevice,
        range: ByteRange,
        extents: Extents,
    ) -> Result<Vec<Descriptor>> {
        let extents_max = match extents {
            Extents::One => 1,
            Extents::Many => STATUS_EXTENTS_MAX,
        };
        let mut run = Run::new(range);
        match &self.source {
            Source::Allocation => {
                for extent in device.block_status(range, extents_max)? {
                    run.push(extent.range, allocation_flags(extent.state))?;
                }
            }
            Source::Bitmap(bitmap) => {
                for extent in bitmap.dirty_status(range, extents_max)? {
                    run.push(extent.range, u32::from(extent.dirty) * status::DIRTY)?;
                }
            }
        }
        run.finish(extents_max)
    }
}

fn allocation_flags(state: ExtentState) -> u32 {
    match state {
        ExtentState::Data => 0,
        ExtentState::Hole => status::HOLE | status::ZERO,
        ExtentState::Zero => status::ZERO,
    }
}

/// Extents that must follow each other from the start of a range.
struct Run {
    asked: ByteRange,
    at: u64,
    descriptors: Vec<Descriptor>,
}

impl Run {
    fn new(asked: ByteRange) -> Self {
        Self {
            asked,
            at: asked.start(),
            descriptors: Vec::new(),
        }
    }

    /// Anything past the range is cut off; a gap is a mistake of the device.
    fn push(&mut self, range: ByteRange, flags: u32) -> Result<()> {
        let end = range.end().min(self.asked.end());
        if range.start() != self.at || end <= self.at {
            return Err(self.broken());
        }
        let len = end - self.at;
        self.at = end;
        match self.descriptors.last_mut() {
            Some((before, same)) if *same == flags => *before += len,
            _ => self.descriptors.push((len, flags)),
        }
        Ok(())
    }

    fn finish(mut self, extents_max: usize) -> Result<Vec<Descriptor>> {
        if self.descriptors.is_empty() {
            return Err(self.broken());
        }
        self.descriptors.truncate(extents_max);
        Ok(self.descriptors)
    }

    fn broken(&self) -> Error {
        let sentence = "the device's block status does not cover what was asked";
        Error::because(Op::BlockStatus, self.asked, ErrorKind::Io, sentence)
    }
}
