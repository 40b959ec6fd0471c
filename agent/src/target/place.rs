//! Which place a target's URL names, and how to get there.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use dd_target::client::{Access, InvalidUrl, Objects, VaultUrl};
use store::{Backend, StoreError};

use crate::{Error, Result};

/// A place that keeps a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One that this process opens itself.
    Near(dd_target::Place),
    /// A vault behind a server: `https://HOST:PORT/VAULT`. What is shown to the server is the process's [`Access`].
    Vault(VaultUrl),
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let refuse = |url: &str, why| Error::Target {
            url: url.to_owned(),
            why,
        };
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("https") => {
                let vault = url.parse().map(Self::Vault);
                vault.map_err(|e: InvalidUrl| refuse(e.url(), e.why))
            }
            Some("http") => Err(refuse(url, "vaults are reached by TLS only: https://")),
            Some("dir" | "s3" | "gs" | "az") => {
                let near = url.parse().map(Self::Near);
                near.map_err(|e: dd_target::InvalidPlace| refuse(&e.url, e.why))
            }
            _ => Err(refuse(
                url,
                "it begins neither with `dir:` nor with `s3://` nor with `https://`",
            )),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Near(place) => place.fmt(f),
            Self::Vault(url) => url.fmt(f),
        }
    }
}

impl Place {
    pub(super) fn directory(path: PathBuf) -> Self {
        Self::Near(dd_target::Place::Directory(path))
    }

    /// The same place, independent of the current directory.
    pub(super) fn absolute(&self) -> Self {
        match self {
            Self::Near(place) => Self::Near(place.absolute()),
            Self::Vault(_) => self.clone(),
        }
    }

    /// Whether whoever writes there holds a lock that goes with its process.
    pub(super) fn has_locks(&self) -> bool {
        matches!(self, Self::Near(dd_target::Place::Directory(_)))
    }

    /// Whether both are the same, however they are written.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        use dd_target::Place::Directory;
        match (self, other) {
            (Self::Near(Directory(a)), Self::Near(Directory(b))) => {
                let [a, b] =
                    [a, b].map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()));
                a == b
            }
            _ => self == other,
        }
    }

    /// The place, where it is there; a vault's is for reading.
    pub(super) fn open(&self) -> std::result::Result<Arc<dyn Backend>, StoreError> {
        match self {
            Self::Near(place) => place.open(),
            Self::Vault(url) => {
                let objects = Objects::open(url, &Access::of_this_process());
                objects.map_err(|error| StoreError::Io {
                    verb: "open",
                    object: url.to_string(),
                    source: io::Error::other(error),
                })
            }
        }
    }

    /// The place; a directory is made if it is missing.
    pub(super) fn make(&self) -> std::result::Result<Arc<dyn Backend>, StoreError> {
        match self {
            Self::Near(place) => place.make(),
            Self::Vault(_) => self.open(),
        }
    }
}
