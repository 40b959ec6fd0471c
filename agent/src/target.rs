//! Where points go, named by a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use block::{Clock, Dir, OsDir};
use store::{Around, Backend, Directory, Store, StoreError};

use crate::{Error, Result};

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A store in a directory of this machine: `dir:PATH`.
    Directory(PathBuf),
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
        let refuse = |why| {
            let url = url.to_owned();
            Err(Error::Target { url, why })
        };
        match url.split_once(':') {
            Some(("dir", "")) => refuse("the path is empty"),
            Some(("dir", path)) => Ok(Self::Directory(PathBuf::from(path))),
            Some(("https" | "http", _)) => {
                refuse("stores behind a server are not supported yet, only directories")
            }
            Some(("s3" | "gs" | "az", _)) => {
                refuse("object stores are not supported yet, only directories")
            }
            _ => refuse("it does not begin with `dir:`"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

impl Target {
    /// The same target, independent of the current directory.
    #[must_use]
    pub fn absolute(&self) -> Self {
        let Self::Directory(path) = self;
        Self::Directory(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    }

    /// Opens the store to read: beside a writer, or on a read-only directory.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn reader(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let opened = self
            .open_place()
            .and_then(|place| Store::open_reader(&place, around(clock)));
        opened.map_err(self.failed("open the store"))
    }

    /// Makes a store.
    pub(crate) fn create(&self) -> Result<()> {
        let Self::Directory(path) = self;
        let create = || {
            let dir: Arc<dyn Dir> = Arc::new(OsDir::create_all(path).map_err(|e| self.io(e))?);
            Store::create(&Directory::backend(&dir))
        };
        create().map_err(self.failed("create the store"))
    }

    /// Opens the store as its only writer.
    ///
    /// # Errors
    /// `Retry` if another process writes to it; `Gone` if there is none and `missing` refuses that.
    pub(crate) fn writer(&self, around: &Around, missing: Missing) -> Result<Store> {
        match self.try_writer(around, missing) {
            Err(StoreError::NotAStore { .. }) if missing == Missing::Refuse => Err(Error::Gone {
                target: self.to_string(),
            }),
            opened => opened.map_err(self.failed("open the store")),
        }
    }

    /// Opens a store that must be there as its only writer.
    pub(crate) fn writer_of_existing(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let opened = self
            .open_place()
            .and_then(|place| Store::open_writer(&place, around(clock)));
        opened.map_err(self.failed("open the store"))
    }

    /// Whether both are the same directory, however it is written.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        let (Self::Directory(a), Self::Directory(b)) = (self, other);
        let [a, b] = [a, b].map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()));
        a == b
    }

    fn try_writer(
        &self,
        around: &Around,
        missing: Missing,
    ) -> std::result::Result<Store, StoreError> {
        if missing == Missing::Refuse {
            return Store::open_writer(&self.open_place()?, around.clone());
        }
        let Self::Directory(path) = self;
        let dir: Arc<dyn Dir> = Arc::new(OsDir::create_all(path).map_err(|e| self.io(e))?);
        let place = Directory::backend(&dir);
        match Store::open_writer(&place, around.clone()) {
            Err(StoreError::NotAStore { .. }) => {
                Store::create(&place)?;
                Store::open_writer(&place, around.clone())
            }
            opened => opened,
        }
    }

    fn open_place(&self) -> std::result::Result<Arc<dyn Backend>, StoreError> {
        let Self::Directory(path) = self;
        match OsDir::open(path) {
            Ok(dir) => Ok(Directory::backend(&(Arc::new(dir) as Arc<dyn Dir>))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let dir = path.display().to_string();
                Err(StoreError::NotAStore { dir })
            }
            Err(error) => Err(self.io(error)),
        }
    }

    fn io(&self, source: std::io::Error) -> StoreError {
        let Self::Directory(path) = self;
        StoreError::Io {
            verb: "open",
            object: path.display().to_string(),
            source,
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
}

fn around(clock: &Arc<dyn Clock>) -> Around {
    Around::new(Arc::clone(clock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn urls_that_are_no_directory_are_refused_with_a_reason() {
        let dir: Target = "dir:/backup".parse().expect("a directory");
        assert_eq!(dir, Target::Directory("/backup".into()));
        assert_eq!(dir.to_string(), "dir:/backup");
        for (url, word) in [
            ("https://host:1/vault", "not supported yet"),
            ("s3://bucket/x", "not supported yet"),
            ("/backup", "dir:"),
            ("dir:", "empty"),
        ] {
            let error = url.parse::<Target>().expect_err(url);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
