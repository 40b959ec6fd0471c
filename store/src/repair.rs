//! Repair: what of a damaged store can be had again is had again, as far as the store itself knows it.
//!
//! ```text
//! plan:    survey of the catalog, and everything is read (as check.rs does) -> steps
//! perform: lease -> the same plan once more: still the same?
//!          what is lost, and lies elsewhere, too -> a commit says that it lies there (copies.rs)
//!          the catalog does not open -> a commit takes the next number, a checkpoint of that number says what is left
//!          what a replica has of what points have lost -> copied from there (recopy.rs)
//!          what is damaged, and nothing needs (any more) -> let go of, into the quarantine (gc.rs)
//!          what is in reach of its armor -> healed (scrub.rs)
//! ```
//!
//! Rule: nothing is removed, and nothing is replaced but by the same bytes, healed. A crash at any moment leaves the store
//! as it was, or better: each step is durable by one object that is created.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{ByteRange, Name};

use crate::armor::Kind;
use crate::backend::Backend;
use crate::catalog::{Catalog, Change, LostPart, State, Survey};
use crate::copies::{self, Found, Thing};
use crate::error::{ErrorKind, Result, StoreError};
use crate::format::{self, Format};
use crate::gc;
use crate::keys;
use crate::lease::Lease;
use crate::place::ObjectId;
use crate::recopy::{self, Copyable};
use crate::records::PointId;
use crate::relocation::Relocation;
use crate::scrub::{
    self, Examined, HealedObject, Hit, LostObject, Scope, ScrubOptions, ScrubPosition,
};
use crate::store::{Around, Store};

/// How to repair.
#[derive(Clone, Copy)]
pub struct RepairOptions<'a> {
    /// Objects that are checked at once, each by a thread of its own.
    pub threads: usize,
    /// Told of objects checked and objects in all; then, of bytes copied and bytes in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Another store with the same points: images of which something is lost are copied from there.
    pub replica: Option<&'a Store>,
}

impl Default for RepairOptions<'_> {
    fn default() -> Self {
        Self {
            threads: 1,
            replica: None,
            progress: &|_, _| (),
        }
    }
}

/// What a repair would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairPlan {
    /// Step by step.
    pub steps: Vec<RepairStep>,
    /// What stays lost.
    pub lost: Vec<LostObject>,
}

/// A step of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairStep {
    /// An object is healed from its armor.
    Heal(HealedObject),
    /// A part of the catalog is lost, and a later checkpoint says all that it said: there is nothing to do.
    Leave {
        /// The part.
        object: String,
        /// The number of the checkpoint.
        covered_by: u64,
    },
    /// The catalog does not open. It goes on with this commit, and a checkpoint of the same number, from what is left.
    BeginAnew {
        /// The number of both.
        number: u64,
        /// What is lost of the catalog.
        lost: Vec<LostObject>,
        /// Points that the lost commits may have listed, as far as their groups are known: those are lost.
        may_have_listed: Vec<PointId>,
    },
    /// A disk of a point is copied again from the replica.
    CopyAgain {
        /// The point.
        point: PointId,
        /// Its disk.
        disk: Name,
        /// Bytes of it that cannot be read now.
        lost_bytes: u64,
    },
    /// A damaged object that nothing needs goes to the quarantine, so that nothing is built on it.
    LetGo {
        /// The object.
        object: String,
    },
    /// Another copy of a container or of a tree object is used from now on.
    UseCopy {
        /// What is lost, or is about to be.
        what: String,
        /// The object that was said to hold it.
        lost: String,
        /// The object that holds the other copy.
        instead: String,
    },
}

impl RepairPlan {
    /// Whether there is anything to do.
    #[must_use]
    pub fn changes_something(&self) -> bool {
        let leaves = |step: &RepairStep| matches!(step, RepairStep::Leave { .. });
        !self.steps.iter().all(leaves)
    }
}

