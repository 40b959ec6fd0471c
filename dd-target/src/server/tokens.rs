//! Tokens: who may do what. As text `standin-ID-SECRET`: the id names the entry, the secret (256 bits) is kept as its
//! SHA-256 only.
//!
//! Rule: a comparison takes as long whatever differs, and who does not know the secret learns nothing of the entry. What
//! another process changes in the file (`standin token revoke` on the server's machine) holds from the next request on.

use std::io;
use std::sync::Arc;

use block::{Name, Random, UnixNanos};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api::{CreatedToken, NewToken, Role, Token};
use crate::server::state_dir::{Locked, Stamp, StateDir};

const FILE: &str = "tokens.json";
/// Most entries of the file.
const TOKENS_MAX: usize = 10_000;
/// Longest name of a token, and of a certificate, in bytes.
const NAME_BYTES_MAX: usize = 128;

const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// Why a token cannot be made or found.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// What was asked for.
    #[error("{0}")]
    Invalid(&'static str),
    /// There is no such token.
    #[error("there is no token `{0}`")]
    Unknown(String),
    /// The file.
    #[error("cannot {verb} the file of tokens")]
    File {
        /// What was being done.
        verb: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// What somebody shows.
pub(crate) enum Credential {
    /// The text of a token.
    Text(String),
    /// The common name of a certificate that TLS has checked.
    Certificate(String),
}

/// Why somebody is not let in. What is told of a token is told to who knows its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// There is none, or it is not the right one.
    Wrong,
    /// It was right, until then.
    Expired(Box<Token>),
    /// It was taken back.
    Revoked(Box<Token>),
}

/// All tokens of a server.
pub(crate) struct Tokens {
    dir: Arc<StateDir>,
    random: Arc<dyn Random>,
    read: Mutex<(Option<Stamp>, Arc<File>)>,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    version: u32,
    tokens: Vec<Entry>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    token: Token,
    secret_sha256: Option<String>,
}

impl Tokens {
    pub(crate) fn open(dir: &Arc<StateDir>, random: Arc<dyn Random>) -> Result<Self, TokenError> {
        let tokens = Self {
            dir: Arc::clone(dir),
            random,
            read: Mutex::default(),
        };
        tokens.file()?;
        Ok(tokens)
    }

    /// All there are.
    pub(crate) fn list(&self) -> Result<Vec<Token>, TokenError> {
        let file = self.file()?;
        Ok(file
            .tokens
            .iter()
            .map(|entry| entry.token.clone())
            .collect())
    }

    pub(crate) fn create(&self, new: NewToken, now: UnixNanos) -> Result<CreatedToken, TokenError> {
        check(&new)?;
        let mut id = [0; ID_BYTES];
        let mut secret = [0; SECRET_BYTES];
        self.random.fill(&mut id);
        self.random.fill(&mut secret);
        let secret = HEXLOWER.encode(&secret);
        let token = Token {
            id: HEXLOWER.encode(&id),
            name: new.name,
            roles: new.roles,
            vaults: new.vaults,
            groups: new.groups,
            created_unix_ns: now.0,
            expires_unix_ns: new.expires_unix_ns,
            revoked_unix_ns: None,
            certificate: new.certificate,
        };
        let by_secret = token.certificate.is_none();
        let entry = Entry {
            token: token.clone(),
            secret_sha256: by_secret.then(|| digest(&secret)),
        };
        self.change(StateDir::write, |file| {
            if file.tokens.len() >= TOKENS_MAX {
                return Err(TokenError::Invalid(
                    "there are too many tokens; 10,000 at most",
                ));
            }
            file.tokens.push(entry);
            Ok(())
        })?;
        let text = by_secret.then(|| format!("standin-{}-{secret}", token.id));
        Ok(CreatedToken { token, text })
    }

    /// Takes a token back. One that was taken back stays as it is.
    pub(crate) fn revoke(&self, id: &str, now: UnixNanos) -> Result<Token, TokenError> {
        self.change(StateDir::write_at_last, |file| {
            let mut all = file.tokens.iter_mut();
            let entry = all.find(|entry| entry.token.id == id);
            let unknown = || TokenError::Unknown(id.chars().take(40).collect());
            let token = &mut entry.ok_or_else(unknown)?.token;
            token.revoked_unix_ns.get_or_insert(now.0);
            Ok(token.clone())
        })
    }

    /// Whose credential it is, if it holds.
    pub(crate) fn authenticate(
        &self,
        shown: &Credential,
        now: UnixNanos,
    ) -> Result<Result<Token, Unknown>, TokenError> {
        let file = self.file()?;
        let found = match shown {
            Credential::Text(text) => by_text(&file, text),
            Credential::Certificate(name) => by_certificate(&file, name),
        };
        Ok(match found {
            None => Err(Unknown::Wrong),
            Some(token) if token.revoked_unix_ns.is_some() => {
                Err(Unknown::Revoked(Box::new(token)))
            }
            Some(token) if has_expired(&token, now) => Err(Unknown::Expired(Box::new(token))),
            Some(token) => Ok(token),
        })
    }

    fn change<T>(
        &self,
        write: impl FnOnce(&StateDir, &Locked, &str, &[u8]) -> io::Result<()>,
        change: impl FnOnce(&mut File) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let locked = self.dir.lock().map_err(failed("lock"))?;
        let mut file = File {
            version: 1,
            tokens: self.file()?.tokens.clone(),
        };
        let done = change(&mut file)?;
        let bytes = serde_json::to_vec_pretty(&file).expect("entries are plain data");
        let written = write(&self.dir, &locked, FILE, &bytes);
        written.map_err(failed("write"))?;
        Ok(done)
    }

    /// As it is now.
    fn file(&self) -> Result<Arc<File>, TokenError> {
        let stamp = self.dir.stamp(FILE).map_err(failed("look at"))?;
        let mut read = self.read.lock();
        if read.0 != stamp {
            *read = match self.dir.read(FILE).map_err(failed("read"))? {
                None => (None, Arc::default()),
                Some((bytes, stamp)) => {
                    let file = serde_json::from_slice(&bytes).map_err(io::Error::other);
                    (Some(stamp), Arc::new(file.map_err(failed("understand"))?))
                }
            };
        }
        Ok(Arc::clone(&read.1))
    }
}

/// Whether a text has the shape of a token's id.
pub(crate) fn is_id(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 2 * ID_BYTES && text.bytes().all(is_digit)
}

/// `None` if there is no such token, or the secret is another one.
fn by_text(file: &File, text: &str) -> Option<Token> {
    let (id, secret) = text.strip_prefix("standin-")?.split_once('-')?;
    let found = file.tokens.iter().find(|entry| entry.token.id == id);
    let kept = found.and_then(|entry| entry.secret_sha256.as_deref());
    // Where there is none, it is compared all the same.
    let expected = kept.unwrap_or(NOBODYS);
    let same = expected.as_bytes().ct_eq(digest(secret).as_bytes());
    found
        .filter(|_| kept.is_some() && bool::from(same))
        .map(|entry| entry.token.clone())
}

/// The newest entry for the certificate: one that was revoked gives an older one's rights to nobody.
fn by_certificate(file: &File, name: &str) -> Option<Token> {
    let of_name = |entry: &&Entry| entry.token.certificate.as_deref() == Some(name);
    let newest = file.tokens.iter().rev().find(of_name);
    newest.map(|entry| entry.token.clone())
}

fn has_expired(token: &Token, now: UnixNanos) -> bool {
    token.expires_unix_ns.is_some_and(|until| until <= now.0)
}

fn check(new: &NewToken) -> Result<(), TokenError> {
    let invalid = |sentence| Err(TokenError::Invalid(sentence));
    let is_text = |text: &str| {
        !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
    };
    if !is_text(&new.name) || !new.certificate.as_deref().is_none_or(is_text) {
        return invalid("a token's name, and a certificate's, has 1 to 128 printable characters");
    }
    if new.roles.is_empty() {
        return invalid("a token without a role can do nothing; give it one");
    }
    let mut names = new.vaults.iter().chain(&new.groups);
    if names.any(|name| name.parse::<Name>().is_err()) {
        return invalid("vaults and groups have names of letters, digits, `.`, `_` and `-`");
    }
    if !new.groups.is_empty() && new.roles != [Role::Ship] {
        return invalid(
            "only the role ship can be bound to groups: the others see a whole vault; give the groups a vault of their own",
        );
    }
    if !new.vaults.is_empty() && new.roles.contains(&Role::Admin) {
        return invalid("the role admin is of the whole server, and cannot be bound to vaults");
    }
    Ok(())
}

fn digest(secret: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(secret.as_bytes()))
}

