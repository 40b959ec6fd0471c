//! Objects in an object store: S3, and whatever speaks its protocol.
//!
//! ```text
//! create   PUT, If-None-Match: *      len, read   GET of ranges, kept in memory by blocks
//! replace  PUT                        read_whole  GET
//! remove   DELETE                     list        LIST
//! ```
//!
//! A PUT is whole, and durable when it is answered. Where its answer is lost the object is read back: nobody else creates
//! the same bytes under the same name, so who finds its own there has created them.
//!
//! Rule: what a LIST says may be old; nothing but economy depends on it.

use std::any::Any;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use block::{Space, index};
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::runtime::Runtime;

use crate::backend::blocks::{Blocks, Ranges, TAIL};
use crate::backend::{Backend, within};

pub use s3::InvalidBucket;

mod s3;

/// Attempts to create an object, or to find out whether it was created.
const CREATE_ATTEMPTS: u32 = 5;
/// Before the second of them; each further one waits twice as long.
const CREATE_PAUSE: Duration = Duration::from_millis(200);

/// How long a request may take that brings and takes little.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// The slowest line on which bytes are waited for, in bytes a second. One that is dead is noticed by its connection, much
/// earlier.
const SLOWEST: u64 = 16 << 10;

/// No object is longer.
const LEN_MAX: u64 = 1 << 40;

/// A [`Backend`] in an object store, below a prefix.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// The same, which tries nothing again by itself: who creates an object must know what became of each attempt.
    creator: Arc<dyn ObjectStore>,
    create_pause: Duration,
    prefix: Path,
    url: String,
    blocks: Blocks,
    /// The server does not take more bytes than an object has for all of it.
    no_tails: AtomicBool,
    /// Until it is dropped.
    runtime: Option<Runtime>,
}

