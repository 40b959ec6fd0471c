//! What a slot says of a file, and how it comes to say something else.
//!
//! Rule: a slot has two halves, and the one that counts is never written over: a write that is torn leaves it.

use std::io;

use super::disk::Disk;
use super::layout::{Half, Layout, Slot};

/// Where the file's slot is, and what it says. A file that was removed has none.
#[derive(Clone)]
pub(super) struct Record {
    /// Of the slot.
    pub(super) number: u32,
    /// Which half says it.
    pub(super) half: Half,
    pub(super) says: Slot,
    /// Another file has the name since: what is written here must not count as later.
    pub(super) replaced: bool,
}

/// A slot without a file.
#[derive(Clone, Copy)]
pub(super) struct FreeSlot {
    pub(super) number: u32,
    /// Which half said so last.
    pub(super) half: Half,
}

impl Record {
    /// Says `says` from here on. If it cannot be written the device is told once more what it said before: else a kill
    /// might bring what nobody was told had happened.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn say(&mut self, disk: &Disk, says: Slot) -> io::Result<()> {
        let half = self.half.other();
        let at = Layout::half_at(self.number, half);
        let sequence = disk.next_sequence();
        let says = Slot { sequence, ..says };
        match disk.device.write_all_at(&says.encode(), at) {
            Ok(()) => {
                (self.half, self.says) = (half, says);
                Ok(())
            }
            Err(error) => {
                // With its old sequence: another may have the name since.
                let _ = disk.device.write_all_at(&self.says.encode(), at);
                Err(error)
            }
        }
    }

    /// The same in both halves: where the next record of the slot is torn, and the one after it lost, a name that was
    /// taken away must not come back. That is all it costs if the second cannot be written.
    /// # Errors
    /// The operating system's.
    pub(super) fn say_twice(&mut self, disk: &Disk, says: Slot) -> io::Result<()> {
        self.say(disk, says.clone())?;
        let _ = self.say(disk, says);
        Ok(())
    }

    /// Notes that the file is gone.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn remove(mut self, disk: &Disk) -> io::Result<FreeSlot> {
        self.say_twice(disk, Slot::gone())?;
        let Self { number, half, .. } = self;
        Ok(FreeSlot { number, half })
    }
}
