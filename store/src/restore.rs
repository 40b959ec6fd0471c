//! Reading a whole image fast: a window of it after the other, each container by container, in parallel, each region once.
//!
//! ```text
//! the image's runs, a window at a time -> sorted by place -> one task per container -> several threads
//!   task: for each region that is needed: read, check, decompress -> its chunks to where they belong
//! ```
//!
//! Rule: a region is checked (checksum and fingerprints) before a byte of it goes out.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::{ByteRange, GRANULE, GranuleRange, index};
use parking_lot::Mutex;

use crate::error::{ErrorKind, Result, StoreError, io_error};
use crate::fingerprint::CHUNK;
use crate::image::Image;
use crate::place::Place;
use crate::runs::Run;
use crate::tree::LEAF_CHUNKS;
use assembly::Assembly;
use block_memory::BlockMemory;

mod assembly;
mod block_memory;

/// Most runs sorted at once: 6 MiB. An image of 8 GiB has 20,000 to 160,000 of them.
const WINDOW_RUNS_MAX: usize = 256 << 10;
/// Tasks that wait for a thread, at most.
const TASKS_WAITING: usize = 64;

/// Where a restored image goes. Called from several threads, for ranges that do not overlap.
pub trait RestoreSink: Sync {
    /// Writes `data` at `offset`: whole chunks but at the end of the disk, a mebibyte at most, and at a page in memory.
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

/// Takes what a sweep over an image finds, from several threads.
pub(crate) trait Sweep: Sync {
    /// Chunks that were checked, and where they belong; cut at the end of the disk. Each comes once.
    fn data(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// A part that holds nothing.
    fn zero(&self, range: ByteRange) -> Result<()>;
    /// A part that cannot be read. `Err` ends the sweep.
    fn damaged(&self, ranges: Vec<ByteRange>, error: StoreError) -> Result<()>;

    /// How many leaves that hold something make a window, at most; `None`: only the number of runs matters.
    fn window_leaves(&self) -> Option<usize> {
        None
    }

    /// These bytes come next, in any order; they ascend here. May wait for what came before.
    fn expect(&self, _parts: &mut dyn Iterator<Item = ByteRange>) -> Result<()> {
        Ok(())
    }

    /// The sweep has failed: who waits in [`expect`](Self::expect) waits in vain.
    fn stop(&self) {}
}

impl Image {
    /// Hands the whole image to `sink`: `readers` threads read it, `writers` write it (at least one each). `progress` is told bytes
    /// done and bytes in all, from several threads.
    ///
    /// # Errors
    /// `Corrupt` naming the object and what it hits; the sink's error as `Io` or `Full`.
    pub fn restore_to(
        &self,
        sink: &dyn RestoreSink,
        readers: usize,
        writers: usize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<()> {
        let memory = BlockMemory::default();
        let (full, blocks) = crossbeam_channel::unbounded();
        let swept = std::thread::scope(|scope| {
            for _ in 0..writers.max(1) {
                scope.spawn(|| memory.write(sink, &blocks));
            }
            // Writers end with it, also if it panics.
            let assembly = Assembly::new(sink, &memory, full);
            sweep(self, &assembly, readers, progress).map(|()| assembly.end())
        });
        memory.into_failure().map_or(swept, Err)
    }
}

fn sink_error(source: io::Error) -> StoreError {
    io_error("write to", "the output".into(), source)
}

/// Goes over all of `image`, each window of it in order of containers. With one worker nothing happens at the same time.
pub(crate) fn sweep(
    image: &Image,
    to: &dyn Sweep,
    workers: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<()> {
    let workers = workers + image.objects.opener.containers.waiting_readers();
    let reader = Reader {
        image,
        to,
        progress,
        done: AtomicU64::new(0),
    };
    if workers <= 1 {
        let mut read = |task: Vec<Run>| reader.read_container(&task);
        return Walk::new(&reader, &mut read).all();
    }
    let failed = Mutex::new(None);
    let stopped = AtomicBool::new(false);
    let fail = |error| {
        failed.lock().get_or_insert(error);
        stopped.store(true, Ordering::Relaxed);
        to.stop();
    };
    let (tasks, waiting) = crossbeam_channel::bounded::<Vec<Run>>(TASKS_WAITING);
    let walked = std::thread::scope(|scope| {
        let work = || {
            let _alarm = Alarm(|| to.stop());
            // All are taken, whatever happened: who sends them must not wait for nobody.
            for task in &waiting {
                if !stopped.load(Ordering::Relaxed) {
                    reader.read_container(&task).unwrap_or_else(fail);
                }
            }
        };
        (0..workers).for_each(|_| drop(scope.spawn(work)));
        // Dropped where this ends, also by a panic: then they end, too.
        let tasks = tasks;
        let mut send = |task| {
            if let Some(error) = failed.lock().take() {
                return Err(error);
            }
            tasks.send(task).expect("readers stay until the end");
            Ok(())
        };
        let walked = Walk::new(&reader, &mut send).all();
        // Nobody needs what is left of it.
        stopped.fetch_or(walked.is_err(), Ordering::Relaxed);
        walked
    });
    failed.into_inner().map_or(walked, Err)
}

/// Tells the others when its thread panics: they would wait for what that was at.
struct Alarm<F: Fn()>(F);

impl<F: Fn()> Drop for Alarm<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

/// Goes along the image, and makes tasks of it.
struct Walk<'a> {
    reader: &'a Reader<'a>,
    /// Takes the runs that lie in one container, in order of slots.
    hand_over: &'a mut dyn FnMut(Vec<Run>) -> Result<()>,
    runs: Vec<Run>,
    /// How many leaves `runs` are of, and the last of them.
    leaves: (usize, Option<u64>),
    /// Chunks below are dealt with or in `runs`.
    reached: u64,
    /// What came of the walk could not be dealt with: it is not the tree that is damaged.
    broken: bool,
}

impl<'a> Walk<'a> {
    fn new(reader: &'a Reader<'a>, hand_over: &'a mut dyn FnMut(Vec<Run>) -> Result<()>) -> Self {
        Self {
            reader,
            hand_over,
            runs: Vec::new(),
            leaves: (0, None),
            reached: 0,
            broken: false,
        }
    }

