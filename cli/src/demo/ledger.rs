//! What was written when, and so what a point of a given moment must hold.
//!
//! ```text
//!   events    1 issue A   2 ack A   3 issue B   [4 cut asked ... 5 cut answered]   6 ack B
//!   the point holds A, and B or not B: B was in flight
//! ```
//!
//! Each block is only ever written by one connection, one request at a time, so its history is a
//! line. Everything else must be as in the original image.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use block::index;

use super::rng::Rng;

/// The unit of the demo's writes, in bytes.
pub(crate) const BLOCK: u64 = 4096;
/// Compared at once, in bytes.
const STEP: u64 = 1 << 20;

/// All writes so far.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    events: u64,
    writes: Vec<Write>,
    /// Writes of each block, oldest first.
    blocks: HashMap<u64, Vec<usize>>,
}

#[derive(Clone)]
struct Write {
    issued: u64,
    /// Never, if the server died before it answered.
    acked: Option<u64>,
    zeroes: bool,
}

/// Names a write of the ledger.
#[derive(Clone, Copy)]
pub(crate) struct WriteId(usize);

/// A cut happened between these events.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) asked: u64,
    pub(crate) answered: u64,
}

/// What a comparison looked at.
#[derive(Clone, Copy, Default)]
pub(crate) struct Compared {
    pub(crate) bytes: u64,
    /// Blocks that the guest had written.
    pub(crate) written_blocks: u64,
    /// Of those, the ones with a write in flight at the cut: either content is right.
    pub(crate) in_flight_blocks: u64,
}

impl Ledger {
    /// An event: the moment at which something is asked or answered.
    pub(crate) fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A write is about to be sent.
    pub(crate) fn issue(&mut self, first: u64, count: u64, zeroes: bool) -> WriteId {
        let issued = self.tick();
        let id = self.writes.len();
        self.writes.push(Write {
            issued,
            acked: None,
            zeroes,
        });
        for block in first..first + count {
            self.blocks.entry(block).or_default().push(id);
        }
        WriteId(id)
    }

    /// It was acknowledged.
    pub(crate) fn ack(&mut self, WriteId(id): WriteId) {
        let now = self.tick();
        self.writes[id].acked = Some(now);
    }

    pub(crate) fn acked_writes(&self) -> u64 {
        self.writes
            .iter()
            .filter(|write| write.acked.is_some())
            .count() as u64
    }

    /// Blocks that were, or may have been, written after `from` and before `until`.
    pub(crate) fn written_between(&self, from: Window, until: Window) -> Vec<u64> {
        let inside = |id: &usize| {
            let write = &self.writes[*id];
            write.issued < until.answered && write.acked.is_none_or(|acked| acked > from.asked)
        };
        let touched = self.blocks.iter().filter(|(_, ids)| ids.iter().any(inside));
        let mut blocks: Vec<_> = touched.map(|(block, _)| *block).collect();
        blocks.sort_unstable();
        blocks
    }

    /// The writes of which one must be what a block holds; `None` stands for the original.
    fn candidates(&self, block: u64, window: Window) -> Vec<Option<usize>> {
        let history = self.blocks.get(&block).map_or(&[][..], Vec::as_slice);
        let acked = |id: &usize| {
            self.writes[*id]
                .acked
                .is_some_and(|acked| acked < window.asked)
        };
        let settled = history.iter().rposition(acked);
        let later = settled.map_or(0, |at| at + 1);
        let issued = |id: &&usize| self.writes[**id].issued < window.answered;
        let mut found = vec![settled.map(|at| history[at])];
        found.extend(history[later..].iter().filter(issued).map(|id| Some(*id)));
        found
    }

