//! The words of a lineage that change while it runs, mapped shared: they survive the process.
//!
//! ```text
//! word 0 magic   1,2 lineage   3 open generation   4 flags   5 last write (wall clock)
//! word 16+2i, 17+2i            stamp of disk i at the last clean close
//! ```
//!
//! Each change is one store of one word. The store of the open generation *is* the cut.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{ByteRange, Dir, File, SharedWords, Stamp, UnixNanos};

use crate::files;
use crate::{Generation, Lineage};

const MAGIC: u64 = u64::from_le_bytes(*b"STDNLIV1");
const LEN: u64 = 4096;

const OPEN_GENERATION: usize = 3;
const FLAGS: usize = 4;
const LAST_WRITE: usize = 5;
const STAMPS: usize = 16;
/// As many disks as have room for their stamps.
pub(crate) const STAMPS_MAX: usize = (block::index(LEN) / 8 - STAMPS) / 2;

/// Closed after everything was synced.
const CLEAN: u64 = 1;
/// Writes may have gone unmarked in the maps.
const LOST: u64 = 2;
/// Writes may have gone unmarked in the intent log, too.
const FORSAKEN: u64 = 4;
/// Somebody asks whether these words reached the disk, or was told that they did not: the system tells it once.
const ASKED: u64 = 8;

/// The time of the last write is kept to this precision: most writes do not store it.
pub(crate) const LAST_WRITE_PRECISION: Duration = Duration::from_secs(1);

pub(crate) struct Live {
    file: Arc<dyn File>,
    words: Arc<dyn SharedWords>,
    /// After a kill: the words may be old ones.
    doubtful: bool,
}

impl Live {
    pub(crate) fn create(dir: &dyn Dir, lineage: Lineage, now: UnixNanos) -> io::Result<Self> {
        let name = files::live(lineage);
        files::remove(dir, &name)?;
        let file = dir.create(&name)?;
        file.set_len(LEN)?;
        file.allocate(ByteRange::at(0, LEN).expect("small"))?;
        let live = Self {
            words: file.map(LEN)?,
            file,
            doubtful: false,
        };
        for (at, word) in identity(lineage).into_iter().enumerate() {
            live.word(at).store(word, Ordering::Relaxed);
        }
        live.word(LAST_WRITE).store(now.0, Ordering::Relaxed);
        live.word(OPEN_GENERATION)
            .store(Generation::FIRST.0, Ordering::Release);
        live.file.sync_data()?;
        files::remove(dir, &files::doubted(lineage))?;
        Ok(live)
    }

