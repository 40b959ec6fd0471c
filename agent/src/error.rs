//! What can go wrong around a protected group, with what a user can do about it.
//!
//! Rule: an error says what failed; [`Error::kind`] says what a caller can do, [`Error::hint`] what
//! a person can do.

use std::io;
use std::path::PathBuf;

use block::Name;
use dd_target::client::RemoteError;
use dd_target::{Kind, PrivateFileError, Problem, chain};
use splitter::Generation;
use store::StoreError;

/// Result of what the agent does.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A target's URL.
    #[error("`{url}` is not a target that can be used: {why}")]
    Target {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Other values that were given.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A production disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] block::OpenError),
    /// Tracking cannot start.
    #[error(transparent)]
    Group(#[from] splitter::OpenError),
    /// A cut was not made, or waits to be listed.
    #[error("{}: {_0}", if .0.waits() { "the cut is not complete yet" } else { "no cut was made" })]
    Cut(#[from] splitter::CutError),
    /// The store failed.
    #[error("cannot {doing} (target `{target}`)")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// Where.
        target: String,
        /// Why not.
        source: StoreError,
    },
    /// A vault behind a server could not.
    #[error("cannot {doing} (target `{target}`)")]
    Vault {
        /// What was being done.
        doing: &'static str,
        /// Where.
        target: String,
        /// Why not.
        source: RemoteError,
    },
    /// What is about to be shipped cannot be written down.
    #[error("cannot write down what is shipped (`made` in the state directory of the group)")]
    Account {
        /// Why not.
        source: io::Error,
    },
    /// A vault that others ship to lists something else in place of what was shipped.
    #[error(
        "`{target}` lists {point}, which was not made here, in place of the point that was shipped"
    )]
    Foreign {
        /// Where.
        target: String,
        /// Which.
        point: String,
    },
    /// A disk that somebody else serves cannot be had.
    #[error(transparent)]
    Nbd(#[from] export::ConnectError),
    /// A file with what opens a target.
    #[error("`{}` opens nothing", path.display())]
    Secret {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: crate::SecretError,
    },
    /// The server cannot listen.
    #[error("cannot serve the disks")]
    Serve(#[from] export::ServeError),
    /// A file or directory.
    #[error("cannot {doing} `{}`", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device failed in the middle of work.
    #[error("cannot {doing}")]
    Device {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: block::Error,
    },
    /// A hook.
    #[error("the hook {which} the cut failed (`{command}`)")]
    Hook {
        /// `before` or `after`.
        which: &'static str,
        /// What was run.
        command: String,
        /// Why it failed.
        source: crate::hook_process::Failure,
    },
    /// A sealed diff is damaged.
    #[error(transparent)]
    Diff(#[from] splitter::DamagedDiff),
    /// The first copy is not complete yet.
    #[error(
        "group {group} has no point yet: its seed (the first copy) is at {percent} %, and the first cut comes when it is complete"
    )]
    Seeding {
        /// The group.
        group: Name,
        /// How far.
        percent: u64,
    },
    /// A cut was made, and will never be a point.
    #[error("the cut of generation {generation} will not become a point: {why}")]
    PointLost {
        /// Which.
        generation: Generation,
        /// Why not.
        why: String,
    },
    /// Too many wait.
    #[error("too many callers wait for a point")]
    Crowded,
    /// It is about to end.
    #[error("the protection of group {group} is being stopped")]
    Stopping {
        /// The group.
        group: Name,
    },
    /// Nobody protects the group.
    #[error("group {group} is not being protected (no process answers at `{}`)", socket.display())]
    NotRunning {
        /// The group.
        group: Name,
        /// Where it would answer.
        socket: PathBuf,
    },
    /// The protecting process answered with a failure.
    #[error("{}", .0.error)]
    Remote(Problem),
    /// Its answer cannot be understood, or the connection broke.
    #[error("the protecting process did not answer as it should")]
    Control(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Points do not read back.
    #[error("{damaged} of {checked} disk images are damaged")]
    Damaged {
        /// How many.
        damaged: usize,
        /// Of how many.
        checked: usize,
    },
    /// A protection writes to the target, and cannot do so at this moment.
    #[error("the protection that writes to the target `{target}` cannot open it at this moment")]
    NotOpen {
        /// Which target.
        target: String,
    },
    /// A scrub found what no armor heals.
    #[error(
        "{objects} objects of the store are damaged for good; {images} disk images have lost bytes by that"
    )]
    Lost {
        /// How many objects.
        objects: usize,
        /// How many images.
        images: usize,
    },
    /// A check found what is lost.
    #[error(
        "the catalog of the store {}; {objects} objects that points need are lost, and {points} points have lost bytes",
        if *opens { "opens" } else { "does not open" }
    )]
    Unsound {
        /// Whether the catalog opens.
        opens: bool,
        /// How many objects.
        objects: usize,
        /// How many points.
        points: usize,
    },
    /// A repair cannot bring everything back.
    #[error("{objects} objects that points need stay lost")]
    StaysLost {
        /// How many objects.
        objects: usize,
    },
    /// A target refused points that were to be copied to it.
    #[error("{points} points were left out, {first} among them: {why}")]
    LeftOut {
        /// How many.
        points: usize,
        /// The oldest of them.
        first: String,
        /// Why that one was.
        why: String,
    },
    /// Another process has taken over the target.
    #[error("another process has taken over the target `{target}`; newer cuts do not reach it")]
    Fenced {
        /// Which target.
        target: String,
    },
    /// The store of earlier points is not where it was.
    #[error("the target `{target}` had points of this group, and holds no store any more")]
    Gone {
        /// Which target.
        target: String,
    },
    /// What adds keys failed, and nobody knows whether they were added.
    #[error("{source}; it may have been done all the same")]
    Unsure {
        /// The failure.
        source: Box<Error>,
    },
    /// The last cut did not reach the target.
    #[error("the last cut is not on the target yet: {why}")]
    LeftBehind {
        /// Why not.
        why: String,
    },
}

