//! The command line, as `docs/operate/cli.md` documents it.

use std::path::PathBuf;

use ::store::{PointRef, Policy};
use agent::{
    ByteLimit, Every, Format, HookCommand, HookTimeout, ImageSource, LatencyChoice, RateLimit,
    StateRoot, Target,
};
use block::Name;
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use export::Listen;

use crate::commands::{Since, Span};

pub(crate) use network::{
    Sealed, Shown, TargetArgs, TargetCommand, TargetServe, TokenArgs, TokenCommand, TokensOf,
    VaultArgs, VaultCommand,
};
pub(crate) use point::{Point, PointCommand};
pub(crate) use secret::Secret;
pub(crate) use store::{Key, KeyCommand, Store, StoreCommand};

mod network;
mod point;
mod secret;
mod store;
mod targets;

/// Keeps a stand-in for every virtual disk: a second copy, seconds old, that can be verified,
/// restored and booted.
#[derive(Debug, Parser)]
#[command(name = "standin", version, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Print one JSON document (protect: one object per line) on standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say more on standard error; twice: every request. RUST_LOG overrides it.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(flatten)]
    pub(crate) shown: Shown,
    #[command(flatten)]
    pub(crate) secret: Secret,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve disks to guests over NBD and keep copying them to a target.
    Protect(Box<Protect>),
    /// Cut a protected group now.
    Cut(Cut),
    /// What protected groups are doing.
    Status(Status),
    /// Which seconds cannot be restored, and why.
    Gaps(Gaps),
    /// List, show, verify and compare restore points; delete, hold and lock them.
    Point(Point),
    /// Make a target's store, see what it holds, collect its garbage, scrub, check and repair it.
    Store(Store),
    /// Which points rules would keep, and removing the others.
    Retention(Retention),
    /// Make a point of disk images, whole or as changes to the newest one.
    Import(Import),
    /// Copy a target's points to another target: what it lacks of them. Needs no key.
    Replicate(Replicate),
    /// Write a point's disk to a file or a block device.
    #[command(visible_alias = "export")]
    Restore(Restore),
    /// Serve a point as NBD disks, at once.
    Serve(Serve),
    /// Serve vaults to other machines.
    Target(TargetArgs),
    /// Make and see the vaults of a server.
    Vault(VaultArgs),
    /// Make, see and take back the tokens of a server.
    Token(TokenArgs),
    /// See the whole story on this machine, in about a minute.
    Demo(Demo),
}

