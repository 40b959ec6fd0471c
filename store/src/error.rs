//! Why the store could not: a coarse kind to act on, and which object it was about.

use std::io;
use std::sync::Arc;

use block::ByteRange;

use crate::codec::Malformed;
use crate::protection::Protection;

/// Result of a call on the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Somebody else is writing: try again later.
    Retry,
    /// A newer writer has taken over: stop.
    Fenced,
    /// The store holds damaged bytes; reading again will not help.
    Corrupt,
    /// The call was wrong.
    Invalid,
    /// A hold or a lock is in the way.
    Protected,
    /// No space left: make room, then try again.
    Full,
    /// There is no such store, point or image.
    NotFound,
    /// The store is encrypted, and what was given does not open it.
    NoKey,
    /// The disk failed.
    Io,
}

/// A failed call on the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system's error.
    #[error("cannot {verb} `{object}`")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To which object, by its path in the store.
        object: String,
        /// Why not.
        source: io::Error,
    },
    /// An object is damaged.
    #[error("`{object}` is damaged: {}{}", .what, ListOf(.ranges))]
    Corrupt {
        /// The object, by its path in the store.
        object: String,
        /// What is wrong with it.
        what: Cow,
        /// The bytes of the image that cannot be read because of it, where known.
        ranges: Vec<ByteRange>,
    },
    /// An object that something refers to is not there.
    #[error("`{object}` is missing{}", ListOf(.ranges))]
    Missing {
        /// The object, by its path in the store.
        object: String,
        /// The bytes of the image that cannot be read because of it, where known.
        ranges: Vec<ByteRange>,
    },
    /// Another process writes to this store.
    #[error("another process is writing to the store `{store}`")]
    InUse {
        /// The store.
        store: String,
    },
    /// A place without locks that creates a name twice.
    #[error(
        "the server of `{store}` lets two writers create the same object: it does not know conditional puts (If-None-Match), and no store is safe there"
    )]
    NoConditions {
        /// The store.
        store: String,
    },
    /// A commit came between that was not ours, or that we had given up.
    #[error("commit {0} was made by another request; the store must be opened again")]
    Overtaken(u64),
    /// A newer writer has taken over.
    #[error("a writer with epoch {theirs} has taken over the store; this one has epoch {ours}")]
    Fenced {
        /// This writer's epoch.
        ours: u64,
        /// The epoch that was seen.
        theirs: u64,
    },
    /// An earlier sync failed: what is durable is unknown until the store is opened again.
    #[error("an earlier sync of the store failed ({first}); it must be opened again")]
    Latched {
        /// The first failure.
        first: Arc<str>,
    },
    /// The store was opened for reading.
    #[error("the store was opened for reading only")]
    ReadOnly,
    /// There is no store in this directory.
    #[error("there is no store in `{dir}`")]
    NotAStore {
        /// The directory.
        dir: String,
    },
    /// The directory already holds a store, or other files.
    #[error("a store cannot be created in `{dir}`: {why}")]
    Occupied {
        /// The directory.
        dir: String,
        /// What is in the way.
        why: &'static str,
    },
    /// No such point.
    #[error("there is no point `{0}`")]
    NoPoint(String),
    /// No such first copy.
    #[error("no first copy of the group `{0}` is under way")]
    NoSeed(String),
    /// One collection at a time.
    #[error("a collection of garbage is running already")]
    Collecting,
    /// A point that is held or locked.
    #[error("point {point} cannot be removed: {}", Why(.protection))]
    Protected {
        /// The point.
        point: String,
        /// What protects it.
        protection: Protection,
    },
    /// The store is not as it was when a repair was planned.
    #[error("what a repair finds is not what it found when it was planned; nothing was changed")]
    PlanIsOld,
    /// A replica has lost what it was to give back.
    #[error("the replica has lost it, too; what else it had was copied")]
    Replica(#[source] Box<Self>),
    /// Somebody asked to stop.
    #[error("it was stopped")]
    Stopped,
    /// The store is encrypted, and was opened without its key.
    #[error("the store is encrypted, and its key was not given")]
    NoKey,
    /// None of its locks opens with what was given.
    #[error("the store is encrypted, and not with this key or passphrase")]
    WrongKey,
    /// A way to open the store that was made for other ways than there are now.
    #[error("who opens the store was changed at the same time; see who does, and try again")]
    KeysChanged,
    /// Two stores that do not share fingerprints.
    #[error("the stores are not encrypted with the same key; no chunk of one can be in the other")]
    OtherKey,
    /// A key was given for a store that needs none: it may not be the store that its owner means.
    #[error("a key was given, and the store is not encrypted")]
    NotEncrypted,
    /// An image that nothing in the store holds.
    #[error(
        "no point, seed or image in the making has this image any more; begin from one that does"
    )]
    NoImage,
    /// The call was wrong.
    #[error("{0}")]
    Invalid(&'static str),
    /// An image writer failed earlier; its image is lost.
    #[error("this image failed earlier ({first}); begin it again")]
    ImageFailed {
        /// The first failure.
        first: Arc<str>,
        /// Its kind.
        kind: ErrorKind,
    },
}

