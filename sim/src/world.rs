//! A simulated file system that ends at a chosen operation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use block::Dir;
use parking_lot::Mutex;
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::inode::Inode;
use files::SimDir;

mod files;

/// Decides, by file name, whether an operation that needs space or changes a file fails.
pub type Fault = Arc<dyn Fn(&str) -> Option<io::ErrorKind> + Send + Sync>;

/// A disk with files, its page cache, and the power supply of both.
#[derive(Clone)]
pub struct SimWorld {
    shared: Arc<Mutex<World>>,
}

struct World {
    rng: ChaCha8Rng,
    inodes: Vec<Inode>,
    dirs: BTreeMap<String, Names>,
    ops: u64,
    crash_at: Option<u64>,
    survivors: Option<Survivors>,
    fault: Option<Fault>,
    writeback_fault: Option<Fault>,
    locks: BTreeSet<String>,
}

/// Names of one directory: what programs see, and the changes since the last sync, oldest first.
#[derive(Clone, Default)]
struct Names {
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

/// The state at the operation where the world ended, before anything later could touch it.
struct Survivors {
    inodes: Vec<Inode>,
    dirs: BTreeMap<String, Names>,
}

impl SimWorld {
    /// An empty disk; everything random in it follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(ChaCha8Rng::seed_from_u64(seed), Vec::new(), BTreeMap::new())
    }

    fn with(rng: ChaCha8Rng, inodes: Vec<Inode>, dirs: BTreeMap<String, Names>) -> Self {
        let world = World {
            rng,
            inodes,
            dirs,
            ops: 0,
            crash_at: None,
            survivors: None,
            fault: None,
            writeback_fault: None,
            locks: BTreeSet::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(world)),
        }
    }

    /// The root directory.
    #[must_use]
    pub fn dir(&self) -> Arc<dyn Dir> {
        self.dir_at(String::new())
    }

    fn dir_at(&self, path: String) -> Arc<dyn Dir> {
        self.shared.lock().dirs.entry(path.clone()).or_default();
        Arc::new(SimDir {
            world: self.clone(),
            path,
        })
    }

    /// Operations so far that changed something or could fail: writes, syncs, changes of names.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.shared.lock().ops
    }

    /// The operation `more` from here takes effect in part, and it and all after it fail.
    pub fn crash_after(&self, more: u64) {
        let mut world = self.shared.lock();
        world.crash_at = Some(world.ops + more);
    }

    /// Runs `look` without counting its operations: a test that looks does not bring the end closer.
    pub fn observe<T>(&self, look: impl FnOnce() -> T) -> T {
        let (ops, crash_at) = {
            let mut world = self.shared.lock();
            (world.ops, world.crash_at.take())
        };
        let seen = look();
        let mut world = self.shared.lock();
        (world.ops, world.crash_at) = (ops, crash_at);
        seen
    }

    /// Whether the chosen operation was reached.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.shared.lock().survivors.is_some()
    }

    /// Operations that change a file fail as `fault` says, until it is set to `None`; syncs also by
    /// the name `sync NAME`. A write that
    /// fails may have written a part; what a failed sync was to write is lost, and no later sync says so.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.lock().fault = fault;
    }

    /// From here on [`File::check_writeback`] fails as `fault` says. What a failed writeback makes
    /// of the bytes is up to the test.
    pub fn set_writeback_fault(&self, fault: Option<Fault>) {
        self.shared.lock().writeback_fault = fault;
    }

    /// After a kill: of what was written to the files so `named` and not synced, any part does not reach the
    /// disk, and the cache lets go of it. Whoever opens such a file and asks is told, once; with `forget`
    /// nobody is, and no page of the file is cached until somebody reads or writes it.
    pub fn fail_writeback(&self, named: impl Fn(&str) -> bool, forget: bool) {
        let mut world = self.shared.lock();
        let World {
            dirs, inodes, rng, ..
        } = &mut *world;
        let names = dirs.values().flat_map(|names| &names.live);
        for (_, inode) in names.filter(|(name, _)| named(name)) {
            inodes[*inode].fail_writeback(forget, rng);
        }
    }

    /// Kills the process: what it did stays, as a new world.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut world = self.shared.lock();
        world.end();
        let Survivors { inodes, dirs } = world.survivors.as_mut().expect("just ended");
        let inodes = inodes.iter_mut().map(Inode::after_kill).collect();
        let dirs = dirs.clone();
        Self::with(world.fork_rng(), inodes, dirs)
    }

    /// Restarts the machine in good order: what programs wrote is brought to the disk, as far as the
    /// kernel still knows of it.
    #[must_use]
    pub fn restart(&self) -> Self {
        let mut world = self.shared.lock();
        world.end();
        let Survivors { inodes, dirs } = world.survivors.as_mut().expect("just ended");
        let inodes = inodes.iter_mut().map(Inode::after_restart).collect();
        let dirs = dirs.clone();
        Self::with(world.fork_rng(), inodes, dirs)
    }

    /// Cuts the power: what was synced stays; of the rest, any part.
    #[must_use]
    pub fn cut_power(&self) -> Self {
        let mut world = self.shared.lock();
        world.end();
        let mut rng = world.fork_rng();
        let Survivors { inodes, dirs } = world.survivors.as_mut().expect("just ended");
        let inodes = inodes
            .iter_mut()
            .map(|i| i.after_power_cut(&mut rng))
            .collect();
        let dirs = dirs
            .iter()
            .map(|(path, names)| (path.clone(), names.after_power_cut(&mut rng)));
        let dirs = dirs.collect();
        Self::with(rng, inodes, dirs)
    }
}

