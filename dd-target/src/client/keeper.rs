//! A server, to who looks after it: vaults, tokens, chores, the audit log.

use std::sync::Arc;

use block::Name;
use reqwest::Method;
use store::{NewKeys, WrappedKey};

use crate::api::{
    CreatedToken, CreatedVault, NewQuota, NewToken, NewVault, NewWay, RevokedToken, Token,
    TokenList, Told, Vault, VaultFigures, VaultList,
};
use crate::chore::{Chore, Done};
use crate::client::connection::{Ask, Connection};
use crate::client::{Access, RemoteError, ServerUrl};
use crate::record;
use crate::server::AuditPage;

/// A server.
pub struct Remote {
    connection: Arc<Connection>,
}

impl Remote {
    /// Makes ready to ask a server.
    ///
    /// # Errors
    /// If there is nothing to show to it. Whether it can be reached shows at the first request.
    pub fn open(server: &ServerUrl, access: &Access) -> Result<Self, RemoteError> {
        let connection = Connection::open(server, access)?;
        Ok(Self { connection })
    }

    /// The vaults that may be seen.
    ///
    /// # Errors
    /// If the server cannot be reached, or refuses; so of all calls here.
    pub fn vaults(&self) -> Result<Vec<Vault>, RemoteError> {
        let list: VaultList = self.connection.json(Ask::get("/v1/vaults".into()))?;
        Ok(list.vaults)
    }

    /// Makes a vault.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults); if there is one of this name.
    pub fn create_vault(&self, new: &NewVault) -> Result<CreatedVault, RemoteError> {
        self.connection.json(Ask::post("/v1/vaults".into(), new))
    }

    /// Makes an encrypted vault, of which the server has no key.
    ///
    /// # Errors
    /// As [`create_vault`](Self::create_vault); if a store lies in its place.
    pub fn create_encrypted_vault(
        &self,
        new: NewVault,
        keys: &NewKeys,
    ) -> Result<CreatedVault, RemoteError> {
        let keys = Some(record::keys_text(keys));
        self.create_vault(&NewVault { keys, ..new })
    }

    /// Gives who keeps an encrypted vault one way more to open it.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults); if it is not encrypted, or somebody else changed the ways since this one was made.
    pub fn add_way(&self, vault: &Name, key: &WrappedKey) -> Result<(), RemoteError> {
        let key = record::wrapped_key_text(key);
        let ask = Ask::post(format!("/v1/vaults/{vault}/keys"), &NewWay { key });
        self.connection.json::<Told>(ask).map(drop)
    }

    /// Gives a vault another quota; none is no limit.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults); if there is no such vault.
    pub fn set_quota(&self, vault: &Name, quota_bytes: Option<u64>) -> Result<Vault, RemoteError> {
        let path = format!("/v1/vaults/{vault}/quota");
        let mut ask = Ask::post(path, &NewQuota { quota_bytes });
        ask.method = Method::PUT;
        self.connection.json(ask)
    }

    /// A vault, and what it holds.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults).
    pub fn vault(&self, vault: &Name) -> Result<VaultFigures, RemoteError> {
        let mut ask = Ask::get(format!("/v1/vaults/{vault}"));
        // It may have to be opened.
        ask.patience = None;
        self.connection.json(ask)
    }

    /// Does a chore on a vault; as long as it takes.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults), and whatever the chore meets.
    pub fn chore(&self, vault: &Name, chore: &Chore) -> Result<Done, RemoteError> {
        let mut ask = Ask::post(format!("/v1/vaults/{vault}/chores"), chore);
        ask.patience = None;
        self.connection.json(ask)
    }

    /// All tokens.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults).
    pub fn tokens(&self) -> Result<Vec<Token>, RemoteError> {
        let list: TokenList = self.connection.json(Ask::get("/v1/tokens".into()))?;
        Ok(list.tokens)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults).
    pub fn create_token(&self, new: &NewToken) -> Result<CreatedToken, RemoteError> {
        self.connection.json(Ask::post("/v1/tokens".into(), new))
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults); if there is none of this id.
    pub fn revoke_token(&self, id: &str) -> Result<RevokedToken, RemoteError> {
        let legal = id.chars().all(|c| c.is_ascii_alphanumeric());
        let id = if legal { id } else { "unknown" };
        let mut ask = Ask::get(format!("/v1/tokens/{id}"));
        ask.method = Method::DELETE;
        self.connection.json(ask)
    }

    /// A page of the audit log: lines after number `after`.
    ///
    /// # Errors
    /// As [`vaults`](Self::vaults).
    pub fn audit(&self, after: u64) -> Result<AuditPage, RemoteError> {
        let ask = Ask::get(format!("/v1/audit?after={after}"));
        self.connection.json(ask)
    }
}
