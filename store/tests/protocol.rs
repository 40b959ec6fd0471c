//! The protocol of leases, commits, pins and collections, model-checked: every order of every step of two processes
//! that both believe to be the writer (locks lie), and of crashes between any two steps.
//!
//! | action | in the code |
//! |---|---|
//! | `Open` | `Lease::take`, `Catalog::load`, `recover::engine` |
//! | `Put`, `Reuse` | `Packer::add` with its put; `ImageWriter::known` with its pin |
//! | `Commit`, `Remove` | `Store::commit_point`, `remove_points`: `Catalog::append` under the next number |
//! | `Mark` | `Collection::run`: `begin_collection`, then `mark` |
//! | `Sweep` | `Pins::doom` and the commit of a `Sweep` |
//! | `Purge`, `Purged` | `Collection::purge`: the removal of an object, and the commit after them |
//! | `Crash` | the process is gone at that moment, and what it knew |
//!
//! The check of the lease before a commit is left out: a process may be stopped between that and its commit for as long
//! as it likes, so nothing may depend on it. Held: what a listed point needs is there. Each rule that this rests on is
//! broken in turn, and the checker finds the history that loses data.

use std::collections::BTreeSet;

use stateright::{Checker, Model, Property};

/// Containers are numbered below this.
const CONTAINERS: u8 = 3;
/// Processes of a history.
const OPENINGS: u8 = 3;
/// Commits of a history.
const COMMITS: usize = 4;

type Containers = BTreeSet<u8>;

/// One change, and the first free number of a container that its writer knew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    change: Change,
    next: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Change {
    /// A point that needs this container.
    Point(u8),
    /// All points of this container are removed.
    Remove(u8),
    Sweep(Containers),
    Purge(Containers),
}

/// The place, and the processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    log: Vec<Entry>,
    there: Containers,
    processes: [Option<Process>; 2],
    opened: u8,
}

/// What a process knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    /// Commits that it has seen.
    seen: usize,
    next: u8,
    /// Containers that it believes to be there.
    known: Containers,
    /// What its image in the making needs.
    pinned: Option<u8>,
    collection: Option<Collection>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Collection {
    live: Containers,
    end: u8,
    /// Pinned since it began.
    pinned: Containers,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Open(usize),
    Put(usize),
    Reuse(usize, u8),
    Commit(usize),
    Remove(usize, u8),
    Mark(usize),
    Sweep(usize),
    Purge(usize, u8),
    Purged(usize),
    Crash(usize),
}

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A commit is created under any number.
    Numbers,
    /// What was pinned since the collection began is swept.
    Pins,
    /// Only what was pinned before the collection began is spared.
    PinsOfTheCollection,
    /// Objects are removed before the sweep is committed.
    SweepBeforePurge,
    /// Who opens the store removes what no commit names.
    DebrisStays,
}

struct Protocol {
    broken: Broken,
}

impl World {
    /// Containers that points of the first commits need.
    fn needed(&self, commits: usize) -> Containers {
        let mut needed = Containers::new();
        for entry in &self.log[..commits] {
            match &entry.change {
                Change::Point(container) => drop(needed.insert(*container)),
                Change::Remove(container) => drop(needed.remove(container)),
                Change::Sweep(_) | Change::Purge(_) => {}
            }
        }
        needed
    }

    fn quarantine(&self, commits: usize) -> Containers {
        let mut quarantine = Containers::new();
        for entry in &self.log[..commits] {
            match &entry.change {
                Change::Sweep(gone) => quarantine.extend(gone),
                Change::Purge(gone) => quarantine.retain(|id| !gone.contains(id)),
                Change::Point(_) | Change::Remove(_) => {}
            }
        }
        quarantine
    }
}