impl Error {
    pub(crate) fn usage(what: impl Into<String>, hint: &'static str) -> Self {
        let what = what.into();
        Self::Usage { what, hint }
    }

    pub(crate) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Target { .. } | Self::Usage { .. } | Self::Secret { .. } => Kind::Usage,
            Self::Store { source, .. } => Kind::of_store(source),
            Self::Vault { source, .. } => source.kind(),
            Self::Device { source, .. } if source.kind() == block::ErrorKind::Corrupt => {
                Kind::Damaged
            }
            Self::Fenced { .. } => Kind::Fenced,
            Self::Diff(_)
            | Self::Damaged { .. }
            | Self::Lost { .. }
            | Self::StaysLost { .. }
            | Self::Unsound { .. } => Kind::Damaged,
            Self::Seeding { .. }
            | Self::Gone { .. }
            | Self::NotOpen { .. }
            | Self::Crowded
            | Self::Stopping { .. }
            | Self::PointLost { .. } => Kind::Retry,
            Self::Cut(
                splitter::CutError::Busy { .. }
                | splitter::CutError::InFlight { .. }
                | splitter::CutError::Incomplete { .. }
                | splitter::CutError::Overwritten { .. }
                | splitter::CutError::MapOnly
                | splitter::CutError::Distrusted,
            ) => Kind::Retry,
            Self::Remote(problem) => problem.kind,
            Self::Unsure { source } => source.kind(),
            _ => Kind::Failed,
        }
    }

    /// Whether the target has no room.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.kind() == store::ErrorKind::Full,
            Self::Vault { source, .. } => source.is_full(),
            _ => false,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Target { .. } => {
                "give a directory, a bucket or a vault, for example --target dir:/backup, --target s3://backups/vms or --target https://backup:7443/vms"
            }
            Self::Usage { hint, .. } => hint,
            Self::Disk(block::OpenError::InUse { .. }) => {
                "stop the other user of the disk; a disk has one writer at a time"
            }
            Self::Group(splitter::OpenError::InUse { .. }) => {
                "see `standin status`; a group is protected by one process at a time"
            }
            Self::Store { source, target, .. } => match store_hint(source) {
                Some(_)
                    if target.starts_with("s3:") && source.kind() == store::ErrorKind::Fenced =>
                {
                    "this one was silent for longer than its lease; it goes on by itself when the other one has ended"
                }
                None if target.starts_with("s3:") => BUCKET_HINT,
                None if target.starts_with("https:") => VAULT_HINT,
                hint => return hint.map(str::to_owned),
            },
            Self::Vault { source, .. } => return source.hint(),
            Self::Seeding { .. } => {
                "try again, or add --wait; `standin status` shows how far it is"
            }
            Self::Foreign { .. } => {
                "the disks are copied anew by themselves; if nobody else should have the token, revoke it and make another"
            }
            Self::Account { .. } => {
                "see why the file system of the state directory fails; nothing is lost so far"
            }
            Self::Crowded => "try again later, or without --wait",
            Self::Stopping { .. } => "start `standin protect` again",
            Self::NotRunning { .. } => {
                "start `standin protect`, or name the state directory it uses with --state"
            }
            Self::PointLost { .. } => "the next cut is exact; cut again",
            Self::Fenced { .. } => "find out who writes to it; this one must not any more",
            Self::Cut(splitter::CutError::Busy { .. }) => {
                "it becomes a point by itself once that write has ended; see why the disk is slow"
            }
            Self::Cut(splitter::CutError::Incomplete { .. }) => {
                "`standin status` says why; the next cut lists it, once the diffs take writes again"
            }
            Self::Cut(splitter::CutError::MapOnly) => {
                "`standin status` says why; cuts go on by themselves once the diffs take writes again"
            }
            Self::Secret { source, .. } => match source {
                crate::SecretError::File(PrivateFileError::Readable(_)) => {
                    "chmod 600 it; if it was readable for long, make a new one (`standin store key add`)"
                }
                _ => {
                    "name the file that was written or used when the store was made, or a key was added"
                }
            },
            Self::Gone { .. } => {
                "bring it back (is it mounted?), protection goes on by itself then; to begin anew, give another --target"
            }
            Self::LeftBehind { .. } => {
                "the sealed diffs are kept; the next `standin protect` ships them"
            }
            Self::Remote(problem) => return problem.hint.clone(),
            Self::Unsure { .. } => {
                "see `standin store key list`: a recovery key that it shows and that was told to nobody opens nothing for you; add another (`store key add --new-recovery-key`), and remove that one"
            }
            Self::NotOpen { .. } => "`standin status` says why; try again",
            Self::Lost { images: 0, .. } => {
                "no point has lost anything; a collection of garbage moves what is needed of such an object, if it can be read"
            }
            Self::Unsound { opens: false, .. } => {
                "`standin store repair` says what can be had again; nothing was changed so far"
            }
            Self::StaysLost { .. } => {
                "`standin store check` names the points and ranges; restore from another point"
            }
            Self::Unsound { .. } => {
                "`standin store repair` says what can be had again; other points are whole: restore from them"
            }
            Self::Damaged { .. } | Self::Lost { .. } => {
                "restore from another point; points are independent of each other"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// The failure with its causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }

    pub(crate) fn problem(&self) -> Problem {
        Problem {
            error: self.chain(),
            kind: self.kind(),
            hint: self.hint(),
        }
    }
}