    /// Holds the whole of a restored image against the original and the ledger.
    ///
    /// # Errors
    /// At the first byte that is not as it must be.
    pub(crate) fn check(
        &self,
        restored: &Path,
        original: &Path,
        window: Window,
    ) -> Result<Compared> {
        let (restored, original) = (File::open(restored)?, File::open(original)?);
        let size = original.metadata()?.len();
        ensure!(
            restored.metadata()?.len() == size,
            "the restored disk has another size"
        );
        let mut compared = Compared::default();
        let mut buffers = [vec![0; index(STEP)], vec![0; index(STEP)]];
        for start in (0..size).step_by(index(STEP)) {
            let len = index(STEP.min(size - start));
            let [ours, theirs] = &mut buffers;
            original.read_exact_at(&mut ours[..len], start)?;
            restored.read_exact_at(&mut theirs[..len], start)?;
            let pairs = ours[..len]
                .chunks(index(BLOCK))
                .zip(theirs[..len].chunks(index(BLOCK)));
            for (block, (original, found)) in (start / BLOCK..).zip(pairs) {
                self.check_block(block, original, found, window, &mut compared)
                    .with_context(|| format!("block {block} (byte {})", block * BLOCK))?;
            }
            compared.bytes += len as u64;
        }
        Ok(compared)
    }

    fn check_block(
        &self,
        block: u64,
        original: &[u8],
        found: &[u8],
        window: Window,
        compared: &mut Compared,
    ) -> Result<()> {
        if !self.blocks.contains_key(&block) {
            ensure!(
                original == found,
                "it was never written, and differs from the original"
            );
            return Ok(());
        }
        let candidates = self.candidates(block, window);
        compared.written_blocks += 1;
        compared.in_flight_blocks += u64::from(candidates.len() > 1);
        let holds = |candidate: &Option<usize>| match candidate {
            None => original == found,
            Some(id) => content(*id, self.writes[*id].zeroes, block)[..found.len()] == *found,
        };
        if candidates.iter().any(holds) {
            return Ok(());
        }
        bail!(
            "it holds none of the {} contents that it may have held at the cut",
            candidates.len()
        );
    }
}

/// What a write leaves in a block: half of it compresses, no two are alike.
pub(crate) fn content(id: usize, zeroes: bool, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; index(BLOCK)];
    if zeroes {
        return bytes;
    }
    let mut rng = Rng::new(id as u64 ^ block.rotate_left(32));
    let (noise, text) = bytes.split_at_mut(2048);
    for word in noise.chunks_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes());
    }
    let line = format!("standin demo, write {id}, block {block}\n");
    text.iter_mut()
        .zip(line.bytes().cycle())
        .for_each(|(out, byte)| *out = byte);
    bytes
}

impl WriteId {
    /// The bytes that the write leaves in `count` blocks from `first` on.
    pub(crate) fn data(self, first: u64, count: u64) -> Vec<u8> {
        (first..first + count)
            .flat_map(|block| content(self.0, false, block))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, name: &str, blocks: &[Vec<u8>]) -> std::path::PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, blocks.concat()).expect("written");
        path
    }

    /// A model that accepts everything would make the demo a lie.
    #[test]
    fn a_lost_write_and_a_write_from_the_future_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let blank = vec![0_u8; 4096];
        let original = image(dir.path(), "original", &[blank.clone(), blank.clone()]);
        let mut ledger = Ledger::default();
        let first = ledger.issue(0, 1, false);
        ledger.ack(first);
        let asked = ledger.tick();
        let flying = ledger.issue(0, 1, false);
        let answered = ledger.tick();
        ledger.ack(flying);
        let future = ledger.issue(0, 1, false);
        ledger.ack(future);
        let window = Window { asked, answered };
        let check = |block: Vec<u8>| {
            let restored = image(dir.path(), "restored", &[block, blank.clone()]);
            ledger.check(&restored, &original, window)
        };
        let right = check(first.data(0, 1)).expect("acknowledged before");
        assert_eq!((right.written_blocks, right.in_flight_blocks), (1, 1));
        assert!(check(flying.data(0, 1)).is_ok(), "in flight");
        assert!(check(blank.clone()).is_err(), "a lost write");
        assert!(check(future.data(0, 1)).is_err(), "not yet written");
        let stray = image(dir.path(), "stray", &[first.data(0, 1), first.data(1, 1)]);
        assert!(
            ledger.check(&stray, &original, window).is_err(),
            "never written"
        );
        assert_eq!(ledger.written_between(window, window), [0]);
    }
}
