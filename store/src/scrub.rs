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

use block::{ByteRange, UnixNanos};

use crate::armor::{self, Kind, Owner};
use crate::catalog::{CHECKPOINT_LEN_MAX, Change};
use crate::error::{ErrorKind, Result, StoreError, io_error};
use crate::format;
use crate::gc::mark::{Marker, Marks, Wanted};
use crate::image::Image;
use crate::place::{ObjectId, Place};
use crate::side_by_side::side_by_side;
use crate::store::{Inner, Writer};
use crate::tree::ImageRef;
use crate::verify::merged;

use report::Shelf;
pub use report::{HealedObject, Hit, LastScrub, LostObject, ScrubPosition, ScrubReport};
use search::Search;

mod keys;
mod report;
mod search;

/// How to scrub.
#[derive(Clone, Copy)]
pub struct ScrubOptions<'a> {
    /// Decompress and hash every chunk too, instead of trusting the checksums that were made with the objects.
    pub deep: bool,
    /// Put healed objects in the place of damaged ones; a store opened for reading only says what it would do.
    pub heal: bool,
    /// Go on after this object: [`ScrubReport::reached`] of a scrub that was stopped.
    pub after: Option<ScrubPosition>,
    /// What the parts before this one have found: objects that were checked, healed, lost.
    pub before: [u64; 3],
    /// Objects that are checked at once, each by a thread of its own.
    pub threads: usize,
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
            before: [0; 3],
            threads: 1,
            pace: &|_| (),
            stop: &|| false,
            progress: &|_, _| (),
        }
    }
}

struct Scrub<'a> {
    inner: &'a Inner,
    options: &'a ScrubOptions<'a>,
    report: ScrubReport,
    marks: Marks,
    /// Whether those are all: every tree was read.
    trees_read: bool,
    /// The first numbers that no object of a kind had when images were marked.
    ends: [(Kind, u64); 3],
    /// Containers and tree objects that were found, in whatever object.
    seen: BTreeSet<(Kind, ObjectId)>,
    /// Those that cannot be read, or of which something is missing.
    bad_containers: HashSet<ObjectId>,
    bad_trees: bool,
    /// What images needed when it began, and was not found.
    lacking: Vec<(ObjectId, LostObject)>,
    /// What nobody reads, and is damaged.
    spare: Vec<LostObject>,
    /// The same of what no image needed when it began; an image that was written meanwhile may.
    idle: Vec<((Kind, ObjectId), LostObject)>,
    unreadable: BTreeSet<(Kind, ObjectId)>,
}

/// What was found of an object, and how many bytes it has.
enum Found {
    /// It is not there any more.
    Gone,
    Unreadable(StoreError),
    Whole(u64),
    Healed {
        len: u64,
        payload: Vec<u8>,
        damaged_bytes: u64,
    },
    /// It is damaged beyond its armor.
    Lost(u64, StoreError),
}

/// What is read.
#[derive(Clone, Copy)]
pub(crate) enum Scope {
    /// What comes after where the last slice ended.
    Everything,
    /// The catalog was looked at in another way.
    ButTheCatalog,
}

/// What was found by reading everything.
pub(crate) struct Examined {
    pub(crate) report: ScrubReport,
    /// What images need, as far as their trees can be read.
    pub(crate) marks: Marks,
    /// Some of them cannot.
    pub(crate) trees_lost: bool,
    /// What is damaged beyond its armor, and read by nobody any more.
    pub(crate) spare: Vec<LostObject>,
    /// Those of them that nothing has let go of.
    pub(crate) idle: Vec<((Kind, ObjectId), LostObject)>,
    /// Every object that is damaged beyond its armor.
    pub(crate) unreadable: BTreeSet<(Kind, ObjectId)>,
}

