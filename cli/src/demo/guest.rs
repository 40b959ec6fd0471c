//! The guest: writes all the time, remembers what was acknowledged, comes back after a crash.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use block::Clock;
use parking_lot::Mutex;

use super::ledger::{BLOCK, Ledger, Window};
use super::nbd::Client;
use super::rng::Rng;

/// Connections, each on its own thread.
pub(crate) const CONNECTIONS: u64 = 2;
/// Connections share the disk stripe by stripe, so that the order of the writes of a block is known.
const STRIPE_BLOCKS: u64 = 256;
/// Between two requests of a connection: a load, not a flood.
const PACE: Duration = Duration::from_micros(1_500);
/// Until a server that died must be back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writers at work.
pub(crate) struct Guest {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Writer {
    number: u64,
    socket: PathBuf,
    size: u64,
    rng: Rng,
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
}

impl Guest {
    /// Begins to write to the disk of `size` bytes that is served at `socket`.
    pub(crate) fn start(socket: &Path, size: u64, seed: u64, clock: &Arc<dyn Clock>) -> Self {
        let mut guest = Self {
            ledger: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        guest.resume(socket, size, seed, clock);
        guest
    }

    /// Goes on writing after a [`pause`](Self::pause).
    pub(crate) fn resume(&mut self, socket: &Path, size: u64, seed: u64, clock: &Arc<dyn Clock>) {
        self.stop.store(false, Ordering::Relaxed);
        for number in 0..CONNECTIONS {
            let writer = Writer {
                number,
                socket: socket.to_owned(),
                size,
                rng: Rng::new(seed ^ (number << 60)),
                ledger: Arc::clone(&self.ledger),
                stop: Arc::clone(&self.stop),
                clock: Arc::clone(clock),
            };
            self.threads.push(thread::spawn(move || writer.run()));
        }
    }

    /// Waits until `count` more writes are acknowledged.
    pub(crate) fn wait_acked(&self, count: u64, clock: &Arc<dyn Clock>) -> Result<()> {
        let goal = self.ledger.lock().acked_writes() + count;
        let end = clock.monotonic() + PATIENCE;
        while self.ledger.lock().acked_writes() < goal {
            if clock.monotonic() > end || self.threads.iter().any(JoinHandle::is_finished) {
                bail!("the guest's writes are not acknowledged any more");
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends all writing; nothing is in flight afterwards.
    pub(crate) fn pause(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(done) => done.context("the guest met an error")?,
                Err(_) => bail!("the guest panicked"),
            }
        }
        Ok(())
    }

    /// Runs `cut`, and says between which events it fell.
    pub(crate) fn around<T>(&self, cut: impl FnOnce() -> Result<T>) -> Result<(T, Window)> {
        let asked = self.ledger.lock().tick();
        let done = cut()?;
        let answered = self.ledger.lock().tick();
        Ok((done, Window { asked, answered }))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Only after an error, which is told already.
        let _ = self.pause();
    }
}

impl Writer {
    fn run(mut self) -> Result<()> {
        let mut client = self.connect()?;
        while !self.stop.load(Ordering::Relaxed) {
            if self.write(&mut client).is_err() {
                // The server died. What it did with this write nobody knows.
                client = self.connect()?;
            }
            thread::park_timeout(PACE);
        }
        Ok(())
    }

    fn connect(&self) -> Result<Client> {
        let end = self.clock.monotonic() + PATIENCE;
        loop {
            match Client::connect(&self.socket) {
                Ok(client) => return Ok(client),
                Err(error) if self.clock.monotonic() > end || self.stop.load(Ordering::Relaxed) => {
                    return Err(error).context("the disk does not come back");
                }
                Err(_) => thread::park_timeout(Duration::from_millis(5)),
            }
        }
    }

    /// One request of a guest: mostly small writes, some large, some zeroes, now and then a flush.
    fn write(&mut self, client: &mut Client) -> io::Result<()> {
        let kind = self.rng.below(100);
        if kind < 3 {
            return client.flush();
        }
        let zeroes = kind < 12;
        let longest = if kind < 30 { 64 } else { 8 };
        let stripes = (self.size / BLOCK / STRIPE_BLOCKS / CONNECTIONS).max(1);
        // Guests come back to the same places.
        let near = if self.rng.below(4) == 0 {
            stripes
        } else {
            stripes.div_ceil(16)
        };
        let stripe = self.rng.below(near) * CONNECTIONS + self.number;
        let within = self.rng.below(STRIPE_BLOCKS);
        let first = stripe * STRIPE_BLOCKS + within;
        let count = (1 + self.rng.below(longest)).min(STRIPE_BLOCKS - within);
        let id = self.ledger.lock().issue(first, count, zeroes);
        if zeroes {
            let len = u32::try_from(count * BLOCK).map_err(io::Error::other)?;
            client.write_zeroes(first * BLOCK, len)?;
        } else {
            client.write(first * BLOCK, &id.data(first, count))?;
        }
        self.ledger.lock().ack(id);
        Ok(())
    }
}
