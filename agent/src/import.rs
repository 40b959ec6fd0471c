//! Import: disk images become a point, whole or as changes to the newest one of their group.
//!
//! Rule: a group is a protection's or it is imported, never both: the next cut of a protection builds on its own newest point.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use block::{Access, BlockDevice, Caching, Clock, GRANULE, Name};
use export::{NbdDisk, NbdUrl};
use store::{Base, Consistency, PointRecord};

use crate::protect::disk_name;
use crate::read_ahead::{Part, read_ahead};
use crate::target::Missing;
use crate::target_writer::{NewPoint, TargetImage, TargetWriter};
use crate::{Error, Result, Target};
use dd_target::Progress;

/// The lineage of what no protection has tracked.
const IMPORTED: [u8; 16] = [0; 16];

/// A disk image.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A file or a block device.
    Path(PathBuf),
    /// What an NBD server serves: anything that qemu-nbd or nbdkit can read.
    Nbd(NbdUrl),
}

impl FromStr for ImageSource {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme);
        match matches!(scheme, Some("nbd" | "nbds" | "nbd+unix" | "nbds+unix")) {
            true => text
                .parse()
                .map(Self::Nbd)
                .map_err(|e: export::InvalidNbdUrl| e.to_string()),
            false => Ok(Self::Path(text.into())),
        }
    }
}

/// What to import, and where to.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Each becomes a disk of the point.
    pub images: Vec<ImageSource>,
    /// Where the point goes; a store is made if there is none.
    pub target: Target,
    /// Its group; the first disk's name if left out.
    pub group: Option<Name>,
    /// Labels of the point.
    pub labels: BTreeMap<String, String>,
}

/// A point that was made.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The point.
    pub point: Arc<PointRecord>,
    /// The point before it, to which it was made as changes.
    pub base: Option<String>,
    /// Bytes of all disks.
    pub size: u64,
    /// Bytes by which the store has grown.
    pub stored_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// A disk image that is open to be read.
struct Source {
    name: Name,
    device: Arc<dyn BlockDevice>,
}

/// Makes a point of disk images that nobody writes to meanwhile.
///
/// # Errors
/// If an image cannot be opened or is in use, if the group is a protection's, if the target has another writer.
pub fn import(
    options: &ImportOptions,
    clock: &Arc<dyn Clock>,
    progress: Progress<'_>,
) -> Result<Imported> {
    let began = clock.monotonic();
    let sources = open(&options.images)?;
    let Some(first) = sources.first() else {
        return Err(Error::usage("there is nothing to import", "name an image"));
    };
    let group = options.group.clone().unwrap_or_else(|| first.name.clone());
    let around = store::Around::new(Arc::clone(clock));
    let store = options.target.writer(&around, Missing::Create)?;
    let newest = store.newest(&group, &IMPORTED);
    let newest = newest.map_err(options.target.unwritten("see what the target has"))?;
    let newest = newest.into_iter().next();
    if newest
        .as_ref()
        .is_some_and(|point| point.lineage != IMPORTED)
    {
        return Err(Error::usage(
            format!("the points of group {group} come from a protection"),
            "give another name with --group",
        ));
    }
    let stored = || store.store().map(|store| store.figures().stored_bytes);
    let before = stored();
    let size = sources.iter().map(|source| source.device.size()).sum();
    let mut done = 0;
    let mut disks = Vec::new();
    let mut base = None;
    for source in &sources {
        let known = newest.as_ref().and_then(|point| {
            let mut disks = point.disks.iter();
            let same =
                disks.find(|disk| disk.name == source.name && disk.size == source.device.size());
            same.map(|disk| (point.id.to_string(), disk.image.clone()))
        });
        let on = match known {
            Some((point, image)) => {
                base = Some(point);
                Base::Image(image)
            }
            None => Base::Empty {
                size: source.device.size(),
            },
        };
        let tell = |read| progress(done + read, size);
        let image = copy(&store, &options.target, on, &*source.device, &tell)?;
        disks.push((source.name.clone(), image));
        done += source.device.size();
    }
    let draft = NewPoint {
        group,
        disks,
        at: clock.wall(),
        lineage: IMPORTED,
        generation: next_generation(newest.as_deref())?,
        labels: options.labels.clone(),
        consistency: Consistency::Crash,
    };
    let point = store.commit_point(draft);
    let point = point.map_err(options.target.unwritten("list the point"))?;
    // A vault may grow by what others ship, too.
    let grown = stored()
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    Ok(Imported {
        base,
        size,
        stored_bytes: grown.unwrap_or(point.stored_new_bytes),
        point,
        took: clock.monotonic().saturating_sub(began),
    })
}

/// Whoever can add points can give one any number.
fn next_generation(newest: Option<&PointRecord>) -> Result<u64> {
    let Some(newest) = newest else { return Ok(0) };
    newest.generation.checked_add(1).ok_or_else(|| {
        Error::usage(
            format!("{} has the last number that there is", newest.id),
            "import into another group (--group)",
        )
    })
}

fn open(images: &[ImageSource]) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = Vec::new();
    for image in images {
        let source = open_one(image)?;
        if sources.iter().any(|other| other.name == source.name) {
            return Err(Error::usage(
                format!("two images would both be disk {}", source.name),
                "the disks of a point need different names",
            ));
        }
        sources.push(source);
    }
    Ok(sources)
}

fn open_one(image: &ImageSource) -> Result<Source> {
    match image {
        ImageSource::Path(path) => {
            let name = disk_name(path)?;
            let disk = block::open_production_with(path, Access::ReadOnly, Caching::Buffered)?;
            let device = disk.device;
            Ok(Source { name, device })
        }
        ImageSource::Nbd(url) => {
            let export = match url.export() {
                "" => "disk",
                export => export,
            };
            let name = export.parse().map_err(|error: block::InvalidName| {
                Error::usage(
                    format!("the export of `{url}` gives the disk no name: {error}"),
                    "serve it under another name, as with qemu-nbd --export-name",
                )
            })?;
            let disk = NbdDisk::connect(url)?;
            if !disk.size().is_multiple_of(block::SECTOR) || disk.size() == 0 {
                return Err(Error::usage(
                    format!("the disk at `{url}` has {} bytes", disk.size()),
                    "a disk has a size of whole sectors of 512 bytes",
                ));
            }
            let device = disk as Arc<dyn BlockDevice>;
            Ok(Source { name, device })
        }
    }
}

/// Reads the whole of a disk into an image. `tell` is told how far it is, in bytes.
fn copy(
    store: &TargetWriter,
    target: &Target,
    base: Base,
    disk: &dyn BlockDevice,
    tell: &dyn Fn(u64),
) -> Result<TargetImage> {
    let failed = target.unwritten("write the image");
    let mut writer = store.image_writer(base).map_err(&failed)?;
    read_ahead(disk, &mut |part| {
        let end = part.end() * GRANULE;
        let written = match part {
            Part::Zeroes(granules) => writer.zero(granules),
            Part::Data(granules, bytes) => writer.put(granules.start, bytes),
        };
        written.map_err(&failed)?;
        tell(end.min(disk.size()));
        Ok(())
    })?;
    writer.finish().map_err(&failed)
}