    fn all(&mut self) -> Result<()> {
        let image = self.reader.image;
        let end = image.shape.granules;
        // A leaf that cannot be read hides only itself: the walk goes leaf by leaf around it.
        let mut start = 0;
        while start < end {
            match image.each_run(GranuleRange { start, end }, &mut |run| self.take(run)) {
                Ok(()) => break,
                Err(e) if self.broken => return Err(e),
                Err(e) => start = self.skip_damage(e)?,
            }
        }
        self.zero_until(end)?;
        self.settle()
    }

    fn take(&mut self, run: Run) -> Result<()> {
        let taken = self.put(run);
        self.broken |= taken.is_err();
        taken
    }

    fn put(&mut self, run: Run) -> Result<()> {
        let leaf = Some(run.start / LEAF_CHUNKS);
        let (count, last) = self.leaves;
        if last != leaf {
            let is_full = self
                .reader
                .to
                .window_leaves()
                .is_some_and(|max| count >= max);
            if is_full || self.runs.len() >= WINDOW_RUNS_MAX {
                self.settle()?;
            }
            self.leaves = (self.leaves.0 + 1, leaf);
        }
        self.zero_until(run.start)?;
        self.reached = run.end();
        self.runs.push(run);
        Ok(())
    }

    fn zero_until(&mut self, chunk: u64) -> Result<()> {
        if chunk > self.reached {
            let range = self.reader.bytes(self.reached, chunk);
            self.reader.to.zero(range)?;
            self.reached = chunk;
            self.reader.report(range.len());
        }
        Ok(())
    }

    /// Makes tasks of the window.
    fn settle(&mut self) -> Result<()> {
        let reader = self.reader;
        let mut parts = self
            .runs
            .iter()
            .map(|run| reader.bytes(run.start, run.end()));
        reader.to.expect(&mut parts)?;
        self.runs.sort_unstable_by_key(|run| run.place);
        let container = |run: &Run| run.place.map(Place::container);
        for runs in self.runs.chunk_by(|a, b| container(a) == container(b)) {
            (self.hand_over)(runs.to_vec())?;
        }
        self.runs.clear();
        self.leaves = (0, None);
        Ok(())
    }

    /// The walk failed at or after `reached`: finds the leaf that cannot be read. Returns where to go on.
    fn skip_damage(&mut self, error: StoreError) -> Result<u64> {
        if !matches!(
            error,
            StoreError::Corrupt { .. } | StoreError::Missing { .. }
        ) {
            return Err(error);
        }
        let image = self.reader.image;
        let mut leaf = self.reached / LEAF_CHUNKS;
        while leaf * LEAF_CHUNKS < image.shape.granules {
            let under = image.shape.under(0, leaf);
            let node = image.leaf_node(leaf);
            let readable = node.and_then(|node| image.leaf_runs(leaf, node));
            match readable {
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    let start = under.start.max(self.reached);
                    let range = self.reader.bytes(start, under.end);
                    self.reader.report(range.len());
                    self.reached = under.end;
                    self.reader.to.damaged(vec![range], e)?;
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

/// Reads what tasks name.
struct Reader<'a> {
    image: &'a Image,
    to: &'a dyn Sweep,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Bytes.
    done: AtomicU64,
}

impl Reader<'_> {
    fn bytes(&self, start: u64, end: u64) -> ByteRange {
        GranuleRange { start, end }.bytes(self.image.reference.size)
    }

    fn report(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.image.reference.size);
    }

    /// `runs` lie in one container, in order of slots.
    fn read_container(&self, runs: &[Run]) -> Result<()> {
        let Some(id) = runs[0].place.map(Place::container) else {
            return Ok(());
        };
        let objects = &self.image.objects;
        let at_hand = objects.hold(id, runs.iter().map(|run| run.count).sum());
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
                        drop(at_hand);
                        rest.push_front(now);
                        let rest: Vec<Run> = rest.into();
                        return self.read_container(&rest);
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
            self.to.data(now.start * GRANULE, data)?;
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