/// Runs in the foreground: exports each DISK under the stem of its file name (one DISK is also the
/// default export), cuts and ships until SIGINT or SIGTERM, which cuts and ships a last time. A
/// second signal leaves what is not shipped to the next start.
#[derive(Debug, ClapArgs)]
pub(crate) struct Protect {
    /// Raw files, block devices or flat VMDKs.
    #[arg(required = true, value_name = "DISK")]
    pub(crate) disks: Vec<PathBuf>,
    /// Read and write the DISKs past this machine's page cache (O_DIRECT): guests have one of their own.
    #[arg(long)]
    pub(crate) direct: bool,
    /// Where points go: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// Name of the group; the stem of the first DISK if left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Where to serve: unix:PATH, tcp:HOST:PORT or activation; may be repeated. STATE/GROUP/nbd.sock
    /// if left out.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<Listen>,
    /// How often to cut: 500ms, 5s, 1m, or manual.
    #[arg(long, value_name = "INTERVAL", default_value = "5s")]
    pub(crate) every: Every,
    /// Run before each cut, to make guests quiet; words as in a shell, but no shell runs it. If it
    /// succeeds the point is application-consistent; the cut is made in any case.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) before_cut: Option<HookCommand>,
    /// Run after each cut, whatever became of it.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) after_cut: Option<HookCommand>,
    /// How long each of them may take before it is killed; 10s if left out.
    #[arg(long, value_name = "TIME")]
    pub(crate) hook_timeout: Option<HookTimeout>,
    /// At most so many bytes of diffs are shipped in a second, as in 50MiB/s; no limit if left out.
    #[arg(long, value_name = "RATE")]
    pub(crate) ship_rate: Option<RateLimit>,
    /// How fast production is compared with the newest point where nobody wrote: bytes per second, as
    /// in 4MiB/s, or off.
    #[arg(long, value_name = "RATE", default_value = "4MiB/s")]
    pub(crate) audit_rate: RateLimit,
    #[command(flatten)]
    pub(crate) state: State,
    /// Where diffs are kept, if not in the state directory: a directory, or a block device of the group's own.
    #[arg(long, value_name = "PATH")]
    pub(crate) diff_dir: Option<PathBuf>,
    /// What all diffs may occupy, as in 20GiB; what their file system has, if left out. Beyond it writes
    /// are only marked, and guests go on.
    #[arg(long, value_name = "BYTES")]
    pub(crate) diff_space: Option<ByteLimit>,
    /// How long the device of the diffs may keep the copy of a guest's write, or off. Beyond it writes are
    /// only marked.
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    pub(crate) diff_latency: LatencyChoice,
    /// What dirty maps and buffers may take of the memory, as in 2GiB; no limit if left out.
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory: Option<ByteLimit>,
    #[command(flatten)]
    pub(crate) keep: Keep,
    /// How long points that no rule keeps can still be brought back.
    #[arg(long, value_name = "TIME", default_value = "1d")]
    pub(crate) keep_delay: Span,
    /// How often points that no rule keeps are removed, and garbage is collected; 0: never.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) upkeep_every: Span,
    /// How long an object on the target that nothing needs is kept before it is removed. Not at all while the disk is full.
    #[arg(long, value_name = "TIME", default_value = "1d")]
    pub(crate) quarantine: Span,
    /// How often everything on the target is read, checked and healed; 0: never.
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub(crate) scrub_every: Span,
    /// How fast the last two read and write on the target.
    #[arg(long, value_name = "RATE", default_value = "32MiB/s")]
    pub(crate) upkeep_rate: RateLimit,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

/// The newest point of a group is always kept, and so is what is held or locked.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub(crate) struct Keep {
    /// Keep so many of the newest points.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_last: u32,
    /// Keep the newest point of each of so many hours.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_hourly: u32,
    /// Of days.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_daily: u32,
    /// Of weeks, from Monday on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_weekly: u32,
    /// Of months.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_monthly: u32,
    /// Of years.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_yearly: u32,
}

