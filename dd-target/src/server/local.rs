//! Tokens on the server's own machine, by whoever may read its state directory: the first one is made here.

use std::path::Path;
use std::sync::Arc;

use block::{Clock, OsRandom};

use crate::api::{CreatedToken, NewToken, RevokedToken, Role, Token};
use crate::server::ServerError;
use crate::server::audit::{Audit, Entry, Event};
use crate::server::revocation::revoke;
use crate::server::state_dir::StateDir;
use crate::server::tokens::Tokens;

/// The tokens of a state directory, whether a server runs on it or not.
pub struct LocalTokens {
    tokens: Tokens,
    audit: Audit,
    clock: Arc<dyn Clock>,
}

impl LocalTokens {
    /// Opens the state directory of a server; makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be used, or the file of tokens cannot be read.
    pub fn open(state: &Path, clock: &Arc<dyn Clock>) -> Result<Self, ServerError> {
        let dir = StateDir::open(state).map_err(|source| ServerError::State {
            path: state.to_owned(),
            source,
        })?;
        let dir = Arc::new(dir);
        Ok(Self {
            tokens: Tokens::open(&dir, Arc::new(OsRandom))?,
            audit: Audit::new(&dir, clock),
            clock: Arc::clone(clock),
        })
    }

    /// Makes a token.
    ///
    /// # Errors
    /// If it makes no sense, or cannot be written.
    pub fn create(&self, new: NewToken) -> Result<CreatedToken, ServerError> {
        let roles: Vec<_> = new.roles.iter().map(Role::to_string).collect();
        let (name, roles) = (&new.name, roles.join(", "));
        self.record(format!("a token {name} is to be made, with {roles}"))?;
        let made = self.tokens.create(new, self.clock.wall())?;
        self.record(format!("{} made", made.token.id))?;
        Ok(made)
    }

    /// All tokens.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn list(&self) -> Result<Vec<Token>, ServerError> {
        Ok(self.tokens.list()?)
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// If there is none of this id, or it cannot be written.
    pub fn revoke(&self, id: &str) -> Result<RevokedToken, ServerError> {
        let place = (&self.tokens, &self.audit);
        Ok(revoke(place, id, self.clock.wall(), entry)?)
    }

    fn record(&self, what: String) -> Result<(), ServerError> {
        self.audit.write(entry(what)).map_err(ServerError::Audit)
    }
}

fn entry(what: String) -> Entry {
    Entry {
        event: Event::Token,
        token: None,
        peer: Some("the server's machine".into()),
        vault: None,
        what,
        why: None,
    }
}