/// What no secret has as its digest.
const NOBODYS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn failed(verb: &'static str) -> impl Fn(io::Error) -> TokenError {
    move |source| TokenError::File { verb, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every draw is of another byte.
    #[derive(Default)]
    struct Counted(Mutex<u8>);

    impl Random for Counted {
        fn fill(&self, bytes: &mut [u8]) {
            *self.0.lock() += 1;
            bytes.fill(*self.0.lock());
        }
    }

    fn tokens(dir: &tempfile::TempDir) -> Tokens {
        let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
        Tokens::open(&state, Arc::new(Counted::default())).unwrap()
    }

    fn new(roles: &[Role]) -> NewToken {
        NewToken {
            name: "ops".into(),
            roles: roles.to_vec(),
            ..NewToken::default()
        }
    }

    fn show(tokens: &Tokens, text: &str, now: u64) -> Result<Token, Unknown> {
        let shown = Credential::Text(text.into());
        tokens.authenticate(&shown, UnixNanos(now)).unwrap()
    }

    #[test]
    fn only_the_text_that_was_told_is_let_in_while_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(&dir);
        let asked = NewToken {
            expires_unix_ns: Some(100),
            ..new(&[Role::Ship])
        };
        let made = tokens.create(asked, UnixNanos(1)).unwrap();
        let text = made.text.unwrap();
        assert_eq!(show(&tokens, &text, 50), Ok(made.token.clone()));
        let expired = Err(Unknown::Expired(Box::new(made.token.clone())));
        assert_eq!(show(&tokens, &text, 100), expired);
        let (shorter, forged) = (&text[..text.len() - 1], text.replace("0202", "0203"));
        for wrong in ["", "standin-", "standin-x-y", "standin--", shorter, &forged] {
            assert_eq!(show(&tokens, wrong, 50), Err(Unknown::Wrong), "{wrong}");
        }
        let revoked = tokens.revoke(&made.token.id, UnixNanos(60)).unwrap();
        assert_eq!(
            show(&tokens, &text, 70),
            Err(Unknown::Revoked(Box::new(revoked)))
        );
        assert!(matches!(
            tokens.revoke("nobody", UnixNanos(60)),
            Err(TokenError::Unknown(_))
        ));
    }

    #[test]
    fn the_file_holds_no_secret_and_what_others_write_into_it_holds_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (tokens(&dir), tokens(&dir));
        let text = theirs.create(new(&[Role::Admin]), UnixNanos(1)).unwrap();
        let text = text.text.unwrap();
        assert!(show(&ours, &text, 2).is_ok());
        let file = std::fs::read_to_string(ours.dir.path(FILE)).unwrap();
        let secret = text.rsplit('-').next().unwrap();
        assert!(!file.contains(secret), "{file}");
    }

    #[test]
    fn a_certificate_is_known_by_its_name_and_by_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(&dir);
        let asked = NewToken {
            certificate: Some("web-1".into()),
            ..new(&[Role::Ship])
        };
        let made = tokens.create(asked, UnixNanos(1)).unwrap();
        assert!(made.text.is_none());
        let shown = |name: &str| {
            let shown = Credential::Certificate(name.into());
            tokens.authenticate(&shown, UnixNanos(2)).unwrap()
        };
        assert_eq!(shown("web-1"), Ok(made.token.clone()));
        assert_eq!(shown("web-2"), Err(Unknown::Wrong));
        let by_id = format!("standin-{}-", made.token.id);
        assert_eq!(show(&tokens, &by_id, 2), Err(Unknown::Wrong));
    }

    #[test]
    fn tokens_that_would_not_hold_what_they_say_are_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(&dir);
        let groups = |roles: &[Role]| NewToken {
            groups: vec!["web".into()],
            ..new(roles)
        };
        let vaults = |roles: &[Role], vault: &str| NewToken {
            vaults: vec![vault.into()],
            ..new(roles)
        };
        for wrong in [
            new(&[]),
            groups(&[Role::Ship, Role::Restore]),
            groups(&[Role::Retention]),
            vaults(&[Role::Admin], "a"),
            vaults(&[Role::Ship], "../a"),
        ] {
            let refused = tokens.create(wrong, UnixNanos(1));
            assert!(matches!(refused, Err(TokenError::Invalid(_))));
        }
        assert!(tokens.create(groups(&[Role::Ship]), UnixNanos(1)).is_ok());
    }
}
