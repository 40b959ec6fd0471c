//! The keys of encrypted targets: making them, and changing who opens them.

use std::path::PathBuf;
use std::sync::Arc;

use block::{Clock, OsRandom};
use dd_target::api::{CreatedVault, NewVault, VaultFigures};
use dd_target::client::{Access, Objects, Remote, VaultUrl};
use store::{KeySlot, Keys, NewKeys, Secret};
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
    let (keys, recovery_key) = new_keys(target.secret_file(), recovery, clock)?;
    target.create_with_keys(&keys)?;
    Ok(recovery_key)
}

/// The key of a store that is to be made elsewhere. What is in `file` opens it; and so does a recovery key, if one is wanted.
///
/// # Errors
/// `Usage` if nothing would open it but a recovery key; if the file cannot be read, or made.
pub fn new_keys(
    file: Option<&SecretFile>,
    recovery: bool,
    clock: &Arc<dyn Clock>,
) -> Result<(NewKeys, Option<RecoveryKey>)> {
    let Some(file) = file else {
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
    let made = NewKeys::make(&secrets, &OsRandom, clock.wall());
    let keys = made.map_err(|source| Error::Usage {
        what: format!("the store's key cannot be made: {source}"),
        hint: "see `standin store init --help`",
    })?;
    Ok((keys, recovery_key))
}

/// The key of a target, for a store that is to have its points.
///
/// # Errors
/// If there is no store, or it is not encrypted.
pub fn keys_like(target: &Target) -> Result<NewKeys> {
    let keys = NewKeys::of(&*target.backend()?);
    let keys = keys.map_err(target.failed("read who opens the store"))?;
    keys.ok_or_else(|| {
        Error::usage(
            format!("`{target}` is not encrypted"),
            "leave --like out: its points go to any vault that is not encrypted",
        )
    })
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
    let failed = target.failed("change who opens the store");
    // Before a key file is made that would open nothing.
    keys.check_room(&with).map_err(&failed)?;
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
    let wrapped = keys.wrap(&with, &secret, &label, &OsRandom, clock.wall());
    let wrapped = wrapped.map_err(&failed)?;
    let added = match target.vault() {
        None => keys.append(&wrapped, &OsRandom).map(drop).map_err(failed),
        Some(url) => {
            let server = Remote::open(&url.server, &Access::of_this_process());
            let added = server.and_then(|server| server.add_way(&url.vault, &wrapped));
            added.map_err(target.refused("change who opens the vault"))
        }
    };
    certain(added, || {
        let is_there = open(target).ok()?.has(&wrapped);
        // A server may be about to add it.
        (is_there || target.vault().is_none()).then_some(is_there)
    })?;
    Ok((wrapped.describe().number, told))
}

/// Makes an encrypted vault with these keys behind a server.
///
/// # Errors
/// If the server cannot be reached, or refuses; `Unsure` if it may have been made, and nobody can tell.
pub fn create_encrypted_vault(
    url: &VaultUrl,
    quota_bytes: Option<u64>,
    keys: &NewKeys,
) -> Result<CreatedVault> {
    let new = NewVault {
        name: url.vault.to_string(),
        quota_bytes,
        keys: None,
    };
    let access = Access::of_this_process();
    let failed = |source| Error::Vault {
        doing: "make the vault",
        target: url.to_string(),
        source,
    };
    let server = Remote::open(&url.server, &access).map_err(failed)?;
    let lost = match server.create_encrypted_vault(new, keys) {
        Ok(made) => return Ok(made),
        Err(source) => Err(failed(source)),
    };
    certain(lost, || {
        let objects = Objects::open(url, &access).ok()?;
        let theirs = NewKeys::of(&*objects).ok()??;
        (theirs == *keys).then_some(true)
    })?;
    let figures = server.vault(&url.vault).map_err(|source| Error::Unsure {
        source: Box::new(failed(source)),
    })?;
    let VaultFigures {
        vault, encrypted, ..
    } = figures;
    Ok(CreatedVault { vault, encrypted })
}

/// An answer that was lost is no refusal: it is looked at then whether it was done (`None`: nobody can tell). A key that is there,
/// and was told to nobody, would be taken for one that somebody has.
fn certain(asked: Result<()>, done: impl FnOnce() -> Option<bool>) -> Result<()> {
    let Err(error) = asked else { return Ok(()) };
    let refused = matches!(&error, Error::Vault { source, .. } if source.is_refusal());
    match if refused { Some(false) } else { done() } {
        Some(true) => Ok(()),
        Some(false) => Err(error),
        None => Err(Error::Unsure {
            source: Box::new(error),
        }),
    }
}

/// One way less to open a target.
///
/// # Errors
/// If it is the way by which the target is opened just now, or there is none of that number.
pub fn remove_key(target: &Target, number: u32) -> Result<()> {
    if target.vault().is_some() {
        return Err(Error::usage(
            "ways to open a vault are taken away where its store lies: whoever stole a token could lock its owners out",
            "on the server, with its URL: `standin store key remove dir:PLACE/vaults/NAME NUMBER`",
        ));
    }
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

#[cfg(test)]
mod tests {
    use dd_target::client::RemoteError;
    use dd_target::{Kind, Problem};

    use super::*;

    fn vault(source: RemoteError) -> Result<()> {
        Err(Error::Vault {
            doing: "make the vault",
            target: "https://host:1/v".to_owned(),
            source,
        })
    }

    fn refused(status: u16) -> Result<()> {
        let problem = Problem {
            error: "no".to_owned(),
            kind: Kind::Failed,
            hint: None,
        };
        vault(RemoteError::Refused {
            server: "https://host:1".to_owned(),
            status,
            problem: Box::new(problem),
        })
    }

    fn lost() -> Result<()> {
        vault(RemoteError::Unreachable {
            server: "https://host:1".to_owned(),
            source: "it broke".into(),
        })
    }

    /// The line broke after a vault was made: its recovery key was never shown, and the next attempt said that there is such a
    /// vault.
    #[test]
    fn an_answer_that_was_lost_is_looked_for() {
        for asked in [lost, || refused(500)] {
            certain(asked(), || Some(true)).unwrap();
            let undone = certain(asked(), || Some(false));
            assert!(matches!(undone, Err(Error::Vault { .. })));
            let unsure = certain(asked(), || None).unwrap_err();
            assert!(matches!(unsure, Error::Unsure { .. }), "{unsure}");
            assert!(unsure.hint().unwrap().contains("key list"), "{unsure}");
        }
        let certainly = certain(refused(409), || unreachable!("it was refused"));
        assert!(matches!(certainly, Err(Error::Vault { .. })));
        certain(Ok(()), || unreachable!("it was done")).unwrap();
    }
}
