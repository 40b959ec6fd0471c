//! What is left of a catalog: every commit and every checkpoint, also where the catalog does not open.
//!
//! ```text
//! commit 1 -> 2 -> 3 -> (4: lost) -> 5 -> 6        replayed, as far as they are there
//!        checkpoint 2: the same?    checkpoint 5: stands for 4, too
//! ```
//!
//! Rule: nothing is passed over in silence. What cannot be read is named, with what stands for it.

use std::collections::BTreeSet;

use block::Name;

use super::{
    CHECKPOINT_LEN_MAX, COMMIT_LEN_MAX, Catalog, Change, State, checkpoint_name, commit_name,
    parse_name, path,
};
use super::{checkpoint::decode_checkpoint, commit::decode_hashed_commit};
use crate::armor::{self, Kind};
use crate::codec::Decoded;
use crate::error::{ErrorKind, Result, StoreError};
use crate::fingerprint::Fingerprint;
use crate::records::PointId;
use crate::scrub::HealedObject;

/// What was found of a catalog.
pub(crate) struct Survey {
    /// Commits that can be read.
    pub(crate) commits: u64,
    /// Checkpoints that can be read.
    pub(crate) checkpoints: u64,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// What is damaged, and within reach of its armor.
    pub(crate) healable: Vec<HealedObject>,
    /// What cannot be read.
    pub(crate) lost: Vec<LostPart>,
    /// Checkpoints that are not what the commits before them come to.
    pub(crate) differing: Vec<String>,
    /// Commits that repairs went on without.
    pub(crate) gone: BTreeSet<u64>,
    /// All that can still be read comes to this: the catalog itself, where it opens.
    pub(crate) state: State,
}

/// A commit or a checkpoint that is damaged beyond its armor, or missing.
pub(crate) struct LostPart {
    pub(crate) kind: Kind,
    pub(crate) number: u64,
    pub(crate) object: String,
    pub(crate) what: String,
    /// The checkpoint that says all that it said; without one the catalog does not open.
    pub(crate) covered_by: Option<u64>,
    /// Points that a lost commit may have listed, as far as groups are known: it was one of these, or none.
    pub(crate) may_have_listed: Vec<PointId>,
}

impl Survey {
    /// Whether the catalog opens.
    pub(crate) fn opens(&self) -> bool {
        self.in_the_way().next().is_none()
    }

    /// What keeps the catalog from being opened.
    pub(crate) fn in_the_way(&self) -> impl Iterator<Item = &LostPart> {
        self.lost.iter().filter(|part| part.covered_by.is_none())
    }

    /// Points that commits may have listed which a repair went on without: no other commit says what became of those.
    pub(crate) fn lost_points(&self) -> impl Iterator<Item = &PointId> {
        let gone = |part: &&LostPart| part.kind == Kind::Commit && self.gone.contains(&part.number);
        let gone = self.lost.iter().filter(gone);
        gone.flat_map(|part| &part.may_have_listed)
    }

    fn lose(&mut self, kind: Kind, number: u64, error: &StoreError) {
        let name = match kind {
            Kind::Commit => commit_name(number),
            _ => checkpoint_name(number),
        };
        self.lost.push(LostPart {
            may_have_listed: match kind {
                Kind::Commit => self.state.next_points(),
                _ => Vec::new(),
            },
            kind,
            number,
            object: path(&name),
            what: error.chain(),
            covered_by: None,
        });
    }
}

/// How far a survey has come.
struct Replay {
    survey: Survey,
    /// Hash of the last commit, unless that is lost.
    last: Option<Fingerprint>,
    /// Points of which commits say that they were listed, or that they are not any more.
    told: BTreeSet<PointId>,
    /// No commit was lost since the beginning, or since a checkpoint.
    exact: bool,
}

