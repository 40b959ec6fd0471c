//! Directories and files of a simulated world, as its users see them.

use std::any::Any;
use std::io;
use std::sync::Arc;

use block::{ByteRange, Dir, File, SharedWords, Space};
use parking_lot::MutexGuard;
use rand::RngExt;

use super::{Change, SimWorld, Step, World};
use crate::inode::Inode;

pub(super) struct SimDir {
    pub(super) world: SimWorld,
    pub(super) path: String,
}

impl SimDir {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.shared.lock()
    }

    fn file(&self, name: &str, inode: usize) -> Arc<dyn File> {
        Arc::new(SimFile {
            world: self.world.clone(),
            name: name.to_owned(),
            inode,
        })
    }

    fn rename_in(&self, world: &mut World, from: &str, to: &str) -> io::Result<()> {
        if !world.names(&self.path).live.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.change(
            &self.path,
            to,
            Change::Rename(from.to_owned(), to.to_owned()),
        )
    }
}

impl Dir for SimDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        if world.names(&self.path).live.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = world.inodes.len();
        world.inodes.push(Inode::default());
        world.change(&self.path, name, Change::Add(name.to_owned(), inode))?;
        Ok(self.file(name, inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        world.alive()?;
        let inode = world.names(&self.path).live.get(name).copied();
        Ok(self.file(name, inode.ok_or(io::ErrorKind::NotFound)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_in(&mut self.world(), from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        // One step: of two that rename to the same name, one does.
        let mut world = self.world();
        if world.names(&self.path).live.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename_in(&mut world, from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        if !world.names(&self.path).live.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.change(&self.path, name, Change::Remove(name.to_owned()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut world = self.world();
        world.alive()?;
        Ok(world.names(&self.path).live.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world();
        let step = world.step("")?;
        if step == Step::Whole || world.rng.random_bool(0.5) {
            let names = world.names(&self.path);
            names.durable = names.live.clone();
            names.pending.clear();
        }
        if step == Step::Last {
            world.end();
        }
        world.alive()
    }

    fn subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        self.world().alive()?;
        Ok(self.world.dir_at(format!("{}/{name}", self.path)))
    }

    fn existing_subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        let path = format!("{}/{name}", self.path);
        let world = self.world();
        world.alive()?;
        let is_there = world.dirs.contains_key(&path);
        drop(world);
        match is_there {
            true => Ok(self.world.dir_at(path)),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn lock_exclusive(&self, name: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        let key = format!("{}/{name}", self.path);
        if !self.world().locks.insert(key.clone()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock {
            world: self.world.clone(),
            key,
        }))
    }

    fn space(&self) -> io::Result<Space> {
        const TOTAL_BYTES: u64 = 1 << 40;
        let world = self.world();
        world.alive()?;
        let taken: u64 = world.inodes.iter().map(Inode::allocated).sum();
        Ok(Space {
            free_bytes: TOTAL_BYTES.saturating_sub(taken),
            total_bytes: TOTAL_BYTES,
        })
    }

    fn describe(&self) -> String {
        format!("sim:/{}", self.path)
    }
}

struct Lock {
    world: SimWorld,
    key: String,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.world.shared.lock().locks.remove(&self.key);
    }
}

struct SimFile {
    world: SimWorld,
    name: String,
    inode: usize,
}

impl SimFile {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.shared.lock()
    }

    /// Runs an operation that is whole, or not done at all if it is the last.
    fn whole(&self, operation: impl FnOnce(&mut Inode)) -> io::Result<()> {
        let mut world = self.world();
        let step = world.step(&self.name)?;
        if step == Step::Whole || world.rng.random_bool(0.5) {
            operation(&mut world.inodes[self.inode]);
        }
        if step == Step::Last {
            world.end();
        }
        world.alive()
    }
}

/// How often a write meets the kernel writing back what came before it.
const WRITEBACK_ODDS: f64 = 0.05;

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let world = self.world();
        world.alive()?;
        Ok(world.inodes[self.inode].len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.whole(|inode| inode.set_len(len))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        let inode = &mut world.inodes[self.inode];
        inode.touch();
        if ByteRange::of_buf(offset, buf).end() > inode.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inode.read(buf, offset);
        Ok(())
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        let step = world.step(&self.name);
        let World { inodes, rng, .. } = &mut *world;
        let inode = &mut inodes[self.inode];
        inode.touch();
        if rng.random_bool(WRITEBACK_ODDS) {
            inode.write_back();
        }
        match step {
            Ok(Step::Whole) => inode.write(data, offset),
            Ok(Step::Last) => {
                inode.write_torn(data, offset, rng);
                world.end();
            }
            Err(fault) => {
                inode.write_torn(data, offset, rng);
                return Err(fault);
            }
        }
        world.alive()
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<()> {
        self.whole(|inode| inode.zero(range))
    }

    fn is_cached(&self, _range: ByteRange) -> io::Result<bool> {
        let world = self.world();
        world.alive()?;
        Ok(world.inodes[self.inode].is_cached())
    }

    fn sync_data(&self) -> io::Result<()> {
        let fault = self.world().fault_on(&format!("sync {}", self.name));
        let done = match fault {
            Some(kind) => self.world().alive().and(Err(kind.into())),
            None => self.whole(Inode::sync),
        };
        let mut world = self.world();
        if done.is_err() && world.alive().is_ok() {
            world.inodes[self.inode].fail_sync();
        } else if done.is_ok() && world.inodes[self.inode].tell_writeback() {
            return Err(io::Error::other("the simulated disk did not take it"));
        }
        done
    }

    fn start_writeback(&self, _: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn fetch(&self, _: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn let_go(&self, _: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn check_writeback(&self) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        if world.inodes[self.inode].tell_writeback() {
            // The answer is given, and whoever asked may not live to hear it.
            world.ops += 1;
            if world.crash_at.is_some_and(|at| world.ops >= at) {
                world.end();
            }
            world.alive()?;
            return Err(io::Error::other("the simulated disk did not take it"));
        }
        match world
            .writeback_fault
            .as_ref()
            .and_then(|fault| fault(&self.name))
        {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.world().inodes[self.inode].allocated())
    }

    fn allocate(&self, _range: ByteRange) -> io::Result<()> {
        self.whole(|_| ())
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn SharedWords>> {
        let mut world = self.world();
        world.alive()?;
        let inode = &mut world.inodes[self.inode];
        inode.touch();
        if !len.is_multiple_of(8) || len > inode.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(inode.map(len))
    }
}
