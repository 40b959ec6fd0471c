//! Buckets by URL: `s3://BUCKET` or `s3://BUCKET/PREFIX`, with what the environment says of the rest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, RetryConfig};

use crate::backend::Bucket;

/// How long a connection may be dead until it is given up: less than a writer may be silent.
const DEAD_MAX: Duration = Duration::from_secs(12);

/// A URL that names no bucket, or an environment that says too little or nonsense.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBucket {
    /// The URL.
    #[error("it names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX, and no keys")]
    Url,
    /// The environment, or what it stands for.
    #[error("its settings cannot be used: {0}")]
    Settings(object_store::Error),
    /// The operating system gives no thread.
    #[error("no thread could be started for it: {0}")]
    Thread(io::Error),
}

impl Bucket {
    /// Whether a URL can name a bucket.
    ///
    /// # Errors
    /// `Url` if not.
    pub fn check_url(url: &str) -> Result<(), InvalidBucket> {
        parse(url).map(drop)
    }

    /// A bucket of S3, or of a server that speaks its protocol. `settings` are those of the AWS command line, by name:
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
    /// `AWS_ALLOW_HTTP` and others of `object_store`; none of them is logged. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// See [`InvalidBucket`].
    pub fn s3(
        url: &str,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, InvalidBucket> {
        let (bucket, prefix) = parse(url)?;
        let mut builder = AmazonS3Builder::new().with_http_connector(Connector);
        for (name, value) in settings {
            let key = name
                .starts_with("AWS_")
                .then(|| name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>());
            if let Some(Ok(key)) = key {
                builder = builder.with_config(key, value);
            }
        }
        let build = |retry| {
            let builder = builder.clone().with_bucket_name(bucket).with_retry(retry);
            builder.build().map_err(InvalidBucket::Settings)
        };
        let store = Arc::new(build(retry())?);
        let creator = Arc::new(build(RetryConfig {
            max_retries: 0,
            ..retry()
        })?);
        let bucket = Self::new(store, prefix, url.to_owned()).map_err(InvalidBucket::Thread)?;
        Ok(bucket.with_creator(creator))
    }
}

/// The bucket's name, and the prefix in it.
fn parse(url: &str) -> Result<(&str, Path), InvalidBucket> {
    let rest = url.strip_prefix("s3://").ok_or(InvalidBucket::Url)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // Nothing else is a bucket's name, and no key stands before an `@` in it.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(plain) {
        return Err(InvalidBucket::Url);
    }
    let prefix = Path::parse(prefix).map_err(|_| InvalidBucket::Url)?;
    Ok((bucket, prefix))
}

/// The caller goes on trying: what hangs here for long only hides what is wrong.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 6,
        retry_timeout: Duration::from_secs(60),
    }
}

/// Connections that notice when the line is dead, as those of `object_store` do not: it bounds requests as a whole, and a
/// container on a slow line may take minutes.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let is_set = |key| {
            options
                .get_config_value(&key)
                .is_some_and(|value| value == "true")
        };
        let client = reqwest::Client::builder()
            .user_agent(concat!("standin/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .connect_timeout(Duration::from_secs(5))
            .tcp_user_timeout(DEAD_MAX)
            .tcp_keepalive(DEAD_MAX / 3)
            .tcp_keepalive_interval(DEAD_MAX / 3)
            .tcp_keepalive_retries(2)
            .https_only(!is_set(ClientConfigKey::AllowHttp))
            .danger_accept_invalid_certs(is_set(ClientConfigKey::AllowInvalidCertificates))
            .build();
        let client = client.map_err(|source| object_store::Error::Generic {
            store: "S3",
            source: Box::new(source),
        })?;
        Ok(HttpClient::new(client))
    }
}
