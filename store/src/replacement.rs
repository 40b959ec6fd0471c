//! What a repair changes in points: an image of which something is lost gives way to another one with the same content.
//!
//! ```text
//! replacement:  point (group text | number u64) | disk text | image
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use block::Name;

use crate::codec::{Decoded, Decoder, Encode};
use crate::records::{PointId, PointRecord, decode_name};
use crate::tree::ImageRef;

/// Another image for a disk of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replacement {
    pub(crate) point: PointId,
    pub(crate) disk: Name,
    pub(crate) image: ImageRef,
}

impl Replacement {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        self.point.put(out);
        out.put_text(self.disk.as_str());
        self.image.put(out);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(Self {
            point: PointId::decode(d)?,
            disk: decode_name(d)?,
            image: ImageRef::decode(d)?,
        })
    }
}

/// Gives points their new images; what names none of them, or no disk of that size, changes nothing.
pub(crate) fn apply<'a>(
    all: Vec<Replacement>,
    points: impl Iterator<Item = &'a mut Arc<PointRecord>>,
) {
    let mut by_point = BTreeMap::<PointId, Vec<Replacement>>::new();
    for one in all {
        by_point.entry(one.point.clone()).or_default().push(one);
    }
    for point in points {
        let Some(new) = by_point.remove(&point.id) else {
            continue;
        };
        let point = Arc::make_mut(point);
        for Replacement { disk, image, .. } in new {
            let same =
                |known: &&mut crate::PointDisk| known.name == disk && known.size == image.size;
            if let Some(known) = point.disks.iter_mut().find(same) {
                known.image = image;
            }
        }
    }
}
