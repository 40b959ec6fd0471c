//! Names of groups and disks, safe as file names, in URLs and on the wire.

use std::fmt;
use std::str::FromStr;

/// A group's or a disk's name. Invariant: 1 to 64 characters of `A-Z a-z 0-9 . _ -`, the first one
/// a letter or digit; so it is a file name, an export name and part of a point's id as it stands.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// A text that is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name: use 1 to 64 letters, digits, `.`, `_` or `-`, starting with a letter or digit"
)]
pub struct InvalidName(String);

impl Name {
    /// The most characters in a name.
    pub const LEN_MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let ok = text.len() <= Self::LEN_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(legal);
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_file_names() {
        for good in ["web", "vm-1.disk_0", "7"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            "a/b",
            "a@b",
            "a b",
            "\u{e9}",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
