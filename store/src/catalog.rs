//! The catalog: which points and seeds there are. A chain of numbered commits, each one change;
//! now and then a checkpoint with the whole state, so that opening reads a bounded number of them.
//!
//! ```text
//! catalog/commit-SEQUENCE      "STDNCMT1" version | store 16 | sequence u64 | epoch u64 | sha256 of the
//!                              commit before 32 | at u64 | totals 6*u64 | kind u8: 1 point, 2 seed, 3 points removed,
//!                              4 sweep, 5 purge, 6 brought back, 7 forgotten, 8 protection, 9 scrubbed, 10 relocated,
//!                              11 begun anew, 12 replaced, 13 seed dropped, 14 point returned | record | crc32c
//! catalog/checkpoint-SEQUENCE  "STDNCKP1" version | store 16 | sequence u64 | epoch u64 | sha256 of that commit 32
//!                              | totals | groups u32: name, last u64 | points u32 | seeds u32
//!                              | version 2: next bundle u64 | locations | quarantine | removed | protections | last scrub | at u64 | crc32c
//! ```
//!
//! Rule: a commit is created under its number only if that is free, so two writers never both
//! commit; a commit that is missing, torn or out of line is an error that names it, never skipped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::armor::{self, Kind, Owner};
use crate::backend::Backend;
use crate::codec::Decoded;
use crate::error::{Result, StoreError, io_error};
use crate::fingerprint::Fingerprint;

const COMMIT_LEN_MAX: u64 = 8 << 20;
pub(crate) const CHECKPOINT_LEN_MAX: u64 = 1 << 30;

/// A checkpoint is due after so many commits, or an eighth as many as there are points: so opening
/// stays short, and checkpoints cost a bounded share of what commits cost.
const CHECKPOINT_COMMITS_MIN: u64 = 256;

pub(crate) use checkpoint::decode_checkpoint;
use checkpoint::encode_checkpoint;
pub(crate) use commit::decode_commit;
use commit::{Commit, decode_hashed_commit};
pub(crate) use state::{Change, Held, HeldImage, State};
pub(crate) use survey::{LostPart, Survey};

mod checkpoint;
mod commit;
mod state;
mod survey;

/// Reads and writes the catalog.
pub(crate) struct Catalog {
    place: Arc<dyn Backend>,
    store: [u8; 16],
    /// A longer one would not be read.
    checkpoint_len_max: u64,
    /// After which commit one would have been too long.
    too_long: AtomicU64,
}

impl Catalog {
    pub(crate) fn open(place: &Arc<dyn Backend>, store: [u8; 16]) -> Self {
        let place = Arc::clone(place);
        Self {
            place,
            store,
            checkpoint_len_max: CHECKPOINT_LEN_MAX,
            too_long: AtomicU64::new(0),
        }
    }

    /// Reads the newest checkpoint and every commit after it. A commit that was read may not be
    /// durable yet, if its writer was killed: see [`sync`](Self::sync).
    pub(crate) fn load(&self) -> Result<State> {
        let mut state = match self.newest("checkpoint", 0)? {
            Some(sequence) => self.load_checkpoint(sequence)?,
            None => State::empty(),
        };
        self.follow(&mut state)?;
        if let Some(newest) = self.newest("commit", state.sequence)? {
            // It may have come meanwhile.
            self.follow(&mut state)?;
            if state.sequence < newest {
                let missing = path(&commit_name(state.sequence + 1));
                return Err(StoreError::missing(missing));
            }
        }
        Ok(state)
    }

    /// The highest number of a kind above `above`, as far as the place lists it.
    fn newest(&self, kind: &str, above: u64) -> Result<Option<u64>> {
        let after = format!("{kind}-{above:016x}");
        let before = format!("{kind}.");
        let listed = self.place.list_between("catalog", &after, &before);
        let listed = listed.map_err(|e| io_error("list", "catalog".into(), e))?;
        Ok(listed
            .iter()
            .filter_map(|name| parse_name(name, kind))
            .max())
    }

    fn list(&self) -> Result<Vec<String>> {
        let listed = self.place.list("catalog");
        let listed = listed.map_err(|e| io_error("list", "catalog".into(), e))?;
        Ok(listed.into_iter().map(|(name, _)| name).collect())
    }

    fn load_checkpoint(&self, sequence: u64) -> Result<State> {
        let name = checkpoint_name(sequence);
        let bytes = self.read(&name, self.checkpoint_len_max)?;
        let owner = self.owner(Kind::Checkpoint, sequence);
        let state = self.healed(&name, &bytes, owner, |bytes| {
            decode_checkpoint(bytes, self.store)
        })?;
        if state.sequence != sequence {
            return Err(StoreError::corrupt(path(&name), "it is another checkpoint"));
        }
        Ok(state)
    }