impl Bucket {
    /// The objects of `store` whose names begin with `prefix`; `url` names both to a person.
    ///
    /// # Errors
    /// The operating system's, if it gives no thread.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, url: String) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store-bucket")
            .enable_all()
            .build()?;
        Ok(Self {
            creator: Arc::clone(&store),
            store,
            create_pause: CREATE_PAUSE,
            prefix,
            url,
            blocks: Blocks::default(),
            no_tails: AtomicBool::new(false),
            runtime: Some(runtime),
        })
    }

    /// Creates objects through `creator`, which must not try a conditional put again by itself.
    #[must_use]
    pub fn with_creator(mut self, creator: Arc<dyn ObjectStore>) -> Self {
        self.creator = creator;
        self
    }

    /// Waits so long before it tries for the second time to create an object.
    #[must_use]
    pub fn with_create_pause(mut self, pause: Duration) -> Self {
        self.create_pause = pause;
        self
    }

    fn path(&self, name: &str) -> Path {
        let parts = name.split('/').filter(|part| !part.is_empty());
        parts.fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Waits for a request that brings or takes so many bytes.
    fn wait<T, F>(&self, bytes: u64, request: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.wait_within(patience(bytes), request)
    }

    fn wait_within<T, F>(&self, most: Duration, request: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        let (answer, answered) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            let done = tokio::time::timeout(most, request).await;
            let late = |_| failed(format!("no answer in {most:?}"));
            let _ = answer.send(done.map_err(late).flatten());
        });
        answered
            .recv()
            .unwrap_or_else(|_| Err(failed("a request has panicked".into())))
    }

    /// Creates an object, or says for sure that it was not, or that nobody knows.
    fn try_create(&self, path: &Path, bytes: &[u8]) -> Created {
        let payload = PutPayload::from(bytes.to_vec());
        let (mut pause, mut unknown) = (self.create_pause, None);
        for attempt in 0..CREATE_ATTEMPTS {
            if attempt > 0 {
                std::thread::park_timeout(pause);
                pause *= 2;
            }
            let (creator, name, payload) =
                (Arc::clone(&self.creator), path.clone(), payload.clone());
            let put = self.wait(bytes.len() as u64, async move {
                let options = PutOptions::from(PutMode::Create);
                creator.put_opts(&name, payload, options).await
            });
            match put {
                Ok(_) => return Created::Yes,
                // It may be ours, of an attempt whose answer was lost; and some servers say so of two that come at once.
                Err(taken @ Error::AlreadyExists { .. }) => match self.found(path, bytes) {
                    Ok(Found::Ours) => return Created::Yes,
                    Ok(Found::Another) => return Created::No(to_io(taken)),
                    Ok(Found::Nothing) => unknown = Some(to_io(taken)),
                    Err(error) => unknown = Some(error),
                },
                Err(error) if is_refusal(&error) && unknown.is_none() => {
                    return Created::No(to_io(error));
                }
                Err(error) => unknown = Some(to_io(error)),
            }
        }
        Created::Unknown(unknown.map_or_else(String::new, |error| error.to_string()))
    }

    /// What has the name of an object of ours.
    fn found(&self, path: &Path, bytes: &[u8]) -> io::Result<Found> {
        match self.get(path, Part::All, bytes.len() as u64, Vec::new()) {
            Ok((found, _)) if found == bytes => Ok(Found::Ours),
            Ok(_) => Ok(Found::Another),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Found::Another),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(e) => Err(e),
        }
    }

    fn overwrite(&self, name: &str, bytes: &[u8], most: Duration) -> io::Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let payload = PutPayload::from(bytes.to_vec());
        let put = self.wait_within(
            most,
            async move { store.put(&path, payload).await.map(drop) },
        );
        self.blocks.forget(name);
        put.map_err(to_io)
    }

    /// Bytes of an object (in `memory`, if they fit), and how long all of it is. `InvalidData` if it is longer than `len_max`, or than any object can
    /// be.
    fn get(
        &self,
        path: &Path,
        part: Part,
        len_max: u64,
        memory: Vec<u8>,
    ) -> io::Result<(Vec<u8>, u64)> {
        let (store, path) = (Arc::clone(&self.store), path.clone());
        let asked = match &part {
            Part::All => len_max,
            Part::Range(range) => range.end - range.start,
            Part::Last(bytes) => *bytes,
        };
        let got = self.wait(asked, async move {
            let options = GetOptions {
                range: match &part {
                    Part::All => None,
                    Part::Range(range) => Some(GetRange::Bounded(range.clone())),
                    Part::Last(bytes) => Some(GetRange::Suffix(*bytes)),
                },
                ..GetOptions::default()
            };
            let got = store.get_opts(&path, options).await?;
            let len = got.meta.size;
            // A length that ends before what was asked for is one of its lies: nothing is left then.
            let sent = match part {
                Part::All => 0..len,
                Part::Range(range) => range.start..range.end.min(len).max(range.start),
                Part::Last(bytes) => len.saturating_sub(bytes)..len,
            };
            if len > LEN_MAX || sent.end - sent.start > len_max {
                return Ok((None, len));
            }
            if got.range != sent {
                return Err(failed(
                    "the server sends other bytes than were asked for".into(),
                ));
            }
            let expected = index(sent.end - sent.start);
            let mut bytes = memory;
            bytes.clear();
            bytes.reserve_exact(expected);
            let mut body = got.into_stream();
            while let Some(part) = body.next().await {
                let part = part?;
                if bytes.len() + part.len() > expected {
                    return Err(failed("the server sends more than it said".into()));
                }
                bytes.extend_from_slice(&part);
            }
            match bytes.len() == expected {
                true => Ok((Some(bytes), len)),
                false => Err(failed("the server sends less than it said".into())),
            }
        });
        match got.map_err(to_io)? {
            (Some(bytes), len) => Ok((bytes, len)),
            (None, len) => {
                within(len, len_max.min(LEN_MAX))?;
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }
}

impl Ranges for Bucket {
    fn tail(&self, name: &str) -> io::Result<(Vec<u8>, u64)> {
        let path = self.path(name);
        let no_tails = self.no_tails.load(Ordering::Relaxed);
        if !no_tails {
            match self.get(&path, Part::Last(TAIL), TAIL, Vec::new()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {}
                got => return got,
            }
        }
        // An object that is empty has no last byte; and not every server takes more than there is for all of it.
        let store = Arc::clone(&self.store);
        let head = path.clone();
        let meta = self.wait(0, async move { store.head(&head).await });
        let len = meta.map_err(to_io)?.size;
        if len == 0 {
            return Ok((Vec::new(), 0));
        }
        let last = len.saturating_sub(TAIL)..len;
        let (bytes, now) = self.get(&path, Part::Range(last), TAIL, Vec::new())?;
        if now != len {
            // It was replaced in between: these are not its last bytes.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if len < TAIL {
            self.no_tails.store(true, Ordering::Relaxed);
        }
        Ok((bytes, len))
    }

    fn range(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let len = range.end - range.start;
        let (bytes, _) = self.get(&self.path(name), Part::Range(range), len, Vec::new())?;
        Ok(bytes)
    }

    fn whole(&self, name: &str, len_max: u64, memory: Vec<u8>) -> io::Result<Vec<u8>> {
        let (bytes, len) = self.get(&self.path(name), Part::All, len_max, memory)?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Nobody waits for an answer any more; and this may be one of another runtime's threads.
            runtime.shutdown_background();
        }
    }
}