    /// `InvalidData` if it is not the file of this lineage. After another boot nobody believes what it says of a kill, so it
    /// is not asked.
    pub(crate) fn open(dir: &dyn Dir, lineage: Lineage, same_boot: bool) -> io::Result<Self> {
        let file = dir.open(&files::live(lineage))?;
        if file.len()? != LEN {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its length is wrong",
            ));
        }
        // Before anything brings it in.
        if same_boot && !file.is_cached(ByteRange::at(0, LEN).expect("small"))? {
            // Crash: whoever comes after us finds it in the cache, and must not take that for a good sign.
            files::doubt(dir, lineage)?;
        }
        // A file that was copied or moved may have lost what was reserved.
        file.allocate(ByteRange::at(0, LEN).expect("small"))?;
        let mut live = Self {
            words: file.map(LEN)?,
            file,
            doubtful: false,
        };
        let found = [0, 1, 2].map(|at| live.word(at).load(Ordering::Acquire));
        if found != identity(lineage) || live.open_generation() < Generation::FIRST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its header is wrong",
            ));
        }
        // Asked in any case: who is told of an old loss by a later sync takes it for a new one. A clean close
        // has synced what counts.
        let reached = live.reached_its_disk() && !files::is_doubted(dir, lineage);
        live.doubtful = same_boot && !reached && !live.is_clean();
        if !live.doubtful {
            files::remove(dir, &files::doubted(lineage))?;
        }
        Ok(live)
    }

    /// Whether no word that was stored before this process is lost.
    /// Crash: whoever is killed between the answer and what follows from it leaves a doubt.
    fn reached_its_disk(&self) -> bool {
        let flags = self.word(FLAGS).fetch_or(ASKED, Ordering::SeqCst);
        if flags & ASKED != 0 || self.file.check_writeback().is_err() {
            return false;
        }
        self.word(FLAGS).fetch_and(!ASKED, Ordering::SeqCst);
        true
    }

    /// Whether the words may be older than what a killed process of this boot stored.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    pub(crate) fn open_generation(&self) -> Generation {
        Generation(self.word(OPEN_GENERATION).load(Ordering::Acquire))
    }

    /// The cut: everything before `generation` is sealed.
    pub(crate) fn set_open_generation(&self, generation: Generation) {
        self.word(OPEN_GENERATION)
            .store(generation.0, Ordering::SeqCst);
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.word(FLAGS).load(Ordering::Acquire) & CLEAN != 0
    }

    /// A write could not be marked: the maps of this lineage cannot be trusted any more.
    pub(crate) fn lose(&self) {
        self.word(FLAGS).fetch_or(LOST, Ordering::SeqCst);
    }

    /// The maps say again all that was written.
    pub(crate) fn trust(&self) {
        self.word(FLAGS).fetch_and(!LOST, Ordering::SeqCst);
    }

    /// Nor can its intent log: nothing of this lineage can be gone on from.
    pub(crate) fn forsake(&self) {
        self.word(FLAGS).fetch_or(LOST | FORSAKEN, Ordering::SeqCst);
    }

    pub(crate) fn is_forsaken(&self) -> bool {
        self.word(FLAGS).load(Ordering::Acquire) & FORSAKEN != 0
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.word(FLAGS).load(Ordering::Acquire) & LOST != 0
    }

    /// Writes are about to be served: a power cut from here on is a power cut.
    pub(crate) fn clear_clean(&self) -> io::Result<()> {
        self.word(FLAGS)
            .fetch_and(!(CLEAN | ASKED), Ordering::SeqCst);
        self.file.sync_data()
    }

    /// Everything else is synced.
    pub(crate) fn set_clean(&self, stamps: &[Option<Stamp>]) -> io::Result<()> {
        for (disk, stamp) in stamps.iter().enumerate() {
            let Stamp { len, mtime_ns } = stamp.unwrap_or(Stamp {
                len: 0,
                mtime_ns: 0,
            });
            self.word(STAMPS + 2 * disk).store(len, Ordering::Relaxed);
            self.word(STAMPS + 2 * disk + 1)
                .store(mtime_ns, Ordering::Relaxed);
        }
        self.file.sync_data()?;
        self.word(FLAGS).fetch_or(CLEAN, Ordering::SeqCst);
        self.file.sync_data()
    }

    /// How a disk looked at the last clean close.
    pub(crate) fn stamp(&self, disk: usize) -> Stamp {
        let word = |at| self.word(at).load(Ordering::Acquire);
        Stamp {
            len: word(STAMPS + 2 * disk),
            mtime_ns: word(STAMPS + 2 * disk + 1),
        }
    }

    pub(crate) fn note_write(&self, now: UnixNanos) {
        let last = UnixNanos(self.word(LAST_WRITE).load(Ordering::Relaxed));
        if now.since(last) >= LAST_WRITE_PRECISION {
            self.word(LAST_WRITE).fetch_max(now.0, Ordering::Relaxed);
        }
    }

    /// No write began later than this plus [`LAST_WRITE_PRECISION`].
    pub(crate) fn last_write(&self) -> UnixNanos {
        UnixNanos(self.word(LAST_WRITE).load(Ordering::Acquire))
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.words.words()[at]
    }
}

fn identity(lineage: Lineage) -> [u64; 3] {
    let (low, high) = lineage.0.split_at(8);
    let half = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("half of sixteen bytes"));
    [MAGIC, half(low), half(high)]
}
