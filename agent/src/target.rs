//! Where points go, named by a URL, and what opens it if it is encrypted.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use block::{Clock, OsRandom};
use dd_target::client::{Access, RemoteError, Vault, VaultUrl};
use store::{
    Around, Backend, CheckOptions, CheckReport, NewKeys, RepairOptions, RepairPlan, Secret, Store,
    StoreError,
};

use crate::secret_file::SecretFile;
use crate::target_writer::{Shipper, TargetWriter, WriteError};
use crate::{Error, Result};
use place::Place;

mod place;

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    place: Place,
    secret: Option<SecretFile>,
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
        let place = url.parse()?;
        let secret = None;
        Ok(Self { place, secret })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Target {
    /// A directory of this machine, not encrypted.
    #[must_use]
    pub fn directory(path: PathBuf) -> Self {
        let place = Place::directory(path);
        let secret = None;
        Self { place, secret }
    }

    /// The same target, opened with what is in a file; a store that is made there is encrypted.
    #[must_use]
    pub fn opened_with(self, secret: Option<SecretFile>) -> Self {
        Self { secret, ..self }
    }

    /// The same target, independent of the current directory.
    #[must_use]
    pub fn absolute(&self) -> Self {
        Self {
            place: self.place.absolute(),
            secret: self.secret.clone(),
        }
    }

    /// Opens the store to read: beside a writer, or in a place where nobody may write.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or the secret does not open it.
    pub fn reader(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let around = self.around(clock)?;
        let opened = self
            .place
            .open()
            .and_then(|place| Store::open_reader(&place, around));
        opened.map_err(self.failed("open the store"))
    }

    /// The same; `None` if there is no store.
    pub(crate) fn reader_if_there(&self, clock: &Arc<dyn Clock>) -> Result<Option<Store>> {
        match self.reader(clock) {
            Err(Error::Store {
                source: StoreError::NotAStore { .. },
                ..
            }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens a store that has the points of another target as its only writer; makes it if there is none.
    pub(crate) fn replica(&self, of: &Self, clock: &Arc<dyn Clock>) -> Result<Store> {
        self.check_near()?;
        let around = self.around(clock)?;
        let other = of.backend()?;
        let open = || {
            let place = self.place.make()?;
            match Store::open_writer(&place, around.clone()) {
                Err(StoreError::NotAStore { .. }) => {
                    Store::create_replica(&place, &other, &around)?;
                    Store::open_writer(&place, around.clone())
                }
                opened => opened,
            }
        };
        open().map_err(self.failed("open the store"))
    }

    /// Reads and checks everything, beside whoever writes.
    pub(crate) fn check(
        &self,
        clock: &Arc<dyn Clock>,
        options: &CheckOptions<'_>,
    ) -> Result<CheckReport> {
        let around = self.around(clock)?;
        let checked = self
            .place
            .open()
            .and_then(|place| Store::check(&place, around, options));
        checked.map_err(self.failed("check the store"))
    }

    /// Finds out what a repair would do.
    pub(crate) fn plan_repair(
        &self,
        clock: &Arc<dyn Clock>,
        options: &RepairOptions<'_>,
    ) -> Result<RepairPlan> {
        let around = self.around(clock)?;
        let planned = self
            .place
            .open()
            .and_then(|place| Store::plan_repair(&place, around, options));
        planned.map_err(self.failed("plan a repair of the store"))
    }

    /// Does what was planned.
    pub(crate) fn repair(
        &self,
        clock: &Arc<dyn Clock>,
        plan: &RepairPlan,
        options: &RepairOptions<'_>,
    ) -> Result<()> {
        let around = self.around(clock)?;
        let repaired = self
            .place
            .open()
            .and_then(|place| Store::repair(&place, around, plan, options));
        repaired.map_err(self.failed("repair the store"))
    }

    /// Makes a store that is not encrypted.
    pub(crate) fn create(&self) -> Result<()> {
        self.check_near()?;
        let created = self.place.make().and_then(|place| Store::create(&place));
        created.map_err(self.failed("create the store"))
    }

    /// Makes an encrypted store with these keys.
    pub(crate) fn create_with_keys(&self, keys: &NewKeys) -> Result<()> {
        self.check_near()?;
        let created = self
            .place
            .make()
            .and_then(|place| Store::create_with_keys(&place, keys, &OsRandom));
        created.map_err(self.failed("create the store"))
    }

    /// Opens it to add points: a store as its only writer, a vault beside others.
    ///
    /// # Errors
    /// If it is encrypted and nothing opens it; `Retry` if another process writes to it; `Gone` if there is none and
    /// `missing` refuses that.
    pub(crate) fn writer(&self, around: &Around, missing: Missing) -> Result<TargetWriter> {
        let Some(url) = self.vault() else {
            return self.store(around, missing).map(TargetWriter::Store);
        };
        // What guests wrote is encrypted here: the server sees none of it.
        let around = self.with_secret(around.clone())?;
        let codec = self
            .place
            .open()
            .and_then(|place| Store::codec_at(&place, &around));
        let codec = codec.map_err(self.failed("open the vault"))?;
        let vault = Vault::open(url, &Access::of_this_process());
        let vault = vault.map_err(self.refused("open the vault"))?;
        Ok(TargetWriter::Vault(Shipper::new(vault.with_codec(codec))))
    }

    fn store(&self, around: &Around, missing: Missing) -> Result<Store> {
        let around = self.with_secret(around.clone())?;
        match self.try_writer(&around, missing) {
            Err(StoreError::NotAStore { .. }) if missing == Missing::Refuse => Err(Error::Gone {
                target: self.to_string(),
            }),
            opened => opened
                .and_then(|store| store.codec().map(|_| store))
                .map_err(self.failed("open the store")),
        }
    }

    /// Opens a store that must be there as its only writer.
    pub(crate) fn writer_of_existing(&self, clock: &Arc<dyn Clock>) -> Result<Store> {
        let around = self.around(clock)?;
        let opened = self
            .place
            .open()
            .and_then(|place| Store::open_writer(&place, around));
        opened.map_err(self.failed("open the store"))
    }

    pub(crate) fn secret_file(&self) -> Option<&SecretFile> {
        self.secret.as_ref()
    }

    /// What opens it; `None` if nothing was given.
    pub(crate) fn secret(&self) -> Result<Option<Secret>> {
        self.secret.as_ref().map(SecretFile::read).transpose()
    }

    /// The place that keeps the store, for what needs neither a reader nor a writer.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.place.open().map_err(self.failed("open the store"))
    }

    /// Whether whoever writes there holds a lock that goes with its process.
    pub(crate) fn has_locks(&self) -> bool {
        self.place.has_locks()
    }

    /// Whether both are the same place, however it is written.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        self.place.is_same(&other.place)
    }

    /// The vault behind a server that it is, if it is one.
    pub(crate) fn vault(&self) -> Option<&VaultUrl> {
        match &self.place {
            Place::Vault(url) => Some(url),
            Place::Near(_) => None,
        }
    }

    /// A vault's store is made by its server.
    fn check_near(&self) -> Result<()> {
        match self.vault() {
            None => Ok(()),
            Some(url) => Err(Error::usage(
                format!("the store of the vault `{url}` is its server's"),
                "vaults are made with `standin vault create`",
            )),
        }
    }

    fn try_writer(
        &self,
        around: &Around,
        missing: Missing,
    ) -> std::result::Result<Store, StoreError> {
        if missing == Missing::Refuse {
            return Store::open_writer(&self.place.open()?, around.clone());
        }
        let place = self.place.make()?;
        match Store::open_writer(&place, around.clone()) {
            Err(StoreError::NotAStore { .. }) => {
                match (&self.secret, &around.secret) {
                    (Some(file), Some(secret)) => {
                        let named = [(Secret::clone(secret), file.label())];
                        Store::create_encrypted(&place, &named, around)?;
                    }
                    _ => Store::create(&place)?,
                }
                Store::open_writer(&place, around.clone())
            }
            opened => opened,
        }
    }

    fn around(&self, clock: &Arc<dyn Clock>) -> Result<Around> {
        self.with_secret(Around::new(Arc::clone(clock)))
    }

    fn with_secret(&self, around: Around) -> Result<Around> {
        let secret = self.secret()?.map(Arc::new);
        Ok(Around { secret, ..around })
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

    /// The same of whoever adds points.
    pub(crate) fn unwritten(&self, doing: &'static str) -> impl Fn(WriteError) -> Error {
        let (of_store, of_vault) = (self.failed(doing), self.refused(doing));
        let target = self.to_string();
        move |error| match error {
            WriteError::Store(error) => of_store(error),
            WriteError::Vault(error) => of_vault(error),
            WriteError::Account(source) => Error::Account { source },
            WriteError::Foreign(point) => Error::Foreign {
                target: target.clone(),
                point: point.to_string(),
            },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn urls_that_name_no_place_are_refused_with_a_reason() {
        let dir: Target = "dir:/backup".parse().expect("a directory");
        assert_eq!(dir, Target::directory("/backup".into()));
        assert_eq!(dir.to_string(), "dir:/backup");
        for url in ["s3://bucket/x", "s3://bucket/x/"] {
            let bucket: Target = url.parse().expect("a bucket");
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