    fn owner(&self, kind: Kind, id: u64) -> Owner {
        Owner {
            store: self.store,
            kind,
            id,
        }
    }

    /// What an object holds, healed by its armor where it must be.
    fn healed<T>(
        &self,
        name: &str,
        bytes: &[u8],
        owner: Owner,
        decode: impl Fn(&[u8]) -> Decoded<T>,
    ) -> Result<T> {
        let (read, damaged_bytes) = armor::read_small(bytes, owner, decode)
            .map_err(|malformed| StoreError::malformed(path(name), malformed))?;
        if damaged_bytes > 0 {
            let object = path(name);
            tracing::warn!(
                object,
                damaged_bytes,
                "an object is damaged, and was healed to be read; a scrub puts it right"
            );
        }
        Ok(read)
    }

    fn read(&self, name: &str, len_max: u64) -> Result<Vec<u8>> {
        let bytes = self.read_if_there(name, len_max)?;
        bytes.ok_or_else(|| StoreError::missing(path(name)))
    }

    fn read_if_there(&self, name: &str, len_max: u64) -> Result<Option<Vec<u8>>> {
        match self.place.read_whole(&path(name), len_max) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                ) =>
            {
                Err(StoreError::corrupt(path(name), e.to_string()))
            }
            other => other.map(Some).map_err(|e| io_error("read", path(name), e)),
        }
    }

    /// Applies the commits that follow `state`.
    pub(crate) fn follow(&self, state: &mut State) -> Result<()> {
        loop {
            let sequence = state.sequence + 1;
            let name = commit_name(sequence);
            let Some(bytes) = self.read_if_there(&name, COMMIT_LEN_MAX)? else {
                return Ok(());
            };
            let owner = self.owner(Kind::Commit, sequence);
            let (commit, hash) = self.healed(&name, &bytes, owner, |bytes| {
                decode_hashed_commit(bytes, self.store)
            })?;
            let wrong = |what: &'static str| StoreError::corrupt(path(&name), what);
            let last = Some(state.last);
            commit
                .check_follows(sequence, state.epoch, last)
                .map_err(wrong)?;
            if commit.begins_anew() {
                *state = self.begun_anew(sequence, hash)?;
            } else {
                state.enter(commit, hash);
            }
        }
    }

    /// What a commit that begins anew leaves, for who knew the catalog as it was before.
    fn begun_anew(&self, sequence: u64, hash: Fingerprint) -> Result<State> {
        let state = self.load_checkpoint(sequence)?;
        match state.last == hash {
            true => Ok(state),
            false => {
                let object = path(&checkpoint_name(sequence));
                let what = "it does not belong to the commit of its number";
                Err(StoreError::corrupt(object, what))
            }
        }
    }

    /// A commit of who commits nothing else: where it fails, or its number is taken, the catalog is to be read again.
    pub(crate) fn commit_alone(
        &self,
        state: &mut State,
        epoch: u64,
        at: u64,
        held: Held,
        change: Change,
    ) -> Result<()> {
        match self.append(state, epoch, at, held, change) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Overtaken(state.sequence + 1)),
            Err(AppendError::NotDone(e) | AppendError::Unknown(e)) => Err(e),
        }
    }

    /// Goes on after lost commits: a commit takes the next number, so that nobody else does, and its checkpoint says what
    /// `state` is. The catalog opens once both are there.
    ///
    /// Crash: between the two it does not open, as before.
    pub(crate) fn begin_anew(
        &self,
        mut state: State,
        epoch: u64,
        at: u64,
        held: Held,
        lost: Vec<u64>,
    ) -> Result<()> {
        let name = |state: &State| path(&checkpoint_name(state.sequence));
        // The commit alone would close the catalog for good.
        let fits = self.encode_checkpoint(&state).map(drop);
        fits.map_err(|e| io_error("create", name(&state), e))?;
        let change = Change::BeginAnew(lost);
        self.commit_alone(&mut state, epoch, at, held, change)?;
        let name = name(&state);
        let written = self.write_checkpoint(&mut state, epoch);
        written.map_err(|e| io_error("create", name, e))
    }

    /// Makes one change durable, and then part of `state`. `Ok(false)`: another writer has taken
    /// the number. The caller has made durable all that the change refers to.
    pub(crate) fn append(
        &self,
        state: &mut State,
        epoch: u64,
        at: u64,
        held: Held,
        change: Change,
    ) -> std::result::Result<bool, AppendError> {
        let sequence = state.sequence + 1;
        let commit = Commit {
            sequence,
            epoch,
            previous: state.last,
            at,
            held,
            change,
        };
        let bytes = commit.encode(self.store);
        // A commit that could not be read back would close the store for good.
        if decode_commit(&bytes, self.store).as_ref() != Ok(&commit) {
            let sentence = "a commit would not be readable; this is a bug";
            return Err(AppendError::NotDone(StoreError::Invalid(sentence)));
        }
        let name = commit_name(sequence);
        let too_long = AppendError::NotDone(StoreError::Invalid("too much for one commit"));
        let armored = armor::wrap(self.owner(Kind::Commit, sequence), &bytes);
        if armored.len() as u64 > COMMIT_LEN_MAX {
            return Err(too_long);
        }
        match self.place.create(&path(&name), &armored, epoch) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(AppendError::Unknown(io_error("create", path(&name), e)));
            }
            other => other.map_err(|e| AppendError::NotDone(io_error("create", path(&name), e)))?,
        }
        self.sync().map_err(AppendError::Unknown)?;
        state.sequence = sequence;
        state.epoch = epoch;
        state.last = Fingerprint::of_bytes(&bytes);
        state.held = held;
        state.apply(commit.change, at);
        Ok(true)
    }

    /// Writes a checkpoint if one is due. It is an economy: that it fails harms nothing. After one that would have been too
    /// long the next one is due as if it had been written.
    pub(crate) fn checkpoint_if_due(&self, state: &mut State, epoch: u64) -> io::Result<()> {
        let last = state.checkpoint.max(self.too_long.load(Ordering::Relaxed));
        let since = state.sequence.saturating_sub(last);
        if since < CHECKPOINT_COMMITS_MIN.max(state.points.len() as u64 / 8) {
            return Ok(());
        }
        let written = self.write_checkpoint(state, epoch);
        let why = written.as_ref().map_err(io::Error::kind);
        if why == Err(io::ErrorKind::FileTooLarge) {
            self.too_long.store(state.sequence, Ordering::Relaxed);
        }
        written
    }

    fn write_checkpoint(&self, state: &mut State, epoch: u64) -> io::Result<()> {
        let name = checkpoint_name(state.sequence);
        let bytes = self.encode_checkpoint(state)?;
        self.place.create(&path(&name), &bytes, epoch)?;
        self.place.sync("catalog")?;
        state.checkpoint = state.sequence;
        Ok(())
    }

    /// The object; none that its reader would refuse.
    fn encode_checkpoint(&self, state: &State) -> io::Result<Vec<u8>> {
        let bytes = encode_checkpoint(state, self.store);
        let bytes = armor::wrap(self.owner(Kind::Checkpoint, state.sequence), &bytes);
        match bytes.len() as u64 <= self.checkpoint_len_max {
            true => Ok(bytes),
            false => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the catalog is too long for a checkpoint; remove points",
            )),
        }
    }

    /// Every object of the catalog, damaged or not, with what it is.
    pub(crate) fn objects(&self) -> Result<Vec<(String, Owner)>> {
        let mut found = Vec::new();
        for name in self.list()? {
            for (word, kind) in [("commit", Kind::Commit), ("checkpoint", Kind::Checkpoint)] {
                if let Some(id) = parse_name(&name, word) {
                    found.push((path(&name), self.owner(kind, id)));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// The payload of an object of the catalog, checked, healed if need be, and how many bytes are damaged.
    pub(crate) fn healed_payload(&self, object: &[u8], owner: Owner) -> Decoded<(Vec<u8>, u64)> {
        let decode = |bytes: &[u8]| {
            match owner.kind {
                Kind::Checkpoint => decode_checkpoint(bytes, self.store).map(drop)?,
                _ => decode_commit(bytes, self.store).map(drop)?,
            }
            Ok(bytes.to_vec())
        };
        armor::read_small(object, owner, decode)
    }

    /// For the one writer, before it writes: removes what was half written, and makes every name
    /// durable.
    pub(crate) fn recover(&self) -> Result<()> {
        self.place
            .recover("catalog")
            .map_err(|e| io_error("recover", "catalog".into(), e))
    }

    /// Makes durable the name of every commit that is there. What a reader lists must not vanish in
    /// a power cut, and who wrote it may have been killed between naming and syncing it.
    pub(crate) fn sync(&self) -> Result<()> {
        self.place
            .sync("catalog")
            .map_err(|e| io_error("sync", "catalog".into(), e))
    }
}

/// A commit that failed.
pub(crate) enum AppendError {
    /// It did not happen.
    NotDone(StoreError),
    /// It may or may not be durable: until the catalog is read again nobody can say.
    Unknown(StoreError),
}

fn path(name: &str) -> String {
    format!("catalog/{name}")
}

fn commit_name(sequence: u64) -> String {
    format!("commit-{sequence:016x}")
}

fn checkpoint_name(sequence: u64) -> String {
    format!("checkpoint-{sequence:016x}")
}

fn parse_name(name: &str, kind: &str) -> Option<u64> {
    let digits = name.strip_prefix(kind)?.strip_prefix('-')?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16).then_some(sequence)
}

#[cfg(test)]
mod tests;
