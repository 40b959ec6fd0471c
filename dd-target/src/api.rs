//! What is said over the network, as JSON. Names are the API: `docs/operate/server.md` lists them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What somebody may do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Add points, and learn what that needs to be known.
    Ship,
    /// Read whole vaults.
    Restore,
    /// See the points; remove, bring back, hold and lock them.
    Retention,
    /// Vaults, tokens, garbage, scrubs, the audit log. It reads no vault.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Ship, Self::Restore, Self::Retention, Self::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ship => "ship",
            Self::Restore => "restore",
            Self::Retention => "retention",
            Self::Admin => "admin",
        })
    }
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role: use ship, restore, retention or admin")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|role| role.to_string() == text);
        found.ok_or_else(|| InvalidRole(text.chars().take(40).collect()))
    }
}

/// A token to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// How a person calls it.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// In which vaults; in all if there are none here.
    #[serde(default)]
    pub vaults: Vec<String>,
    /// For which groups; for all if there are none here. Of the role `ship` only.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Until when, ns since 1970; for ever if left out.
    #[serde(default)]
    pub expires_unix_ns: Option<u64>,
    /// Whoever shows a client certificate with this common name has the roles; there is no secret then.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// Its id, the first part of its text.
    pub id: String,
    /// How a person calls it.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// In which vaults; in all if there are none here.
    pub vaults: Vec<String>,
    /// For which groups; for all if there are none here.
    pub groups: Vec<String>,
    /// When it was made, ns since 1970.
    pub created_unix_ns: u64,
    /// Until when it holds, ns since 1970.
    pub expires_unix_ns: Option<u64>,
    /// Since when it does not any more, ns since 1970.
    pub revoked_unix_ns: Option<u64>,
    /// The common name of the client certificate that it stands for.
    pub certificate: Option<String>,
}

/// A token that was taken back.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RevokedToken {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// Why the audit log does not say so, if it could not be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<String>,
}

/// A token that was made.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreatedToken {
    /// The token.
    pub token: Token,
    /// Its text, which nobody can be told a second time; none for certificates.
    pub text: Option<String>,
}

impl fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CreatedToken({}, ***)", self.token.id)
    }
}

/// Tokens.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenList {
    /// All there are.
    pub tokens: Vec<Token>,
}

/// A vault to be made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVault {
    /// Its name.
    pub name: String,
    /// Bytes that it may take; no limit if left out.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// Of one that is to be encrypted: its key, wrapped for each of the first ways to open it. Base64 of what
    /// `docs/formats/keys.md` draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
}

/// One way more to open an encrypted vault.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWay {
    /// Its key, wrapped. Base64 of what `docs/formats/keys.md` draws.
    pub key: String,
}

/// Another quota for a vault.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewQuota {
    /// Bytes that it may take; null: no limit. Left out, nobody could say what was meant.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schemars(required)]
    pub quota_bytes: Option<u64>,
}

/// A vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vault {
    /// Its name.
    pub name: String,
    /// Bytes that it may take; null for no limit.
    pub quota_bytes: Option<u64>,
    /// When it was made, ns since 1970.
    pub created_unix_ns: u64,
}

/// A vault that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreatedVault {
    /// The vault.
    #[serde(flatten)]
    pub vault: Vault,
    /// Whether its store is encrypted: one that lay in its place may be.
    pub encrypted: bool,
}

/// Vaults.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VaultList {
    /// Those that the caller may see.
    pub vaults: Vec<Vault>,
}

/// A vault, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VaultFigures {
    /// The vault.
    #[serde(flatten)]
    pub vault: Vault,
    /// Bytes of chunks and trees.
    pub stored_bytes: u64,
    /// Bytes that nothing needs any more, and that will be removed.
    pub quarantined_bytes: u64,
    /// Points listed.
    pub points: u64,
    /// Chunks.
    pub chunks: u64,
    /// Whether its clients encrypt what it holds.
    pub encrypted: bool,
    /// Groups with points, and when the newest of each was cut.
    pub groups: Vec<GroupFigures>,
    /// First copies that are under way: they take space, and no rule removes them.
    pub seeds: Vec<SeedFigures>,
}

/// A first copy that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedFigures {
    /// Its group.
    pub group: String,
    /// Its disks.
    pub disks: u64,
    /// Bytes of them that are copied, zeroes among them.
    pub copied_bytes: u64,
}

/// A group of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupFigures {
    /// Its name.
    pub group: String,
    /// Its points.
    pub points: u64,
    /// When the newest was cut, ns since 1970.
    pub newest_unix_ns: u64,
}

/// Objects in a folder of a vault.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ObjectList {
    /// Plain names, and lengths in bytes.
    pub objects: Vec<(String, u64)>,
}

/// A draft to be begun.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DraftBase {
    /// Zeroes: the size in bytes.
    Empty(u64),
    /// The content of an image that the vault holds: its reference, in base64.
    Image(String),
}

/// A draft that was begun.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DraftId {
    /// Names it in further calls.
    pub draft: String,
}

/// Granules that are to be zero.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroRanges {
    /// First granule, and the one after the last.
    pub ranges: Vec<(u64, u64)>,
}

/// An image that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FinishedDraft {
    /// Its reference, in base64.
    pub image: String,
    /// Bytes of the objects that were created for it.
    pub stored_bytes: u64,
    /// Bytes that differ from its base.
    pub changed_bytes: u64,
}

/// A point to be listed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPoint {
    /// Its group.
    pub group: String,
    /// The tracking history it belongs to, in hexadecimal digits.
    pub lineage: String,
    /// The generation that the cut sealed.
    pub generation: u64,
    /// When it was cut, ns since 1970.
    pub at_unix_ns: u64,
    /// What the user wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Whether its guests were quiet.
    pub application: bool,
    /// Its disks, with their drafts.
    pub disks: Vec<(String, String)>,
    /// The number that it is to have, for a copy of a point that has it elsewhere; left out, the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// A point, as its shipper must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Its group.
    pub group: String,
    /// Its number.
    pub sequence: u64,
    /// The tracking history it belongs to, in hexadecimal digits.
    pub lineage: String,
    /// The generation that the cut sealed.
    pub generation: u64,
    /// When it was cut, ns since 1970.
    pub at_unix_ns: u64,
    /// What the user wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Whether its guests were quiet.
    pub application: bool,
    /// Its disks: name, and the image's reference in base64.
    pub disks: Vec<(String, String)>,
    /// Bytes of the objects that were created for it.
    pub stored_new_bytes: u64,
    /// Bytes that were shipped for it.
    pub changed_bytes: u64,
}

/// Points of a group, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PointList {
    /// The points.
    pub points: Vec<Point>,
    /// The number that the group's next point gets.
    pub next_sequence: u64,
}

/// The progress of a first copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// The tracking history it belongs to, in hexadecimal digits.
    pub lineage: String,
    /// Its generation as a base.
    pub generation: u64,
    /// Its disks.
    pub disks: Vec<SeedDisk>,
}

/// A disk of a first copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SeedDisk {
    /// Its name.
    pub name: String,
    /// Granules below this one are copied.
    pub cursor_granule: u64,
    /// The image's reference, in base64.
    pub image: String,
    /// The draft that the image is of, where it is newer than the last seed that was saved.
    #[serde(default)]
    pub draft: Option<String>,
}

/// A group's first copy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SeedFound {
    /// `null` if there is none.
    pub seed: Option<Seed>,
}

/// What became of something that has no other answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// Always.
    pub done: bool,
}
