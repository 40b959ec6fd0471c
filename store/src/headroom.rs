//! Headroom: room that is occupied in good times, so that a store that is full to the last byte can be cleaned.
//!
//! Removing points and collecting garbage write commits before they free anything. On a full place those come
//! into the room of the object `headroom`, which is removed for them and written again at once, as large as still fits;
//! so what is freed there is not taken by the next point. In full size it comes back with the collection.

use std::io;
use std::sync::Arc;

use crate::backend::Backend;

const NAME: &str = "headroom";

/// Less than this is not worth an object; and so much is left beside it.
const LEAST: u64 = 64 << 10;

/// The object that occupies the room.
pub(crate) struct Headroom {
    place: Arc<dyn Backend>,
    bytes: u64,
    epoch: u64,
}

impl Headroom {
    /// A bundle, and many commits.
    pub(crate) const BYTES: u64 = 8 << 20;

    /// `bytes` 0: none is kept.
    pub(crate) fn new(place: &Arc<dyn Backend>, bytes: u64, epoch: u64) -> Self {
        Self {
            place: Arc::clone(place),
            bytes,
            epoch,
        }
    }

    /// Removes the object, for room; `false` if there is none.
    pub(crate) fn give_up(&self) -> bool {
        give_up(&*self.place)
    }

    /// Occupies what is left of the room after it was given up.
    pub(crate) fn keep_the_rest(&self) {
        keep_the_rest(&*self.place, self.bytes, self.epoch);
    }

    /// Writes the object in full size, where that leaves room for others.
    pub(crate) fn restore(&self) {
        let restore = || -> io::Result<()> {
            let there = match self.place.len(NAME) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
                other => other?,
            };
            let space = self.place.space()?;
            if there >= self.bytes || space.is_none_or(|s| s.free_bytes < 2 * self.bytes) {
                return Ok(());
            }
            let noise = noise(self.bytes);
            match there {
                0 => self.place.create(NAME, &noise, self.epoch)?,
                _ => self.place.replace(NAME, &noise, self.epoch)?,
            }
            self.place.sync("")
        };
        if let Err(error) = restore() {
            tracing::warn!(%error, "no headroom could be reserved in the store; if its disk gets full it will need some room to be cleaned");
        }
    }

    /// Occupies the headroom again after a collection: as much of it as half of what is free.
    pub(crate) fn restore_some(&self) {
        self.restore();
        let there = self.place.len(NAME).is_ok_and(|len| len > 0);
        let space = self.place.space().ok().flatten();
        if let Some(space) = space.filter(|_| !there && self.bytes > 0) {
            let most = self.bytes.min(space.free_bytes / 2);
            keep_the_rest(&*self.place, most, self.epoch);
        }
    }

    /// Whether nothing but this room is left.
    pub(crate) fn is_needed(&self) -> bool {
        let space = self.place.space().ok().flatten();
        space.is_some_and(|space| space.free_bytes < self.bytes)
    }
}

/// Removes the object, for room; `false` if there is none. The caller holds the store's lock.
pub(crate) fn give_up(place: &dyn Backend) -> bool {
    place.remove(NAME).is_ok() && place.sync("").is_ok()
}

/// Occupies what is left of the room after it was given up, `most` bytes at most.
pub(crate) fn keep_the_rest(place: &dyn Backend, most: u64, epoch: u64) {
    let keep = || -> io::Result<()> {
        let Some(space) = place.space()? else {
            return Ok(());
        };
        // File systems need some for themselves.
        let bytes = space.free_bytes.saturating_sub(LEAST).min(most);
        if bytes < LEAST {
            return Ok(());
        }
        place.create(NAME, &noise(bytes), epoch)?;
        place.sync("")
    };
    if let Err(error) = keep() {
        // What somebody else took meanwhile is gone; the collection will show.
        tracing::warn!(%error, "the rest of the store's headroom could not be kept");
    }
}

/// What no file system compresses.
fn noise(bytes: u64) -> Vec<u8> {
    let mut noise = vec![0; block::index(bytes)];
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for word in noise.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
    }
    noise
}
