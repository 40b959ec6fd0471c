//! A real S3 server (s3s over a directory) on the loopback, which counts what it is asked and can be made to fail.
//!
//! What s3s-fs lacks is added: a conditional put is checked and done in one step, and answers are sent at once.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, IF_MATCH, IF_NONE_MATCH, RANGE};
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The only key that it lets in.
pub const ACCESS_KEY: &str = "tester";
/// Its secret.
pub const SECRET_KEY: &str = "correct-horse";

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub requests: u64,
    /// Bytes of their bodies and of the answers' bodies.
    pub bytes: u64,
}

/// How many of a thousand requests meet a fault of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Answered with 500, and not done.
    pub internal: u32,
    /// Answered with 503 SlowDown, and not done.
    pub slow_down: u32,
    /// The connection ends without an answer; nothing is done.
    pub lost: u32,
    /// It is done, and the connection ends without an answer.
    pub unanswered: u32,
    /// It hangs for longer than a client waits.
    pub hang: u32,
}

impl Faults {
    /// A little of everything.
    #[must_use]
    pub fn some(of_each: u32) -> Self {
        Self {
            internal: of_each,
            slow_down: of_each,
            lost: of_each,
            unanswered: of_each,
            hang: of_each / 5,
        }
    }
}

/// A running server; it ends when dropped.
pub struct Server {
    address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

struct State {
    s3: S3Service,
    /// Held by the one conditional put.
    conditional: tokio::sync::Mutex<()>,
    counts: Mutex<BTreeMap<&'static str, Count>>,
    weather: Mutex<(ChaCha8Rng, Faults)>,
}

impl Server {
    /// Starts one with its objects in `root` and an empty bucket `bucket`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(root: &Path, seed: u64) -> Result<Self> {
        std::fs::create_dir_all(root.join("bucket"))?;
        let files = FileSystem::new(root).map_err(|e| anyhow!("s3s-fs: {e:?}"))?;
        let mut s3 = S3ServiceBuilder::new(files);
        s3.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let state = Arc::new(State {
            s3: s3.build(),
            conditional: tokio::sync::Mutex::new(()),
            counts: Mutex::default(),
            weather: Mutex::new((ChaCha8Rng::seed_from_u64(seed), Faults::default())),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener, Arc::clone(&state)));
        Ok(Self {
            address,
            state,
            runtime: Some(runtime),
        })
    }

    /// The settings with which a client comes here.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// What happens to requests from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.weather.lock().1 = faults;
    }

    /// What was asked since the last call.
    #[must_use]
    pub fn take_counts(&self) -> BTreeMap<&'static str, Count> {
        std::mem::take(&mut self.state.counts.lock())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(Arc::clone(&state), request));
            let mut http = Builder::new(TokioExecutor::new());
            http.http1().timer(TokioTimer::new());
            // What a connection ends with is the client's to notice.
            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// What becomes of a request.
enum Fate {
    Done,
    Refused(StatusCode, &'static str),
    Lost,
    Unanswered,
    Hangs,
}

impl State {
    fn fate(&self) -> Fate {
        let (rng, faults) = &mut *self.weather.lock();
        let mut roll = rng.random_range(0..1000);
        let mut hits = |of: u32| {
            let hit = roll < of;
            roll = roll.wrapping_sub(of);
            hit
        };
        match () {
            () if hits(faults.internal) => {
                Fate::Refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
            }
            () if hits(faults.slow_down) => {
                Fate::Refused(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")
            }
            () if hits(faults.lost) => Fate::Lost,
            () if hits(faults.unanswered) => Fate::Unanswered,
            () if hits(faults.hang) => Fate::Hangs,
            () => Fate::Done,
        }
    }

    fn count(&self, kind: &'static str, bytes: u64) {
        let mut counts = self.counts.lock();
        let count = counts.entry(kind).or_default();
        count.requests += 1;
        count.bytes += bytes;
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, io::Error> {
    let kind = kind_of(&request);
    let sent = length(request.headers());
    let conditional =
        request.headers().contains_key(IF_NONE_MATCH) || request.headers().contains_key(IF_MATCH);
    let lost = || io::Error::from(io::ErrorKind::ConnectionReset);
    let fate = state.fate();
    match fate {
        Fate::Done | Fate::Unanswered => {}
        Fate::Lost => return Err(lost()),
        Fate::Hangs => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            return Err(lost());
        }
        Fate::Refused(status, code) => {
            state.count(kind, sent);
            let xml = format!("<Error><Code>{code}</Code><Message>injected</Message></Error>");
            let response = Response::builder().status(status);
            return response.body(xml.into()).map_err(io::Error::other);
        }
    }
    let answered = {
        let _one = match conditional {
            true => Some(state.conditional.lock().await),
            false => None,
        };
        let answered = Service::call(&state.s3, request).await;
        answered.map_err(|e| io::Error::other(format!("{e:?}")))?
    };
    state.count(kind, sent + length(answered.headers()));
    match fate {
        Fate::Unanswered => Err(lost()),
        _ => Ok(answered),
    }
}

fn kind_of(request: &Request<Incoming>) -> &'static str {
    let headers = request.headers();
    let path = request.uri().path().trim_matches('/');
    match *request.method() {
        Method::GET if !path.contains('/') => "LIST",
        Method::GET if headers.contains_key(RANGE) => "GET range",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT if headers.contains_key(IF_NONE_MATCH) => "PUT if none",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::POST => "POST",
        _ => "other",
    }
}

fn length(headers: &hyper::HeaderMap) -> u64 {
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}

/// All requests of some kinds together.
///
/// # Errors
/// If there was none of them: a test that counts what never happens proves nothing.
pub fn sum(counts: &BTreeMap<&'static str, Count>, kinds: &[&str]) -> Result<Count> {
    let of = counts.iter().filter(|(kind, _)| kinds.contains(kind));
    of.map(|(_, count)| *count)
        .reduce(|a, b| Count {
            requests: a.requests + b.requests,
            bytes: a.bytes + b.bytes,
        })
        .with_context(|| format!("no {kinds:?} in {counts:?}"))
}
