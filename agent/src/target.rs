//! Where points go, named by a URL.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use block::{Clock, Dir, OsDir};
use store::{
    Around, Backend, Bucket, CheckOptions, CheckReport, Directory, RepairOptions, RepairPlan,
    Store, StoreError,
};

use crate::{Error, Result};

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A store in a directory of this machine: `dir:PATH`.
    Directory(PathBuf),
    /// A store in a bucket: `s3://BUCKET/PREFIX`. How to get there says the environment, in the variables of AWS.
    Bucket(String),
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
            Some(("https" | "http", _)) => refuse("stores behind a server are not supported yet"),
            Some(("s3", rest)) => match (Bucket::check_url(url), rest.rsplit_once('@')) {
                (Ok(()), _) => Ok(Self::Bucket(url.trim_end_matches('/').to_owned())),
                (Err(_), None) => {
                    refuse("it names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
                }
                // What stands before the `@` is not repeated.
                (Err(_), Some((_, bucket))) => Err(Error::Target {
                    url: format!("s3://...@{bucket}"),
                    why: "it names no bucket: keys belong into the environment, not into the URL",
                }),
            },
            Some(("gs" | "az", _)) => refuse(
                "of object stores, only those that speak the protocol of S3 are supported yet",
            ),
            _ => refuse("it begins neither with `dir:` nor with `s3://`"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
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
            Self::Bucket(_) => self.clone(),
        }
    }

    /// Opens the store to read: beside a writer, or in a place where nobody may write.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn reader(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let opened = self
            .open_place()
            .and_then(|place| Store::open_reader(&place, around(clock)));
        opened.map_err(self.failed("open the store"))
    }

    /// Reads and checks everything, beside whoever writes.
    pub(crate) fn check(
        &self,
        clock: &Arc<dyn Clock>,
        options: &CheckOptions<'_>,
    ) -> Result<CheckReport> {
        let checked = self
            .open_place()
            .and_then(|place| Store::check(&place, around(clock), options));
        checked.map_err(self.failed("check the store"))
    }

    /// Finds out what a repair would do.
    pub(crate) fn plan_repair(
        &self,
        clock: &Arc<dyn Clock>,
        options: &RepairOptions<'_>,
    ) -> Result<RepairPlan> {
        let planned = self
            .open_place()
            .and_then(|place| Store::plan_repair(&place, around(clock), options));
        planned.map_err(self.failed("plan a repair of the store"))
    }

    /// Does what was planned.
    pub(crate) fn repair(
        &self,
        clock: &Arc<dyn Clock>,
        plan: &RepairPlan,
        options: &RepairOptions<'_>,
    ) -> Result<()> {
        let repaired = self
            .open_place()
            .and_then(|place| Store::repair(&place, around(clock), plan, options));
        repaired.map_err(self.failed("repair the store"))
    }

    /// Makes a store.
    pub(crate) fn create(&self) -> Result<()> {
        let created = self.make_place().and_then(|place| Store::create(&place));
        created.map_err(self.failed("create the store"))
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

    fn try_writer(
        &self,
        around: &Around,
        missing: Missing,
    ) -> std::result::Result<Store, StoreError> {
        if missing == Missing::Refuse {
            return Store::open_writer(&self.open_place()?, around.clone());
        }
        let place = self.make_place()?;
        match Store::open_writer(&place, around.clone()) {
            Err(StoreError::NotAStore { .. }) => {
                Store::create(&place)?;
                Store::open_writer(&place, around.clone())
            }
            opened => opened,
        }
    }

    /// The place, where it is there.
    fn open_place(&self) -> std::result::Result<Arc<dyn Backend>, StoreError> {
        match self {
            Self::Directory(path) => match OsDir::open(path) {
                Ok(dir) => Ok(Directory::backend(&(Arc::new(dir) as Arc<dyn Dir>))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let dir = path.display().to_string();
                    Err(StoreError::NotAStore { dir })
                }
                Err(error) => Err(open_error(path.display().to_string(), error)),
            },
            Self::Bucket(url) => open_bucket(url),
        }
    }

    /// The place; a directory is made if it is missing.
    fn make_place(&self) -> std::result::Result<Arc<dyn Backend>, StoreError> {
        match self {
            Self::Directory(path) => {
                let dir = OsDir::create_all(path);
                let dir = dir.map_err(|e| open_error(path.display().to_string(), e))?;
                Ok(Directory::backend(&(Arc::new(dir) as Arc<dyn Dir>)))
            }
            Self::Bucket(url) => open_bucket(url),
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

fn open_bucket(url: &str) -> std::result::Result<Arc<dyn Backend>, StoreError> {
    // What is no text is none of those that matter.
    let settings = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let bucket = Bucket::s3(url, settings);
    let bucket = bucket.map_err(|error| open_error(url.to_owned(), io::Error::other(error)))?;
    Ok(Arc::new(bucket))
}

fn open_error(object: String, source: io::Error) -> StoreError {
    StoreError::Io {
        verb: "open",
        object,
        source,
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
        for (url, word) in [
            ("https://host:1/vault", "not supported yet"),
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