const BUCKET_HINT: &str = "how to reach the bucket is said by AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of this command; a server without TLS needs AWS_ALLOW_HTTP=true";

const VAULT_HINT: &str = "the token is read from the file that --token-file or STANDIN_TOKEN_FILE names, and needs the role restore for this vault";

fn store_hint(error: &StoreError) -> Option<&'static str> {
    Some(match error.kind() {
        store::ErrorKind::Retry => "another process writes to this target; wait for it, or stop it",
        store::ErrorKind::Fenced => {
            "another process has taken over this target; this one must not write to it any more"
        }
        store::ErrorKind::Corrupt => {
            "the named object was changed or lost bytes; `standin point verify --all` shows what is hit"
        }
        store::ErrorKind::Protected => {
            "`standin point hold POINT --lift` lifts a hold; a lock ends by itself, and not before its time"
        }
        store::ErrorKind::Full => "make room on the target; protection goes on by itself then",
        store::ErrorKind::Invalid if matches!(error, StoreError::OtherKey) => {
            "`standin replicate` makes a replica itself, in an empty place"
        }
        store::ErrorKind::NoKey => match error {
            StoreError::NotEncrypted => {
                "leave the key out if this is the store that you mean; somebody may have put another one in its place"
            }
            _ => {
                "name what opens it with --key-file or --passphrase-file (or STANDIN_KEY_FILE, STANDIN_PASSPHRASE_FILE); `standin store key list` shows what there is"
            }
        },
        store::ErrorKind::NotFound => {
            "`standin point list --target URL` shows what is there; `standin protect` creates a store"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let path = PathBuf::from("/nowhere/x");
        let inner = io::Error::other("no such thing");
        let error = Error::file("read", path)(inner);
        assert_eq!(error.chain(), "cannot read `/nowhere/x`: no such thing");
        let path = PathBuf::from("d.raw");
        let twice = Error::Disk(block::OpenError::Io {
            path,
            source: io::Error::other("gone"),
        });
        assert_eq!(twice.chain(), "cannot open `d.raw`: gone");
    }
}
