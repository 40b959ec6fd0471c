//! Points and seeds of a store, as the network has them, and back.

use std::collections::BTreeMap;

use block::{Name, UnixNanos};
use data_encoding::{BASE64, HEXLOWER};
use store::{
    Consistency, ImageRef, NewKeys, PointDisk, PointId, PointRecord, SeedDiskRecord, SeedRecord,
    WrappedKey,
};

use crate::api;

/// A point to be listed, of which everything but its drafts is legal.
pub(crate) struct NewPoint {
    pub(crate) lineage: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) at: UnixNanos,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) consistency: Consistency,
    pub(crate) disks: Vec<(Name, String)>,
    pub(crate) sequence: Option<u64>,
}

pub(crate) fn image(text: &str) -> Option<ImageRef> {
    ImageRef::from_bytes(&BASE64.decode(text.as_bytes()).ok()?)
}

pub(crate) fn image_text(image: &ImageRef) -> String {
    BASE64.encode(&image.to_bytes())
}

pub(crate) fn keys(text: &str) -> Option<NewKeys> {
    NewKeys::from_bytes(&BASE64.decode(text.as_bytes()).ok()?)
}

pub(crate) fn keys_text(keys: &NewKeys) -> String {
    BASE64.encode(&keys.to_bytes())
}

pub(crate) fn wrapped_key(text: &str) -> Option<WrappedKey> {
    WrappedKey::from_bytes(&BASE64.decode(text.as_bytes()).ok()?)
}

pub(crate) fn wrapped_key_text(key: &WrappedKey) -> String {
    BASE64.encode(&key.to_bytes())
}

pub(crate) fn lineage(text: &str) -> Option<[u8; 16]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

pub(crate) fn lineage_text(lineage: &[u8; 16]) -> String {
    HEXLOWER.encode(lineage)
}

/// `None` if it is none.
pub(crate) fn new_point(new: api::NewPoint) -> Option<NewPoint> {
    let disk = |(name, draft): (String, String)| Some((name.parse().ok()?, draft));
    Some(NewPoint {
        lineage: lineage(&new.lineage)?,
        generation: new.generation,
        at: UnixNanos(new.at_unix_ns),
        labels: new.labels,
        consistency: consistency(new.application),
        disks: new.disks.into_iter().map(disk).collect::<Option<_>>()?,
        sequence: new.sequence,
    })
}

fn consistency(application: bool) -> Consistency {
    match application {
        true => Consistency::Application,
        false => Consistency::Crash,
    }
}

pub(crate) fn point(point: &PointRecord) -> api::Point {
    let disk = |disk: &PointDisk| (disk.name.to_string(), image_text(&disk.image));
    api::Point {
        group: point.id.group.to_string(),
        sequence: point.id.sequence,
        lineage: lineage_text(&point.lineage),
        generation: point.generation,
        at_unix_ns: point.at.0,
        labels: point.labels.clone(),
        application: point.consistency == Consistency::Application,
        disks: point.disks.iter().map(disk).collect(),
        stored_new_bytes: point.stored_new_bytes,
        changed_bytes: point.changed_bytes,
    }
}

/// `None` if it is none.
pub(crate) fn point_record(point: &api::Point) -> Option<PointRecord> {
    let disk = |(name, text): &(String, String)| {
        let image = image(text)?;
        Some(PointDisk {
            name: name.parse().ok()?,
            size: image.size(),
            image,
        })
    };
    Some(PointRecord {
        id: PointId {
            group: point.group.parse().ok()?,
            sequence: point.sequence,
        },
        at: UnixNanos(point.at_unix_ns),
        lineage: lineage(&point.lineage)?,
        generation: point.generation,
        labels: point.labels.clone(),
        consistency: consistency(point.application),
        disks: point.disks.iter().map(disk).collect::<Option<_>>()?,
        stored_new_bytes: point.stored_new_bytes,
        changed_bytes: point.changed_bytes,
    })
}

pub(crate) fn seed(seed: &SeedRecord) -> api::Seed {
    let disk = |disk: &SeedDiskRecord| api::SeedDisk {
        name: disk.name.to_string(),
        cursor_granule: disk.cursor_granule,
        image: image_text(&disk.image),
        draft: None,
    };
    api::Seed {
        lineage: lineage_text(&seed.lineage),
        generation: seed.generation,
        disks: seed.disks.iter().map(disk).collect(),
    }
}

/// `None` if it is none.
pub(crate) fn seed_record(group: &Name, seed: &api::Seed) -> Option<SeedRecord> {
    let disk = |disk: &api::SeedDisk| {
        let image = image(&disk.image)?;
        Some(SeedDiskRecord {
            name: disk.name.parse().ok()?,
            size: image.size(),
            cursor_granule: disk.cursor_granule,
            image,
        })
    };
    Some(SeedRecord {
        group: group.clone(),
        lineage: lineage(&seed.lineage)?,
        generation: seed.generation,
        disks: seed.disks.iter().map(disk).collect::<Option<_>>()?,
    })
}
