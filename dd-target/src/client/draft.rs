//! An image in the making at the server: the calls about it, several under way at once.
//!
//! Rule: the first failure fails the image. Requests may come twice, long after their connection broke.

use std::sync::Arc;

use block::GranuleRange;
use parking_lot::Mutex;
use store::Fingerprint;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::{FinishedDraft, ZeroRanges};
use crate::chain;
use crate::client::RemoteError;
use crate::client::connection::{Ask, Connection};
use crate::client::ship::Begun;
use crate::client::vault::RemoteImage;
use crate::record;
use crate::wire::{self, Entry};

/// What is under way at once.
const REQUESTS_AT_ONCE: u32 = 6;
/// Ranges of zeroes that are told at once.
const ZEROES: usize = 1024;
/// Longest answer to zeroes, regions and an end.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A draft.
pub(super) struct Draft {
    connection: Arc<Connection>,
    begun: Arc<Begun>,
    room: Arc<Semaphore>,
    failed: Arc<Mutex<Failure>>,
    zeroes: Mutex<Vec<(u64, u64)>>,
}

#[derive(Default)]
enum Failure {
    #[default]
    None,
    /// Nobody was told yet.
    New(RemoteError),
    Told(Arc<str>),
}

impl Draft {
    pub(super) fn new(connection: &Arc<Connection>, begun: Begun) -> Self {
        Self {
            connection: Arc::clone(connection),
            begun: Arc::new(begun),
            room: Arc::new(Semaphore::new(REQUESTS_AT_ONCE as usize)),
            failed: Arc::default(),
            zeroes: Mutex::default(),
        }
    }

    /// The first failure, as it is the first time, and by name later.
    pub(super) fn check(&self) -> Result<(), RemoteError> {
        let mut failed = self.failed.lock();
        match std::mem::take(&mut *failed) {
            Failure::None => Ok(()),
            Failure::New(error) => {
                *failed = Failure::Told(chain(&error).into());
                Err(error)
            }
            Failure::Told(first) => {
                *failed = Failure::Told(Arc::clone(&first));
                Err(RemoteError::ImageFailed { first })
            }
        }
    }

    /// Does what nobody waits for, once there is room for it.
    pub(super) fn begin<F>(&self, work: F) -> Result<(), RemoteError>
    where
        F: Future<Output = Result<(), RemoteError>> + Send + 'static,
    {
        self.check()?;
        let permit = self.wait_for(1)?;
        let failed = Arc::clone(&self.failed);
        self.connection.begin(async move {
            if let Err(error) = work.await {
                let mut failed = failed.lock();
                if matches!(*failed, Failure::None) {
                    *failed = Failure::New(error);
                }
            }
            drop(permit);
        });
        Ok(())
    }

    /// Waits for all that was begun.
    pub(super) fn settle(&self) -> Result<(), RemoteError> {
        drop(self.wait_for(REQUESTS_AT_ONCE)?);
        self.check()
    }

    /// Does it and waits for it.
    pub(super) fn wait<T, F>(&self, work: F) -> Result<T, RemoteError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RemoteError>> + Send + 'static,
    {
        self.connection.wait(work)
    }

    /// Waits until so much may begin.
    fn wait_for(&self, requests: u32) -> Result<OwnedSemaphorePermit, RemoteError> {
        let room = Arc::clone(&self.room);
        let closed = |_| RemoteError::Invalid("the image was given up");
        self.connection
            .wait(async move { room.acquire_many_owned(requests).await.map_err(closed) })
    }

    /// Lays what is known into the image; of each, whether its chunk is lacking.
    pub(super) async fn ask(&self, entries: &[Entry]) -> Result<Vec<bool>, RemoteError> {
        let mut body = Vec::new();
        entries
            .iter()
            .for_each(|entry| wire::put_entry(&mut body, entry));
        let ask = Ask::bytes(self.path("ask"), body);
        let answer = self.connection.send(&ask, wire::ASKED_MAX).await?;
        let lacking = wire::lacking(&answer.body, entries.len());
        lacking.ok_or_else(|| {
            self.connection
                .nonsense("it has not a bit for each granule")
        })
    }

    /// Brings frames of regions.
    pub(super) async fn bring(&self, body: Vec<u8>) -> Result<(), RemoteError> {
        let ask = Ask::bytes(self.path("regions"), body);
        self.connection.send(&ask, ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Makes granules zero, some time before the end.
    pub(super) fn zero(&self, granules: GranuleRange) -> Result<(), RemoteError> {
        let mut zeroes = self.zeroes.lock();
        zeroes.push((granules.start, granules.end));
        let many = zeroes.len() >= ZEROES;
        drop(zeroes);
        match many {
            true => self.tell_zeroes(),
            false => self.check(),
        }
    }

    fn tell_zeroes(&self) -> Result<(), RemoteError> {
        self.check()?;
        let ranges = std::mem::take(&mut *self.zeroes.lock());
        if ranges.is_empty() {
            return Ok(());
        }
        let mut ask = Ask::post(self.path("zero"), &ZeroRanges { ranges });
        ask.again = true;
        self.connection.ask(ask, ANSWER_BYTES_MAX).map(drop)
    }

    /// Completes the image: the vault holds every chunk of it. The server refuses it if its whole content does not come to `root`.
    pub(super) fn finish(&self, root: Option<Fingerprint>) -> Result<RemoteImage, RemoteError> {
        self.tell_zeroes()?;
        self.settle()?;
        let call = root.map_or("finish".to_owned(), |root| format!("finish?root={root}"));
        let ask = Ask::bytes(self.path(&call), Vec::new());
        let finished: FinishedDraft = match self.connection.json(ask) {
            Err(RemoteError::Refused { status: 422, .. }) if root.is_some() => {
                let server = self.connection.server();
                return Err(RemoteError::OtherContent { server });
            }
            finished => finished?,
        };
        let image = record::image(&finished.image);
        let nonsense = || self.connection.nonsense("it is no image");
        Ok(RemoteImage {
            image: image.ok_or_else(nonsense)?,
            text: finished.image,
            draft: Arc::clone(&self.begun),
        })
    }

    fn path(&self, call: &str) -> String {
        format!("{}/{call}", self.begun.path)
    }
}