impl Keep {
    pub(crate) fn rules(self) -> Policy {
        Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Retention {
    #[command(subcommand)]
    pub(crate) command: RetentionCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RetentionCommand {
    /// Show which points the rules would keep, and why. Nothing is removed.
    Preview(Asked),
    /// Remove the points that no rule keeps.
    Apply {
        #[command(flatten)]
        asked: Asked,
        /// How long they can be brought back.
        #[arg(long, value_name = "TIME", default_value = "1d")]
        delay: Span,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Asked {
    /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// Only points of this group.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    #[command(flatten)]
    pub(crate) keep: Keep,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct State {
    /// Where state is kept; /var/lib/standin, or for users ~/.local/state/standin, if left out.
    #[arg(long = "state", env = "STANDIN_STATE", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl State {
    pub(crate) fn root(&self) -> StateRoot {
        match &self.dir {
            Some(dir) => StateRoot::at(dir),
            None => StateRoot::from_environment(),
        }
    }
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Tls {
    /// Certificate of the server (PEM, with its chain).
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        conflicts_with = "tls_psk_file"
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the server (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of this authority (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Pre-shared keys instead of certificates: lines USER:HEXKEY, as psktool makes them.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_psk_file: Option<PathBuf>,
    /// Whether clients must use TLS; required if left out, where keys are given.
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) tls: Option<TlsChoice>,
    /// Serve on addresses that other machines can reach without TLS. Whoever reaches the port can
    /// then read and write the disks.
    #[arg(long)]
    pub(crate) insecure_plaintext: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsChoice {
    /// Nobody gets in without.
    Required,
    /// Clients may use it.
    Offered,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cut {
    /// The group.
    pub(crate) group: Name,
    #[command(flatten)]
    pub(crate) state: State,
    /// Put a label on the point; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Wait until the point is durable on the target; the last word printed is its id. During the
    /// seed, wait for its end.
    #[arg(long)]
    pub(crate) wait: bool,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    /// As the store has it.
    const BYTES_MAX: usize = 4096;
    match text.split_once('=') {
        Some((key, value)) if key.len() > BYTES_MAX || value.len() > BYTES_MAX => Err(format!(
            "a label's key and value have at most {BYTES_MAX} bytes"
        )),
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Status {
    /// The group; all of them if left out.
    pub(crate) group: Option<Name>,
    #[command(flatten)]
    pub(crate) state: State,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Gaps {
    /// The group; all of them if left out.
    pub(crate) group: Option<Name>,
    /// Only what ended since then: a time as in 2026-11-21T10:00:00Z, or how long ago, as in 90m, 2h, 7d.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Since>,
    #[command(flatten)]
    pub(crate) state: State,
}

/// Reads the IMAGEs, which nobody may write to meanwhile, and lists a point of them. Where the group's newest point has a disk of
/// the same name and size, only what differs is stored anew.
#[derive(Debug, ClapArgs)]
pub(crate) struct Import {
    /// Raw files, block devices, VMDKs; nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH for whatever an NBD server can
    /// read (qemu-nbd: qcow2, VHDX).
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<ImageSource>,
    /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT. A store is made there if there is none.
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// Name of the group; the stem of the first IMAGE if left out. No group of a protection.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Put a label on the point; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
}

/// Copies the points that come after what TO has, or had, of their groups, oldest first and under their own numbers. What was
/// copied before a failure stays; the next time goes on after it. Holds, locks and rules are each target's own.
#[derive(Debug, ClapArgs)]
pub(crate) struct Replicate {
    /// Where the points are: dir:PATH or s3://BUCKET/PREFIX.
    pub(crate) from: Target,
    /// Where they are to be, too. A store is made there if there is none; encrypted if the other one is, with the same keys.
    pub(crate) to: Target,
    /// Only those of this group.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Also those that TO has lost: of commits of its catalog that a repair went on without.
    #[arg(long)]
    pub(crate) lost: bool,
    /// Only say what would be copied.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Restore {
    /// GROUP@NUMBER or GROUP@latest.
    pub(crate) point: PointRef,
    /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// A file that does not exist yet, or a block device (with --force).
    #[arg(long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Which disk, where the point has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Option<Name>,
    /// raw, or vmdk (flat: PATH and PATH's stem with -flat.vmdk).
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub(crate) format: Format,
    /// Leave holes where the disk is zero, instead of reserving all its space.
    #[arg(long)]
    pub(crate) sparse: bool,
    /// Replace an existing file; overwrite a block device.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Serve {
    /// GROUP@NUMBER or GROUP@latest.
    pub(crate) point: PointRef,
    /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// Where to serve: unix:PATH, tcp:HOST:PORT or activation; may be repeated.
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub(crate) listen: Vec<Listen>,
    /// Let clients write; changes go to a throw-away overlay, the point stays as it is.
    #[arg(long)]
    pub(crate) writable: bool,
    /// Where the overlay is kept; $TMPDIR or /var/tmp if left out.
    #[arg(long, value_name = "DIR", requires = "writable")]
    pub(crate) overlay_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Show it on a copy of this raw disk image, instead of one made from files of this machine.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) disk: Option<PathBuf>,
    /// Where to work (needs some GiB); $TMPDIR or /var/tmp if left out.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep what it made.
    #[arg(long)]
    pub(crate) keep: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn labels_need_a_key() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_label("a="), Ok(("a".into(), String::new())));
        assert!(parse_label("=b").is_err() && parse_label("a").is_err());
    }
}
