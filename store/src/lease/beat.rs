//! Signs of life of a writer where there are no locks.
//!
//! ```text
//! lease/beat-NUMBER   "STDNBEA1" version | store 16 | number u64 | count u64 | term u64 ns | ended u8 | crc32c
//! ```
//!
//! A writer writes its beat five times in a term, and a last one when it ends. Whoever wants to follow it watches the beat
//! for that term by its own clock: one that has not changed is of a writer that is gone. Nobody compares clocks.
//!
//! The newest epoch's beat is the only one that anybody looks at: one of a fenced writer means nothing.
//!
//! Rule: a beat is a courtesy. That a writer is taken for dead while it lives costs it its lease, and no data.

use std::io;
use std::sync::Arc;
use std::thread::park_timeout;
use std::time::Duration;

use block::Clock;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::backend::Backend;
use crate::codec::{self, Decoded, Encode};
use crate::error::{Result, io_error};
use crate::lease;

const MAGIC: [u8; 8] = *b"STDNBEA1";
const LEN_MAX: u64 = 256;

/// What a beat may claim as its term.
const TERM_MAX: Duration = Duration::from_secs(300);
/// Beats in a term: one that is lost, or takes long, is none yet that is missing.
const BEATS: u32 = 5;
/// How long the end of a writer waits for its last beat.
const LAST_BEAT_MAX: Duration = Duration::from_secs(5);

/// The beats of a store's writers.
pub(super) struct Beats<'a> {
    pub(super) place: &'a Arc<dyn Backend>,
    pub(super) store: [u8; 16],
    pub(super) term: Duration,
}

/// What is seen of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Lives,
    /// It has said so.
    Ended,
    Silent,
}

/// Beats until it is dropped.
pub(super) struct Beat {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
}

/// What a beat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sign {
    epoch: u64,
    count: u64,
    term: Duration,
    ended: bool,
}

impl Beats<'_> {
    /// Looks for signs of life of the writer `epoch`, for a term if need be.
    pub(super) fn watch(&self, epoch: u64, clock: &dyn Clock) -> Result<Life> {
        let first = self.read(epoch)?;
        if first.is_some_and(|sign| sign.ended) {
            return Ok(Life::Ended);
        }
        let term = first.map_or(self.term, |sign| sign.term.min(TERM_MAX));
        tracing::info!(
            store = self.place.describe(),
            seconds = term.as_secs_f64(),
            "the last writer of the store has not said that it ended; watching it for signs of life"
        );
        let end = clock.monotonic() + term;
        loop {
            park_timeout(term / (4 * BEATS));
            // What an answer says is as old as its question.
            let asked = clock.monotonic();
            let now = self.read(epoch)?;
            if now.is_some_and(|sign| sign.ended) {
                return Ok(Life::Ended);
            }
            if now != first || lease::exists(&**self.place, epoch + 1)? {
                return Ok(Life::Lives);
            }
            if asked >= end {
                return Ok(Life::Silent);
            }
        }
    }

    /// Begins to beat for the writer `epoch`. What its predecessors beat, by the `names` of all that is there, is removed.
    pub(super) fn start<'a>(
        self,
        epoch: u64,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Beat> {
        let mut beating = Beating {
            place: Arc::clone(self.place),
            store: self.store,
            sign: Sign {
                epoch,
                count: 0,
                term: self.term,
                ended: false,
            },
        };
        beating
            .beat()
            .map_err(|e| io_error("write", path(epoch), e))?;
        for older in names.filter_map(parse_name).filter(|older| *older < epoch) {
            // The next writer tries again.
            let _ = self.place.remove(&path(older));
        }
        let (stop, stopped) = bounded(0);
        let (end, ended) = bounded(1);
        let named = std::thread::Builder::new().name("store-lease".into());
        let spawned = named.spawn(move || {
            beating.run(&stopped);
            let _ = end.send(());
        });
        spawned.map_err(|e| io_error("start a thread for", path(epoch), e))?;
        Ok(Beat {
            stop: Some(stop),
            ended,
        })
    }

    /// `None` if there is none, or none that can be read.
    fn read(&self, epoch: u64) -> Result<Option<Sign>> {
        match self.place.read_whole(&path(epoch), LEN_MAX) {
            Ok(bytes) => Ok(decode(&bytes, self.store).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", path(epoch), e)),
        }
    }
}

/// The thread that beats.
struct Beating {
    place: Arc<dyn Backend>,
    store: [u8; 16],
    sign: Sign,
}

impl Beating {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut failing = false;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(self.sign.term / BEATS) {
            let beat = self.beat();
            if let Err(error) = &beat
                && !failing
            {
                tracing::warn!(store = self.place.describe(), %error, "the lease on the store cannot be renewed; if that lasts, another writer may take over");
            }
            failing = beat.is_err();
        }
        self.sign.ended = true;
        if let Err(error) = self.beat() {
            tracing::debug!(%error, "the store's next writer will wait for a term");
        }
    }

    fn beat(&mut self) -> io::Result<()> {
        self.sign.count += 1;
        let Sign {
            epoch,
            count,
            term,
            ended,
        } = self.sign;
        let mut out = codec::begin(MAGIC);
        out.put_bytes(&self.store);
        out.put_u64(epoch);
        out.put_u64(count);
        out.put_u64(u64::try_from(term.as_nanos()).unwrap_or(u64::MAX));
        out.put_u8(u8::from(ended));
        // A late one is worth nothing.
        let most = term / BEATS;
        self.place
            .replace_within(&path(epoch), &codec::seal(out), epoch, most)
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(LAST_BEAT_MAX);
    }
}

fn path(epoch: u64) -> String {
    format!("lease/beat-{epoch:016x}")
}

fn parse_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("beat-")?, 16).ok()
}

fn decode(bytes: &[u8], store: [u8; 16]) -> Decoded<Sign> {
    let mut d = codec::unseal(bytes, MAGIC)?;
    d.is(codec::Decoder::array, store, "it belongs to another store")?;
    let [epoch, count, term] = [d.u64()?, d.u64()?, d.u64()?];
    let ended = d.u8()? != 0;
    d.end()?;
    Ok(Sign {
        epoch,
        count,
        term: Duration::from_nanos(term),
        ended,
    })
}
