//! Options of servers, vaults and tokens.

use std::path::PathBuf;

use agent::{ByteLimit, Target};
use block::Name;
use clap::{Args as ClapArgs, Subcommand};
use dd_target::Place;
use dd_target::api::Role;
use dd_target::client::{Access, ServerUrl};

use crate::commands::Until;

/// What is shown to servers, for targets `https://HOST:PORT/VAULT`.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Servers")]
pub(crate) struct Shown {
    /// The file with the token for targets behind servers; nobody else may be able to read it.
    #[arg(
        long,
        global = true,
        env = "STANDIN_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
    /// Instead of a token: the file with a client certificate and its private key (PEM).
    #[arg(
        long,
        global = true,
        env = "STANDIN_CLIENT_CERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    client_cert: Option<PathBuf>,
    /// The authorities, or the certificates themselves, that such servers may show (PEM); the system's if left out.
    #[arg(
        long,
        global = true,
        env = "STANDIN_CA",
        value_name = "FILE",
        hide_env_values = true
    )]
    ca: Option<PathBuf>,
}

impl Shown {
    pub(crate) fn access(&self) -> Access {
        Access {
            token: self.token_file.clone(),
            certificate: self.client_cert.clone(),
            authorities: self.ca.clone(),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TargetArgs {
    #[command(subcommand)]
    pub(crate) command: TargetCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TargetCommand {
    /// Serve vaults to other machines, by HTTP/2 over TLS, until SIGINT or SIGTERM.
    Serve(Box<TargetServe>),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TargetServe {
    /// Where the vaults lie: dir:PATH or s3://BUCKET/PREFIX; each in vaults/NAME below it.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Place,
    /// Where to listen.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// Where tokens, settings and the audit log are kept; for its owner alone.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// Certificate of the server (PEM, with its chain); it makes its own if left out.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the server (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A further name or address under which clients call the server, for the certificate that it makes; may be repeated.
    #[arg(long, value_name = "HOST", conflicts_with = "tls_cert")]
    pub(crate) tls_name: Vec<String>,
    /// Clients may show a certificate of this authority (PEM) instead of a token.
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VaultArgs {
    #[command(subcommand)]
    pub(crate) command: VaultCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Make a vault: a store of its own, behind the server.
    Create {
        /// The vault's name.
        vault: Name,
        /// The server: https://HOST:PORT.
        #[arg(long, value_name = "URL")]
        server: ServerUrl,
        /// Bytes that it may take, as in 500GiB; no limit if left out.
        #[arg(long, value_name = "BYTES")]
        quota: Option<ByteLimit>,
        #[command(flatten)]
        sealed: Sealed,
    },
    /// Give a vault another quota.
    SetQuota {
        /// The vault's name.
        vault: Name,
        /// The server: https://HOST:PORT.
        #[arg(long, value_name = "URL")]
        server: ServerUrl,
        /// Bytes that it may take, as in 500GiB; no limit if left out. Less than it holds keeps it from growing.
        #[arg(long, value_name = "BYTES")]
        quota: Option<ByteLimit>,
    },
    /// The vaults of a server.
    List {
        /// The server: https://HOST:PORT.
        #[arg(long, value_name = "URL")]
        server: ServerUrl,
    },
    /// What a vault holds.
    Show {
        /// The vault's name.
        vault: Name,
        /// The server: https://HOST:PORT.
        #[arg(long, value_name = "URL")]
        server: ServerUrl,
    },
}

/// Whether clients encrypt what a new vault will hold: AES-256-GCM, before it leaves them. The server never has the key.
#[derive(Debug, ClapArgs)]
pub(crate) struct Sealed {
    /// Encrypt what it will hold. --key-file or --passphrase-file opens it; a key file that is not there is made.
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Make no recovery key. If the key file or the passphrase is lost, so is everything.
    #[arg(long, requires = "encrypt")]
    pub(crate) no_recovery_key: bool,
    /// Encrypt it as this target is: what opens that opens the vault, and `standin replicate` copies to it.
    #[arg(long, value_name = "TARGET", conflicts_with = "encrypt")]
    pub(crate) like: Option<Target>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

/// Which server's tokens.
#[derive(Debug, ClapArgs)]
pub(crate) struct TokensOf {
    /// The server: https://HOST:PORT.
    #[arg(
        long,
        value_name = "URL",
        required_unless_present = "state",
        conflicts_with = "state"
    )]
    pub(crate) server: Option<ServerUrl>,
    /// On the server's own machine: its state directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is printed once.
    Create {
        #[command(flatten)]
        of: TokensOf,
        /// How people call it.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What it may do: ship, restore, retention, admin; may be repeated.
        #[arg(long = "role", value_name = "ROLE", required = true)]
        roles: Vec<Role>,
        /// In which vault; may be repeated. In all if left out.
        #[arg(long = "vault", value_name = "NAME")]
        vaults: Vec<Name>,
        /// For which group, with the role ship; may be repeated. For all if left out.
        #[arg(long = "group", value_name = "NAME")]
        groups: Vec<Name>,
        /// Until when: a time as in 2027-01-31T00:00:00Z, or for how long from now, as in 90d. For ever if left out.
        #[arg(long, value_name = "TIME")]
        expires: Option<Until>,
        /// Instead of a secret: whoever shows a client certificate with this common name.
        #[arg(long, value_name = "CN")]
        certificate: Option<String>,
    },
    /// All tokens, without their secrets.
    List {
        #[command(flatten)]
        of: TokensOf,
    },
    /// Take a token back, at once.
    Revoke {
        /// Its id.
        id: String,
        #[command(flatten)]
        of: TokensOf,
    },
}
