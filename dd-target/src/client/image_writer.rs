//! Writing an image through a server: hash here, ask what is lacking, send that.
//!
//! ```text
//! put --> window of granules --> fingerprints --> ask --> what is lacking, packed by 32 --> regions
//!            several at once        the server lays what it knows into the image at once
//! ```
//!
//! Rule: each granule is written once. Requests overtake each other and may come twice, long after their connection broke;
//! so which of two writes of a granule came last nobody could say. The first failure fails the image.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use block::{GRANULE, GranuleRange};
use parking_lot::Mutex;
use store::{ChunkCodec, Fingerprint};

use crate::client::RemoteError;
use crate::client::draft::Draft;
use crate::client::vault::{RemoteImage, Vault};
use crate::wire::{self, Entry};

/// Granules that are asked for at once.
const WINDOW: usize = 512;
/// Chunks of a region.
const REGION: usize = 32;
/// Chunks that wait for another window to bring the same: beyond it all windows are waited for.
const LATER_MAX: usize = 4096;

/// Windows that are done of which the memory is kept: as many as are under way at once.
const SPARE_MAX: usize = 6;

const CHUNK: usize = 4096;

/// Writes one image of a vault. Dropped without [`finish`](Self::finish) it leaves nothing that counts, and is given up at the server.
pub struct RemoteImageWriter {
    sender: Arc<Sender>,
    window: Window,
    /// What was written: the end of each range by its start.
    written: BTreeMap<u64, u64>,
}

/// Granules and what they are to hold.
#[derive(Default)]
struct Window {
    granules: Vec<u64>,
    content: Vec<u8>,
}

/// A chunk that another window is bringing.
struct Later {
    granule: u64,
    chunk: Vec<u8>,
}

/// What all windows share.
struct Sender {
    draft: Draft,
    codec: ChunkCodec,
    /// Memory of windows that are done.
    spare: Mutex<Vec<Vec<u8>>>,
    /// Chunks that some window is bringing.
    bringing: Mutex<HashSet<Fingerprint>>,
    later: Mutex<Vec<Later>>,
}

impl RemoteImageWriter {
    pub(super) fn new(vault: &Vault, draft: Draft) -> Self {
        let sender = Sender {
            draft,
            codec: vault.codec.clone(),
            spare: Mutex::default(),
            bringing: Mutex::default(),
            later: Mutex::default(),
        };
        Self {
            sender: Arc::new(sender),
            window: Window::default(),
            written: BTreeMap::new(),
        }
    }

    /// Sets whole granules from `first_granule` on. `data` is a multiple of 4096 bytes; past the end of a disk whose last
    /// granule is short it must be zeroes. Any order will do; each granule once.
    ///
    /// # Errors
    /// `Invalid` for a call that is not as above; whatever a window met, then or before.
    pub fn put(&mut self, first_granule: u64, data: &[u8]) -> Result<(), RemoteError> {
        let (chunks, rest) = data.as_chunks::<CHUNK>();
        if !rest.is_empty() {
            return Err(RemoteError::Invalid(
                "an image is written in whole granules",
            ));
        }
        self.claim(first_granule, chunks.len() as u64)?;
        for (granule, chunk) in (first_granule..).zip(chunks) {
            if self.window.granules.is_empty() {
                self.window.content = self.sender.memory();
            }
            self.window.granules.push(granule);
            self.window.content.extend_from_slice(chunk);
            if self.window.granules.len() == WINDOW {
                self.dispatch()?;
            }
        }
        self.sender.draft.check()
    }

