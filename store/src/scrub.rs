//! Scrub: every byte of a store is read and checked; what bit rot has damaged is healed, what is lost is named.
//!
//! ```text
//! mark what images need -> object after object: read it, check it (armor; deep: every chunk and record)
//!      damaged, in reach of its armor -> computed anew, checked, put in its place
//!      else lost, as what is needed and not there: which points, which ranges
//! ```
//!
//! Rule: an object is replaced only by one that passes every check of a deep scrub, and nothing is ever removed.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::Arc;

use block::{ByteRange, GranuleRange, Name};

use crate::armor::{self, Kind, Owner};
use crate::backend::read_whole;
use crate::catalog::CHECKPOINT_LEN_MAX;
use crate::error::{ErrorKind, Result, StoreError, io_error};
use crate::format;
use crate::gc::mark::{Marker, Marks, Wanted};
use crate::image::Image;
use crate::place::{ObjectId, Place};
use crate::records::PointId;
use crate::runs::Run;
use crate::store::{Inner, Writer};
use crate::tree::{ImageRef, LEAF_CHUNKS};
use crate::verify::merged;

/// How to scrub.
#[derive(Clone, Copy)]
pub struct ScrubOptions<'a> {
    /// Decompress and hash every chunk too, instead of trusting the checksums that were made with the objects.
    pub deep: bool,
    /// Put healed objects in the place of damaged ones; a store opened for reading only says what it would do.
    pub heal: bool,
    /// Go on after this object: [`ScrubReport::reached`] of a scrub that was stopped.
    pub after: Option<ScrubPosition>,
    /// Told of bytes that were read; may sleep.
    pub pace: &'a (dyn Fn(u64) + Sync),
    /// Asked after each object whether to stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Told of objects checked and objects in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Default for ScrubOptions<'_> {
    fn default() -> Self {
        Self {
            deep: true,
            heal: true,
            after: None,
            pace: &|_| (),
            stop: &|| false,
            progress: &|_, _| (),
        }
    }
}

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrubPosition {
    shelf: Shelf,
    id: u64,
}

/// The kinds of objects, in the order of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shelf {
    Trees,
    Bundles,
    Containers,
}

impl Shelf {
    const ALL: [Self; 3] = [Self::Trees, Self::Bundles, Self::Containers];

    fn kind(self) -> Kind {
        match self {
            Self::Trees => Kind::Tree,
            Self::Bundles => Kind::Bundle,
            Self::Containers => Kind::Container,
        }
    }
}

impl ScrubPosition {
    /// As a word that [`parse`](Self::parse) reads.
    #[must_use]
    pub fn to_word(self) -> String {
        format!("{:?}-{:x}", self.shelf, self.id).to_lowercase()
    }

    /// `None` if it is no such word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        let (shelf, id) = word.split_once('-')?;
        let named = |known: &Shelf| format!("{known:?}").to_lowercase() == shelf;
        Some(Self {
            shelf: Shelf::ALL.into_iter().find(named)?,
            id: u64::from_str_radix(id, 16).ok()?,
        })
    }
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Objects that were checked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged objects that were healed (or could be, where nothing was to be changed).
    pub healed: Vec<HealedObject>,
    /// What is damaged beyond its armor, or missing.
    pub lost: Vec<LostObject>,
    /// What points lose by that.
    pub hits: Vec<Hit>,
    /// The last object that was checked, if it was stopped early.
    pub reached: Option<ScrubPosition>,
}

/// An object that was healed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealedObject {
    /// Its name.
    pub object: String,
    /// Bytes of it that were damaged.
    pub damaged_bytes: u64,
}

/// An object that cannot be healed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostObject {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a point loses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The point; none for the seed of a group.
    pub point: Option<PointId>,
    /// Its group.
    pub group: Name,
    /// The disk.
    pub disk: Name,
    /// The bytes that cannot be read.
    pub ranges: Vec<ByteRange>,
}

impl ScrubReport {
    /// Whether everything that points need is there and right, perhaps after healing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.hits.is_empty() && self.lost.is_empty()
    }
}