impl World {
    fn fork_rng(&mut self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.rng.random())
    }

    /// Freezes the state; a second end changes nothing.
    fn end(&mut self) {
        if self.survivors.is_some() {
            return;
        }
        let inodes = self.inodes.iter_mut().map(Inode::freeze).collect();
        self.survivors = Some(Survivors {
            inodes,
            dirs: self.dirs.clone(),
        });
    }

    fn alive(&self) -> io::Result<()> {
        match self.survivors {
            None => Ok(()),
            Some(_) => Err(io::Error::other("the simulated process has ended")),
        }
    }

    /// Counts an operation on `name`. `Ok(Step::Last)`: do a part of it, then call [`Self::end`].
    fn step(&mut self, name: &str) -> io::Result<Step> {
        self.alive()?;
        self.ops += 1;
        if self.crash_at.is_some_and(|at| self.ops >= at) {
            return Ok(Step::Last);
        }
        match self.fault_on(name) {
            Some(kind) => Err(kind.into()),
            None => Ok(Step::Whole),
        }
    }

    fn fault_on(&self, name: &str) -> Option<io::ErrorKind> {
        self.fault.as_ref().and_then(|fault| fault(name))
    }

    fn names(&mut self, path: &str) -> &mut Names {
        self.dirs
            .get_mut(path)
            .expect("a directory is entered before it is handed out")
    }

    /// Performs a change of names, or, as the last operation, does or does not.
    fn change(&mut self, path: &str, name: &str, change: Change) -> io::Result<()> {
        match self.step(name)? {
            Step::Whole => {
                self.names(path).apply(change);
                Ok(())
            }
            Step::Last => {
                if self.rng.random_bool(0.5) {
                    self.names(path).apply(change);
                }
                self.end();
                self.alive()
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Whole,
    Last,
}

impl Names {
    fn apply(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.pending.push(change);
    }

    /// Changes of names reach the disk in order (a journal), but any number of the last may not.
    fn after_power_cut(&self, rng: &mut ChaCha8Rng) -> Self {
        let mut live = self.durable.clone();
        let kept = rng.random_range(0..=self.pending.len());
        for change in &self.pending[..kept] {
            apply(&mut live, change);
        }
        Self {
            live: live.clone(),
            durable: live,
            pending: Vec::new(),
        }
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    match change {
        Change::Add(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
        Change::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

#[cfg(test)]
mod tests;