impl Catalog {
    /// Reads every commit and every checkpoint.
    ///
    /// # Errors
    /// Those of the place. Damage is in the survey.
    pub(crate) fn survey(&self) -> Result<Survey> {
        let names = self.list()?;
        let numbers = |kind: &'static str| {
            let names = names.iter();
            names.filter_map(move |name| parse_name(name, kind))
        };
        let checkpoints: BTreeSet<u64> = numbers("checkpoint").collect();
        let end = numbers("commit").max().max(checkpoints.last().copied());
        let mut replay = Replay {
            survey: Survey {
                commits: 0,
                checkpoints: 0,
                bytes: 0,
                healable: Vec::new(),
                lost: Vec::new(),
                differing: Vec::new(),
                gone: BTreeSet::new(),
                state: State::empty(),
            },
            last: Some(Fingerprint::ZERO),
            told: BTreeSet::new(),
            exact: true,
        };
        for number in 1.. {
            match self.survey_commit(&mut replay, number) {
                // A list may be old: it ends with the first that is not there.
                Err(StoreError::Missing { .. }) if Some(number) > end => break,
                Err(e) if e.kind() == ErrorKind::Corrupt => replay.lacks_commit(number, &e),
                read => read?,
            }
            if checkpoints.contains(&number) {
                match self.survey_checkpoint(&mut replay, number) {
                    Err(e) if e.kind() == ErrorKind::Corrupt => {
                        replay.survey.lose(Kind::Checkpoint, number, &e);
                    }
                    read => read?,
                }
            }
        }
        let Replay {
            mut survey, told, ..
        } = replay;
        for part in &mut survey.lost {
            part.may_have_listed.retain(|id| !told.contains(id));
        }
        Ok(survey)
    }

    fn survey_commit(&self, replay: &mut Replay, number: u64) -> Result<()> {
        let name = commit_name(number);
        let bytes = self.read(&name, COMMIT_LEN_MAX)?;
        let decode = |bytes: &[u8]| decode_hashed_commit(bytes, self.store);
        let (commit, hash) = self.examined(replay, &name, Kind::Commit, number, &bytes, decode)?;
        let epoch = replay.survey.state.epoch;
        let checked = commit.check_follows(number, epoch, replay.last);
        checked.map_err(|what| StoreError::corrupt(path(&name), what))?;
        replay.survey.commits += 1;
        match &commit.change {
            Change::AddPoint(point) | Change::ReturnPoint(point) => {
                replay.told.insert(point.id.clone());
            }
            Change::RemovePoints(ids, _) => replay.told.extend(ids.iter().cloned()),
            Change::BeginAnew(lost) => replay.survey.gone.extend(lost),
            _ => {}
        }
        // Its checkpoint says more than the commits before it.
        replay.exact &= !commit.begins_anew();
        replay.survey.state.enter(commit, hash);
        replay.last = Some(hash);
        Ok(())
    }

    fn survey_checkpoint(&self, replay: &mut Replay, number: u64) -> Result<()> {
        let name = checkpoint_name(number);
        let bytes = self.read(&name, CHECKPOINT_LEN_MAX)?;
        let decode = |bytes: &[u8]| decode_checkpoint(bytes, self.store);
        let state = self.examined(replay, &name, Kind::Checkpoint, number, &bytes, decode)?;
        if state.sequence != number {
            return Err(StoreError::corrupt(path(&name), "it is another checkpoint"));
        }
        replay.survey.checkpoints += 1;
        replay.meets(state, &path(&name));
        Ok(())
    }

    /// What an object says, healed in memory if need be.
    fn examined<T>(
        &self,
        replay: &mut Replay,
        name: &str,
        kind: Kind,
        number: u64,
        bytes: &[u8],
        decode: impl Fn(&[u8]) -> Decoded<T>,
    ) -> Result<T> {
        replay.survey.bytes += bytes.len() as u64;
        let read = armor::read_small(bytes, self.owner(kind, number), decode);
        let (said, damaged_bytes) =
            read.map_err(|malformed| StoreError::malformed(path(name), malformed))?;
        if damaged_bytes > 0 {
            let object = path(name);
            let healable = HealedObject {
                object,
                damaged_bytes,
            };
            replay.survey.healable.push(healable);
        }
        Ok(said)
    }
}

impl Replay {
    fn lacks_commit(&mut self, number: u64, error: &StoreError) {
        self.survey.lose(Kind::Commit, number, error);
        self.survey.state.enter_lost();
        self.last = None;
        self.exact = false;
    }

    /// A checkpoint stands for all that is before it: that is how the catalog is opened, too.
    fn meets(&mut self, checkpoint: State, object: &str) {
        let other_commit = self.last.is_some_and(|last| last != checkpoint.last);
        if other_commit || self.exact && !checkpoint.is_replay(&self.survey.state) {
            self.survey.differing.push(object.to_owned());
        }
        for part in &mut self.survey.lost {
            part.covered_by.get_or_insert(checkpoint.sequence);
        }
        self.last = Some(checkpoint.last);
        self.survey.state = checkpoint;
        self.exact = true;
    }
}

impl State {
    /// The point that each group would have next.
    fn next_points(&self) -> Vec<PointId> {
        let next = |group: &Name| PointId {
            group: group.clone(),
            sequence: self.next_number(group),
        };
        self.numbers.keys().map(next).collect()
    }

    /// Whether a checkpoint says what the commits before it come to. The first version did not say when the last one was.
    fn is_replay(&self, replayed: &Self) -> bool {
        let at = match self.at {
            0 => 0,
            _ => replayed.at,
        };
        let as_checkpoint = Self {
            checkpoint: self.checkpoint,
            at,
            ..replayed.clone()
        };
        *self == as_checkpoint
    }
}