struct Scrub<'a> {
    inner: &'a Inner,
    options: &'a ScrubOptions<'a>,
    report: ScrubReport,
    marks: Marks,
    /// Containers and tree objects that were found, in whatever object.
    seen: BTreeSet<(Kind, ObjectId)>,
    /// Those that cannot be read, or of which something is missing.
    bad_containers: HashSet<ObjectId>,
    bad_trees: bool,
    /// What images needed when it began, and was not found.
    lacking: Vec<(ObjectId, LostObject)>,
}

/// Reads and checks everything.
pub(crate) fn scrub(inner: &Inner, options: &ScrubOptions<'_>) -> Result<ScrubReport> {
    let mut scrub = Scrub {
        inner,
        options,
        report: ScrubReport::default(),
        marks: Marks::default(),
        seen: BTreeSet::new(),
        bad_containers: HashSet::new(),
        bad_trees: false,
        lacking: Vec::new(),
    };
    if options.after.is_none() {
        scrub.catalog()?;
    }
    scrub.mark()?;
    scrub.objects()?;
    if scrub.report.reached.is_none() && options.after.is_none() {
        scrub.missing();
    }
    if !scrub.bad_containers.is_empty() || scrub.bad_trees {
        scrub.hits()?;
    }
    Ok(scrub.report)
}

