//! An object store, and a network between it and its clients that loses requests, loses answers, delivers what it lost later,
//! lists what was there a while ago, and is cut; and servers without manners.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The bucket, and all that lies between it and its clients.
#[derive(Debug)]
pub(crate) struct Network {
    bucket: InMemory,
    weather: Mutex<Weather>,
}

#[derive(Debug)]
struct Weather {
    rng: ChaCha8Rng,
    /// Of a thousand requests so many go wrong.
    faults: u32,
    /// What was lost, and may still arrive.
    late: Vec<Late>,
    /// Objects of the newest requests, which a list may not know of, or still know.
    recent: Vec<Path>,
    /// How often objects were asked for.
    gets: BTreeMap<Path, u64>,
}

#[derive(Debug)]
enum Late {
    Put(Path, PutPayload, PutMode),
    Delete(Path),
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
enum Fate {
    Done,
    /// It never arrives, or later.
    Lost,
    /// It is done, and nobody hears of it.
    Unanswered,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            bucket: InMemory::new(),
            weather: Mutex::new(Weather {
                rng: ChaCha8Rng::seed_from_u64(seed),
                faults: 0,
                late: Vec::new(),
                recent: Vec::new(),
                gets: BTreeMap::new(),
            }),
        })
    }

    /// From now on so many of a thousand requests go wrong.
    pub(crate) fn set_faults(&self, faults: u32) {
        self.weather.lock().faults = faults;
    }

    /// How often each object was asked for since the last time.
    pub(crate) fn take_gets(&self) -> BTreeMap<Path, u64> {
        std::mem::take(&mut self.weather.lock().gets)
    }

    /// The beat comes when it wants: it shall not decide what becomes of the others.
    fn fate(&self, path: &Path) -> Fate {
        let mut weather = self.weather.lock();
        let faults = weather.faults;
        if path.as_ref().contains("beat-") || weather.rng.random_range(0..1000) >= faults {
            return Fate::Done;
        }
        match weather.rng.random_bool(0.5) {
            true => Fate::Lost,
            false => Fate::Unanswered,
        }
    }

    /// Some of what was lost arrives.
    pub(crate) async fn deliver(&self, part: f64) {
        let arrived: Vec<Late> = {
            let mut weather = self.weather.lock();
            let Weather { rng, late, .. } = &mut *weather;
            let (now, later): (Vec<_>, Vec<_>) = std::mem::take(late)
                .into_iter()
                .partition(|_| rng.random_bool(part));
            *late = later;
            now
        };
        for late in arrived {
            // Nobody hears of it, whatever becomes of it.
            match late {
                Late::Put(path, bytes, mode) => {
                    let _ = self.bucket.put_opts(&path, bytes, mode.into()).await;
                }
                Late::Delete(path) => drop(self.bucket.delete(&path).await),
            }
        }
    }
}

/// How the server treats a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manners {
    Honest,
    /// It overwrites what it should only create.
    Careless,
    /// It does not take more bytes than an object has for all of it.
    Strict,
    Lying(Lie),
}

/// What it sends beside what it says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lie {
    Shorter,
    Longer,
    Elsewhere,
    /// Of an object that cannot be so long.
    Endless,
    /// Of an object that ends before what was asked for.
    Shrunk,
}

/// One process's way to the bucket.
#[derive(Debug)]
pub(crate) struct Client {
    network: Arc<Network>,
    manners: Manners,
    cut: Arc<AtomicBool>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a client")
    }
}

/// No store asks for it.
fn whole_only() -> Error {
    Error::NotImplemented {
        operation: "anything but whole objects".into(),
        implementer: "a client".into(),
    }
}

impl Lie {
    async fn about(self, honest: GetResult) -> Result<GetResult, Error> {
        let (mut meta, mut range) = (honest.meta.clone(), honest.range.clone());
        let mut bytes = honest.bytes().await?.to_vec();
        match self {
            Self::Shorter => bytes.truncate(bytes.len() / 2),
            Self::Longer => bytes.extend([7; 5000]),
            Self::Elsewhere => range = range.start + 512..range.end + 512,
            Self::Endless => meta.size = u64::MAX,
            Self::Shrunk => meta.size = 100,
        }
        let sent = futures_util::stream::once(async { Ok(bytes.into()) });
        Ok(GetResult {
            payload: GetResultPayload::Stream(sent.boxed()),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Extensions::default(),
        })
    }
}

