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
const LEN_MAX: u64 = 18 << 20;

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
    objects: LruCache<u64, Object>,
    /// Bytes of these, and of those on their way.
    bytes: u64,
    /// Names of those of which it is somebody's turn to bring them.
    turns: HashSet<String>,
    /// The longest yet: so long the next one is thought to be.
    longest: Option<u64>,
}

/// An object in memory.
struct Object {
    bytes: Arc<Vec<u8>>,
    /// By how many it is held. Who only reads it has its bytes for a moment, and is not counted.
    holders: usize,
}

impl Object {
    /// What it takes.
    fn memory(&self) -> u64 {
        self.bytes.capacity() as u64
    }
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

/// An object stays in memory as long as this lives.
struct Held {
    number: u64,
    shared: Arc<Shared>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        if let Some(object) = inner.objects.peek_mut(&self.number) {
            object.holders -= 1;
        }
        drop(inner);
        self.shared.changed.notify_all();
    }
}

impl Wholes {
    /// The bytes of an object, if it is in memory.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Vec<u8>>> {
        let mut inner = self.shared.inner.lock();
        let object = inner.objects.get(&number)?;
        Some(Arc::clone(&object.bytes))
    }

    /// Holds one that is in memory.
    pub(super) fn held(&self, number: u64) -> Option<Box<dyn Any + Send>> {
        self.shared.inner.lock().hold(number)?;
        Some(self.guard(number))
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

    /// Brings an object, and holds it. `bring` is told how long it may be, and given memory that can be used for it; it says its number,
    /// too, or `InvalidData` where it is longer. May wait until others are held no more: whoever holds one must not wait
    /// for somebody who wants one.
    ///
    /// # Errors
    /// Those of `bring`.
    pub(super) fn bring(
        &self,
        bring: impl Fn(u64, Vec<u8>) -> io::Result<(u64, Vec<u8>)>,
    ) -> io::Result<Box<dyn Any + Send>> {
        let longest = self.shared.inner.lock().longest;
        if let Some(longest) = longest.filter(|longest| *longest < LEN_MAX) {
            match self.bring_within(longest, &bring) {
                // Some are longer than all were until then.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {}
                brought => return brought,
            }
        }
        self.bring_within(LEN_MAX, &bring)
    }

    fn bring_within(
        &self,
        most: u64,
        bring: &impl Fn(u64, Vec<u8>) -> io::Result<(u64, Vec<u8>)>,
    ) -> io::Result<Box<dyn Any + Send>> {
        let (room, memory) = self.room(most);
        let (number, bytes) = bring(most, memory)?;
        room.fill(number, bytes);
        Ok(self.guard(number))
    }

    fn guard(&self, number: u64) -> Box<dyn Any + Send> {
        let shared = Arc::clone(&self.shared);
        Box::new(Held { number, shared })
    }

    /// Room for so many bytes, and what was there before, if anything was: memory that was used before is cheaper than new.
    fn room(&self, bytes: u64) -> (Room<'_>, Vec<u8>) {
        let mut inner = self.shared.inner.lock();
        let mut memory = Vec::new();
        loop {
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
    fn hold(&mut self, number: u64) -> Option<()> {
        self.objects.get_mut(&number)?.holders += 1;
        Some(())
    }

    /// Takes the one out that nobody holds and nobody has read for longest, and gives its memory, unless somebody reads it just now.
    fn drop_idle(&mut self) -> Option<Vec<u8>> {
        let mut from_oldest = self.objects.iter().rev();
        let idle = from_oldest.find(|(_, object)| object.holders == 0);
        let number = *idle?.0;
        let object = self.objects.pop(&number)?;
        self.bytes -= object.memory();
        Some(Arc::into_inner(object.bytes).unwrap_or_default())
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
    /// Keeps the object, and holds it.
    fn fill(self, number: u64, bytes: Vec<u8>) {
        let mut inner = self.shared.inner.lock();
        let before = inner.objects.pop(&number);
        let object = Object {
            bytes: Arc::new(bytes),
            holders: 1 + before.as_ref().map_or(0, |before| before.holders),
        };
        inner.bytes += object.memory();
        inner.bytes -= before.map_or(0, |before| before.memory());
        inner.longest = inner.longest.max(Some(object.memory()));
        inner.objects.push(number, object);
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

    use block::index;

    use super::*;

    const LEN: usize = 8 << 20;
    const FIT: u64 = BYTES_MAX / LEN as u64;
    const SOON: Duration = Duration::from_millis(50);

    /// An object of so many bytes, for `Wholes::bring`.
    fn of_length(len: usize, number: u64) -> impl Fn(u64, Vec<u8>) -> io::Result<(u64, Vec<u8>)> {
        move |most, mut memory: Vec<u8>| {
            if len as u64 > most {
                return Err(io::ErrorKind::InvalidData.into());
            }
            memory.resize(len, 0);
            memory.shrink_to_fit();
            Ok((number, memory))
        }
    }

    fn bring(wholes: &Wholes, number: u64) -> Box<dyn Any + Send> {
        wholes.bring(of_length(LEN, number)).unwrap()
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

    /// The last container of a point is short. All readers of a restore begin at once: each was given room for one like it, and brought
    /// one that was eight times as long.
    #[test]
    fn what_is_longer_than_all_before_finds_room_first() {
        let wholes = Wholes::default();
        let [long, short] = [index(LEN_MAX), index(LEN_MAX / 8)];
        drop(wholes.bring(of_length(short, 0)).unwrap());
        let held: Vec<_> = (1..=BYTES_MAX / LEN_MAX)
            .map(|number| wholes.bring(of_length(long, number)).unwrap())
            .collect();
        assert!((BYTES_MAX - LEN_MAX..=BYTES_MAX).contains(&bytes(&wholes)));
        let (brought, came) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(wholes.bring(of_length(long, 7)).unwrap());
                brought.send(()).unwrap();
            });
            assert!(came.recv_timeout(SOON).is_err() && bytes(&wholes) <= BYTES_MAX);
            drop(held);
            came.recv().unwrap();
        });
    }

    /// A reader that held nothing had an object's bytes when its last holder let go: who waited for room saw it in use, and nobody woke
    /// him again.
    #[test]
    fn who_only_reads_keeps_nobody_waiting() {
        let wholes = Wholes::default();
        let held: Vec<_> = (0..FIT).map(|number| bring(&wholes, number)).collect();
        let read = wholes.get(0);
        let (brought, came) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let all: Vec<_> = (FIT..2 * FIT)
                    .map(|number| bring(&wholes, number))
                    .collect();
                brought.send(all.len()).unwrap();
            });
            drop(held);
            assert_eq!(came.recv_timeout(Duration::from_secs(20)), Ok(index(FIT)));
        });
        assert_eq!(read.map(|bytes| bytes.len()), Some(LEN));
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
        let failed = wholes.bring(|_, _| Err(io::ErrorKind::NotFound.into()));
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
