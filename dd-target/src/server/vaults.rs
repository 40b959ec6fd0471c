//! Vaults: each a store of its own, in `vaults/NAME` of the place that the server was given.
//!
//! ```text
//! vaults.json: which there are, and their quotas
//! first use of a vault --> its store is opened, as its writer, and kept; the lease is the server's
//! ```
//!
//! Rule: a store that cannot say any more what is durable is given up, and opened again by who needs it next.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{Clock, Name, OsRandom, UnixNanos};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use store::{Around, Backend, ErrorKind, Keys, NewKeys, Store, StoreError, WrappedKey};

use crate::api;
use crate::chore::seeds_of;
use crate::place::Place;
use crate::record;
use crate::server::state_dir::{Locked, StateDir};

const FILE: &str = "vaults.json";
/// Most vaults of a server: each open one has its index in memory.
const VAULTS_MAX: usize = 1_000;

const NO_KEYS: &str = "these are no keys of a new vault";

/// Why a vault cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is none of this name.
    #[error("there is no vault `{0}`")]
    Unknown(String),
    /// There is one already, or too many.
    #[error("{0}")]
    Invalid(&'static str),
    /// Another one is being made.
    #[error("another vault is being made just now")]
    Busy,
    /// The file of vaults.
    #[error("cannot {verb} the file of vaults")]
    File {
        /// What was being done.
        verb: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A vault that does not answer now.
pub(crate) struct Hangs;

/// All vaults of a server.
pub(crate) struct Vaults {
    place: Place,
    dir: Arc<StateDir>,
    clock: Arc<dyn Clock>,
    /// Nobody who has it waits for a disk, or for a bucket.
    known: Mutex<BTreeMap<Name, Arc<Vault>>>,
    /// Held while one is made.
    making: Mutex<()>,
}

/// A vault.
pub(crate) struct Vault {
    pub(crate) name: Name,
    settings: Mutex<api::Vault>,
    place: Place,
    clock: Arc<dyn Clock>,
    /// To read objects as they lie; opened once.
    objects: Mutex<Option<Arc<dyn Backend>>>,
    /// Held while it is being opened.
    store: Mutex<Option<Store>>,
    /// Counts how often the store was opened or given up.
    turn: AtomicU64,
    /// Held while a point is listed: one that is asked for twice is listed once.
    pub(crate) committing: Mutex<()>,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    version: u32,
    vaults: Vec<api::Vault>,
}

impl Vaults {
    pub(crate) fn open(
        place: Place,
        dir: &Arc<StateDir>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, VaultError> {
        let vaults = Self {
            place,
            dir: Arc::clone(dir),
            clock: Arc::clone(clock),
            known: Mutex::default(),
            making: Mutex::default(),
        };
        let file = match dir.read(FILE).map_err(failed("read"))? {
            None => File::default(),
            Some((bytes, _)) => {
                let file = serde_json::from_slice(&bytes).map_err(io::Error::other);
                file.map_err(failed("understand"))?
            }
        };
        for settings in file.vaults {
            let named = settings.name.parse::<Name>();
            let name = named.map_err(|e| failed("understand")(io::Error::other(e)))?;
            vaults
                .known
                .lock()
                .insert(name.clone(), vaults.vault(name, settings));
        }
        Ok(vaults)
    }

    fn vault(&self, name: Name, settings: api::Vault) -> Arc<Vault> {
        Arc::new(Vault {
            place: self.place.below("vaults", &name),
            clock: Arc::clone(&self.clock),
            name,
            settings: Mutex::new(settings),
            objects: Mutex::default(),
            store: Mutex::default(),
            turn: AtomicU64::new(0),
            committing: Mutex::default(),
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Vault>> {
        self.known.lock().values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<Vault>, VaultError> {
        let unknown = || VaultError::Unknown(name.chars().take(80).collect());
        let named: Name = name.parse().map_err(|_| unknown())?;
        self.known.lock().get(&named).cloned().ok_or_else(unknown)
    }

    /// Makes a vault. A store that lies there already, of a server that lost its state, is taken as it is.
    /// That of an encrypted vault is made anew, with the key that was given.
    pub(crate) fn create(&self, new: &api::NewVault) -> Result<Arc<Vault>, VaultError> {
        let given = new.keys.as_deref();
        let keys = given.map(|text| record::keys(text).ok_or(VaultError::Invalid(NO_KEYS)));
        let keys = keys.transpose()?;
        self.create_with(new, |vault| match &keys {
            None => Ok(vault.make_store()?),
            Some(keys) => vault.make_encrypted(keys),
        })
    }

    fn create_with(
        &self,
        new: &api::NewVault,
        make_store: impl FnOnce(&Vault) -> Result<(), VaultError>,
    ) -> Result<Arc<Vault>, VaultError> {
        let invalid = "a vault's name has 1 to 64 letters, digits, `.`, `_` or `-`, and begins with a letter or digit";
        let name: Name = new.name.parse().map_err(|_| VaultError::Invalid(invalid))?;
        // Whoever waited here would wait on a thread, for a place that may hang.
        let one_by_one = self.making.try_lock();
        let _one_by_one = one_by_one.ok_or(VaultError::Busy)?;
        self.check_new(&name)?;
        let vault = self.vault(
            name.clone(),
            api::Vault {
                name: name.to_string(),
                quota_bytes: new.quota_bytes,
                created_unix_ns: self.clock.wall().0,
            },
        );
        make_store(&vault)?;
        let locked = self.dir.lock().map_err(failed("lock"))?;
        let known = self.all();
        let others = known.iter().map(|vault| vault.settings());
        self.save(&locked, others.chain([vault.settings()]))?;
        self.known.lock().insert(name, Arc::clone(&vault));
        Ok(vault)
    }

    fn check_new(&self, name: &Name) -> Result<(), VaultError> {
        let known = self.known.lock();
        let why = match () {
            () if known.contains_key(name) => "there is a vault of this name already",
            () if known.len() >= VAULTS_MAX => "there are too many vaults; 1,000 at most",
            () => return Ok(()),
        };
        Err(VaultError::Invalid(why))
    }

    /// Gives a vault another quota. Less than it holds keeps it from growing.
    pub(crate) fn set_quota(
        &self,
        name: &str,
        quota: Option<u64>,
    ) -> Result<Arc<Vault>, VaultError> {
        let vault = self.find(name)?;
        let locked = self.dir.lock().map_err(failed("lock"))?;
        let known = self.all();
        let with_new = |other: &Arc<Vault>| match other.name == vault.name {
            true => api::Vault {
                quota_bytes: quota,
                ..other.settings()
            },
            false => other.settings(),
        };
        self.save(&locked, known.iter().map(with_new))?;
        vault.settings.lock().quota_bytes = quota;
        Ok(vault)
    }

    fn save(
        &self,
        locked: &Locked,
        vaults: impl Iterator<Item = api::Vault>,
    ) -> Result<(), VaultError> {
        let vaults = vaults.collect();
        let file = File { version: 1, vaults };
        let bytes = serde_json::to_vec_pretty(&file).expect("vaults are plain data");
        let written = self.dir.write(locked, FILE, &bytes);
        written.map_err(failed("write"))
    }
}

impl Vault {
    /// What is set for it.
    pub(crate) fn settings(&self) -> api::Vault {
        self.settings.lock().clone()
    }

    /// Its objects, to be read as they lie.
    pub(crate) fn objects(&self) -> Result<Arc<dyn Backend>, StoreError> {
        let mut objects = self.objects.lock();
        match &*objects {
            Some(objects) => Ok(Arc::clone(objects)),
            None => Ok(Arc::clone(objects.insert(self.place.open()?))),
        }
    }

    /// Its store, to write; opened where it is not.
    pub(crate) fn store(&self) -> Result<Store, StoreError> {
        let mut open = self.store.lock();
        if open.as_ref().is_some_and(Store::must_be_opened_again) {
            self.turn.fetch_add(1, Ordering::Relaxed);
            *open = None;
        }
        match &*open {
            Some(store) => Ok(store.clone()),
            None => {
                let store = open.insert(self.open()?).clone();
                self.turn.fetch_add(1, Ordering::Relaxed);
                tracing::info!(vault = %self.name, "vault opened");
                Ok(store)
            }
        }
    }

    /// The store, if it is open, and the turn in which it is.
    pub(crate) fn open_store(&self) -> Option<(Store, u64)> {
        let open = self.store.lock();
        Some((open.clone()?, self.turn()))
    }

    /// The store, if it is open; `Err` if it is being opened, or waits for its place, for longer than `most`.
    pub(crate) fn store_at_hand(&self, most: Duration) -> Result<Option<Store>, Hangs> {
        let store = self.store.try_lock_for(most).ok_or(Hangs)?.clone();
        match store
            .as_ref()
            .is_none_or(|store| store.answers_within(most))
        {
            true => Ok(store),
            false => Err(Hangs),
        }
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// A store that was taken over is opened anew by who needs it next.
    pub(crate) fn lose(&self, turn: u64, error: &StoreError) {
        if error.kind() == ErrorKind::Fenced && self.turn() == turn {
            self.give_up();
        }
    }

    /// Gives the store up after a failure that makes it useless.
    pub(crate) fn give_up(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
        *self.store.lock() = None;
    }

    /// Whether `more` bytes would be beyond its quota.
    pub(crate) fn is_full(&self, store: &Store, more: u64) -> bool {
        let held = store.figures();
        let bytes = held.stored_bytes + held.quarantined_bytes;
        let quota = self.settings.lock().quota_bytes;
        quota.is_some_and(|quota| bytes.saturating_add(more) > quota)
    }

    fn make_store(&self) -> Result<(), StoreError> {
        match Store::create(&self.place.make()?) {
            Err(StoreError::Occupied { .. }) => self.open().map(drop),
            created => created,
        }
    }

    /// Not of a store that is there: what opens that is not what was given.
    fn make_encrypted(&self, keys: &NewKeys) -> Result<(), VaultError> {
        let place = self.place.make()?;
        let occupied = match Store::create_with_keys(&place, keys, &OsRandom) {
            Err(StoreError::Occupied { .. }) => match NewKeys::of(&*place) {
                Ok(_) => {
                    "a store lies in the place of this vault already, with keys of its own or none; a vault that is made without keys takes it as it is, with those (were they an attempt's that failed, nobody was told its recovery key: add another)"
                }
                Err(_) => {
                    "the place of this vault is not empty, and holds no store: whoever keeps it must remove what is there, `keys/` in particular, which a making leaves that was interrupted"
                }
            },
            made => return Ok(made?),
        };
        Err(VaultError::Invalid(occupied))
    }

    /// Whether only its clients can read what it holds.
    pub(crate) fn is_encrypted(&self) -> Result<bool, StoreError> {
        match Keys::open(&self.objects()?) {
            Err(StoreError::NotEncrypted) => Ok(false),
            keys => keys.map(|_| true),
        }
    }

    /// One way more to open its store, for who can open it.
    pub(crate) fn add_way(&self, key: &WrappedKey) -> Result<(), StoreError> {
        let mut keys = Keys::open(&self.objects()?)?;
        keys.append(key, &OsRandom).map(drop)
    }

    fn open(&self) -> Result<Store, StoreError> {
        Store::open_writer(&self.place.open()?, Around::new(Arc::clone(&self.clock)))
    }

    /// What it holds. Its store is opened for it.
    pub(crate) fn figures(&self) -> Result<api::VaultFigures, StoreError> {
        Ok(self.figures_of(&self.store()?))
    }

    pub(crate) fn figures_of(&self, store: &Store) -> api::VaultFigures {
        let held = store.figures();
        let mut groups = BTreeMap::<Name, (u64, UnixNanos)>::new();
        for point in store.points() {
            let group = groups.entry(point.id.group.clone()).or_default();
            *group = (group.0 + 1, group.1.max(point.at));
        }
        let group = |(group, (points, newest)): (Name, (u64, UnixNanos))| api::GroupFigures {
            group: group.to_string(),
            points,
            newest_unix_ns: newest.0,
        };
        api::VaultFigures {
            vault: self.settings(),
            stored_bytes: held.stored_bytes,
            quarantined_bytes: held.quarantined_bytes,
            points: held.point_count,
            chunks: held.chunk_count,
            encrypted: store.is_encrypted(),
            groups: groups.into_iter().map(group).collect(),
            seeds: seeds_of(store),
        }
    }
}

fn failed(verb: &'static str) -> impl Fn(io::Error) -> VaultError {
    move |source| VaultError::File { verb, source }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use block::SystemClock;

    use super::*;

    /// A vault was to be made in a bucket that did not answer, and every request to every other vault waited with it.
    #[test]
    fn nobody_waits_for_a_vault_that_is_being_made() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Directory(dir.path().join("place"));
        let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let vaults = Vaults::open(place, &state, &clock).unwrap();
        let new = |name: &str| api::NewVault {
            name: name.to_owned(),
            quota_bytes: None,
            keys: None,
        };
        vaults.create(&new("quick")).unwrap();
        let (go_on, answers) = mpsc::channel();
        let (found, told) = mpsc::channel();
        thread::scope(|scope| {
            let (vaults, asked) = (&vaults, found.clone());
            scope.spawn(move || {
                let answered = |_: &Vault| {
                    asked.send("asked").unwrap();
                    answers.recv().unwrap();
                    Ok(())
                };
                vaults.create_with(&new("slow"), answered).unwrap();
            });
            assert_eq!(told.recv(), Ok("asked"));
            scope.spawn(move || {
                assert!(vaults.find("slow").is_err());
                let another = vaults.create(&new("another"));
                assert!(matches!(another, Err(VaultError::Busy)));
                vaults.find("quick").unwrap();
                vaults.set_quota("quick", Some(1 << 30)).unwrap();
                found.send("found").unwrap();
            });
            let waited = told.recv_timeout(Duration::from_secs(20));
            go_on.send(()).unwrap();
            assert_eq!(waited, Ok("found"));
        });
        let quotas = vaults.all().into_iter().map(|v| v.settings().quota_bytes);
        assert_eq!(quotas.collect::<Vec<_>>(), [Some(1 << 30), None]);
    }
}