fn lost() -> Error {
    Error::Generic {
        store: "network",
        source: "no answer".into(),
    }
}

impl Client {
    /// `cut`: nothing gets through while it is set.
    pub(crate) fn new(network: &Arc<Network>, manners: Manners, cut: &Arc<AtomicBool>) -> Self {
        Self {
            network: Arc::clone(network),
            manners,
            cut: Arc::clone(cut),
        }
    }

    fn reach(&self) -> Result<(), Error> {
        match self.cut.load(SeqCst) {
            true => Err(lost()),
            false => Ok(()),
        }
    }

    fn note(&self, path: &Path) {
        let recent = &mut self.network.weather.lock().recent;
        recent.push(path.clone());
        if recent.len() > 5 {
            recent.remove(0);
        }
    }

    /// What a list leaves out: it is of a moment ago.
    fn unlisted(&self) -> Vec<Path> {
        let mut weather = self.network.weather.lock();
        let faults = weather.faults * 10;
        match weather.rng.random_range(0..1000) < faults {
            true => weather.recent.clone(),
            false => Vec::new(),
        }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Client {
    async fn put_opts(
        &self,
        path: &Path,
        bytes: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult, Error> {
        if let Manners::Careless = self.manners {
            options.mode = PutMode::Overwrite;
        }
        let mut fate = self.network.fate(path);
        if self.cut.load(SeqCst) {
            // What was under way when the line was cut may arrive when it is there again.
            fate = Fate::Lost;
        }
        if fate == Fate::Lost {
            let late = Late::Put(path.clone(), bytes, options.mode);
            self.network.weather.lock().late.push(late);
            return Err(lost());
        }
        let done = self.network.bucket.put_opts(path, bytes, options).await;
        self.note(path);
        match fate {
            Fate::Unanswered => Err(lost()),
            _ => done,
        }
    }

    async fn put_multipart_opts(
        &self,
        _path: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        Err(whole_only())
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult, Error> {
        self.reach()?;
        match self.network.fate(path) {
            Fate::Done => {}
            _ => return Err(lost()),
        }
        *self
            .network
            .weather
            .lock()
            .gets
            .entry(path.clone())
            .or_default() += 1;
        let last = match &options.range {
            Some(GetRange::Suffix(bytes)) => *bytes,
            _ => 0,
        };
        let honest = self.network.bucket.get_opts(path, options).await?;
        if matches!(self.manners, Manners::Strict) && last > honest.meta.size {
            return Err(lost());
        }
        match self.manners {
            Manners::Lying(lie) => lie.about(honest).await,
            _ => Ok(honest),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        let (network, reach) = (Arc::clone(&self.network), self.reach());
        let one = move |path: Result<Path, Error>| {
            let (network, reached) = (Arc::clone(&network), reach.is_ok());
            async move {
                let path = path?;
                let fate = network.fate(&path);
                if !reached || fate == Fate::Lost {
                    if reached {
                        let late = Late::Delete(path);
                        network.weather.lock().late.push(late);
                    }
                    return Err(lost());
                }
                // S3 does not say that there was nothing.
                match network.bucket.delete(&path).await {
                    Err(e) if !matches!(e, Error::NotFound { .. }) => return Err(e),
                    _ => {}
                }
                match fate {
                    Fate::Unanswered => Err(lost()),
                    _ => Ok(path),
                }
            }
        };
        paths.then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        if let Err(e) = self.reach() {
            return futures_util::stream::once(async { Err(e) }).boxed();
        }
        let unlisted = self.unlisted();
        let listed = self.network.bucket.list(prefix);
        let known = move |object: &Result<ObjectMeta, Error>| {
            let known = object
                .as_ref()
                .is_ok_and(|object| !unlisted.contains(&object.location));
            async move { known }
        };
        listed.filter(known).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.reach()?;
        let unlisted = self.unlisted();
        let mut listed = self.network.bucket.list_with_delimiter(prefix).await?;
        listed
            .objects
            .retain(|object| !unlisted.contains(&object.location));
        Ok(listed)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<(), Error> {
        Err(whole_only())
    }
}
