//! Headroom: room that is occupied in good times, so that a store that is full to the last byte can be cleaned.
//!
//! Removing points and collecting garbage write commits before they free anything. On a full place those come
//! into the room of the object `headroom`, which is removed for them, and written again afterwards.

use std::io;
use std::sync::Arc;

use crate::backend::Backend;

const NAME: &str = "headroom";

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
        self.place.remove(NAME).is_ok() && self.place.sync("").is_ok()
    }

    /// Writes the object if it is not there, where that leaves room for others.
    pub(crate) fn restore(&self) {
        let restore = || -> io::Result<()> {
            let there = match self.place.len(NAME) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => false,
                other => other.map(|_| true)?,
            };
            let Some(space) = self.place.space()? else {
                return Ok(());
            };
            if there || self.bytes == 0 || space.free_bytes < 2 * self.bytes {
                return Ok(());
            }
            let mut noise = vec![0; block::index(self.bytes)];
            fill(&mut noise);
            self.place.create(NAME, &noise, self.epoch)?;
            self.place.sync("")
        };
        if let Err(error) = restore() {
            tracing::warn!(%error, "no headroom could be reserved in the store; if its disk gets full it will need some room to be cleaned");
        }
    }

    /// Whether nothing but this room is left.
    pub(crate) fn is_needed(&self) -> bool {
        let space = self.place.space().ok().flatten();
        space.is_some_and(|space| space.free_bytes < self.bytes)
    }
}

/// What no file system compresses.
fn fill(bytes: &mut [u8]) {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for word in bytes.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
    }
}