/// Reads and checks everything, and remembers that it did.
pub(crate) fn scrub(inner: &Inner, options: &ScrubOptions<'_>) -> Result<ScrubReport> {
    let report = examine(inner, options, Scope::Everything)?.report;
    if report.reached.is_none() && options.heal && inner.writer.is_some() {
        let last = LastScrub {
            ended_at: UnixNanos(inner.now()),
            deep: options.deep,
            objects: options.before[0] + report.objects,
            healed: options.before[1] + report.healed.len() as u64,
            lost: options.before[2] + report.lost.len() as u64,
        };
        let mut state = inner.state.lock();
        inner.commit(&mut state, Change::Scrubbed(last))?;
    }
    Ok(report)
}

/// Reads and checks everything.
pub(crate) fn examine(inner: &Inner, options: &ScrubOptions<'_>, scope: Scope) -> Result<Examined> {
    let mut scrub = Scrub {
        inner,
        options,
        report: ScrubReport::default(),
        marks: Marks::default(),
        trees_read: false,
        ends: [Kind::Container, Kind::Tree, Kind::Bundle].map(|kind| (kind, 0)),
        seen: BTreeSet::new(),
        bad_containers: HashSet::new(),
        bad_trees: false,
        lacking: Vec::new(),
        spare: Vec::new(),
        idle: Vec::new(),
        unreadable: BTreeSet::new(),
    };
    match scope {
        Scope::Everything if options.after.is_none() => {
            scrub.catalog()?;
            scrub.keys()?;
        }
        Scope::Everything => {}
        Scope::ButTheCatalog => scrub.keys()?,
    }
    if !scrub.mark()? {
        // Nothing after where it began was checked.
        scrub.report.reached = Some(options.after.unwrap_or(ScrubPosition::BEFORE_ALL));
        return Ok(scrub.end());
    }
    scrub.objects()?;
    if scrub.report.reached.is_none() {
        scrub.missing()?;
    }
    let idle = !scrub.idle.is_empty();
    if idle || !scrub.bad_containers.is_empty() || scrub.bad_trees || !scrub.lacking.is_empty() {
        scrub.hits()?;
    }
    Ok(scrub.end())
}