impl Scrub<'_> {
    /// `format` and the catalog itself; what was read of them to open the store was healed in memory.
    fn catalog(&mut self) -> Result<()> {
        let mut objects = self.inner.catalog.objects()?;
        objects.push((format::NAME.to_owned(), format::OWNER));
        for (object, owner) in objects {
            let bytes = match read_whole(&*self.inner.place, &object, CHECKPOINT_LEN_MAX) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|e| io_error("read", object.clone(), e))?,
            };
            self.report.objects += 1;
            self.report.bytes += bytes.len() as u64;
            let checked = match owner.kind {
                Kind::Format => armor::read_small(&bytes, owner, |bytes| {
                    format::decode(bytes)?;
                    Ok(bytes.to_vec())
                }),
                _ => self.inner.catalog.healed_payload(&bytes, owner),
            };
            match checked {
                Ok((_, 0)) => {}
                Ok((payload, damaged_bytes)) => {
                    self.replace_small(&object, owner, &payload)?;
                    self.report.healed.push(HealedObject {
                        object,
                        damaged_bytes,
                    });
                }
                Err(malformed) => self.report.lost.push(LostObject {
                    what: StoreError::malformed(object.clone(), malformed).chain(),
                    object,
                }),
            }
        }
        Ok(())
    }

    fn replace_small(&self, object: &str, owner: Owner, payload: &[u8]) -> Result<()> {
        let Some(writer) = self.healer()? else {
            return Ok(());
        };
        let place = &self.inner.place;
        let bytes = armor::wrap(owner, payload);
        let replaced = place.replace(object, &bytes, writer.lease.epoch);
        replaced.map_err(|e| io_error("replace", object.to_owned(), e))?;
        let folder = object.rsplit_once('/').map_or("", |(folder, _)| folder);
        let synced = place.sync(folder);
        synced.map_err(|e| writer.latch(io_error("sync", folder.to_owned(), e)))
    }

    /// Puts a healed object in place of the damaged one, unless it was let go of meanwhile.
    fn replace(&self, kind: Kind, id: ObjectId, payload: &[u8]) -> Result<()> {
        let Some(writer) = self.healer()? else {
            return Ok(());
        };
        let _no_removals = writer.healing.lock();
        let opener = &self.inner.objects.opener;
        let let_go = self.inner.state.lock().quarantine.contains_key(&(kind, id));
        if let_go || opener.shelf(kind).len(id).is_err() {
            return Ok(());
        }
        opener.replace(kind, id, payload, writer.lease.epoch)?;
        opener.shelf(kind).sync().map_err(|e| writer.latch(e))
    }

    /// Who may heal, where something is to be healed.
    fn healer(&self) -> Result<Option<&Writer>> {
        let Some(writer) = self.inner.writer.as_ref().filter(|_| self.options.heal) else {
            return Ok(None);
        };
        writer.check_latch()?;
        writer.lease.check()?;
        Ok(Some(writer))
    }

    /// What do images need? Trees that cannot be read do not end it here.
    fn mark(&mut self) -> Result<()> {
        let all = Wanted {
            containers: ObjectId(1)..ObjectId(ObjectId::END),
            records: HashSet::new(),
        };
        let mut marker = Marker::new(Arc::clone(&self.inner.objects), all).tolerant();
        for (_, _, _, image) in self.images() {
            match marker.image(&image, None) {
                Err(e) if e.kind() == ErrorKind::Corrupt => self.bad_trees = true,
                other => drop(other?),
            }
        }
        self.bad_trees |= marker.met_damage();
        self.marks = marker.finish();
        Ok(())
    }

    /// Every image of the catalog.
    fn images(&self) -> Vec<(Option<PointId>, Name, Name, ImageRef)> {
        let state = self.inner.state.lock();
        let mut images = Vec::new();
        for point in &state.points {
            for disk in &point.disks {
                let (id, group) = (point.id.clone(), point.id.group.clone());
                images.push((Some(id), group, disk.name.clone(), disk.image.clone()));
            }
        }
        for seed in state.seeds.values() {
            for disk in &seed.disks {
                let group = seed.group.clone();
                images.push((None, group, disk.name.clone(), disk.image.clone()));
            }
        }
        images
    }

    fn objects(&mut self) -> Result<()> {
        let opener = &self.inner.objects.opener;
        let mut all = Vec::new();
        for shelf in Shelf::ALL {
            let ids = opener.shelf(shelf.kind()).list()?;
            all.extend(ids.into_iter().map(|id| ScrubPosition { shelf, id: id.0 }));
        }
        let total = all.len() as u64;
        for (done, position) in (1..).zip(all) {
            if self.options.after.is_some_and(|after| position <= after) {
                continue;
            }
            self.object(position)?;
            (self.options.progress)(done, total);
            if done < total && (self.options.stop)() {
                self.report.reached = Some(position);
                return Ok(());
            }
        }
        Ok(())
    }

    fn object(&mut self, position: ScrubPosition) -> Result<()> {
        let (kind, id) = (position.shelf.kind(), ObjectId(position.id));
        let objects = &self.inner.objects;
        let opener = &objects.opener;
        let bytes = match opener.read_object(kind, id) {
            // A collection was faster.
            Err(StoreError::Missing { .. }) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.lose(kind, id, &e);
                return Ok(());
            }
            other => other?,
        };
        self.report.objects += 1;
        self.report.bytes += bytes.len() as u64;
        (self.options.pace)(bytes.len() as u64);
        let intact = !self.options.deep && opener.is_intact(kind, id, &bytes);
        if !intact {
            match opener.healed_payload(kind, id, &bytes) {
                Err(e) => {
                    self.lose(kind, id, &e);
                    return Ok(());
                }
                Ok((_, 0)) => {}
                Ok((payload, damaged_bytes)) => {
                    self.replace(kind, id, &payload)?;
                    self.report.healed.push(HealedObject {
                        object: opener.path(kind, id),
                        damaged_bytes,
                    });
                }
            }
        }
        self.see(kind, id)
    }

    /// What lies in an object that is right, and whether all that is needed of it does.
    fn see(&mut self, kind: Kind, id: ObjectId) -> Result<()> {
        let objects = Arc::clone(&self.inner.objects);
        match kind {
            Kind::Container if objects.spot(kind, id).is_none() => self.see_container(id),
            Kind::Bundle => {
                for container in objects.containers_in(id) {
                    self.see_container(container)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn see_container(&mut self, id: ObjectId) -> Result<()> {
        self.seen.insert((Kind::Container, id));
        let objects = &self.inner.objects;
        let manifest = match objects.load_manifest(id) {
            Ok(manifest) => manifest,
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.lose(Kind::Container, id, &e);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let there: HashSet<u64> = manifest.chunks().map(|(slot, _)| slot).collect();
        let lacking = self.marks.slots(id).find(|slot| !there.contains(slot));
        if let Some(place) = lacking.and_then(|slot| Place::new(id, slot)) {
            let error = objects.no_such_slot(place);
            self.lacks(id, &error);
        }
        Ok(())
    }

    fn lose(&mut self, kind: Kind, id: ObjectId, error: &StoreError) {
        let objects = &self.inner.objects;
        match kind {
            Kind::Container => drop(self.bad_containers.insert(id)),
            Kind::Bundle => {
                let inside = objects.containers_in(id);
                self.seen
                    .extend(inside.iter().map(|id| (Kind::Container, *id)));
                self.bad_containers.extend(inside);
                self.bad_trees = true;
            }
            _ => self.bad_trees = true,
        }
        self.seen.insert((kind, id));
        self.report.lost.push(LostObject {
            object: objects.opener.path(kind, id),
            what: error.chain(),
        });
    }

    /// Something that images need was not found, as far as the images of the beginning tell.
    fn lacks(&mut self, id: ObjectId, error: &StoreError) {
        self.bad_containers.insert(id);
        let lost = LostObject {
            object: self.inner.objects.container_path(id),
            what: error.chain(),
        };
        self.lacking.push((id, lost));
    }

    /// Containers that images need and that no object holds.
    fn missing(&mut self) {
        let needed: Vec<ObjectId> = self.marks.containers().collect();
        for id in needed {
            if self.seen.contains(&(Kind::Container, id)) {
                continue;
            }
            let error = StoreError::missing(self.inner.objects.container_path(id));
            self.lacks(id, &error);
        }
    }

    /// Which bytes of which points are lost.
    fn hits(&mut self) -> Result<()> {
        let mut trees = BTreeSet::new();
        let mut hit = HashSet::new();
        for (point, group, disk, image) in self.images() {
            let ranges = self.lost_ranges(&image, &mut trees, &mut hit)?;
            if !ranges.is_empty() {
                self.report.hits.push(Hit {
                    point,
                    group,
                    disk,
                    ranges,
                });
            }
        }
        // What a collection has taken since the beginning was needed by nothing any more.
        let lacking = self.lacking.drain(..).filter(|(id, _)| hit.contains(id));
        self.report.lost.extend(lacking.map(|(_, lost)| lost));
        let known: BTreeSet<&str> = self.report.lost.iter().map(|l| l.object.as_str()).collect();
        let new = trees
            .into_iter()
            .filter(|(object, _)| !known.contains(object.as_str()));
        let new: Vec<_> = new
            .map(|(object, what)| LostObject { object, what })
            .collect();
        self.report.lost.extend(new);
        Ok(())
    }

    fn lost_ranges(
        &self,
        reference: &ImageRef,
        trees: &mut BTreeSet<(String, String)>,
        hit: &mut HashSet<ObjectId>,
    ) -> Result<Vec<ByteRange>> {
        let mut note = |error: &StoreError| {
            if let StoreError::Corrupt { object, .. } | StoreError::Missing { object, .. } = error {
                trees.insert((object.clone(), error.chain()));
            }
        };
        let image = match Image::open(Arc::clone(&self.inner.objects), reference) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                note(&e);
                return Ok(ByteRange::at(0, reference.size).into_iter().collect());
            }
            other => other?,
        };
        let mut lost = Vec::new();
        let bytes = |start, end| GranuleRange { start, end }.bytes(reference.size);
        for leaf in 0..image.shape.granules.div_ceil(LEAF_CHUNKS) {
            let under = image.shape.under(0, leaf);
            let runs = image
                .leaf_node(leaf)
                .and_then(|node| image.leaf_runs(leaf, node));
            match runs {
                Ok(runs) => {
                    let bad = |run: &&Run| {
                        let container = run.place.map(Place::container);
                        container.is_some_and(|id| self.bad_containers.contains(&id))
                    };
                    for run in runs.iter().filter(bad) {
                        hit.extend(run.place.map(Place::container));
                        lost.push(bytes(under.start + run.start, under.start + run.end()));
                    }
                }
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    note(&e);
                    lost.push(bytes(under.start, under.end));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(merged(lost))
    }
}
