//! The client: vaults behind a server, as readers, writers and keepers of stores see them.
//!
//! Rule: a server is believed only what can be checked: lengths are compared with what was asked for, and what it sends of
//! a store is checked as any store is.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::{fmt, io};

use block::Name;

use crate::problem::{Kind, Problem};

pub use image_copy::CopyError;
pub use image_writer::RemoteImageWriter;
pub use keeper::Remote;
pub use objects::Objects;
pub use vault::{RemoteImage, RemotePoint, RemoteSeed, Vault};

mod connection;
mod draft;
mod image_copy;
mod image_writer;
mod keeper;
mod objects;
mod replicate;
mod ship;
mod vault;

/// A server: `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl(String);

/// A vault behind a server: `https://HOST:PORT/VAULT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultUrl {
    /// The server.
    pub server: ServerUrl,
    /// The vault.
    pub vault: Name,
}

/// A text that names no server or vault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` names no {what}: {why}")]
pub struct InvalidUrl {
    url: String,
    what: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl InvalidUrl {
    /// What was given, without what may be a secret.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl FromStr for ServerUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let refuse = |url: &str, why| {
            let url = url.to_owned();
            let what = "server";
            Err(InvalidUrl { url, what, why })
        };
        let Some(rest) = url.strip_prefix("https://") else {
            return refuse(url, "it does not begin with `https://`");
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if let Some((_, host)) = authority.rsplit_once('@') {
            let shown = format!("https://...@{host}");
            return refuse(
                &shown,
                "tokens belong into a file (--token-file), not into the URL",
            );
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
        let port = authority
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse::<u16>()));
        match port {
            Some((host, Ok(1..))) if !host.is_empty() && authority.chars().all(legal) => {
                Ok(Self(format!("https://{authority}")))
            }
            _ => refuse(url, "write https://HOST:PORT"),
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VaultUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let of_vault = |error: InvalidUrl| InvalidUrl {
            what: "vault",
            ..error
        };
        let refuse = |why| InvalidUrl {
            url: url.to_owned(),
            what: "vault",
            why,
        };
        let rest = url.strip_prefix("https://").unwrap_or(url);
        let Some((authority, vault)) = rest.split_once('/') else {
            return Err(refuse("write https://HOST:PORT/VAULT"));
        };
        let server = format!("https://{authority}").parse().map_err(of_vault)?;
        let vault = vault.trim_end_matches('/').parse();
        let vault = vault.map_err(|_| refuse("write https://HOST:PORT/VAULT"))?;
        Ok(Self { server, vault })
    }
}

impl fmt::Display for VaultUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.vault)
    }
}

/// What a process shows to servers, and whom it trusts.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The file with its token, and nothing else.
    pub token: Option<PathBuf>,
    /// The file with its certificate and private key (PEM), instead of a token.
    pub certificate: Option<PathBuf>,
    /// The authorities, or the very certificates, that servers may show (PEM); those of the system if left out.
    pub authorities: Option<PathBuf>,
}

static SHOWN: OnceLock<Access> = OnceLock::new();

impl Access {
    /// Makes this what the process shows to servers from here on. Said once, by whoever started it.
    pub fn show(self) {
        // Whoever said it first knows.
        let _ = SHOWN.set(self);
    }

    /// What the process shows to servers.
    #[must_use]
    pub fn of_this_process() -> Self {
        SHOWN.get().cloned().unwrap_or_default()
    }
}

