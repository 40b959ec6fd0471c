//! A disk, read from its beginning to its end by a thread of its own, some pieces ahead of who takes them: so that neither a slow
//! disk nor who hashes what it gives waits for the other.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use block::{BlockDevice, ByteRange, GRANULE, GranuleRange, index};

use crate::{Error, Result};

/// Bytes read at once.
const PIECE: u64 = 1 << 20;
/// Pieces that may lie there, read and not taken.
const AHEAD: usize = 8;
/// Extents asked for at once.
const EXTENTS_MAX: usize = 256;

/// A part of a disk: whole granules, ascending and without a gap.
pub(crate) enum Part<'a> {
    /// They read as zeroes.
    Zeroes(GranuleRange),
    /// What they hold; past the end of the disk zeroes.
    Data(GranuleRange, &'a [u8]),
}

impl Part<'_> {
    /// Where it ends, in granules.
    pub(crate) fn end(&self) -> u64 {
        match self {
            Self::Zeroes(granules) | Self::Data(granules, _) => granules.end,
        }
    }
}

/// Gives `take` all of a disk, part by part. The first failure ends it.
///
/// # Errors
/// `Device` where the disk cannot be read; what `take` returns.
pub(crate) fn read_ahead(
    disk: &dyn BlockDevice,
    take: &mut dyn FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let (parts, taken) = sync_channel(AHEAD);
    let (done_with, spare) = channel();
    thread::scope(|scope| {
        let reader = Reader { disk, parts, spare };
        let named = thread::Builder::new().name("disk-reader".to_owned());
        let started = named.spawn_scoped(scope, move || reader.run());
        started.map_err(Error::file("start a thread for", "the image"))?;
        take_all(taken, &done_with, take)
    })
}

/// Whoever returns from here lets go of `taken`, and the reader ends.
fn take_all(
    taken: Receiver<Read>,
    done_with: &Sender<Vec<u8>>,
    take: &mut dyn FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    for read in taken {
        match read {
            Read::Zeroes(granules) => take(Part::Zeroes(granules))?,
            Read::Data(granules, bytes) => {
                take(Part::Data(granules, &bytes))?;
                // Once the last piece is read nobody wants it.
                let _ = done_with.send(bytes);
            }
            Read::Failed(source) => {
                let doing = "read the image";
                return Err(Error::Device { doing, source });
            }
        }
    }
    Ok(())
}

/// What was read.
enum Read {
    Zeroes(GranuleRange),
    Data(GranuleRange, Vec<u8>),
    Failed(block::Error),
}

/// Nobody takes it any more.
struct Left;

type Given = std::result::Result<(), Left>;

struct Reader<'a> {
    disk: &'a dyn BlockDevice,
    parts: SyncSender<Read>,
    /// Memory of pieces that were taken.
    spare: Receiver<Vec<u8>>,
}

