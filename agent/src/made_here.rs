//! What this protection had a server list, by its own account.
//!
//! ```text
//!   image complete --> its digest is written here, synced --> the server is asked to list it --> listed
//!   next ship: is the newest point of our history written here?  no: the disks are copied anew
//! ```
//!
//! A ship token lets whoever has it add points to a history that it can see. The next point would be laid
//! over one of a thief's, or be taken for listed where the thief's has its number.
//!
//! Rule: nothing is asked for before it is durable here. So what is listed and not written here is not ours,
//! whatever crashed, and however many answers were lost.
//! Rule: a protection of before this file believes what it finds when it first looks, until it has asked for something.
//!
//! `docs/formats/made.md` draws the file.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use block::{Dir, File, Name, OsDir};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use store::{ImageRef, PointRecord, SeedRecord};
use tracing::warn;

use crate::base::Held;
use crate::places::GroupPlace;
use crate::{Error, Result};

/// Its name in the state directory of the group.
const NAME: &str = "made";
/// Its name while it is made.
const NEW_NAME: &str = "made.new";
const MAGIC: &[u8; 8] = b"STDNMADE";
const VERSION: u32 = 1;
/// Bytes of a slot. There are two: a torn write leaves the other.
const SLOT: usize = 4096;
const HEAD: usize = 32;
const DIGEST: usize = 32;
/// Most digests that are kept: those that were asked for, or seen listed, last. More than two matter only where
/// answers are lost one after the other.
const KEPT_MAX: usize = 64;

/// Names a point, or a first copy, by all that the next one builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made([u8; DIGEST]);

impl Made {
    /// A point of these images.
    pub(crate) fn point<'a>(
        lineage: &[u8; 16],
        generation: u64,
        disks: impl Iterator<Item = (&'a Name, &'a ImageRef)>,
    ) -> Self {
        Self::of(b"point", lineage, generation, disks.map(|(n, i)| (n, 0, i)))
    }

    fn of_point(point: &PointRecord) -> Self {
        let disks = point.disks.iter().map(|disk| (&disk.name, &disk.image));
        Self::point(&point.lineage, point.generation, disks)
    }

    /// A first copy; with each disk goes how many granules of it are copied.
    pub(crate) fn seed<'a>(
        lineage: &[u8; 16],
        generation: u64,
        disks: impl Iterator<Item = (&'a Name, u64, &'a ImageRef)>,
    ) -> Self {
        Self::of(b"seed ", lineage, generation, disks)
    }

    fn of_seed(seed: &SeedRecord) -> Self {
        let disks = seed.disks.iter();
        let disks = disks.map(|disk| (&disk.name, disk.cursor_granule, &disk.image));
        Self::seed(&seed.lineage, seed.generation, disks)
    }

    fn of<'a>(
        kind: &[u8; 5],
        lineage: &[u8; 16],
        generation: u64,
        disks: impl Iterator<Item = (&'a Name, u64, &'a ImageRef)>,
    ) -> Self {
        let mut disks: Vec<_> = disks.collect();
        disks.sort_by_key(|(name, _, _)| *name);
        let mut hash = Sha256::new();
        hash.update(kind);
        hash.update(lineage);
        hash.update(generation.to_le_bytes());
        for (name, copied, image) in disks {
            let image = image.to_bytes();
            hash.update((name.as_str().len() as u64).to_le_bytes());
            hash.update(name.as_str());
            hash.update(copied.to_le_bytes());
            hash.update((image.len() as u64).to_le_bytes());
            hash.update(image);
        }
        Self(hash.finalize().into())
    }
}