impl Store {
    /// Finds out what a repair would do. Changes nothing, and needs no lease.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn plan_repair(
        place: &Arc<dyn Backend>,
        around: Around,
        options: &RepairOptions<'_>,
    ) -> Result<RepairPlan> {
        let reading = Reading {
            place,
            format: format::read(&**place)?,
            around: &around,
            options,
        };
        Ok(plan(&reading)?.plan)
    }

    /// Does what was planned, as the store's only writer.
    ///
    /// # Errors
    /// `Retry` if somebody writes, or if the store is not as it was planned for: nothing was changed then; `Fenced`,
    /// `Full`, `Io`: steps before that are done.
    pub fn repair(
        place: &Arc<dyn Backend>,
        around: Around,
        planned: &RepairPlan,
        options: &RepairOptions<'_>,
    ) -> Result<()> {
        let format = format::read(&**place)?;
        let codec = around.codec(&**place, &format)?;
        let lease = Lease::take(place, format.store, &*around.clock, around.lease_term)?;
        let reading = Reading {
            place,
            format,
            around: &around,
            options,
        };
        let found = plan(&reading)?;
        if found.plan != *planned {
            return Err(StoreError::PlanIsOld);
        }
        commit(&reading, &lease, &found)?;
        let opened = Self::writer_with(place, &format, codec, lease, around)?;
        let copied = match options.replica {
            Some(replica) => recopy::copy_again(
                &opened,
                replica,
                &found.copyable,
                &found.unreadable,
                options.progress,
            ),
            None => Ok(()),
        };
        match gc::let_go(&opened.inner) {
            // While trees are lost nobody knows what nothing needs.
            Err(e) if e.kind() == ErrorKind::Corrupt => {}
            let_go => let_go?,
        }
        let options = ScrubOptions {
            deep: false,
            threads: options.threads,
            progress: options.progress,
            ..ScrubOptions::default()
        };
        scrub::scrub(&opened.inner, &options)?;
        copied
    }
}

/// A plan, and what it takes to follow it.
struct Planned {
    survey: Survey,
    relocation: Relocation,
    copyable: Vec<Copyable>,
    /// Objects that are damaged beyond their armor.
    unreadable: BTreeSet<Thing>,
    plan: RepairPlan,
}

fn plan(reading: &Reading<'_>) -> Result<Planned> {
    let survey = Catalog::open(reading.place, reading.format.store).survey()?;
    let (_, format_damage) = format::examine(&**reading.place)?;
    let mut steps = Vec::new();
    if !survey.opens() {
        steps.push(step_of_catalog(&survey));
    }
    steps.extend(survey.lost.iter().filter_map(covered));
    let (relocation, examined) = plan_copies(reading, &survey, &mut steps)?;
    let format = HealedObject {
        object: format::NAME.to_owned(),
        damaged_bytes: format_damage,
    };
    let format = Some(format).filter(|format| format.damaged_bytes > 0);
    let catalog = survey.healable.iter().cloned();
    let left = reading.store(survey.state.relocated(&relocation))?;
    let held = held_objects(&left)?;
    let shelved = examined.report.healed.iter().cloned();
    let shelved = shelved.filter(|healable| held.contains(&healable.object));
    let healable = format.into_iter().chain(catalog).chain(shelved);
    steps.extend(healable.map(RepairStep::Heal));
    let (copyable, is_all) = match reading.options.replica {
        Some(replica) => recopy::find(&left, replica, &examined.report.hits)?,
        None => (Vec::new(), false),
    };
    let copy = |image: &Copyable| RepairStep::CopyAgain {
        point: image.point.clone(),
        disk: image.disk.name.clone(),
        lost_bytes: image.lost_bytes,
    };
    steps.extend(copyable.iter().map(copy));
    // New images are laid on containers alone.
    let has_containers = |object| !left.inner.objects.containers_of(object).is_empty();
    let idle = examined.idle.iter();
    let idle = idle.filter(|(object, _)| has_containers(*object));
    steps.extend(idle.map(|(_, lost)| RepairStep::LetGo {
        object: lost.object.clone(),
    }));
    let mut lost = examined.report.lost;
    if is_all {
        // No point needs it any more.
        let opener = &left.inner.objects.opener;
        lost.retain(|lost| !opener.is_on_a_shelf(&lost.object));
    }
    Ok(Planned {
        survey,
        relocation,
        copyable,
        unreadable: examined.unreadable,
        plan: RepairPlan { steps, lost },
    })
}

/// The objects that are needed as they lie there: a scrub heals no others.
fn held_objects(left: &Store) -> Result<BTreeSet<String>> {
    let objects = &left.inner.objects;
    let quarantine = left.inner.state.lock().quarantine.clone();
    let locations = objects.locations();
    let spots = locations
        .containers
        .values()
        .chain(locations.trees.values());
    let bundles: BTreeSet<ObjectId> = spots.map(|spot| spot.bundle).collect();
    let keys = keys::objects(&*left.inner.place, objects.store())?;
    let mut held: BTreeSet<String> = keys.into_iter().flat_map(|(names, _)| names).collect();
    for kind in [Kind::Container, Kind::Tree, Kind::Bundle] {
        for id in objects.opener.shelf(kind).list()? {
            let has_place = match kind {
                Kind::Bundle => bundles.contains(&id),
                _ => objects.spot(kind, id).is_none(),
            };
            if has_place && !quarantine.contains_key(&(kind, id)) {
                held.insert(objects.opener.path(kind, id));
            }
        }
    }
    Ok(held)
}

