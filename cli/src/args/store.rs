//! Options of `standin store`.

use std::path::PathBuf;

use agent::{RateLimit, Target};
use block::Name;
use clap::{Args as ClapArgs, Subcommand};
use store::PointRef;

use super::State;
use crate::commands::Span;

#[derive(Debug, ClapArgs)]
pub(crate) struct Store {
    #[command(subcommand)]
    pub(crate) command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Make a store of an empty directory. `standin protect` does that by itself.
    Init {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
        /// Encrypt what it will hold: AES-256-GCM, before it leaves this machine. --key-file or --passphrase-file opens it;
        /// a key file that is not there is made.
        #[arg(long)]
        encrypt: bool,
        /// Make no recovery key. If the key file or the passphrase is lost, so is everything.
        #[arg(long, requires = "encrypt")]
        no_recovery_key: bool,
    },
    /// Who opens an encrypted store.
    Key(Key),
    /// What a store holds.
    Status {
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        target: Target,
    },
    /// What holds the space of a store, of a point or of a chunk, and when it can be free.
    Explain {
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        target: Target,
        /// This point: GROUP@NUMBER or GROUP@latest.
        #[arg(long, value_name = "POINT")]
        point: Option<PointRef>,
        /// The chunk at this byte of the point's disk.
        #[arg(long, value_name = "BYTE", requires = "point")]
        offset: Option<u64>,
        /// Which disk, where the point has several.
        #[arg(long, value_name = "NAME", requires = "offset")]
        disk: Option<Name>,
    },
    /// Collect garbage: what no point needs any more. `standin protect` does that by itself.
    Gc {
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        target: Target,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// How long an object that nothing needs is kept before it is removed. Not at all while the disk is full.
        #[arg(long, value_name = "TIME", default_value = "1d")]
        quarantine: Span,
        /// Copy whatever holds any garbage, to be rid of the last of it.
        #[arg(long)]
        thorough: bool,
        /// Bytes per second that it may read and write, as in 64MiB/s; no limit if left out.
        #[arg(long, value_name = "RATE")]
        rate: Option<RateLimit>,
        #[command(flatten)]
        state: State,
    },
    /// Give up a group's first copy that is under way: what only it needs is garbage then. `store status` lists them. A
    /// protection that is at it begins it again.
    DropSeed {
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        target: Target,
        /// The group.
        group: Name,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        state: State,
    },
    /// Read and check everything, the catalog too, also where that does not open. Nothing is changed, and writers go on.
    Check {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
        /// Decompress and hash every chunk; do not trust the checksums that were made with the objects.
        #[arg(long)]
        deep: bool,
        /// Bytes per second that it may read, as in 64MiB/s; no limit if left out.
        #[arg(long, value_name = "RATE")]
        rate: Option<RateLimit>,
    },
    /// Plan what can be had again of a damaged store, and do it if --apply says so. Nothing is ever removed by it.
    Repair {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
        /// A target with the same points (`standin replicate` makes one): disks of points of which something is lost are
        /// copied again from there. dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "REPLICA")]
        from: Option<Target>,
        /// Do what is planned, as the only writer.
        #[arg(long)]
        apply: bool,
    },
    /// Build the index of chunks anew, as each writer does when it opens the store, and say what it is.
    RebuildIndex {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
    },
    /// Read and check every object, heal what bit rot has damaged, and name what is lost.
    Scrub {
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        target: Target,
        /// Trust the checksums that were made with the objects; do not decompress and hash every chunk.
        #[arg(long)]
        light: bool,
        /// Only say what would be healed.
        #[arg(long)]
        dry_run: bool,
        /// Bytes per second that it may read, as in 64MiB/s; no limit if left out.
        #[arg(long, value_name = "RATE")]
        rate: Option<RateLimit>,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Key {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// The ways to open a store. Needs none of them.
    List {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
    },
    /// One way more. Protections go on.
    Add {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
        #[command(flatten)]
        new: NewKey,
        /// What to call it.
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
    },
    /// One way less; another one than that by which this command opens the store.
    Remove {
        /// The target: dir:PATH or s3://BUCKET/PREFIX.
        target: Target,
        /// Its number, as `key list` shows it.
        number: u32,
    },
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub(crate) struct NewKey {
    /// A key in this file, which is made if it is not there.
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// The passphrase in this file.
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// A key that is printed, once: write it down and lock it away.
    #[arg(long)]
    new_recovery_key: bool,
}

impl NewKey {
    pub(crate) fn chosen(self) -> agent::NewKey {
        match (self.new_key_file, self.new_passphrase_file) {
            (Some(path), _) => agent::NewKey::File(path),
            (None, Some(path)) => agent::NewKey::Passphrase(path),
            (None, None) => agent::NewKey::Recovery,
        }
    }
}
