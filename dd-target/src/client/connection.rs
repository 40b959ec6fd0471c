//! Requests to a server: synchronous outside, HTTP/2 on a few connections inside.
//!
//! Rule: what may be asked twice is asked again when the line breaks, ever more slowly; nothing else is.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity, Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::client::{Access, RemoteError, ServerUrl};
use crate::private_file::read_private;
use crate::problem::{Kind, Problem};
use crate::wire::FRAME_BYTES;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// After so much silence the other end is asked for a sign of life, and given up after as much again.
const SILENCE: Duration = Duration::from_secs(20);
/// How long an answer may take that needs no long work.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The slowest line on which bytes are waited for, in bytes a second.
const SLOWEST: u64 = 16 << 10;
/// Attempts at what may be asked twice, and what lies between the first two; twice as much each further time.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);

/// Longest file with a secret, answer and error in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;
const JSON_BYTES_MAX: usize = 64 << 20;
const PROBLEM_BYTES_MAX: usize = 64 << 10;

/// A server that is talked to.
pub(crate) struct Connection {
    http: Client,
    server: ServerUrl,
    /// Until it is dropped.
    runtime: Option<Runtime>,
}

/// What is asked for.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Below the server.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    /// How long the answer may take; for ever if there is none.
    pub(crate) patience: Option<Duration>,
    /// Whether it may be asked twice.
    pub(crate) again: bool,
}

impl Ask {
    /// A question that changes nothing.
    pub(crate) fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            headers: HeaderMap::new(),
            body: None,
            patience: Some(PATIENCE),
            again: true,
        }
    }

    /// Bytes to be taken; a second time, too, if the line breaks.
    pub(crate) fn bytes(path: String, body: Vec<u8>) -> Self {
        let mut ask = Self::get(path);
        ask.method = Method::POST;
        ask.patience = Some(patience(body.len() as u64));
        ask.body = Some(body.into());
        ask
    }

    /// Something to be done, once.
    pub(crate) fn post(path: String, body: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(body).expect("documents are plain data");
        let json = HeaderValue::from_static("application/json");
        let mut ask = Self::get(path);
        ask.method = Method::POST;
        ask.headers.insert(reqwest::header::CONTENT_TYPE, json);
        ask.body = Some(bytes.into());
        ask.again = false;
        ask
    }
}