impl Protocol {
    /// Creates a commit under the next number that the process knows; it ends if that is taken.
    fn append(&self, world: &mut World, p: usize, change: Change) -> bool {
        let Some(process) = &mut world.processes[p] else {
            return false;
        };
        let free = process.seen == world.log.len() || self.broken == Broken::Numbers;
        if !free {
            world.processes[p] = None;
            return false;
        }
        let next = process.next;
        world.log.push(Entry { change, next });
        process.seen = world.log.len();
        true
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::default()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (p, process) in world.processes.iter().enumerate() {
            let Some(process) = process else {
                if world.opened < OPENINGS {
                    actions.push(Action::Open(p));
                }
                continue;
            };
            if world.opened < OPENINGS {
                actions.push(Action::Crash(p));
            }
            // One image at a time: what a pin left of an earlier one is in its collection.
            if process.pinned.is_none() {
                if process.next < CONTAINERS {
                    actions.push(Action::Put(p));
                }
                actions.extend(process.known.iter().map(|id| Action::Reuse(p, *id)));
            }
            let quarantine = world.quarantine(process.seen);
            actions.extend(quarantine.iter().map(|id| Action::Purge(p, *id)));
            if process.collection.is_none() {
                actions.push(Action::Mark(p));
            }
            if world.log.len() < COMMITS {
                if process.pinned.is_some() {
                    actions.push(Action::Commit(p));
                }
                let needed = world.needed(process.seen);
                actions.extend(needed.iter().map(|id| Action::Remove(p, *id)));
                if process.collection.is_some() {
                    actions.push(Action::Sweep(p));
                }
                if quarantine.iter().any(|id| !world.there.contains(id)) {
                    actions.push(Action::Purged(p));
                }
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Open(p) => {
                world.opened += 1;
                let seen = world.log.len();
                let quarantine = world.quarantine(seen);
                if self.broken == Broken::DebrisStays {
                    let needed = world.needed(seen);
                    world.there.retain(|id| needed.contains(id));
                }
                let known: Containers = world.there.difference(&quarantine).copied().collect();
                let committed = world.log.iter().map(|entry| entry.next).max().unwrap_or(0);
                let listed = world.there.last().map_or(0, |last| last + 1);
                world.processes[p] = Some(Process {
                    seen,
                    next: committed.max(listed),
                    known,
                    pinned: None,
                    collection: None,
                });
            }
            Action::Crash(p) => world.processes[p] = None,
            Action::Put(p) => {
                let process = world.processes[p].as_mut()?;
                let id = process.next;
                process.next += 1;
                if !world.there.insert(id) {
                    // Another writer has that number: this image has failed.
                    process.pinned = None;
                    return Some(world);
                }
                process.known.insert(id);
                process.pin(id);
            }
            Action::Reuse(p, id) => world.processes[p].as_mut()?.pin(id),
            Action::Commit(p) => {
                let container = world.processes[p].as_ref()?.pinned?;
                if self.append(&mut world, p, Change::Point(container)) {
                    world.processes[p].as_mut()?.pinned = None;
                }
            }
            Action::Remove(p, id) => drop(self.append(&mut world, p, Change::Remove(id))),
            Action::Mark(p) => {
                let live = world.needed(world.processes[p].as_ref()?.seen);
                let process = world.processes[p].as_mut()?;
                process.collection = Some(Collection {
                    live,
                    end: process.next,
                    pinned: process.pinned.into_iter().collect(),
                });
            }
            Action::Sweep(p) => {
                let process = world.processes[p].as_mut()?;
                let collection = process.collection.take()?;
                let spared = |id: &u8| match self.broken {
                    Broken::Pins => false,
                    Broken::PinsOfTheCollection => process.pinned == Some(*id),
                    _ => collection.pinned.contains(id),
                };
                // The pins alone would do: what is newer was pinned when it got its number.
                let old = |id: &u8| *id < collection.end;
                let garbage = |id: &u8| old(id) && !collection.live.contains(id) && !spared(id);
                let gone: Containers = process.known.iter().copied().filter(garbage).collect();
                if gone.is_empty() {
                    return Some(world);
                }
                process.known.retain(|id| !gone.contains(id));
                if self.broken == Broken::SweepBeforePurge {
                    world.there.retain(|id| !gone.contains(id));
                }
                self.append(&mut world, p, Change::Sweep(gone));
            }
            Action::Purge(_, id) => {
                if !world.there.remove(&id) {
                    return None;
                }
            }
            Action::Purged(p) => {
                let quarantine = world.quarantine(world.processes[p].as_ref()?.seen);
                let gone = quarantine.difference(&world.there).copied().collect();
                self.append(&mut world, p, Change::Purge(gone));
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what a listed point needs is there", |_, world: &World| {
                world.needed(world.log.len()).is_subset(&world.there)
            }),
            Property::sometimes("garbage is removed", |_, world: &World| {
                let purged = |entry: &Entry| matches!(entry.change, Change::Purge(_));
                world.log.iter().any(purged)
            }),
            Property::sometimes("a point is listed after a sweep", |_, world: &World| {
                let sweep = |entry: &Entry| matches!(entry.change, Change::Sweep(_));
                let swept = world.log.iter().position(sweep);
                let point = |entry: &Entry| matches!(entry.change, Change::Point(_));
                let listed = world.log.iter().rposition(point);
                swept.is_some() && listed > swept
            }),
        ]
    }
}

impl Process {
    fn pin(&mut self, id: u8) {
        self.pinned = Some(id);
        if let Some(collection) = &mut self.collection {
            collection.pinned.insert(id);
        }
    }
}

fn check(broken: Broken) -> impl Checker<Protocol> {
    let checker = Protocol { broken }.checker();
    checker.threads(2).spawn_bfs().join()
}

#[test]
fn no_order_of_steps_and_crashes_loses_what_a_point_needs() {
    let checker = check(Broken::Nothing);
    assert!(
        checker.unique_state_count() > 10_000,
        "{}",
        checker.unique_state_count()
    );
    checker.assert_properties();
}

#[test]
fn each_rule_is_needed() {
    for broken in [
        Broken::Numbers,
        Broken::Pins,
        Broken::PinsOfTheCollection,
        Broken::SweepBeforePurge,
        Broken::DebrisStays,
    ] {
        let found = check(broken).discovery("what a listed point needs is there");
        assert!(found.is_some(), "without it nothing is lost: {broken:?}");
    }
}
