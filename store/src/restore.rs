//! Reading a whole image fast: container by container, in parallel, each region once.
//!
//! ```text
//! the image's runs, a window at a time -> sorted by place -> one task per container
//!   task: for each region that is needed: read, check, decompress -> its chunks to where they belong
//! ```
//!
//! Rule: a region is checked (checksum and fingerprints) before a byte of it goes out.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use block::{ByteRange, GRANULE, GranuleRange, index};
use parking_lot::Mutex;

use crate::error::{ErrorKind, Result, StoreError, io_error};
use crate::fingerprint::CHUNK;
use crate::image::Image;
use crate::place::Place;
use crate::runs::Run;
use gather::Gather;

mod gather;

/// Most runs sorted at once: 6 MiB. An image of 8 GiB has 20,000 to 160,000 of them.
const WINDOW_RUNS_MAX: usize = 256 << 10;

/// Where a restored image goes. Called from several threads, for ranges that do not overlap.
pub trait RestoreSink: Sync {
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// Ends the restore.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// `range` is zeroes in the image. A sink that is all zeroes to begin with has nothing to do.
    ///
    /// # Errors
    /// Ends the restore.
    fn zero(&self, range: ByteRange) -> io::Result<()>;
}

/// Takes what a sweep over an image finds.
pub(crate) trait Sweep: Sync {
    /// What takes the chunks that one thread reads.
    fn taker(&self) -> Box<dyn Taker + '_>;
    /// A part that holds nothing.
    fn zero(&self, range: ByteRange) -> Result<()>;
    /// A part that cannot be read. `Err` ends the sweep.
    fn damaged(&self, ranges: Vec<ByteRange>, error: StoreError) -> Result<()>;
}

/// Takes the chunks that one thread of a sweep reads.
pub(crate) trait Taker {
    /// Chunks that were checked, and where they belong; cut at the end of the disk.
    fn data(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// No more come.
    fn end(&mut self) -> Result<()>;
}

impl Image {
    /// Hands the whole image to `sink`, from `workers` threads (at least one). `progress` is told
    /// bytes done and bytes in all, from several threads.
    ///
    /// # Errors
    /// `Corrupt` naming the object and what it hits; the sink's error as `Io` or `Full`.
    pub fn restore_to(
        &self,
        sink: &dyn RestoreSink,
        workers: usize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<()> {
        sweep(self, &Restore(sink), workers, progress)
    }
}

struct Restore<'a>(&'a dyn RestoreSink);

fn sink_error(source: io::Error) -> StoreError {
    io_error("write to", "the output".into(), source)
}

impl Sweep for Restore<'_> {
    fn taker(&self) -> Box<dyn Taker + '_> {
        Box::new(Gather::new(self.0))
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        self.0.zero(range).map_err(sink_error)
    }

    fn damaged(&self, ranges: Vec<ByteRange>, error: StoreError) -> Result<()> {
        Err(ranges.into_iter().fold(error, StoreError::hitting))
    }
}

/// Goes over all of `image`, in order of containers.
pub(crate) fn sweep(
    image: &Image,
    to: &dyn Sweep,
    workers: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<()> {
    let mut window = Window {
        image,
        to,
        workers: workers + image.objects.opener.containers.waiting_readers(),
        progress,
        runs: Vec::new(),
        reached: 0,
        done: AtomicU64::new(0),
    };
    let everything = GranuleRange {
        start: 0,
        end: image.shape.granules,
    };
    // A leaf that cannot be read hides only itself: the walk goes leaf by leaf around it.
    let mut from = 0;
    while from < everything.end {
        let part = GranuleRange {
            start: from,
            end: everything.end,
        };
        match image.each_run(part, &mut |run| window.take(run)) {
            Ok(()) => break,
            Err(e) => from = window.skip_damage(e)?,
        }
    }
    window.zero_until(everything.end)?;
    window.settle()
}

struct Window<'a> {
    image: &'a Image,
    to: &'a dyn Sweep,
    workers: usize,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    runs: Vec<Run>,
    /// Chunks below are dealt with or in `runs`.
    reached: u64,
    /// Bytes.
    done: AtomicU64,
}