/// A server's answer.
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(server: &ServerUrl, access: &Access) -> Result<Arc<Self>, RemoteError> {
        let unreachable = |source| RemoteError::Unreachable {
            server: server.to_string(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("target-client")
            .enable_all()
            .build()
            .map_err(|error| unreachable(error.into()))?;
        let http = client(server, access)?;
        let http = http.build().map_err(|error| unreachable(error.into()))?;
        Ok(Arc::new(Self {
            http,
            server: server.clone(),
            runtime: Some(runtime),
        }))
    }

    pub(crate) fn server(&self) -> String {
        self.server.to_string()
    }

    /// Asks, and waits for the answer; its body has `len_max` bytes at most.
    pub(crate) fn ask(self: &Arc<Self>, ask: Ask, len_max: usize) -> Result<Answer, RemoteError> {
        self.ask_into(ask, len_max, Vec::new())
    }

    /// The same; the body lies in `memory`, if it fits.
    pub(crate) fn ask_into(
        self: &Arc<Self>,
        ask: Ask,
        len_max: usize,
        mut memory: Vec<u8>,
    ) -> Result<Answer, RemoteError> {
        let this = Arc::clone(self);
        self.wait(async move { this.send_into(&ask, len_max, &mut memory).await })
    }

    /// Asks for a document.
    pub(crate) fn json<T: DeserializeOwned>(self: &Arc<Self>, ask: Ask) -> Result<T, RemoteError> {
        let answer = self.ask(ask, JSON_BYTES_MAX)?;
        let parsed = serde_json::from_slice(&answer.body);
        parsed.map_err(|_| self.nonsense("it is not the document that was asked for"))
    }

    pub(crate) fn nonsense(&self, what: &'static str) -> RemoteError {
        let server = self.server();
        RemoteError::Answer { server, what }
    }

    /// Begins what nobody waits for here.
    pub(crate) fn begin<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        runtime.spawn(work);
    }

    /// Waits for what the runtime does. Not to be called from one of its threads.
    pub(crate) fn wait<T, F>(&self, work: F) -> Result<T, RemoteError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RemoteError>> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        let (answer, answered) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            let _ = answer.send(work.await);
        });
        let broken = "a request has panicked";
        answered
            .recv()
            .unwrap_or_else(|_| Err(self.nonsense(broken)))
    }

    /// Asks, and asks again where that may be.
    pub(crate) async fn send(&self, ask: &Ask, len_max: usize) -> Result<Answer, RemoteError> {
        self.send_into(ask, len_max, &mut Vec::new()).await
    }

    async fn send_into(
        &self,
        ask: &Ask,
        len_max: usize,
        memory: &mut Vec<u8>,
    ) -> Result<Answer, RemoteError> {
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match self.send_once(ask, len_max, memory).await {
                Err(error) if may_ask_again(ask, &error) => {
                    tracing::debug!(error = crate::chain(&error), "asked again");
                }
                answered => return answered,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.send_once(ask, len_max, memory).await
    }

    async fn send_once(
        &self,
        ask: &Ask,
        len_max: usize,
        memory: &mut Vec<u8>,
    ) -> Result<Answer, RemoteError> {
        let broken = |error: reqwest::Error| RemoteError::Unreachable {
            server: self.server(),
            // It names the URL, which the message does already.
            source: error.without_url().into(),
        };
        let response = self.request(ask).send().await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() {
            let problem = self.body(response, PROBLEM_BYTES_MAX, Vec::new()).await;
            let problem = problem
                .ok()
                .and_then(|body| serde_json::from_slice(&body).ok());
            return Err(RemoteError::Refused {
                server: self.server(),
                status: status.as_u16(),
                problem: Box::new(problem.unwrap_or_else(|| Problem {
                    error: status.to_string(),
                    kind: Kind::Failed,
                    hint: None,
                })),
            });
        }
        let headers = response.headers().clone();
        let body = match ask.method == Method::HEAD {
            true => Vec::new(),
            false => {
                let memory = std::mem::take(memory);
                self.body(response, len_max, memory).await?
            }
        };
        Ok(Answer { headers, body })
    }

    fn request(&self, ask: &Ask) -> RequestBuilder {
        let url = format!("{}{}", self.server, ask.path);
        let request = self.http.request(ask.method.clone(), url);
        let mut request = request.headers(ask.headers.clone());
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        match ask.patience {
            Some(most) => request.timeout(most),
            None => request,
        }
    }

    async fn body(
        &self,
        mut response: Response,
        len_max: usize,
        mut body: Vec<u8>,
    ) -> Result<Vec<u8>, RemoteError> {
        let told = response.headers().get(CONTENT_LENGTH);
        let told = told.and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
        body.clear();
        body.reserve_exact(told.unwrap_or(0).min(len_max));
        loop {
            let part = response.chunk().await;
            let part = part.map_err(|error| RemoteError::Unreachable {
                server: self.server(),
                source: error.without_url().into(),
            })?;
            let Some(part) = part else { return Ok(body) };
            if body.len() + part.len() > len_max {
                return Err(self.nonsense("it is longer than it can be"));
            }
            body.extend_from_slice(&part);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Nobody waits for an answer any more; and this may be one of another runtime's threads.
            runtime.shutdown_background();
        }
    }
}

/// How long what brings or takes so many bytes may take.
pub(super) fn patience(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes / SLOWEST)
}

fn may_ask_again(ask: &Ask, error: &RemoteError) -> bool {
    match error {
        RemoteError::Unreachable { .. } => ask.again,
        // Nothing was done: it has too much to do, or ends.
        RemoteError::Refused { status, .. } => {
            matches!(status, 429) || (ask.again && *status == 503)
        }
        _ => false,
    }
}

fn client(server: &ServerUrl, access: &Access) -> Result<reqwest::ClientBuilder, RemoteError> {
    let mut headers = HeaderMap::new();
    let mut builder = Client::builder()
        .https_only(true)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(SILENCE)
        .http2_keep_alive_timeout(SILENCE)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(4 << 20)
        .http2_initial_connection_window_size(32 << 20)
        .http2_max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    if let Some(path) = &access.authorities {
        let pem = fs::read(path).map_err(|error| unusable(path, error))?;
        let trusted = Certificate::from_pem_bundle(&pem);
        let trusted = trusted.map_err(|error| unusable(path, error))?;
        if trusted.is_empty() {
            return Err(unusable(path, "it holds no certificate (PEM)"));
        }
        builder = builder.tls_certs_only(trusted);
    }
    match (&access.token, &access.certificate) {
        (Some(path), _) => {
            let token = secret(path)?;
            let value = [b"Bearer ", token.trim_ascii()].concat();
            let value = HeaderValue::from_bytes(&Zeroizing::new(value));
            let mut value = value.map_err(|_| unusable(path, "it holds no token"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        (None, Some(path)) => {
            let pem = secret(path)?;
            let identity = Identity::from_pem(&pem);
            builder = builder.identity(identity.map_err(|error| unusable(path, error))?);
        }
        (None, None) => {
            let server = server.to_string();
            return Err(RemoteError::NoToken { server });
        }
    }
    Ok(builder.default_headers(headers))
}

/// A file with a token, or with a key and its certificates.
fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, RemoteError> {
    read_private(path, SECRET_BYTES_MAX).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> RemoteError {
    RemoteError::File {
        path: path.to_owned(),
        why: why.to_string(),
    }
}