impl Reader<'_> {
    fn run(&self) {
        let size = self.disk.size();
        let mut at = 0;
        while at < size {
            let rest = ByteRange::new(at, size).expect("there is a rest");
            let began = at;
            let read = match self.disk.block_status(rest, EXTENTS_MAX) {
                Ok(extents) => extents.iter().try_for_each(|extent| {
                    let (end, zeroes) = (extent.range.end(), extent.state.reads_zero());
                    self.read_extent(&mut at, end.min(size), zeroes)
                }),
                Err(error) => self.give(Read::Failed(error)).and(Err(Left)),
            };
            match read {
                Ok(()) if at > began => {}
                Ok(()) => {
                    let none = std::io::Error::other("it tells nothing of where it has data");
                    let _ = self.give(Read::Failed(block::Error::io(
                        block::Op::BlockStatus,
                        rest,
                        none,
                    )));
                    return;
                }
                Err(Left) => return,
            }
        }
    }

    /// From `at`, where a granule begins, to `end`; where that lies inside a granule, all of it is read.
    fn read_extent(&self, at: &mut u64, end: u64, zeroes: bool) -> Given {
        let size = self.disk.size();
        if zeroes && end > *at {
            let last = match end == size {
                true => end.div_ceil(GRANULE),
                false => end / GRANULE,
            };
            let granules = GranuleRange {
                start: *at / GRANULE,
                end: last,
            };
            if !granules.is_empty() {
                self.give(Read::Zeroes(granules))?;
                *at = (last * GRANULE).min(size);
            }
        }
        while *at < end {
            let len = PIECE.min(end.next_multiple_of(GRANULE).min(size) - *at);
            self.read_piece(*at, len)?;
            *at += len;
        }
        Ok(())
    }

    fn read_piece(&self, at: u64, len: u64) -> Given {
        let granules = GranuleRange {
            start: at / GRANULE,
            end: (at + len).div_ceil(GRANULE),
        };
        let mut bytes = self.spare.try_recv().unwrap_or_default();
        bytes.resize(index(granules.count() * GRANULE), 0);
        let (inside, beyond) = bytes.split_at_mut(index(len));
        beyond.fill(0);
        match self.disk.read_at(inside, at) {
            Ok(()) => self.give(Read::Data(granules, bytes)),
            Err(error) => self.give(Read::Failed(error)).and(Err(Left)),
        }
    }

    fn give(&self, read: Read) -> Given {
        self.parts.send(read).map_err(|_| Left)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use block::{Extent, Features, Fua, MemoryDevice, Op, ZeroOptions};
    use parking_lot::Mutex;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A disk whose extents begin and end at any sector, and that cannot be read from `fails_at` on.
    struct Ragged {
        inner: MemoryDevice,
        rng: Mutex<ChaCha8Rng>,
        reads: AtomicUsize,
        fails_at: u64,
        tells_nothing: bool,
    }

    impl Ragged {
        fn new(size: u64, seed: u64) -> Self {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let inner = MemoryDevice::new(size);
            for _ in 0..rng.random_range(0..20) {
                let start = rng.random_range(0..size);
                let len = rng.random_range(1..200_000).min(size - start);
                let data = vec![rng.random_range(0..=255); index(len)];
                inner.write_at(&data, start, Fua::No).unwrap();
            }
            Self {
                inner,
                rng: Mutex::new(rng),
                reads: AtomicUsize::new(0),
                fails_at: u64::MAX,
                tells_nothing: false,
            }
        }
    }

    impl BlockDevice for Ragged {
        fn size(&self) -> u64 {
            self.inner.size()
        }

        fn features(&self) -> Features {
            Features::READ_ONLY
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> block::Result<()> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let range = ByteRange::of_buf(offset, buf);
            match range.end() > self.fails_at {
                true => Err(block::Error::io(
                    Op::Read,
                    range,
                    std::io::Error::other("x"),
                )),
                false => self.inner.read_at(buf, offset),
            }
        }

        fn write_at(&self, _: &[u8], _: u64, _: Fua) -> block::Result<()> {
            unreachable!("it is only read")
        }

        fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> block::Result<()> {
            unreachable!("it is only read")
        }

        fn trim(&self, _: ByteRange, _: Fua) -> block::Result<()> {
            unreachable!("it is only read")
        }

        fn flush(&self) -> block::Result<()> {
            unreachable!("it is only read")
        }

        fn prefetch(&self, _: ByteRange) -> block::Result<()> {
            Ok(())
        }

        fn block_status(&self, range: ByteRange, max: usize) -> block::Result<Vec<Extent>> {
            if self.tells_nothing {
                return Ok(Vec::new());
            }
            let mut extents = self.inner.block_status(range, max)?;
            extents.truncate(self.rng.lock().random_range(1..=3));
            let last = extents.last_mut().unwrap();
            let sectors = last.range.len() / block::SECTOR;
            let kept = self.rng.lock().random_range(1..=sectors.max(1)) * block::SECTOR;
            last.range = ByteRange::at(last.range.start(), kept.min(last.range.len())).unwrap();
            Ok(extents)
        }
    }

    #[test]
    fn all_of_a_disk_comes_in_order_wherever_its_extents_end() {
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let size = rng.random_range(1..=8_000) * block::SECTOR;
            let disk = Ragged::new(size, seed);
            let mut found = Vec::new();
            let mut end = 0;
            read_ahead(&disk, &mut |part| {
                match &part {
                    Part::Zeroes(granules) => {
                        assert_eq!(granules.start, end, "seed {seed}");
                        found.resize(index(granules.end * GRANULE), 0);
                    }
                    Part::Data(granules, bytes) => {
                        assert_eq!(granules.start, end, "seed {seed}");
                        assert_eq!(bytes.len() as u64, granules.count() * GRANULE);
                        found.extend_from_slice(bytes);
                    }
                }
                end = part.end();
                Ok(())
            })
            .unwrap();
            let mut wanted = vec![0; index(size)];
            disk.inner.read_at(&mut wanted, 0).unwrap();
            wanted.resize(index(size.next_multiple_of(GRANULE)), 0);
            assert!(found == wanted, "seed {seed}");
        }
    }

    /// Extents that bring nobody on: reading them had no end, and who waited for it could not stop it.
    #[test]
    fn a_disk_that_tells_nothing_of_its_extents_fails() {
        let mut disk = Ragged::new(4 << 20, 3);
        disk.tells_nothing = true;
        let failed = read_ahead(&disk, &mut |_| unreachable!("there is nothing"));
        assert!(matches!(failed, Err(Error::Device { .. })));
    }

    #[test]
    fn what_cannot_be_read_ends_it_after_what_can() {
        let mut disk = Ragged::new(4 << 20, 3);
        disk.inner.write_at(&vec![7; 4 << 20], 0, Fua::No).unwrap();
        disk.fails_at = 3 << 20;
        let mut end = 0;
        let failed = read_ahead(&disk, &mut |part| {
            end = part.end();
            Ok(())
        });
        assert!(matches!(failed, Err(Error::Device { .. })));
        assert!(end * GRANULE <= disk.fails_at && end > 0);
    }

    /// Whoever takes nothing more is not read for, and who is slow not for long.
    #[test]
    fn only_some_pieces_are_read_ahead() {
        let disk = Ragged::new(64 << 20, 5);
        disk.inner.write_at(&vec![7; 64 << 20], 0, Fua::No).unwrap();
        let stopped = read_ahead(&disk, &mut |_| Err(Error::usage("enough", "stop")));
        assert!(matches!(stopped, Err(Error::Usage { .. })));
        // Those that lie there, the one that was taken, and the one that nobody took.
        let reads = disk.reads.load(Ordering::SeqCst);
        assert!(reads <= AHEAD + 2, "{reads} reads");
    }
}