impl Scrub<'_> {
    fn end(self) -> Examined {
        Examined {
            report: self.report,
            marks: self.marks,
            trees_lost: self.bad_trees,
            spare: self.spare,
            idle: self.idle,
            unreadable: self.unreadable,
        }
    }

    /// `format` and the catalog itself; what was read of them to open the store was healed in memory.
    fn catalog(&mut self) -> Result<()> {
        let mut objects = self.inner.catalog.objects()?;
        objects.push((format::NAME.to_owned(), format::OWNER));
        for (object, owner) in objects {
            let bytes = match self.inner.place.read_whole(&object, CHECKPOINT_LEN_MAX) {
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
        if !writer.engine.inventory.lock().has_object(kind, id) {
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

    /// What do images need? Trees that cannot be read do not end it here. `false` if it was stopped.
    fn mark(&mut self) -> Result<bool> {
        let all = Wanted {
            containers: ObjectId(1)..ObjectId(ObjectId::END),
            records: HashSet::new(),
        };
        let opener = &self.inner.objects.opener;
        self.ends = [Kind::Container, Kind::Tree, Kind::Bundle]
            .map(|kind| (kind, opener.shelf(kind).next()));
        let mut marker = Marker::new(Arc::clone(&self.inner.objects), all).tolerant();
        let images = self.inner.state.lock().images();
        for held in &images {
            match marker.held(held) {
                Err(e) if e.kind() == ErrorKind::Corrupt => self.bad_trees = true,
                other => drop(other?),
            }
            if self.options.after.is_none() && (self.options.stop)() {
                return Ok(false);
            }
        }
        self.bad_trees |= marker.met_damage();
        self.trees_read = !self.bad_trees;
        self.marks = marker.finish();
        Ok(true)
    }

    fn objects(&mut self) -> Result<()> {
        let opener = &self.inner.objects.opener;
        let mut all = Vec::new();
        for shelf in Shelf::ALL {
            let ids = opener.shelf(shelf.kind()).list()?;
            all.extend(ids.into_iter().map(|id| ScrubPosition { shelf, id: id.0 }));
        }
        let total = all.len() as u64;
        let passed = all
            .partition_point(|position| self.options.after.is_some_and(|after| *position <= after));
        let mut done = passed as u64;
        // Threads that are done with theirs wait for the slowest: less, where each has several. One alone can be stopped
        // after each object.
        let at_once = match self.options.threads {
            0 | 1 => 1,
            threads => 16 * threads,
        };
        for some in all[passed..].chunks(at_once) {
            let found = side_by_side(some, self.options.threads, |position| self.check(*position));
            for (position, found) in some.iter().zip(found) {
                self.object(*position, found?)?;
                done += 1;
                (self.options.progress)(done, total);
                if done < total && (self.options.stop)() {
                    self.report.reached = Some(*position);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads and checks an object.
    fn check(&self, position: ScrubPosition) -> Result<Found> {
        let (kind, id) = (position.shelf.kind(), ObjectId(position.id));
        let opener = &self.inner.objects.opener;
        let bytes = match opener.read_object(kind, id) {
            // A collection was faster.
            Err(StoreError::Missing { .. }) => return Ok(Found::Gone),
            Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(Found::Unreadable(e)),
            other => other?,
        };
        let len = bytes.len() as u64;
        if !self.options.deep && opener.is_intact(kind, id, &bytes) {
            return Ok(Found::Whole(len));
        }
        Ok(match opener.healed_payload(kind, id, &bytes) {
            Err(e) => Found::Lost(len, e),
            Ok((_, 0)) => Found::Whole(len),
            Ok((payload, damaged_bytes)) => Found::Healed {
                len,
                payload: payload.into_owned(),
                damaged_bytes,
            },
        })
    }

    fn object(&mut self, position: ScrubPosition, found: Found) -> Result<()> {
        let (kind, id) = (position.shelf.kind(), ObjectId(position.id));
        let len = match &found {
            Found::Gone => return Ok(()),
            Found::Unreadable(e) => {
                self.lose(kind, id, e);
                return Ok(());
            }
            Found::Whole(len) | Found::Lost(len, _) | Found::Healed { len, .. } => *len,
        };
        self.report.objects += 1;
        self.report.bytes += len;
        (self.options.pace)(len);
        match found {
            Found::Lost(_, e) => {
                self.lose(kind, id, &e);
                return Ok(());
            }
            Found::Healed {
                payload,
                damaged_bytes,
                ..
            } => {
                self.replace(kind, id, &payload)?;
                self.report.healed.push(HealedObject {
                    object: self.inner.objects.opener.path(kind, id),
                    damaged_bytes,
                });
            }
            _ => {}
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
        let objects = Arc::clone(&self.inner.objects);
        match objects.load_manifest(id) {
            Ok(manifest) => {
                let there: HashSet<u64> = manifest.chunks().map(|(slot, _)| slot).collect();
                let lacking = self.marks.slots(id).find(|slot| !there.contains(slot));
                if let Some(place) = lacking.and_then(|slot| Place::new(id, slot)) {
                    self.lacks(id, &objects.no_such_slot(place));
                }
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.lacks(id, &e);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// An object is damaged beyond its armor.
    fn lose(&mut self, kind: Kind, id: ObjectId, error: &StoreError) {
        let objects = &self.inner.objects;
        let lost = LostObject {
            object: objects.opener.path(kind, id),
            what: error.chain(),
        };
        self.unreadable.insert((kind, id));
        let quarantined = self.inner.state.lock().quarantine.contains_key(&(kind, id));
        let elsewhere = kind != Kind::Bundle && objects.spot(kind, id).is_some();
        if quarantined || elsewhere {
            self.spare.push(lost);
            return;
        }
        let inside = objects.containers_of((kind, id));
        if let Some(writer) = &self.inner.writer {
            // No chunk of it is one that the store has.
            let inside = inside.iter().copied().collect();
            writer.engine.index.lock().forget_containers(&inside);
        }
        self.bad_containers.extend(&inside);
        if self.is_unneeded(kind, id) {
            self.idle.push(((kind, id), lost));
            return;
        }
        self.bad_trees |= kind != Kind::Container;
        let inside = inside.into_iter().map(|id| (Kind::Container, id));
        self.seen.extend(inside);
        self.seen.insert((kind, id));
        self.report.lost.push(lost);
    }

    /// Whether it is sure that no image needs anything of an object: all trees were read, and it was there before.
    fn is_unneeded(&self, kind: Kind, id: ObjectId) -> bool {
        if !self.trees_read || !self.ends.iter().any(|(of, end)| *of == kind && id.0 < *end) {
            return false;
        }
        let is_needed = |(kind, id)| match kind {
            Kind::Container => self.marks.live(id) > 0,
            _ => self.marks.tree_bytes.contains_key(&id),
        };
        match kind {
            Kind::Bundle => !self.inner.objects.locations().of_bundle(id).any(is_needed),
            _ => !is_needed((kind, id)),
        }
    }

    /// Something that images need was not found, as far as the images of the beginning tell.
    fn lacks(&mut self, id: ObjectId, error: &StoreError) {
        let lost = LostObject {
            object: self.inner.objects.container_path(id),
            what: error.chain(),
        };
        self.lacking.push((id, lost));
    }

    /// Containers that images need and that no object holds.
    fn missing(&mut self) -> Result<()> {
        let needed: Vec<ObjectId> = self.marks.containers().collect();
        for id in needed {
            // It may have been moved into a bundle that was not there when the objects were listed.
            if !self.seen.contains(&(Kind::Container, id)) {
                self.see_container(id)?;
            }
        }
        Ok(())
    }

    /// Which bytes of which points are lost.
    fn hits(&mut self) -> Result<()> {
        let mut trees = BTreeSet::new();
        let mut hit = HashSet::new();
        let mut whole = HashSet::new();
        let images = self.inner.state.lock().images();
        for held in images {
            let ranges = self.lost_ranges(&held.image, &mut trees, &mut hit, &mut whole)?;
            if !ranges.is_empty() {
                self.report.hits.push(Hit {
                    point: held.point,
                    group: held.group,
                    disk: held.disk,
                    ranges,
                });
            }
        }
        // What a collection has taken since the beginning was needed by nothing any more.
        let lacking = self.lacking.drain(..).filter(|(id, _)| hit.contains(id));
        self.report.lost.extend(lacking.map(|(_, lost)| lost));
        // An image that was written meanwhile may need what none needed before.
        let is_hit = |(thing, lost): &(_, LostObject)| {
            let inside = self.inner.objects.containers_of(*thing);
            inside.iter().any(|id| hit.contains(id))
                || trees.iter().any(|(object, _)| *object == lost.object)
        };
        let (needed, idle): (Vec<_>, _) =
            std::mem::take(&mut self.idle).into_iter().partition(is_hit);
        self.idle = idle;
        let spare = self.idle.iter().map(|(_, lost)| lost.clone());
        self.spare.extend(spare);
        let needed = needed.into_iter().map(|(_, lost)| lost);
        self.report.lost.extend(needed);
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
        whole: &mut HashSet<(ObjectId, u32)>,
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
        let mut search = Search {
            image: &image,
            bad: &self.bad_containers,
            lacking: self.lacking.iter().map(|(id, _)| *id).collect(),
            hit,
            whole,
            trees: BTreeSet::new(),
            lost: Vec::new(),
        };
        search.node(image.shape.height(), 0, image.reference.root)?;
        let Search {
            trees: found, lost, ..
        } = search;
        trees.extend(found);
        Ok(merged(lost))
    }
}
