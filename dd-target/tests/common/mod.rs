//! A server over a real socket, with TLS, on a place of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{Clock, OsRandom, SystemClock, UnixNanos};
use dd_target::api::{NewToken, NewVault, Role};
use dd_target::client::{Access, Remote, ServerUrl, VaultUrl};
use dd_target::server::{LocalTokens, Server, ServerOptions, TlsFiles};
use dd_target::{KeepOptions, Place};
use reqwest::Method;
use store::{NewKeys, Secret};

pub(crate) mod shipping;

/// The clock of the machine, and what was added to it.
pub(crate) struct Later {
    clock: SystemClock,
    by_ns: AtomicU64,
}

impl Later {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            clock: SystemClock::new(),
            by_ns: AtomicU64::new(0),
        })
    }

    pub(crate) fn pass(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap();
        self.by_ns.fetch_add(ns, Ordering::SeqCst);
    }

    fn by(&self) -> Duration {
        Duration::from_nanos(self.by_ns.load(Ordering::SeqCst))
    }
}

impl Clock for Later {
    fn monotonic(&self) -> Duration {
        self.clock.monotonic() + self.by()
    }

    fn wall(&self) -> UnixNanos {
        self.clock.wall() + self.by()
    }
}

/// A server and what it lives of.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Option<Server>,
    pub(crate) clock: Arc<dyn Clock>,
    address: String,
}

impl Bench {
    /// A server with a vault `v`.
    pub(crate) fn new() -> Self {
        Self::at(Arc::new(SystemClock::new()))
    }

    /// The same, by this clock.
    pub(crate) fn at(clock: Arc<dyn Clock>) -> Self {
        let mut bench = Self::stopped();
        bench.clock = clock;
        bench.start();
        bench.make_vault("v", None);
        bench
    }

    /// None runs yet.
    pub(crate) fn stopped() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            server: None,
            clock: Arc::new(SystemClock::new()),
            address: "127.0.0.1:0".into(),
        }
    }

    /// Begins to serve; where it served before, if it did.
    pub(crate) fn start(&mut self) {
        self.start_with(TlsFiles::default());
    }

    pub(crate) fn start_with(&mut self, tls: TlsFiles) {
        let server = Server::start(ServerOptions {
            place: Place::Directory(self.path("place")),
            listen: self.address.clone(),
            state: self.path("state"),
            tls,
            names: Vec::new(),
            keep: KeepOptions::default(),
            clock: Arc::clone(&self.clock),
        });
        let server = server.unwrap();
        self.address = server.address().to_string();
        self.server = Some(server);
    }

    pub(crate) fn stop(&mut self) {
        self.server.take().unwrap().close();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn url(&self) -> ServerUrl {
        format!("https://{}", self.address).parse().unwrap()
    }

    pub(crate) fn vault(&self, name: &str) -> VaultUrl {
        format!("{}/{name}", self.url()).parse().unwrap()
    }

    pub(crate) fn make_vault(&self, name: &str, quota_bytes: Option<u64>) {
        let admin = self.token(&[Role::Admin]);
        let new = NewVault {
            name: name.into(),
            quota_bytes,
            keys: None,
        };
        self.remote(&admin).create_vault(&new).unwrap();
    }

    /// A vault that this key opens, and that its server cannot read.
    pub(crate) fn make_encrypted_vault(&self, name: &str, key: &Secret) {
        let secrets = [(key.clone(), "key".to_owned())];
        let keys = NewKeys::make(&secrets, &OsRandom, self.clock.wall()).unwrap();
        self.make_vault_with(name, &keys);
    }

    pub(crate) fn make_vault_with(&self, name: &str, keys: &NewKeys) {
        let new = NewVault {
            name: name.into(),
            quota_bytes: None,
            keys: None,
        };
        let admin = self.remote(&self.token(&[Role::Admin]));
        admin.create_encrypted_vault(new, keys).unwrap();
    }

    pub(crate) fn tokens(&self) -> LocalTokens {
        LocalTokens::open(&self.path("state"), &self.clock).unwrap()
    }

    /// The text of a token.
    pub(crate) fn token(&self, roles: &[Role]) -> String {
        self.token_for(roles, |_| ())
    }

    pub(crate) fn token_for(&self, roles: &[Role], set: impl FnOnce(&mut NewToken)) -> String {
        let mut new = NewToken {
            name: "test".into(),
            roles: roles.to_vec(),
            ..NewToken::default()
        };
        set(&mut new);
        self.tokens().create(new).unwrap().text.unwrap()
    }

    /// What a process with this token shows.
    pub(crate) fn access(&self, token: &str) -> Access {
        let path = self.path(&format!(
            "token-{}",
            token.len() + fs::read_dir(self.dir.path()).unwrap().count()
        ));
        let file = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        file.unwrap().write_all(token.as_bytes()).unwrap();
        Access {
            token: Some(path),
            certificate: None,
            authorities: Some(self.path("state/server.pem")),
        }
    }

    pub(crate) fn remote(&self, token: &str) -> Remote {
        Remote::open(&self.url(), &self.access(token)).unwrap()
    }

    /// What the server counts under this name.
    pub(crate) fn figure(&self, name: &str) -> usize {
        let admin = self.token(&[Role::Admin]);
        let (_, figures) = self.ask("GET", "/metrics", Some(&admin));
        let mut lines = figures.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse().unwrap()
    }

    /// A request as it is: status and body.
    pub(crate) fn ask(&self, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
        self.ask_with(method, path, token, |request| request)
    }

    /// The same with a document.
    pub(crate) fn post(&self, path: &str, token: &str, json: &str) -> (u16, String) {
        let json = json.to_owned();
        self.ask_with("POST", path, Some(token), |request| {
            request
                .header("content-type", "application/json")
                .body(json)
        })
    }

    pub(crate) fn ask_with(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        with: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> (u16, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let pem = fs::read(self.path("state/server.pem")).unwrap();
        let roots = reqwest::Certificate::from_pem_bundle(&pem).unwrap();
        let client = reqwest::Client::builder().tls_certs_only(roots).no_proxy();
        runtime.unwrap().block_on(async {
            let client = client.build().unwrap();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = client.request(method, format!("{}{path}", self.url()));
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = with(request).send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }
}