    /// Makes granules zero.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn zero(&mut self, granules: GranuleRange) -> Result<(), RemoteError> {
        if granules.is_empty() {
            return Ok(());
        }
        self.claim(granules.start, granules.count())?;
        self.sender.draft.zero(granules)
    }

    /// Completes the image: the vault holds every chunk of it.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn finish(mut self) -> Result<RemoteImage, RemoteError> {
        self.dispatch()?;
        self.settle()?;
        self.sender.draft.finish(None)
    }

    /// Notes that granules are written; refuses those that were.
    fn claim(&mut self, start: u64, count: u64) -> Result<(), RemoteError> {
        let past = RemoteError::Invalid("a write reaches past the end of the image");
        let end = start.checked_add(count).ok_or(past)?;
        let before = self.written.range(..end).next_back();
        let before = before.map(|(start, end)| (*start, *end));
        match before {
            Some((_, known)) if known > start => Err(RemoteError::Invalid(
                "a granule of an image is written twice",
            )),
            // In order, ranges stay one.
            Some((first, known)) if known == start => {
                self.written.insert(first, end);
                Ok(())
            }
            _ => {
                self.written.insert(start, end);
                Ok(())
            }
        }
    }

    /// Sends the window on its way, once there is room for it.
    fn dispatch(&mut self) -> Result<(), RemoteError> {
        self.sender.draft.check()?;
        if self.window.granules.is_empty() {
            return Ok(());
        }
        let window = std::mem::take(&mut self.window);
        let sender = Arc::clone(&self.sender);
        self.sender
            .draft
            .begin(async move { sender.send(window).await })?;
        let many = self.sender.later.lock().len() > LATER_MAX;
        match many {
            true => self.settle(),
            false => Ok(()),
        }
    }

    /// Waits for all windows, and brings what waited for one of them.
    fn settle(&mut self) -> Result<(), RemoteError> {
        self.sender.draft.settle()?;
        let later = std::mem::take(&mut *self.sender.later.lock());
        for some in later.chunks(WINDOW) {
            let chunks: Vec<&[u8]> = some.iter().map(|later| &*later.chunk).collect();
            let window = Window {
                granules: some.iter().map(|later| later.granule).collect(),
                content: chunks.concat(),
            };
            let sender = Arc::clone(&self.sender);
            self.sender
                .draft
                .wait(async move { sender.send(window).await })?;
        }
        // Two of the same that the vault has let go of meanwhile.
        let more = !self.sender.later.lock().is_empty();
        match more {
            true => self.settle(),
            false => Ok(()),
        }
    }
}

impl Sender {
    /// Brings a window into the image.
    async fn send(self: &Arc<Self>, window: Window) -> Result<(), RemoteError> {
        let codec = self.codec.clone();
        let (window, prints) = self
            .compute(move || {
                let prints = codec.fingerprints(&window.content);
                (window, prints)
            })
            .await?;
        let entries: Vec<Entry> = window.granules.iter().copied().zip(prints).collect();
        let lacking = self.draft.ask(&entries).await?;
        let mine = self.divide(&window, &entries, &lacking);
        if mine.is_empty() {
            self.spare(window);
            return Ok(());
        }
        let prints: Vec<_> = mine.iter().map(|at| entries[*at].1).collect();
        let codec = self.codec.clone();
        let packed = self
            .compute(move || (pack(&codec, &window, &entries, &mine), window))
            .await;
        let sent = match packed {
            Ok((body, window)) => {
                self.spare(window);
                self.draft.bring(body).await
            }
            Err(error) => Err(error),
        };
        let mut bringing = self.bringing.lock();
        for print in &prints {
            bringing.remove(print);
        }
        sent
    }

    /// Memory for the content of a window: used before, where there is some, since that is cheaper than new.
    fn memory(&self) -> Vec<u8> {
        let spare = self.spare.lock().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(WINDOW * CHUNK))
    }

    /// Nobody needs the window any more.
    fn spare(&self, mut window: Window) {
        window.content.clear();
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(window.content);
        }
    }

    /// Which of the lacking chunks this window brings; the others come with another one, or twice in this one.
    fn divide(&self, window: &Window, entries: &[Entry], lacking: &[bool]) -> Vec<usize> {
        let mut mine = Vec::new();
        let mut bringing = self.bringing.lock();
        let mut later = self.later.lock();
        for (at, (granule, print)) in entries.iter().enumerate().filter(|(at, _)| lacking[*at]) {
            if bringing.insert(*print) {
                mine.push(at);
            } else {
                let chunk = chunk(window, at).to_vec();
                let granule = *granule;
                later.push(Later { granule, chunk });
            }
        }
        mine
    }

    /// Does what takes a processor, on a thread that may.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RemoteError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| RemoteError::Invalid("packing has panicked"))
    }
}

fn chunk(window: &Window, at: usize) -> &[u8] {
    &window.content[at * CHUNK..(at + 1) * CHUNK]
}

/// Frames of what is lacking.
fn pack(codec: &ChunkCodec, window: &Window, entries: &[Entry], mine: &[usize]) -> Vec<u8> {
    let mut body = Vec::new();
    for some in mine.chunks(REGION) {
        let chunks: Vec<&[u8]> = some.iter().map(|at| chunk(window, *at)).collect();
        let entries: Vec<Entry> = some.iter().map(|at| entries[*at]).collect();
        wire::put_frame(&mut body, &entries, &codec.pack(chunks.concat()));
    }
    body
}

/// Both are the same.
const _: () = assert!(CHUNK as u64 == GRANULE);