impl Backend for Bucket {
    fn create(&self, name: &str, bytes: &[u8], _epoch: u64) -> io::Result<()> {
        match self.try_create(&self.path(name), bytes) {
            Created::Yes => Ok(()),
            Created::No(error) => Err(error),
            Created::Unknown(why) => {
                let sentence = format!("nobody can say whether it was created: {why}");
                Err(io::Error::new(io::ErrorKind::TimedOut, sentence))
            }
        }
    }

    fn replace(&self, name: &str, bytes: &[u8], _epoch: u64) -> io::Result<()> {
        self.overwrite(name, bytes, patience(bytes.len() as u64))
    }

    fn replace_within(
        &self,
        name: &str,
        bytes: &[u8],
        _epoch: u64,
        most: Duration,
    ) -> io::Result<()> {
        self.overwrite(name, bytes, most)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.blocks.len(name, self)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.blocks.read(name, offset, buf, self)
    }

    fn read_whole(&self, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
        self.whole(name, len_max, Vec::new())
    }

    fn hold(&self, name: &str, worth: bool) -> Option<Box<dyn Any + Send>> {
        self.blocks.hold(name, worth, self)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let removed = self.wait(0, async move { store.delete(&path).await });
        self.blocks.forget(name);
        removed.map_err(to_io)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let (store, path) = (Arc::clone(&self.store), self.path(folder));
        let listed = self.wait(
            0,
            async move { store.list_with_delimiter(Some(&path)).await },
        );
        let objects = listed.map_err(to_io)?.objects.into_iter();
        let plain = |object: object_store::ObjectMeta| {
            let plain = object.location.filename()?.to_owned();
            // Whoever lists a folder reads what is in it, and need not ask how long it is.
            let name = match folder {
                "" => plain.clone(),
                folder => format!("{folder}/{plain}"),
            };
            self.blocks.listed(&name, object.size);
            Some((plain, object.size))
        };
        Ok(objects.filter_map(plain).collect())
    }

    fn is_empty(&self) -> io::Result<bool> {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        let first = self.wait(0, async move { Ok(store.list(Some(&prefix)).next().await) });
        Ok(first.map_err(to_io)?.transpose().map_err(to_io)?.is_none())
    }

    /// A PUT leaves the whole object or none.
    fn half_created(&self, _folder: &str) -> io::Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }

    fn list_between(&self, folder: &str, after: &str, before: &str) -> io::Result<Vec<String>> {
        let (store, path) = (Arc::clone(&self.store), self.path(folder));
        let (offset, before) = (path.clone().join(after), before.to_owned());
        let listed = self.wait(0, async move {
            let mut found = Vec::new();
            let mut all = store.list_with_offset(Some(&path), &offset);
            while let Some(object) = all.next().await {
                let location = object?.location;
                let Some(name) = location.filename() else {
                    continue;
                };
                // They come in order.
                if name >= before.as_str() {
                    break;
                }
                found.push(name.to_owned());
            }
            Ok(found)
        });
        listed.map_err(to_io)
    }

    fn recover(&self, _folder: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _folder: &str) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        Ok(None)
    }

    fn space(&self) -> io::Result<Option<Space>> {
        Ok(None)
    }

    fn container_bytes(&self) -> u64 {
        16 << 20
    }

    fn requests_at_once(&self) -> usize {
        8
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}

/// What is asked for of an object.
enum Part {
    All,
    Range(Range<u64>),
    /// So many bytes, or all of it.
    Last(u64),
}

/// What became of an object that was to be created.
enum Created {
    Yes,
    No(io::Error),
    /// Neither is sure, and why.
    Unknown(String),
}

/// What has an object's name.
enum Found {
    Ours,
    Another,
    Nothing,
}

/// How long a request may take that brings or takes so many bytes.
fn patience(bytes: u64) -> Duration {
    REQUEST_MAX + Duration::from_secs(bytes / SLOWEST)
}

fn failed(what: String) -> Error {
    Error::Generic {
        store: "bucket",
        source: what.into(),
    }
}

/// Whether a request was answered with a no: trying again would not help, and nothing was done.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound { .. }
            | Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::UnknownConfigurationKey { .. }
    )
}

fn to_io(error: Error) -> io::Error {
    let kind = match &error {
        // Else it would read as if there were only no object.
        Error::NotFound { source, .. } if source.to_string().contains("NoSuchBucket") => {
            return io::Error::other("there is no such bucket; make it first");
        }
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        // There is no word for it in the protocol; these are those of Ceph, MinIO and HTTP.
        other => {
            let text = other.to_string();
            let full = ["QuotaExceeded", "StorageFull", "507 Insufficient Storage"];
            match full.iter().any(|word| text.contains(word)) {
                true => io::ErrorKind::StorageFull,
                false => io::ErrorKind::Other,
            }
        }
    };
    io::Error::new(kind, error)
}
