//! Options that name what opens an encrypted target.

use std::path::PathBuf;

use agent::SecretFile;
use clap::Args as ClapArgs;

/// What opens an encrypted target. Both are files that nobody else can read.
#[derive(Debug, ClapArgs)]
pub(crate) struct Secret {
    /// File with a key that opens the target; $STANDIN_KEY_FILE if neither option is given.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "passphrase_file",
        help_heading = "Encrypted targets"
    )]
    key_file: Option<PathBuf>,
    /// File with a passphrase that opens the target; $STANDIN_PASSPHRASE_FILE if neither option is given.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Encrypted targets"
    )]
    passphrase_file: Option<PathBuf>,
}

impl Secret {
    /// What is named by options, else by the environment.
    pub(crate) fn file(&self) -> agent::Result<Option<SecretFile>> {
        let named = one_of(self.key_file.clone(), self.passphrase_file.clone());
        if named.is_some() {
            return Ok(named);
        }
        let variable = |name| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        match ["STANDIN_KEY_FILE", "STANDIN_PASSPHRASE_FILE"].map(variable) {
            [Some(_), Some(_)] => Err(agent::Error::Usage {
                what: "the environment names both a key and a passphrase".to_owned(),
                hint: "unset STANDIN_KEY_FILE or STANDIN_PASSPHRASE_FILE, or name one with --key-file or --passphrase-file",
            }),
            [key, passphrase] => Ok(one_of(key, passphrase)),
        }
    }
}

fn one_of(key: Option<PathBuf>, passphrase: Option<PathBuf>) -> Option<SecretFile> {
    let passphrase = passphrase.map(SecretFile::Passphrase);
    key.map(SecretFile::Key).or(passphrase)
}