/// Why a vault behind a server could not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Nothing that could be shown to a server.
    #[error("there is no token to show to `{server}`")]
    NoToken {
        /// Which server.
        server: String,
    },
    /// A file that is shown, or that says whom to trust.
    #[error("`{}` cannot be used: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// There is no connection, or it broke.
    #[error("cannot reach `{server}`")]
    Unreachable {
        /// Which server.
        server: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server said no.
    #[error("`{server}` answers: {}", .problem.error)]
    Refused {
        /// Which server.
        server: String,
        /// Its status.
        status: u16,
        /// What it said.
        problem: Box<Problem>,
    },
    /// An image writer failed earlier; its image is lost.
    #[error("this image failed earlier ({first}); begin it again")]
    ImageFailed {
        /// The first failure.
        first: Arc<str>,
    },
    /// The call was wrong.
    #[error("{0}")]
    Invalid(&'static str),
    /// The server said what makes no sense.
    #[error("`{server}` gives an answer that cannot be: {what}")]
    Answer {
        /// Which server.
        server: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A vault lists what cannot come from where points are copied from.
    #[error(
        "`{server}` lists {point}, which does not come from here: somebody else adds points to its group"
    )]
    ForeignPoint {
        /// Which server.
        server: String,
        /// Which point, or which number.
        point: String,
    },
    /// An image that was copied is not the same there.
    #[error(
        "an image that was copied to `{server}` has not the content that it has here; nothing was listed"
    )]
    OtherContent {
        /// Which server.
        server: String,
    },
}

impl RemoteError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoToken { .. } => Kind::Usage,
            // A draft that is gone is begun again.
            Self::Unreachable { .. } | Self::ImageFailed { .. } => Kind::Retry,
            Self::Refused { problem, .. } => problem.kind,
            Self::OtherContent { .. } | Self::ForeignPoint { .. } => Kind::Damaged,
            Self::File { .. } | Self::Answer { .. } | Self::Invalid(_) => Kind::Failed,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoToken { .. } => {
                "name the file with the token: --token-file FILE, or STANDIN_TOKEN_FILE in the environment"
            }
            Self::File { .. } => "see what it should hold in docs/operate/server.md",
            Self::Unreachable { .. } => {
                "is the server running? if it has a certificate of its own, name its file: --ca FILE, or STANDIN_CA"
            }
            Self::Refused { problem, .. } => return problem.hint.clone(),
            Self::ForeignPoint { .. } => {
                "its number hides one of the points here: see who has a token for the group, and copy to another vault"
            }
            Self::OtherContent { .. } => {
                "the server, or what it keeps, cannot be trusted with it: let it be scrubbed, and see who ships to it"
            }
            Self::Answer { .. } | Self::ImageFailed { .. } | Self::Invalid(_) => return None,
        };
        Some(text.to_owned())
    }

    /// Whether the server has done nothing of what it was asked for.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { status, .. } => (400..500).contains(status),
            Self::NoToken { .. } | Self::File { .. } | Self::Invalid(_) => true,
            _ => false,
        }
    }

    /// Whether the vault has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Refused { status: 507, .. })
    }

    /// Whether it is about something that is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// As the backend of a store says it.
    pub(crate) fn into_io(self) -> io::Error {
        /// What a disk says of a lost sector.
        const EIO: i32 = 5;
        let kind = match &self {
            Self::Refused { status: 404, .. } => io::ErrorKind::NotFound,
            Self::Refused { status: 416, .. } => io::ErrorKind::UnexpectedEof,
            Self::Refused { status: 507, .. } => io::ErrorKind::StorageFull,
            Self::Refused {
                status: 401 | 403, ..
            } => io::ErrorKind::PermissionDenied,
            Self::Refused { problem, .. } if problem.kind == Kind::Damaged => {
                return io::Error::from_raw_os_error(EIO);
            }
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_server_and_a_vault_or_say_what_is_wrong() {
        let url: VaultUrl = "https://backup.example:7443/team-a".parse().unwrap();
        assert_eq!(url.to_string(), "https://backup.example:7443/team-a");
        assert_eq!(url.server, "https://backup.example:7443/".parse().unwrap());
        assert!("https://[::1]:7443/x".parse::<VaultUrl>().is_ok());
        for (wrong, word) in [
            ("http://host:1/x", "https://"),
            ("https://host/x", "PORT"),
            ("https://host:0/x", "PORT"),
            ("https://:1/x", "PORT"),
            ("https://host:1", "VAULT"),
            ("https://host:1/", "VAULT"),
            ("https://host:1/a/b", "VAULT"),
            ("https://standin-a-b@host:1/x", "file"),
        ] {
            let error = wrong.parse::<VaultUrl>().unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("standin-a"), "{error}");
        }
    }
}
