//! Buckets by URL: `s3://BUCKET` or `s3://BUCKET/PREFIX`, with what the environment says of the rest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

use crate::backend::Bucket;

/// A container on a line of 1 Mbit/s.
const REQUEST_MAX: &str = "180s";

/// A URL that names no bucket, or an environment that says too little or nonsense.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBucket {
    /// The URL.
    #[error("it names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")]
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
        let client = AmazonS3ConfigKey::Client;
        let mut builder = AmazonS3Builder::new()
            .with_config(client(ClientConfigKey::Timeout), REQUEST_MAX)
            .with_config(client(ClientConfigKey::ConnectTimeout), "5s");
        for (name, value) in settings {
            let key = name
                .starts_with("AWS_")
                .then(|| name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>());
            if let Some(Ok(key)) = key {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder
            .with_bucket_name(bucket)
            .with_retry(retry())
            .build()
            .map_err(InvalidBucket::Settings)?;
        Self::new(Arc::new(store), prefix, url.to_owned()).map_err(InvalidBucket::Thread)
    }
}

/// The bucket's name, and the prefix in it.
fn parse(url: &str) -> Result<(&str, Path), InvalidBucket> {
    let rest = url.strip_prefix("s3://").ok_or(InvalidBucket::Url)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
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
