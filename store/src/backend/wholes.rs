//! Objects that are read whole: one request brings all of one, and whoever reads of it finds it in memory.
//!
//! ```text
//! turn --> room for it? --no--> waits until somebody lets go of his
//!            | yes
//!            +--> brought --> held, by any number --> idle: the next one that needs the room has its memory
//! ```

use std::any::Any;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

/// What is in memory at most, also while it is on its way: one object at least, however long.
const BYTES_MAX: u64 = 40 << 20;
/// No object is held that is longer: a container that holds only what cannot be compressed, with its armor.
pub(super) const LEN_MAX: u64 = 18 << 20;

/// Objects in memory, by number.
#[derive(Default)]
pub(super) struct Wholes {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// One is held no more, has come, or does not come.
    changed: Condvar,
}

struct Inner {
    objects: LruCache<u64, Arc<Vec<u8>>>,
    /// Bytes of these, and of those on their way.
    bytes: u64,
    /// Names of those of which it is somebody's turn to bring them.
    turns: HashSet<String>,
    /// The longest yet: so long the next one is thought to be.
    longest: Option<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            objects: LruCache::unbounded(),
            bytes: 0,
            turns: HashSet::new(),
            longest: None,
        }
    }
}

/// An object that stays in memory as long as this lives.
struct Held {
    object: Option<Arc<Vec<u8>>>,
    shared: Arc<Shared>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Under the lock: who finds all of them held sleeps before this, or sees it idle.
        let inner = self.shared.inner.lock();
        self.object = None;
        drop(inner);
        self.shared.changed.notify_all();
    }
}

impl Wholes {
    /// An object, if it is in memory.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Vec<u8>>> {
        self.shared.inner.lock().objects.get(&number).cloned()
    }

    /// Holds one that is in memory.
    pub(super) fn held(&self, number: u64) -> Option<Box<dyn Any + Send>> {
        let object = self.get(number)?;
        Some(self.guard(object))
    }

    /// Waits until nobody else is bringing the object.
    pub(super) fn turn<'a>(&'a self, name: &'a str) -> Turn<'a> {
        let shared = &*self.shared;
        let mut inner = shared.inner.lock();
        while !inner.turns.insert(name.to_owned()) {
            shared.changed.wait(&mut inner);
        }
        Turn { shared, name }
    }

    /// Brings an object, and holds it; `bring` is given memory that can be used for it, and says its number, too. May wait until others are held no more: whoever
    /// holds one must not wait for somebody who wants one.
    pub(super) fn bring(
        &self,
        bring: impl FnOnce(Vec<u8>) -> io::Result<(u64, Vec<u8>)>,
    ) -> io::Result<Box<dyn Any + Send>> {
        let (room, memory) = self.room();
        let (number, bytes) = bring(memory)?;
        let object = Arc::new(bytes);
        room.fill(number, &object);
        Ok(self.guard(object))
    }

    fn guard(&self, object: Arc<Vec<u8>>) -> Box<dyn Any + Send> {
        Box::new(Held {
            object: Some(object),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Room for one as long as the longest yet, and what was there before, if anything was: memory that was used before is cheaper than new.
    fn room(&self) -> (Room<'_>, Vec<u8>) {
        let mut inner = self.shared.inner.lock();
        let mut memory = Vec::new();
        loop {
            let bytes = inner.longest.unwrap_or(LEN_MAX);
            if inner.bytes == 0 || inner.bytes + bytes <= BYTES_MAX {
                inner.bytes += bytes;
                let shared = &*self.shared;
                return (Room { shared, bytes }, memory);
            }
            match inner.drop_idle() {
                Some(idle) => memory = idle,
                None => self.shared.changed.wait(&mut inner),
            }
        }
    }
}

impl Inner {
    /// Takes the one out that nobody holds and nobody has read for longest.
    fn drop_idle(&mut self) -> Option<Vec<u8>> {
        let mut from_oldest = self.objects.iter().rev();
        let idle = from_oldest.find(|(_, object)| Arc::strong_count(object) == 1);
        let number = *idle?.0;
        let object = self.objects.pop(&number)?;
        self.bytes -= object.capacity() as u64;
        // Nobody can have got hold of it meanwhile: that takes the lock.
        Arc::into_inner(object)
    }
}

/// Somebody's, to bring an object.
pub(super) struct Turn<'a> {
    shared: &'a Shared,
    name: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.inner.lock().turns.remove(self.name);
        self.shared.changed.notify_all();
    }
}

