//! Concurrent writers over NBD that enter everything in the [`Ledger`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ledger::{Ledger, WriteId};
use crate::nbd::{Address, Client, Reply, Request};
use crate::spell::Spell;
use crate::time::{elapsed, let_pass};

/// How the writers behave.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Connections, each with a thread of its own.
    pub connections: u64,
    /// Most requests in flight on a connection.
    pub depth: usize,
    /// Sectors written to; they overlap between all connections.
    pub sectors: Range<usize>,
    /// Most sectors of one request.
    pub longest: usize,
    /// Of 100 requests, how many zero a range.
    pub zero_percent: u32,
    /// Of 100 requests, how many trim a range.
    pub trim_percent: u32,
    /// Of 100 requests, how many read. What is read must be stamps or zeroes.
    pub read_percent: u32,
    /// Of 1000 requests, how many are of up to 1 MiB, whatever `longest` says.
    pub big_permille: u32,
    /// Of 100 requests, how many go to the first [`HOT_SECTORS`], where they meet each other.
    pub hot_percent: u32,
    /// Send `depth` requests at once and wait for all of them before `pace`: they overlap, though the
    /// load is thin.
    pub bursts: bool,
    /// Wait this long between requests of a connection: a load that leaves the machine air.
    pub pace: Duration,
    /// Go on after the server vanished, until it is back or this long has passed.
    pub reconnect: Option<Duration>,
    /// What an error reply means.
    pub refusal: Refusal,
}

/// What an error reply means to a writer.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// The end: nothing excuses it.
    Fatal,
    /// The production disk is expected to fail: counted; the write may have happened or not.
    Counted,
    /// Part of the production disk fails now and then: counted where it does, the end elsewhere; and a
    /// write that is acknowledged where it does is the end as well.
    Within(Arc<Spell>),
}

/// The first sectors of the disk that a hot request goes to.
pub const HOT_SECTORS: usize = 512;
const BIG_SECTORS: usize = 2048;

impl Shape {
    /// Four connections that overlap on `sectors`, with everything a guest may send.
    #[must_use]
    pub fn mixed(sectors: Range<usize>) -> Self {
        Self {
            connections: 4,
            depth: 4,
            sectors,
            longest: 40,
            zero_percent: 8,
            trim_percent: 4,
            read_percent: 0,
            big_permille: 0,
            hot_percent: 0,
            bursts: false,
            pace: Duration::from_micros(300),
            reconnect: None,
            refusal: Refusal::Fatal,
        }
    }
}

#[derive(Debug, Default)]
struct Switch {
    stop: AtomicBool,
    acked: AtomicU64,
    failed: AtomicBool,
    refused: AtomicU64,
    latency_us_max: AtomicU64,
}

/// Writers at work. Stopped when dropped.
#[derive(Debug)]
pub struct Load {
    switch: Arc<Switch>,
    workers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts the writers.
    #[must_use]
    pub fn start(
        address: &Address,
        export: &str,
        ledger: &Arc<Ledger>,
        shape: &Shape,
        seed: u64,
    ) -> Self {
        let switch = Arc::new(Switch::default());
        let workers = (0..shape.connections)
            .map(|number| {
                let worker = Worker {
                    address: address.clone(),
                    export: export.to_owned(),
                    ledger: Arc::clone(ledger),
                    shape: shape.clone(),
                    switch: Arc::clone(&switch),
                    rng: ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1000) + number),
                    in_flight: HashMap::new(),
                    down_since: None,
                };
                std::thread::spawn(move || worker.run())
            })
            .collect();
        Self { switch, workers }
    }

    /// Requests acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.switch.acked.load(Ordering::Relaxed)
    }

    /// Requests answered with an error so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.switch.refused.load(Ordering::Relaxed)
    }

    /// Whether a writer has ended with an error; [`stop`](Self::stop) says which.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.switch.failed.load(Ordering::Relaxed)
    }

    /// The longest that a request waited for its answer since this was last asked.
    #[must_use]
    pub fn take_latency_max(&self) -> Duration {
        Duration::from_micros(self.switch.latency_us_max.swap(0, Ordering::Relaxed))
    }

    /// Waits until `more` further requests were acknowledged.
    ///
    /// # Errors
    /// If a writer failed, or none is acknowledged for 60 s.
    pub fn wait_acked(&self, more: u64) -> Result<()> {
        let goal = self.acked() + more;
        let end = elapsed() + Duration::from_secs(60);
        while self.acked() < goal {
            if self.switch.failed.load(Ordering::Relaxed) {
                bail!("a writer failed");
            }
            if elapsed() > end {
                bail!("the server acknowledges nothing");
            }
            let_pass(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops the writers after the acknowledgement of what is in flight.
    ///
    /// # Errors
    /// What a writer met: an error reply, a lost connection.
    pub fn stop(mut self) -> Result<u64> {
        self.switch.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker
                .join()
                .expect("a writer returns its errors")
                .context("a writer failed")?;
        }
        Ok(self.acked())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.switch.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // Whoever wanted to know has called stop().
            let _ = worker.join();
        }
    }
}

