//! What opens an encrypted store: a passphrase, or a key of 32 bytes that is written down as text.
//!
//! ```text
//! standin-key-XXXX-XXXX-..  base32 of 32 bytes and 3 of their SHA-256, in 14 groups; case, spaces and dashes do not matter
//! ```

use std::fmt;

use block::Random;
use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

use crate::fingerprint::Fingerprint;

const PREFIX: &str = "standin-key-";
const KEY_LEN: usize = 32;
/// Bytes that notice a slip of the pen.
const CHECK_LEN: usize = 3;
const GROUP: usize = 4;

/// A passphrase or a key. Never printed by `{:?}`.
#[derive(Clone)]
pub enum Secret {
    /// What a person remembers.
    Passphrase(Zeroizing<Vec<u8>>),
    /// What nobody can guess.
    Key(Zeroizing<[u8; 32]>),
}

/// Text that is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSecret {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// Not the text of a key.
    #[error(
        "it is no key: a key begins with `standin-key-`, and 14 groups of 4 letters and digits follow"
    )]
    NoKey,
    /// A key with a wrong letter.
    #[error("the key is misspelt: its last letters do not match the others")]
    Misspelt,
}

impl Secret {
    /// A new key.
    #[must_use]
    pub fn new_key(random: &dyn Random) -> Self {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        random.fill(&mut *key);
        Self::Key(key)
    }

    /// A passphrase, without the end of its line.
    ///
    /// # Errors
    /// If nothing is left.
    pub fn passphrase(text: &[u8]) -> Result<Self, InvalidSecret> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        match text.is_empty() {
            true => Err(InvalidSecret::Empty),
            false => Ok(Self::Passphrase(Zeroizing::new(text.to_vec()))),
        }
    }

    /// A key from its text.
    ///
    /// # Errors
    /// If it is none, or misspelt.
    pub fn key(text: &str) -> Result<Self, InvalidSecret> {
        let text = Zeroizing::new(text.trim().to_ascii_lowercase());
        let rest = text.strip_prefix(PREFIX);
        let rest = rest.ok_or(match text.is_empty() {
            true => InvalidSecret::Empty,
            false => InvalidSecret::NoKey,
        })?;
        let letters = rest.chars().filter(|c| *c != '-' && !c.is_whitespace());
        let letters: Zeroizing<String> = Zeroizing::new(letters.collect());
        let letters = Zeroizing::new(letters.to_ascii_uppercase());
        let bytes = BASE32_NOPAD.decode(letters.as_bytes());
        let bytes = Zeroizing::new(bytes.map_err(|_| InvalidSecret::NoKey)?);
        let Some((key, check)) = bytes.split_first_chunk::<KEY_LEN>() else {
            return Err(InvalidSecret::NoKey);
        };
        match check == check_of(key) {
            true => Ok(Self::Key(Zeroizing::new(*key))),
            false => Err(InvalidSecret::Misspelt),
        }
    }

    /// The text of a key; `None` of a passphrase.
    #[must_use]
    pub fn to_text(&self) -> Option<Zeroizing<String>> {
        let Self::Key(key) = self else { return None };
        let bytes = Zeroizing::new([&key[..], &check_of(key)].concat());
        let letters = Zeroizing::new(BASE32_NOPAD.encode(&bytes).to_ascii_lowercase());
        let groups = letters.as_bytes().chunks(GROUP);
        let groups = groups.map(|group| std::str::from_utf8(group).expect("base32 is ASCII"));
        let groups: Vec<_> = groups.collect();
        Some(Zeroizing::new(format!("{PREFIX}{}", groups.join("-"))))
    }
}

fn check_of(key: &[u8; KEY_LEN]) -> [u8; CHECK_LEN] {
    let hash = Fingerprint::of_bytes(key);
    let (check, _) = hash.0.split_first_chunk().expect("32 bytes");
    *check
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(***)",
            Self::Key(_) => "Key(***)",
        })
    }
}

#[cfg(test)]
mod tests {
    use block::OsRandom;

    use super::*;

    fn bytes(secret: &Secret) -> [u8; 32] {
        match secret {
            Secret::Key(key) => **key,
            Secret::Passphrase(_) => panic!("a passphrase"),
        }
    }

    #[test]
    fn a_key_survives_being_written_down() {
        let key = Secret::new_key(&OsRandom);
        let text = key.to_text().expect("a key has a text");
        assert_eq!(text.len(), PREFIX.len() + 14 * 5 - 1);
        let sloppy = text
            .to_uppercase()
            .replacen('-', " - ", 9)
            .replacen(" - ", "-", 2);
        for text in [text.as_str(), &format!(" {}\n", *text), &sloppy] {
            let read = Secret::key(text).expect("it reads back");
            assert_eq!(bytes(&read), bytes(&key));
        }
    }

    #[test]
    fn a_slip_of_the_pen_is_noticed() {
        let text = Secret::new_key(&OsRandom).to_text().expect("a text");
        for at in PREFIX.len()..text.len() {
            if text.as_bytes()[at] == b'-' {
                continue;
            }
            let other = if text.as_bytes()[at] == b'a' {
                "b"
            } else {
                "a"
            };
            let mut wrong = text.to_string();
            wrong.replace_range(at..=at, other);
            assert!(Secret::key(&wrong).is_err(), "{at}");
        }
        for text in ["", " ", "standin-key-", "hunter2", "standin-key-a1-"] {
            assert!(Secret::key(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let passphrase = Secret::passphrase(b"correct horse\r\n").expect("one");
        assert!(matches!(&passphrase, Secret::Passphrase(p) if p.as_slice() == b"correct horse"));
        assert_eq!(format!("{passphrase:?}"), "Passphrase(***)");
        assert_eq!(format!("{:?}", Secret::new_key(&OsRandom)), "Key(***)");
        assert!(Secret::passphrase(b"\n").is_err());
    }
}