/// Room for an object that is on its way.
struct Room<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Room<'_> {
    fn fill(self, number: u64, object: &Arc<Vec<u8>>) {
        let bytes = object.capacity() as u64;
        let mut inner = self.shared.inner.lock();
        inner.longest = inner.longest.max(Some(bytes));
        inner.bytes += bytes;
        if let Some((_, old)) = inner.objects.push(number, Arc::clone(object)) {
            inner.bytes -= old.capacity() as u64;
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shared.inner.lock().bytes -= self.bytes;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LEN: usize = 8 << 20;
    const FIT: u64 = BYTES_MAX / LEN as u64;
    const SOON: Duration = Duration::from_millis(50);

    fn bring(wholes: &Wholes, number: u64) -> Box<dyn Any + Send> {
        let bring = |mut memory: Vec<u8>| {
            memory.resize(LEN, 0);
            memory.shrink_to_fit();
            Ok((number, memory))
        };
        wholes.bring(bring).unwrap()
    }

    fn bytes(wholes: &Wholes) -> u64 {
        wholes.shared.inner.lock().bytes
    }

    #[test]
    fn what_is_idle_makes_room_and_what_is_held_does_not() {
        let wholes = Wholes::default();
        let first = bring(&wholes, 0);
        for number in 1..3 * FIT {
            drop(bring(&wholes, number));
            assert!(bytes(&wholes) <= BYTES_MAX);
        }
        assert!(wholes.get(0).is_some(), "it is held");
        assert!(wholes.get(1).is_none() && wholes.get(3 * FIT - 1).is_some());
        drop((first, wholes.held(3 * FIT - 1)));
        assert!(wholes.held(1).is_none());
    }

    #[test]
    fn who_finds_all_held_waits_until_one_is_not() {
        let wholes = Wholes::default();
        let mut held: Vec<_> = (0..FIT).map(|number| bring(&wholes, number)).collect();
        let (brought, came) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let one_more = bring(&wholes, FIT);
                brought.send(()).unwrap();
                drop(one_more);
            });
            assert!(came.recv_timeout(SOON).is_err());
            drop(held.pop());
            came.recv().unwrap();
        });
        assert_eq!(bytes(&wholes), BYTES_MAX);
    }

    /// All readers of a restore begin at once, and nobody knows yet how long what they ask for is.
    #[test]
    fn until_one_has_come_each_is_thought_to_be_as_long_as_can_be() {
        let wholes = Wholes::default();
        let first: Vec<_> = (0..BYTES_MAX / LEN_MAX).map(|_| wholes.room()).collect();
        assert!(bytes(&wholes) + LEN_MAX > BYTES_MAX);
        drop(first);
        drop(bring(&wholes, 1));
        let (room, memory) = wholes.room();
        assert_eq!((room.bytes, memory.len()), (LEN as u64, 0));
    }

    #[test]
    fn only_one_at_a_time_brings_an_object() {
        let wholes = Wholes::default();
        let turn = wholes.turn("a");
        drop(wholes.turn("b"));
        let (given, came) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(wholes.turn("a"));
                given.send(()).unwrap();
            });
            assert!(came.recv_timeout(SOON).is_err());
            drop(turn);
            came.recv().unwrap();
        });
    }

    #[test]
    fn what_does_not_come_leaves_no_trace() {
        let wholes = Wholes::default();
        drop(bring(&wholes, 1));
        let before = bytes(&wholes);
        let failed = wholes.bring(|_| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(
            failed.err().map(|e| e.kind()),
            Some(io::ErrorKind::NotFound)
        );
        assert_eq!(bytes(&wholes), before);
        // Two who want the same one, at the same time.
        let (a, b) = (bring(&wholes, 2), bring(&wholes, 2));
        drop((a, b));
        assert_eq!(bytes(&wholes), 2 * LEN as u64);
    }
}