impl Window<'_> {
    fn take(&mut self, run: Run) -> Result<()> {
        self.zero_until(run.start)?;
        self.reached = run.end();
        self.runs.push(run);
        if self.runs.len() >= WINDOW_RUNS_MAX {
            self.settle()?;
        }
        Ok(())
    }

    fn zero_until(&mut self, chunk: u64) -> Result<()> {
        if chunk > self.reached {
            let range = self.bytes(self.reached, chunk);
            self.to.zero(range)?;
            self.reached = chunk;
            self.report(range.len());
        }
        Ok(())
    }

    fn bytes(&self, start: u64, end: u64) -> ByteRange {
        GranuleRange { start, end }.bytes(self.image.reference.size)
    }

    fn report(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.image.reference.size);
    }

    /// Reads all runs of the window.
    fn settle(&mut self) -> Result<()> {
        let mut runs = std::mem::take(&mut self.runs);
        runs.sort_unstable_by_key(|run| run.place);
        let container = |run: &Run| run.place.map(Place::container);
        let tasks: Vec<&[Run]> = runs.chunk_by(|a, b| container(a) == container(b)).collect();
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let fail = |error| {
            failed.lock().get_or_insert(error);
        };
        let work = || {
            let mut taker = self.to.taker();
            while failed.lock().is_none() {
                let task = next.fetch_add(1, Ordering::Relaxed);
                let done = match tasks.get(task) {
                    Some(task) => self.read_container(task, &mut *taker),
                    None => return taker.end().unwrap_or_else(fail),
                };
                done.unwrap_or_else(fail);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.workers.min(tasks.len()) {
                scope.spawn(work);
            }
            work();
        });
        runs.clear();
        let failed = failed.into_inner();
        self.runs = runs;
        failed.map_or(Ok(()), Err)
    }

    /// `runs` lie in one container, in order of slots.
    fn read_container(&self, runs: &[Run], taker: &mut dyn Taker) -> Result<()> {
        let Some(id) = runs[0].place.map(Place::container) else {
            return Ok(());
        };
        let objects = &self.image.objects;
        let container = match objects.container(id) {
            Err(e) => return self.lose(runs, e),
            Ok(container) => container,
        };
        let manifest = &container.manifest;
        let mut open: Option<(usize, Vec<u8>)> = None;
        let mut rest: VecDeque<Run> = runs.iter().copied().collect();
        while let Some(run) = rest.pop_front() {
            let Some(place) = run.place else { continue };
            let Some(position) = manifest.position(place.slot()) else {
                self.lose(&[run], objects.no_such_slot(place))?;
                continue;
            };
            let region = manifest.region_of(position);
            let entry = &manifest.regions[region];
            // Slots that stand together lie together; that the last one is there is found out when it comes.
            let region_end = usize::from(entry.first) + usize::from(entry.chunks);
            let here = manifest.together(position).min(region_end - position);
            let (now, later) = split(run, run.count.min(here as u64));
            if let Some(later) = later {
                // Slots stay in order: what is later lies in the next region.
                rest.push_front(later);
            }
            if open.as_ref().is_none_or(|(known, _)| *known != region) {
                open = match objects.load_region(&container, region) {
                    Ok(chunks) => Some((region, chunks)),
                    Err(StoreError::Missing { .. }) if objects.has_moved(&container) => {
                        // Garbage collection was faster.
                        rest.push_front(now);
                        let rest: Vec<Run> = rest.into();
                        return self.read_container(&rest, taker);
                    }
                    Err(e) => {
                        self.lose(&[now], e)?;
                        continue;
                    }
                };
            }
            let (_, chunks) = open.as_ref().expect("it was just opened");
            let at = (position - usize::from(entry.first)) * CHUNK;
            let range = self.bytes(now.start, now.end());
            let data = &chunks[at..at + index(range.len())];
            taker.data(now.start * GRANULE, data)?;
            self.report(range.len());
        }
        Ok(())
    }

    fn lose(&self, runs: &[Run], error: StoreError) -> Result<()> {
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        let mut ranges: Vec<_> = runs.iter().map(|r| self.bytes(r.start, r.end())).collect();
        ranges.sort_unstable();
        self.report(ranges.iter().map(|range| range.len()).sum());
        self.to.damaged(ranges, error)
    }

    /// The walk failed at or after `reached`: finds the leaf that cannot be read. Returns where to go on.
    fn skip_damage(&mut self, error: StoreError) -> Result<u64> {
        if !matches!(
            error,
            StoreError::Corrupt { .. } | StoreError::Missing { .. }
        ) {
            return Err(error);
        }
        let leaf_chunks = crate::tree::LEAF_CHUNKS;
        let mut leaf = self.reached / leaf_chunks;
        while leaf * leaf_chunks < self.image.shape.granules {
            let under = self.image.shape.under(0, leaf);
            let node = self.image.leaf_node(leaf);
            let readable = node.and_then(|node| self.image.leaf_runs(leaf, node));
            match readable {
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    let start = under.start.max(self.reached);
                    let range = self.bytes(start, under.end);
                    self.report(range.len());
                    self.reached = under.end;
                    self.to.damaged(vec![range], e)?;
                    return Ok(under.end);
                }
                Err(e) => return Err(e),
                Ok(_) if under.end <= self.reached => {}
                Ok(runs) => {
                    for run in runs {
                        let run = Run {
                            start: run.start + under.start,
                            ..run
                        };
                        let unseen = GranuleRange {
                            start: self.reached,
                            end: under.end,
                        };
                        if let Some(run) = run.clip(unseen) {
                            self.take(run)?;
                        }
                    }
                    self.zero_until(under.end)?;
                }
            }
            leaf += 1;
        }
        // Nothing is wrong any more: the next walk will show.
        Ok(self.reached)
    }
}

fn split(run: Run, count: u64) -> (Run, Option<Run>) {
    let cut = run.start + count;
    let first = run.clip(GranuleRange {
        start: run.start,
        end: cut,
    });
    let rest = run.clip(GranuleRange {
        start: cut,
        end: run.end(),
    });
    (
        first.expect("a region holds at least one chunk of it"),
        rest,
    )
}