/// The account of a group that is being protected.
pub(crate) struct MadeHere {
    dir: Arc<dyn Dir>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` until the first write, and after one that failed.
    file: Option<Arc<dyn File>>,
    /// Of the newest slot.
    sequence: u64,
    /// The last one that was asked for, or seen listed, is the last.
    known: VecDeque<Made>,
    /// There was no file, and the server was not looked at yet.
    believes: bool,
}

impl MadeHere {
    /// That of a group.
    pub(crate) fn of(place: &GroupPlace) -> Result<Self> {
        let path = place.dir();
        let dir = OsDir::open(path).map_err(Error::file("open", path))?;
        Ok(Self::open(Arc::new(dir)))
    }

    /// Reads it, if it is there. One that cannot be read knows nothing: guests are served all the same.
    fn open(dir: Arc<dyn Dir>) -> Self {
        let read = dir.open(NAME);
        let read = read.and_then(|file| Ok((newest_slot(&*file)?, file)));
        let mut state = State::default();
        match read {
            Ok((slot, file)) => {
                (state.sequence, state.known) = slot.unwrap_or_default();
                state.file = Some(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => state.believes = true,
            Err(error) => {
                warn!(%error, "the account of what was shipped cannot be read; it is made anew");
            }
        }
        Self {
            dir,
            state: Mutex::new(state),
        }
    }

    /// Writes down what the server is about to be asked to list.
    ///
    /// # Errors
    /// The operating system's: then nothing may be asked for.
    pub(crate) fn ask(&self, made: Made) -> io::Result<()> {
        let mut state = self.state.lock();
        state.believes = false;
        state.remember(made);
        state.write(&*self.dir)
    }

    /// Whether a point is one that was asked for here.
    pub(crate) fn has_point(&self, point: &PointRecord) -> bool {
        self.knows(Made::of_point(point))
    }

    /// Of what a server has of a history, newest first: what was made here, and whether there is anything else that counts.
    pub(crate) fn only_ours(
        &self,
        lineage: &[u8; 16],
        points: Vec<Arc<PointRecord>>,
        seed: Option<Arc<SeedRecord>>,
    ) -> Held {
        let told = |what: &str| {
            warn!(
                "the target lists {what} of this protection's history that it did not make; if nobody else should have its token, revoke it"
            );
        };
        let mut foreign = false;
        let mut points = points.into_iter().filter(|p| p.lineage == *lineage);
        let newest = points.next();
        // One that was listed earlier for a later cut is in the way of that cut.
        let reached = newest.as_ref().map_or(0, |newest| newest.generation);
        let believes = std::mem::take(&mut self.state.lock().believes);
        let point = newest.filter(|newest| {
            let ours = believes || self.has_point(newest);
            if !ours {
                told(&format!("point {}", newest.id));
            }
            foreign |= !ours;
            ours
        });
        for other in points.filter(|p| p.generation > reached) {
            if !self.has_point(&other) {
                told(&format!("point {}", other.id));
                foreign = true;
            }
        }
        let seed = seed.filter(|seed| seed.lineage == *lineage);
        let seed = seed.filter(|seed| {
            let ours = believes || self.knows(Made::of_seed(seed));
            if !ours {
                told("a first copy");
            }
            foreign |= !ours;
            ours
        });
        let mut state = self.state.lock();
        let seen = [
            point.as_deref().map(Made::of_point),
            seed.as_deref().map(Made::of_seed),
        ];
        seen.into_iter()
            .flatten()
            .for_each(|made| state.remember(made));
        Held {
            point,
            seed,
            foreign,
        }
    }

    fn knows(&self, made: Made) -> bool {
        let state = self.state.lock();
        state.believes || state.known.contains(&made)
    }
}

impl State {
    fn remember(&mut self, made: Made) {
        self.known.retain(|known| *known != made);
        self.known.push_back(made);
        if self.known.len() > KEPT_MAX {
            self.known.pop_front();
        }
    }

    fn write(&mut self, dir: &dyn Dir) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = encode(sequence, &self.known);
        let offset = (sequence % 2) * SLOT as u64;
        match self.file.take() {
            Some(file) => {
                // Where it cannot be written any more it is made anew the next time.
                file.write_all_at(&slot, offset)?;
                file.sync_data()?;
                self.file = Some(file);
            }
            None => {
                // What a crash left of an earlier attempt.
                match dir.remove(NEW_NAME) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let file = dir.create(NEW_NAME)?;
                // Both slots take their room now: where diffs fill the disk, ships are what frees it.
                file.write_all_at(&[0; 2 * SLOT], 0)?;
                file.write_all_at(&slot, offset)?;
                file.sync_data()?;
                dir.rename(NEW_NAME, NAME)?;
                dir.sync()?;
                self.file = Some(file);
            }
        }
        self.sequence = sequence;
        Ok(())
    }
}

fn encode(sequence: u64, known: &VecDeque<Made>) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    let (head, body) = slot.split_at_mut(HEAD);
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[16..24].copy_from_slice(&sequence.to_le_bytes());
    head[24..32].copy_from_slice(&(known.len() as u64).to_le_bytes());
    for (place, made) in body.chunks_exact_mut(DIGEST).zip(known) {
        place.copy_from_slice(&made.0);
    }
    let crc = crc32c::crc32c(&slot[..SLOT - 4]);
    slot[SLOT - 4..].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// `None` if it is none.
fn decode(slot: &[u8; SLOT]) -> Option<(u64, VecDeque<Made>)> {
    let word = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| u32::from_le_bytes(slot[at..at + 4].try_into().expect("4 bytes"));
    let whole = half(SLOT - 4) == crc32c::crc32c(&slot[..SLOT - 4]);
    let count = usize::try_from(word(24)).ok()?;
    if !whole || slot[..8] != *MAGIC || half(8) != VERSION || count > KEPT_MAX {
        return None;
    }
    let digests = slot[HEAD..].as_chunks::<DIGEST>().0.iter();
    Some((word(16), digests.take(count).map(|d| Made(*d)).collect()))
}

/// What the newest slot says; `None` if both are damaged: then nothing is known to be ours.
fn newest_slot(file: &dyn File) -> io::Result<Option<(u64, VecDeque<Made>)>> {
    if file.len()? < 2 * SLOT as u64 {
        return Ok(None);
    }
    let mut bytes = [0; 2 * SLOT];
    file.read_exact_at(&mut bytes, 0)?;
    let slots = bytes.as_chunks::<SLOT>().0.iter().filter_map(decode);
    Ok(slots.max_by_key(|(sequence, _)| *sequence))
}

#[cfg(test)]
mod tests;
