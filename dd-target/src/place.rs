//! Where a store lies: a directory of this machine, or a bucket.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use block::{Dir, OsDir};
use store::{Backend, Bucket, Directory, StoreError};

/// A place for a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory: `dir:PATH`.
    Directory(PathBuf),
    /// A bucket: `s3://BUCKET/PREFIX`. How to get there says the environment, in the variables of AWS.
    Bucket(String),
}

/// A URL that names no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` is no place for a store: {why}")]
pub struct InvalidPlace {
    /// What was given, without what may be a secret.
    pub url: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(url: &str) -> Result<Self, InvalidPlace> {
        let refuse = |why| {
            let url = url.to_owned();
            Err(InvalidPlace { url, why })
        };
        match url.split_once(':') {
            Some(("dir", "")) => refuse("the path is empty"),
            Some(("dir", path)) => Ok(Self::Directory(PathBuf::from(path))),
            Some(("s3", rest)) => match (Bucket::check_url(url), rest.rsplit_once('@')) {
                (Ok(()), _) => Ok(Self::Bucket(url.trim_end_matches('/').to_owned())),
                (Err(_), None) => {
                    refuse("it names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
                }
                // What stands before the `@` is not repeated.
                (Err(_), Some((_, bucket))) => Err(InvalidPlace {
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Bucket(url) => f.write_str(url),
        }
    }
}

impl Place {
    /// The place `folder/name` in this one.
    #[must_use]
    pub fn below(&self, folder: &str, name: &block::Name) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(path.join(folder).join(name.as_str())),
            Self::Bucket(url) => Self::Bucket(format!("{url}/{folder}/{name}")),
        }
    }

    /// The same place, independent of the current directory.
    #[must_use]
    pub fn absolute(&self) -> Self {
        match self {
            Self::Directory(path) => {
                Self::Directory(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
            }
            Self::Bucket(_) => self.clone(),
        }
    }

    /// The place, where it is there.
    ///
    /// # Errors
    /// `NotFound` if the directory is not; `Io`.
    pub fn open(&self) -> Result<Arc<dyn Backend>, StoreError> {
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
    ///
    /// # Errors
    /// `Io`.
    pub fn make(&self) -> Result<Arc<dyn Backend>, StoreError> {
        match self {
            Self::Directory(path) => {
                let dir = OsDir::create_all(path);
                let dir = dir.map_err(|e| open_error(path.display().to_string(), e))?;
                Ok(Directory::backend(&(Arc::new(dir) as Arc<dyn Dir>)))
            }
            Self::Bucket(url) => open_bucket(url),
        }
    }
}

fn open_bucket(url: &str) -> Result<Arc<dyn Backend>, StoreError> {
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
