//! Making encrypted targets, and changing who opens them.

use std::path::PathBuf;
use std::sync::Arc;

use block::{Clock, OsRandom};
use store::{KeySlot, Keys, Secret};
use zeroize::Zeroizing;

use crate::secret_file::SecretFile;
use crate::{Error, Result, Target};

/// A way to open a target that is to be made.
#[derive(Clone, Debug)]
pub enum NewKey {
    /// A key in this file, which is made if it is not there.
    File(PathBuf),
    /// The passphrase in this file.
    Passphrase(PathBuf),
    /// A key to be written down and locked away; it is in no file.
    Recovery,
}

/// What a recovery key is called.
const RECOVERY: &str = "recovery key";

/// A key that is told once.
pub type RecoveryKey = Zeroizing<String>;

/// Makes an encrypted store of an empty place. What the target is opened with opens it; and so does a recovery key, if one
/// is wanted.
///
/// # Errors
/// `Usage` if nothing would open it but a recovery key; as [`init`](crate::init).
pub fn init_encrypted(
    target: &Target,
    recovery: bool,
    clock: &Arc<dyn Clock>,
) -> Result<Option<RecoveryKey>> {
    let Some(file) = target.secret_file() else {
        return Err(Error::usage(
            "nothing is named that opens the store",
            "add --key-file FILE (a new key is written there) or --passphrase-file FILE",
        ));
    };
    let mut secrets = vec![(file.read_or_make()?, file.label())];
    let mut recovery_key = None;
    if recovery {
        let key = Secret::new_key(&OsRandom);
        recovery_key = key.to_text();
        secrets.push((key, RECOVERY.to_owned()));
    }
    target.create_encrypted(&secrets, clock)?;
    Ok(recovery_key)
}

/// The ways to open a target.
///
/// # Errors
/// If there is no store, or it is not encrypted.
pub fn list_keys(target: &Target) -> Result<Vec<KeySlot>> {
    Ok(open(target)?.slots())
}

/// One way more to open a target. Returns its number, and the key if it is a recovery key.
///
/// # Errors
/// If what the target is opened with does not open it.
pub fn add_key(
    target: &Target,
    new: NewKey,
    label: Option<String>,
    clock: &Arc<dyn Clock>,
) -> Result<(u32, Option<RecoveryKey>)> {
    let with = secret_of(target)?;
    let mut keys = open(target)?;
    let (secret, name, told) = match new {
        NewKey::Recovery => {
            let key = Secret::new_key(&OsRandom);
            let text = key.to_text();
            (key, RECOVERY.to_owned(), text)
        }
        NewKey::File(path) => made(&SecretFile::Key(path))?,
        NewKey::Passphrase(path) => made(&SecretFile::Passphrase(path))?,
    };
    let label = label.unwrap_or(name);
    let added = keys.add(&with, &secret, &label, &OsRandom, clock.wall());
    let number = added.map_err(target.failed("change who opens the store"))?;
    Ok((number, told))
}

/// One way less to open a target.
///
/// # Errors
/// If it is the way by which the target is opened just now, or there is none of that number.
pub fn remove_key(target: &Target, number: u32) -> Result<()> {
    let with = secret_of(target)?;
    let removed = open(target)?.remove(&with, number, &OsRandom);
    removed.map_err(target.failed("change who opens the store"))
}

fn made(file: &SecretFile) -> Result<(Secret, String, Option<RecoveryKey>)> {
    Ok((file.read_or_make()?, file.label(), None))
}

fn secret_of(target: &Target) -> Result<Secret> {
    target.secret()?.ok_or_else(|| {
        Error::usage(
            "who opens a store is changed by who opens it",
            "add --key-file FILE or --passphrase-file FILE",
        )
    })
}

fn open(target: &Target) -> Result<Keys> {
    let keys = Keys::open(&target.backend()?);
    keys.map_err(target.failed("read who opens the store"))
}