pub(crate) fn io_error(verb: &'static str, object: String, source: io::Error) -> StoreError {
    StoreError::Io {
        verb,
        object,
        source,
    }
}

/// A fixed or a composed sentence.
pub(crate) type Cow = std::borrow::Cow<'static, str>;

struct Why<'a>(&'a Protection);

impl std::fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Protection { hold, locked_until } = self.0;
        match hold {
            Some(reason) if reason.is_empty() => f.write_str("it is held"),
            Some(reason) => write!(f, "it is held ({})", reason.escape_debug()),
            None => {
                let until = jiff::Timestamp::from_nanosecond(i128::from(*locked_until));
                let until = until.unwrap_or(jiff::Timestamp::MAX);
                write!(f, "it is locked until {until:.0}")
            }
        }
    }
}

struct ListOf<'a>(&'a [ByteRange]);

impl std::fmt::Display for ListOf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN_MAX: usize = 4;
        let Some((first, rest)) = self.0.split_first() else {
            return Ok(());
        };
        write!(f, "; it holds bytes {first}")?;
        for range in rest.iter().take(SHOWN_MAX - 1) {
            write!(f, ", {range}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => f.write_str(" of the image"),
            more => write!(f, " and {more} more ranges of the image"),
        }
    }
}

impl StoreError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
                // Of an object with a number: another writer is at work.
                io::ErrorKind::AlreadyExists => ErrorKind::Retry,
                _ => ErrorKind::Io,
            },
            Self::Corrupt { .. } | Self::Missing { .. } => ErrorKind::Corrupt,
            Self::InUse { .. }
            | Self::Overtaken(_)
            | Self::Collecting
            | Self::PlanIsOld
            | Self::KeysChanged
            | Self::Stopped => ErrorKind::Retry,
            Self::Fenced { .. } => ErrorKind::Fenced,
            Self::Latched { .. } => ErrorKind::Io,
            Self::NotAStore { .. } | Self::NoPoint(_) | Self::NoSeed(_) | Self::NoImage => {
                ErrorKind::NotFound
            }
            Self::NoKey | Self::WrongKey | Self::NotEncrypted => ErrorKind::NoKey,
            Self::Protected { .. } => ErrorKind::Protected,
            Self::ReadOnly
            | Self::NoConditions { .. }
            | Self::Occupied { .. }
            | Self::OtherKey
            | Self::Invalid(_) => ErrorKind::Invalid,
            Self::ImageFailed { kind, .. } => *kind,
            Self::Replica(source) => source.kind(),
        }
    }

    /// The error with its causes, in one line.
    #[must_use]
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    pub(crate) fn corrupt(object: String, what: impl Into<Cow>) -> Self {
        Self::Corrupt {
            object,
            what: what.into(),
            ranges: Vec::new(),
        }
    }

    pub(crate) fn missing(object: String) -> Self {
        let ranges = Vec::new();
        Self::Missing { object, ranges }
    }

    pub(crate) fn malformed(object: String, malformed: Malformed) -> Self {
        Self::corrupt(object, malformed.to_string())
    }

    /// Says which bytes of an image are hit, if that is not known yet.
    pub(crate) fn hitting(mut self, range: ByteRange) -> Self {
        if let Self::Corrupt { ranges, .. } | Self::Missing { ranges, .. } = &mut self
            && ranges.is_empty()
        {
            ranges.push(range);
        }
        self
    }
}
