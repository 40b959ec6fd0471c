//! Files with what opens an encrypted target. Secrets come from files alone: a command line and an environment are read by
//! others.
//!
//! Rule: a file that others can read is refused, before it is used.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use block::{OsRandom, Random};
use dd_target::{PrivateFileError, read_private};
use store::{InvalidSecret, Secret};

use crate::{Error, Result};

/// No secret is longer.
const LEN_MAX: u64 = 4096;

/// A file with a key or a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFile {
    /// A key, as `standin store init` and `standin store key add` write it.
    Key(PathBuf),
    /// A passphrase: all of the file but the end of its line.
    Passphrase(PathBuf),
}

/// Why a file gives no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It cannot be read, or others can read it, too.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// It is not text.
    #[error("it is not text")]
    NotText,
    /// What it holds is no secret.
    #[error(transparent)]
    Invalid(#[from] InvalidSecret),
}

impl SecretFile {
    fn path(&self) -> &Path {
        match self {
            Self::Key(path) | Self::Passphrase(path) => path,
        }
    }

    /// What its way to open a store is called, where nobody says.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Key(_) => "key file".to_owned(),
            Self::Passphrase(_) => "passphrase".to_owned(),
        }
    }

    /// Reads the secret.
    pub(crate) fn read(&self) -> Result<Secret> {
        let read = || match self {
            Self::Key(path) => {
                let bytes = read_private(path, LEN_MAX)?;
                let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText)?;
                Ok(Secret::key(text)?)
            }
            Self::Passphrase(path) => Ok(Secret::passphrase(&read_private(path, LEN_MAX)?)?),
        };
        read().map_err(|source| self.failed(source))
    }

    /// Reads the secret; a key file that is not there is made, with a new key.
    pub(crate) fn read_or_make(&self) -> Result<Secret> {
        match self {
            Self::Key(path) if !path.exists() => {
                let key = Secret::new_key(&OsRandom as &dyn Random);
                let made = write_private(path, &key.to_text().expect("it is a key"));
                made.map_err(|e| self.failed(PrivateFileError::Io(e).into()))
                    .map(|()| key)
            }
            _ => self.read(),
        }
    }

    fn failed(&self, source: SecretError) -> Error {
        let path = self.path().to_path_buf();
        Error::Secret { path, source }
    }
}

/// Whole and durable, or not at all.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let written = writeln!(file, "{text}").and_then(|()| file.sync_all());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let written = written.and_then(|()| File::open(dir)?.sync_all());
    written.inspect_err(|_| {
        // Half a key opens nothing.
        let _ = std::fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        (dir, path)
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            let (_dir, path) = file(mode, b"correct horse\n");
            let read = SecretFile::Passphrase(path).read();
            assert_eq!(read.is_ok(), fine, "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_with_a_reason_that_does_not_repeat_it() {
        for content in [&b""[..], b"hunter2", &[b'x'; 5000], &[0xff; 40]] {
            let (_dir, path) = file(0o600, content);
            let error = SecretFile::Key(path).read().expect_err("no key");
            assert!(!error.chain().contains("hunter2"), "{}", error.chain());
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        let file = SecretFile::Key(path.clone());
        assert!(file.read().is_err());
        let made = file.read_or_make().expect("made").to_text();
        assert_eq!(file.read_or_make().expect("read").to_text(), made);
        let mode = std::fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