/// Which other copies are used, and what is found then.
fn plan_copies(
    reading: &Reading<'_>,
    survey: &Survey,
    steps: &mut Vec<RepairStep>,
) -> Result<(Relocation, Examined)> {
    let examined = reading.examine(survey.state.clone())?;
    let left = reading.store(survey.state.clone())?;
    let mut found = copies::find(&left.inner, &examined.unreadable, !survey.opens())?;
    if found.is_empty() {
        return Ok((Relocation::default(), examined));
    }
    let state = survey.state.relocated(&copies::relocation(&found));
    let after = reading.examine(state)?;
    if !loses_no_more(&examined.report.hits, &after.report.hits) {
        return Ok((Relocation::default(), examined));
    }
    if !after.trees_lost {
        // What collections have let go of is not missing.
        found.retain(|copy| copies::is_needed(&after.marks, copy.thing));
    }
    let path = |(kind, id)| left.inner.objects.opener.path(kind, id);
    let step = |copy: &Found| RepairStep::UseCopy {
        what: copies::named(copy.thing),
        lost: path(copy.lost()),
        instead: path(copy.instead()),
    };
    let others = found.iter().filter(|copy| copy.is_another());
    steps.extend(others.map(step));
    Ok((copies::relocation(&found), after))
}

/// How a store is read to plan its repair.
struct Reading<'a> {
    place: &'a Arc<dyn Backend>,
    format: Format,
    around: &'a Around,
    options: &'a RepairOptions<'a>,
}

impl Reading<'_> {
    /// The store, by what a catalog says.
    fn store(&self, state: State) -> Result<Store> {
        let catalog = Catalog::open(self.place, self.format.store);
        let around = self.around.clone();
        let left = Store::reader_of(self.place, &self.format, catalog, state, around)?;
        left.inner.objects.find_ends()?;
        Ok(left)
    }

    /// Reads everything, by what a catalog says.
    fn examine(&self, state: State) -> Result<Examined> {
        let options = ScrubOptions {
            deep: false,
            heal: false,
            after: Some(ScrubPosition::BEFORE_ALL),
            threads: self.options.threads,
            progress: self.options.progress,
            ..ScrubOptions::default()
        };
        scrub::examine(&self.store(state)?.inner, &options, Scope::ButTheCatalog)
    }
}

fn step_of_catalog(survey: &Survey) -> RepairStep {
    let lost = |part: &LostPart| LostObject {
        object: part.object.clone(),
        what: part.what.clone(),
    };
    let points = survey.in_the_way().flat_map(|part| &part.may_have_listed);
    RepairStep::BeginAnew {
        number: survey.state.sequence + 1,
        lost: survey.in_the_way().map(lost).collect(),
        may_have_listed: points.cloned().collect(),
    }
}

fn covered(part: &LostPart) -> Option<RepairStep> {
    Some(RepairStep::Leave {
        object: part.object.clone(),
        covered_by: part.covered_by?,
    })
}

/// Whether every byte that is lost after it was lost before.
fn loses_no_more(before: &[Hit], after: &[Hit]) -> bool {
    let is_in = |range: &ByteRange, ranges: &[ByteRange]| {
        let holds =
            |known: &ByteRange| known.start() <= range.start() && range.end() <= known.end();
        ranges.iter().any(holds)
    };
    let same = |a: &Hit, b: &Hit| (&a.point, &a.group, &a.disk) == (&b.point, &b.group, &b.disk);
    after.iter().all(|hit| {
        let known = before.iter().find(|before| same(before, hit));
        let known = known.map_or(&[][..], |known| &known.ranges);
        hit.ranges.iter().all(|range| is_in(range, known))
    })
}

/// Lets the catalog say what was found: one commit, and a checkpoint where it does not open.
fn commit(reading: &Reading<'_>, lease: &Lease, found: &Planned) -> Result<()> {
    let opens = found.survey.opens();
    if opens && found.relocation == Relocation::default() {
        return Ok(());
    }
    let catalog = Catalog::open(reading.place, reading.format.store);
    catalog.recover()?;
    let left = reading.store(found.survey.state.clone())?;
    // What it names must be durable.
    let opener = &left.inner.objects.opener;
    for shelf in [&opener.containers, &opener.trees, &opener.bundles] {
        shelf.recover()?;
    }
    let at = left.inner.now();
    let mut state = left.inner.state.lock().clone();
    let mut held = state.held;
    lease.check()?;
    if opens {
        let change = Change::Relocate(found.relocation.clone());
        return catalog.commit_alone(&mut state, lease.epoch, at, held, change);
    }
    state = state.relocated(&found.relocation);
    // Past all that there ever was.
    state.next_bundle = opener.bundles.next_folder();
    held.next_container = opener.containers.next_folder();
    held.next_tree = opener.trees.next_folder();
    let lost = found.survey.in_the_way();
    let commits = lost.filter(|part| part.kind == Kind::Commit);
    let numbers = commits.map(|part| part.number).collect();
    catalog.begin_anew(state, lease.epoch, at, held, numbers)
}