struct Sent {
    id: Option<WriteId>,
    at: Duration,
    what: What,
}

/// What a request does, as far as its answer is judged by it.
#[derive(Clone)]
enum What {
    Write(Range<usize>),
    Trim(Range<usize>),
    /// With the event after which it was sent.
    Read(Range<usize>, u64),
    /// A flush, or a write that includes one.
    Sync,
}

struct Worker {
    address: Address,
    export: String,
    ledger: Arc<Ledger>,
    shape: Shape,
    switch: Arc<Switch>,
    rng: ChaCha8Rng,
    in_flight: HashMap<u64, Sent>,
    /// When the server vanished, until it is back.
    down_since: Option<Duration>,
}

impl Worker {
    fn run(mut self) -> Result<()> {
        let result = self.work_through_crashes();
        if result.is_err() {
            self.switch.failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn work_through_crashes(&mut self) -> Result<()> {
        loop {
            match self.work() {
                Ok(()) => return Ok(()),
                Err(error) => {
                    for id in self.in_flight.drain().filter_map(|(_, sent)| sent.id) {
                        self.ledger.lose(id);
                    }
                    let Some(patience) = self.shape.reconnect else {
                        return Err(error);
                    };
                    let since = *self.down_since.get_or_insert_with(elapsed);
                    if self.stopping() {
                        return Ok(());
                    }
                    let wrong = error.downcast_ref::<Wrong>().is_some();
                    if wrong
                        || error.downcast_ref::<Refused>().is_some()
                        || elapsed() - since > patience
                    {
                        return Err(error);
                    }
                    let_pass(Duration::from_millis(5));
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        self.switch.stop.load(Ordering::Relaxed)
    }

    fn work(&mut self) -> Result<()> {
        let mut client = Client::connect(&self.address, &self.export)?;
        self.down_since = None;
        while !self.stopping() {
            while self.in_flight.len() < self.shape.depth {
                let (request, id, what) = self.invent();
                let at = elapsed();
                // Entered before it is sent: a send that fails half way may have arrived.
                let cookie = match client.submit(&request) {
                    Ok(cookie) => cookie,
                    Err(error) => {
                        id.into_iter().for_each(|id| self.ledger.lose(id));
                        return Err(error.into());
                    }
                };
                self.in_flight.insert(cookie, Sent { id, at, what });
            }
            self.reap(&mut client)?;
            while self.shape.bursts && !self.in_flight.is_empty() {
                self.reap(&mut client)?;
            }
            if !self.shape.pace.is_zero() {
                let_pass(self.shape.pace);
            }
        }
        while !self.in_flight.is_empty() {
            self.reap(&mut client)?;
        }
        Ok(())
    }

    fn reap(&mut self, client: &mut Client) -> Result<()> {
        let reply = client.complete()?;
        let sent = self
            .in_flight
            .remove(&reply.cookie)
            .context("a reply to nothing")?;
        let latency_us = u64::try_from((elapsed() - sent.at).as_micros())?;
        let max = &self.switch.latency_us_max;
        max.fetch_max(latency_us, Ordering::Relaxed);
        if reply.error != 0 {
            sent.id.into_iter().for_each(|id| self.ledger.lose(id));
            if !self.may_fail(&sent) {
                return Err(Refused(reply.error).into());
            }
            self.switch.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if let Some(id) = sent.id {
            self.ledger.ack(id);
        }
        self.believe(&sent, &reply)?;
        self.switch.acked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn may_fail(&self, sent: &Sent) -> bool {
        match (&self.shape.refusal, &sent.what) {
            (Refusal::Fatal, _) => false,
            (Refusal::Counted, _) => true,
            (Refusal::Within(spell), What::Sync) => spell.may_fail(sent.at, None),
            (
                Refusal::Within(spell),
                What::Write(sectors) | What::Trim(sectors) | What::Read(sectors, _),
            ) => spell.may_fail(sent.at, Some(sectors)),
        }
    }

    /// A success that cannot be one is [`Wrong`].
    fn believe(&self, sent: &Sent, reply: &Reply) -> Result<()> {
        match (&sent.what, &self.shape.refusal) {
            (What::Read(sectors, asked), _) => {
                let read = self.ledger.check_read(sectors.start, &reply.data, *asked);
                read.map_err(|error| Wrong(error.to_string()).into())
            }
            (What::Write(sectors), Refusal::Within(spell)) if spell.must_fail(sent.at, sectors) => {
                let sentence = format!("a write to {sectors:?} was acknowledged; production fails");
                Err(Wrong(sentence).into())
            }
            _ => Ok(()),
        }
    }

    fn invent(&mut self) -> (Request, Option<WriteId>, What) {
        let sectors = self.place();
        let (first, count) = (sectors.start, sectors.len());
        let offset = first as u64 * 512;
        let len = u32::try_from(count * 512).expect("short");
        let dice = self.rng.random_range(0..100);
        let zero = self.shape.zero_percent;
        let trim = zero + self.shape.trim_percent;
        let read = trim + self.shape.read_percent;
        if dice < zero {
            let keep = self.rng.random();
            let id = self.ledger.issue_zero(first, count);
            let request = Request::Zero { offset, len, keep };
            (request, Some(id), What::Write(sectors))
        } else if dice < trim {
            let id = self.ledger.issue_trim(first, count);
            (Request::Trim { offset, len }, Some(id), What::Trim(sectors))
        } else if dice < read {
            let asked = self.ledger.tick();
            (
                Request::Read { offset, len },
                None,
                What::Read(sectors, asked),
            )
        } else if dice == 99 {
            (Request::Flush, None, What::Sync)
        } else {
            let (id, data) = self.ledger.issue_write(first, count);
            let fua = self.rng.random_range(0..64) == 0;
            let what = if fua {
                What::Sync
            } else {
                What::Write(sectors)
            };
            (Request::Write { offset, data, fua }, Some(id), what)
        }
    }

    fn place(&mut self) -> Range<usize> {
        let mut room = self.shape.sectors.clone();
        if self.rng.random_range(0..100) < self.shape.hot_percent {
            room.end = room.end.min(room.start + HOT_SECTORS);
        }
        let big = self.rng.random_range(0..1000) < self.shape.big_permille;
        let limit = if big { BIG_SECTORS } else { self.shape.longest };
        // Short requests are the many: the length falls off like one over itself.
        let longest = self.rng.random_range(1..=limit.min(room.len()));
        let count = self.rng.random_range(1..=longest);
        let first = self.rng.random_range(room.start..=room.end - count);
        first..first + count
    }
}

/// The server answered with an error: no crash excuses that.
#[derive(Debug)]
struct Refused(u32);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server answered error {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// The server answered with success what cannot have succeeded.
#[derive(Debug)]
struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}
