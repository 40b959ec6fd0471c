//! Where points go, named by a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use block::Clock;
use dd_target::Place;
use dd_target::client::{Access, Objects, RemoteError, VaultUrl};
use store::{Around, Store, StoreError};

use crate::{Error, Result};

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A store in a directory of this machine: `dir:PATH`.
    Directory(PathBuf),
    /// A store in a bucket: `s3://BUCKET/PREFIX`. How to get there says the environment, in the variables of AWS.
    Bucket(String),
    /// A vault behind a server: `https://HOST:PORT/VAULT`. What is shown to the server is the process's [`Access`].
    Vault(VaultUrl),
}

/// What to do where there is no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make one: nothing was ever kept there.
    Create,
    /// Fail: there was one, and the place is not what it was. A share may not be mounted; a store in its
    /// mount point would hide the old points, and fill the wrong disk.
    Refuse,
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let refuse = |url: &str, why| Error::Target {
            url: url.to_owned(),
            why,
        };
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("https") => {
                let vault = url.parse().map(Self::Vault);
                vault.map_err(|e: dd_target::client::InvalidUrl| refuse(e.url(), e.why))
            }
            Some("http") => Err(refuse(url, "vaults are reached by TLS only: https://")),
            Some("dir" | "s3" | "gs" | "az") => match url.parse() {
                Ok(Place::Directory(path)) => Ok(Self::Directory(path)),
                Ok(Place::Bucket(url)) => Ok(Self::Bucket(url)),
                Err(e) => Err(refuse(&e.url, e.why)),
            },
            _ => Err(refuse(
                url,
                "it begins neither with `dir:` nor with `s3://` nor with `https://`",
            )),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault(url) => url.fmt(f),
            Self::Directory(path) => Place::Directory(path.clone()).fmt(f),
            Self::Bucket(url) => f.write_str(url),
        }
    }
}

impl Target {
    /// The same target, independent of the current directory.
    #[must_use]
    pub fn absolute(&self) -> Self {
        match self {
            Self::Directory(path) => {
                Self::Directory(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
            }
            Self::Bucket(_) | Self::Vault(_) => self.clone(),
        }
    }

    /// Opens the store to read: beside a writer, or in a place where nobody may write.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn reader(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let failed = self.failed("open the store");
        let place = match self {
            Self::Vault(url) => {
                let objects = Objects::open(url, &Access::of_this_process());
                objects.map_err(self.refused("open the vault"))?
            }
            _ => self.place()?.open().map_err(&failed)?,
        };
        Store::open_reader(&place, around(clock)).map_err(failed)
    }

    /// Makes a store.
    pub(crate) fn create(&self) -> Result<()> {
        let place = self.place()?;
        let created = place.make().and_then(|place| Store::create(&place));
        created.map_err(self.failed("create the store"))
    }

    /// Opens the store as its only writer.
    ///
    /// # Errors
    /// `Retry` if another process writes to it; `Gone` if there is none and `missing` refuses that.
    pub(crate) fn writer(&self, around: &Around, missing: Missing) -> Result<Store> {
        match try_writer(&self.place()?, around, missing) {
            Err(StoreError::NotAStore { .. }) if missing == Missing::Refuse => Err(Error::Gone {
                target: self.to_string(),
            }),
            opened => opened.map_err(self.failed("open the store")),
        }
    }

    /// Opens a store that must be there as its only writer.
    pub(crate) fn writer_of_existing(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let place = self.place()?;
        let opened = place
            .open()
            .and_then(|place| Store::open_writer(&place, around(clock)));
        opened.map_err(self.failed("open the store"))
    }

    /// Whether whoever writes there holds a lock that goes with its process.
    pub(crate) fn has_locks(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Whether both are the same place, however it is written.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory(a), Self::Directory(b)) => {
                let [a, b] =
                    [a, b].map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()));
                a == b
            }
            _ => self == other,
        }
    }

    /// Where the store lies; a vault's is its server's affair.
    fn place(&self) -> Result<Place> {
        match self {
            Self::Directory(path) => Ok(Place::Directory(path.clone())),
            Self::Bucket(url) => Ok(Place::Bucket(url.clone())),
            Self::Vault(url) => Err(Error::usage(
                format!("the store of the vault `{url}` is its server's"),
                "vaults are made with `standin vault create`",
            )),
        }
    }

    /// Wraps a store's error with what was being done here.
    pub(crate) fn failed(&self, doing: &'static str) -> impl Fn(StoreError) -> Error {
        let target = self.to_string();
        move |source| Error::Store {
            doing,
            target: target.clone(),
            source,
        }
    }

    /// The same of a server.
    pub(crate) fn refused(&self, doing: &'static str) -> impl Fn(RemoteError) -> Error {
        let target = self.to_string();
        move |source| Error::Vault {
            doing,
            target: target.clone(),
            source,
        }
    }
}

fn try_writer(
    place: &Place,
    around: &Around,
    missing: Missing,
) -> std::result::Result<Store, StoreError> {
    if missing == Missing::Refuse {
        return Store::open_writer(&place.open()?, around.clone());
    }
    let place = place.make()?;
    match Store::open_writer(&place, around.clone()) {
        Err(StoreError::NotAStore { .. }) => {
            Store::create(&place)?;
            Store::open_writer(&place, around.clone())
        }
        opened => opened,
    }
}

fn around(clock: &Arc<dyn Clock>) -> Around {
    Around::new(Arc::clone(clock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn urls_that_name_no_place_are_refused_with_a_reason() {
        let dir: Target = "dir:/backup".parse().expect("a directory");
        assert_eq!(dir, Target::Directory("/backup".into()));
        assert_eq!(dir.to_string(), "dir:/backup");
        for url in ["s3://bucket/x", "s3://bucket/x/"] {
            let bucket: Target = url.parse().expect("a bucket");
            assert_eq!(bucket, Target::Bucket("s3://bucket/x".into()));
            assert_eq!(bucket.to_string(), "s3://bucket/x");
        }
        let vault: Target = "https://host:7443/web".parse().expect("a vault");
        assert_eq!(vault.to_string(), "https://host:7443/web");
        for (url, word) in [
            ("https://host/vault", "PORT"),
            ("http://host:1/vault", "TLS"),
            ("s3:///x", "no bucket"),
            ("s3:bucket", "no bucket"),
            ("gs://bucket/x", "yet"),
            ("/backup", "`dir:`"),
            ("dir:", "empty"),
        ] {
            let error = url.parse::<Target>().expect_err(url);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
