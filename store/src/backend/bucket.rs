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
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use block::Space;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::runtime::Runtime;

use crate::backend::bucket::blocks::{BLOCK, Blocks, Known};
use crate::backend::{Backend, within};

pub use s3::InvalidBucket;

mod blocks;
mod s3;

/// What is read of an object of which nothing is known: all of a small one.
const HEAD: u64 = 2 * BLOCK;

/// Attempts to create an object, or to find out whether it was created.
const CREATE_ATTEMPTS: u32 = 4;
/// Before the third of them, which waits twice as long: the client has waited itself until it gave up.
const CREATE_PAUSE: Duration = Duration::from_millis(200);

/// A [`Backend`] in an object store, below a prefix.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    blocks: Blocks,
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
            store,
            prefix,
            url,
            blocks: Blocks::default(),
            runtime: Some(runtime),
        })
    }

    fn path(&self, name: &str) -> Path {
        let parts = name.split('/').filter(|part| !part.is_empty());
        parts.fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Waits for a request.
    fn wait<T, F>(&self, request: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        let (answer, answered) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            let _ = answer.send(request.await);
        });
        answered.recv().unwrap_or_else(|_| {
            Err(Error::Generic {
                store: "bucket",
                source: "a request has panicked".into(),
            })
        })
    }

    fn put(&self, path: &Path, bytes: &PutPayload, mode: PutMode) -> Result<(), Error> {
        let (store, path, bytes) = (Arc::clone(&self.store), path.clone(), bytes.clone());
        let options = PutOptions::from(mode);
        self.wait(async move { store.put_opts(&path, bytes, options).await.map(drop) })
    }

    /// Bytes of an object, and how long all of it is.
    fn get(
        &self,
        path: &Path,
        range: Option<GetRange>,
        len_max: u64,
    ) -> io::Result<(Vec<u8>, u64)> {
        let (store, path) = (Arc::clone(&self.store), path.clone());
        let got = self.wait(async move {
            let options = GetOptions {
                range,
                ..GetOptions::default()
            };
            let got = store.get_opts(&path, options).await?;
            let len = got.meta.size;
            if got.range.end - got.range.start > len_max {
                return Ok((None, len));
            }
            Ok((Some(got.bytes().await?), len))
        });
        match got.map_err(to_io)? {
            (Some(bytes), len) => Ok((bytes.into(), len)),
            (None, len) => within(len, len_max).map(|len| (Vec::new(), len)),
        }
    }

    /// Whether exactly these bytes have the name.
    fn is_there(&self, path: &Path, bytes: &[u8]) -> io::Result<bool> {
        match self.get(path, None, bytes.len() as u64) {
            Ok((found, _)) => Ok(found == bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What is known of an object; its first blocks are read to find out.
    fn known(&self, name: &str) -> io::Result<Arc<Known>> {
        if let Some(known) = self.blocks.known(name) {
            return Ok(known);
        }
        let path = self.path(name);
        // Not its last bytes: not every server takes what is longer than the object for all of it.
        let (head, len) = match self.get(&path, Some(GetRange::Bounded(0..HEAD)), HEAD) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
            // An empty object has no range.
            Err(e) => {
                let store = Arc::clone(&self.store);
                match self.wait(async move { store.head(&path).await }) {
                    Ok(meta) if meta.size == 0 => (Vec::new(), 0),
                    Ok(_) => return Err(e),
                    Err(e) => return Err(to_io(e)),
                }
            }
            Ok(got) => got,
        };
        let known = self.blocks.learn(name, len);
        self.blocks.keep(&known, 0, &head);
        Ok(known)
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
        let path = self.path(name);
        let payload = PutPayload::from(bytes.to_vec());
        let mut pause = CREATE_PAUSE;
        let mut last = None;
        for attempt in 0..CREATE_ATTEMPTS {
            if attempt > 1 {
                std::thread::park_timeout(pause);
                pause *= 2;
            }
            match self.put(&path, &payload, PutMode::Create) {
                Ok(()) => return Ok(()),
                Err(taken @ Error::AlreadyExists { .. }) => match self.is_there(&path, bytes) {
                    Ok(true) => return Ok(()),
                    Ok(false) => return Err(to_io(taken)),
                    Err(error) => last = Some(error),
                },
                Err(error) if is_refusal(&error) => return Err(to_io(error)),
                Err(error) => last = Some(to_io(error)),
            }
        }
        let why = last.map_or_else(String::new, |error| error.to_string());
        let sentence = format!("nobody can say whether it was created: {why}");
        Err(io::Error::new(io::ErrorKind::TimedOut, sentence))
    }

    fn replace(&self, name: &str, bytes: &[u8], _epoch: u64) -> io::Result<()> {
        let payload = PutPayload::from(bytes.to_vec());
        let replaced = self.put(&self.path(name), &payload, PutMode::Overwrite);
        self.blocks.forget(name);
        replaced.map_err(to_io)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.known(name).map(|known| known.len)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let known = self.known(name)?;
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > known.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let path = self.path(name);
        self.blocks.read(&known, offset, buf, |range| {
            let len = range.end - range.start;
            let (bytes, _) = self.get(&path, Some(GetRange::Bounded(range)), len)?;
            Ok(bytes)
        })
    }

    fn read_whole(&self, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
        let (bytes, len) = self.get(&self.path(name), None, len_max)?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let removed = self.wait(async move { store.delete(&path).await });
        self.blocks.forget(name);
        removed.map_err(to_io)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let (store, path) = (Arc::clone(&self.store), self.path(folder));
        let listed = self.wait(async move { store.list_with_delimiter(Some(&path)).await });
        let objects = listed.map_err(to_io)?.objects.into_iter();
        let plain = |object: object_store::ObjectMeta| {
            let plain = object.location.filename()?.to_owned();
            // Whoever lists a folder reads what is in it, and need not ask how long it is.
            let name = match folder {
                "" => plain.clone(),
                folder => format!("{folder}/{plain}"),
            };
            if self.blocks.known(&name).is_none() {
                self.blocks.learn(&name, object.size);
            }
            Some((plain, object.size))
        };
        Ok(objects.filter_map(plain).collect())
    }

    fn list_between(&self, folder: &str, after: &str, before: &str) -> io::Result<Vec<String>> {
        let (store, path) = (Arc::clone(&self.store), self.path(folder));
        let (offset, before) = (path.clone().join(after), before.to_owned());
        let listed = self.wait(async move {
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
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
