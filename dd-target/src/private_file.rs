//! Files with secrets: keys, passphrases, tokens.
//!
//! Rule: one that others can read, or that another user has put there, is refused before it is used.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

/// Why a file gives no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateFileError {
    /// The operating system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not only its owner can read it.
    #[error("others can read it (mode {0:04o}); make it private (chmod 600)")]
    Readable(u32),
    /// It is another user's.
    #[error("it belongs to another user ({0})")]
    Foreign(u32),
    /// It is no such file.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
}

/// All of a file that only its owner can read, who is this process's user or root; `len_max` bytes at most.
///
/// # Errors
/// As [`PrivateFileError`] says.
pub fn read_private(path: &Path, len_max: u64) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let (mode, owner) = (metadata.mode(), metadata.uid());
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::Readable(mode & 0o7777));
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(PrivateFileError::Foreign(owner));
    }
    // Grown, it would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(block::index(len_max) + 1));
    file.take(len_max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > len_max {
        true => Err(PrivateFileError::TooLong(len_max)),
        false => Ok(bytes),
    }
}
