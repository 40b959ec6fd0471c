//! Where the state of protected groups lies.
//!
//! ```text
//! STATE/GROUP/ protect.json   what is protected and where to        (this file)
//!              control.sock   the running process answers here      (control.rs)
//!              nbd.sock       the default place of the export
//!              tracking/      the splitter's state
//!              maps/          its dirty maps
//!              diffs/         its diffs, unless --diff-dir DIR: then DIR/GROUP/
//! ```

use std::env;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use block::Name;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest path of a Unix socket, with its closing zero (`sun_path`, unix(7)).
const SOCKET_PATH_MAX: usize = 108;

/// The directory that holds the state of all groups of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRoot(PathBuf);

/// The state of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlace {
    group: Name,
    dir: PathBuf,
}

/// What is protected, for whoever asks while no process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The target's URL.
    pub target: String,
    /// The disks.
    pub disks: Vec<RecordedDisk>,
    /// When a cut is made.
    pub every: String,
    /// The history of which the target had a point: its next cut has something to build on, even
    /// while the target is away.
    #[serde(default)]
    pub lineage: Option<String>,
}

/// A disk of a [`Record`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedDisk {
    /// Its name in the group.
    pub name: String,
    /// Where its live data is.
    pub path: PathBuf,
}

impl StateRoot {
    /// At `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self(std::path::absolute(&path).unwrap_or(path))
    }

    /// `$STANDIN_STATE`; else `/var/lib/standin` for root, `$XDG_STATE_HOME/standin` for others.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = set("STANDIN_STATE") {
            return Self::at(path);
        }
        if rustix::process::geteuid().is_root() {
            return Self::at("/var/lib/standin");
        }
        let base = set("XDG_STATE_HOME").map_or_else(
            || PathBuf::from(set("HOME").unwrap_or_default()).join(".local/state"),
            PathBuf::from,
        );
        Self::at(base.join("standin"))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The place of a group, whether it exists or not.
    #[must_use]
    pub fn group(&self, group: &Name) -> GroupPlace {
        GroupPlace {
            group: group.clone(),
            dir: self.0.join(group.as_str()),
        }
    }

    /// Every group that was ever protected here, by name.
    ///
    /// # Errors
    /// If the directory cannot be read; one that is missing holds no group.
    pub fn groups(&self) -> Result<Vec<GroupPlace>> {
        let listed = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed,
        };
        let mut names: Vec<Name> = listed
            .map_err(Error::file("read the state directory", &self.0))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        let places = names.iter().map(|name| self.group(name));
        Ok(places
            .filter(|place| place.record_path().exists())
            .collect())
    }
}

impl GroupPlace {
    /// The group.
    #[must_use]
    pub fn group(&self) -> &Name {
        &self.group
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the running process answers.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Where the disks are served by default.
    ///
    /// # Errors
    /// `Usage` if the path is too long for a socket: clients could not name it.
    pub fn nbd_socket(&self) -> Result<PathBuf> {
        let path = self.dir.join("nbd.sock");
        if path.as_os_str().len() < SOCKET_PATH_MAX {
            return Ok(path);
        }
        Err(Error::usage(
            format!(
                "the path `{}` is too long for a socket ({} bytes; at most {})",
                path.display(),
                path.as_os_str().len(),
                SOCKET_PATH_MAX - 1
            ),
            "choose a shorter --state, or a place for the socket with --listen unix:PATH",
        ))
    }

    pub(crate) fn tracking_dir(&self) -> PathBuf {
        self.dir.join("tracking")
    }

    /// Directory of the dirty maps.
    pub(crate) fn map_dir(&self) -> PathBuf {
        self.dir.join("maps")
    }

    /// Directory of the diffs: inside the state, or under `chosen`.
    pub(crate) fn diff_dir(&self, chosen: Option<&Path>) -> PathBuf {
        chosen.map_or_else(
            || self.dir.join("diffs"),
            |chosen| chosen.join(self.group.as_str()),
        )
    }

    /// There while the hook after a cut is owed.
    pub(crate) fn owed_hook(&self) -> PathBuf {
        self.dir.join("hook.owed")
    }

    fn record_path(&self) -> PathBuf {
        self.dir.join("protect.json")
    }

    pub(crate) fn save_record(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        let partial = self.dir.join("protect.json.new");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, self.record_path()))
            .map_err(Error::file("write", self.record_path()))
    }

    /// What is, or was, protected here; `None` if nothing can be said.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        let text = fs::read(self.record_path()).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// A name for the socket `path` that is short enough to bind and connect to, however long the path:
/// its directory is held open, and named by its number.
pub(crate) struct ShortPath {
    short: PathBuf,
    _dir: Option<fs::File>,
}

impl ShortPath {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if path.as_os_str().len() < SOCKET_PATH_MAX {
            let short = path.to_owned();
            return Ok(Self { short, _dir: None });
        }
        let dir = fs::File::open(parent)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self {
            short,
            _dir: Some(dir),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.short
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_may_lie_deep() {
        let root = tempfile::tempdir().expect("a directory");
        let deep = root.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).expect("directories");
        let socket = deep.join("control.sock");
        let listener = ShortPath::of(&socket)
            .and_then(|short| UnixListener::bind(short.path()))
            .expect("it binds");
        let client = ShortPath::of(&socket).and_then(|short| UnixStream::connect(short.path()));
        client.expect("it connects");
        listener.accept().expect("it accepts");
        let name: Name = "g".parse().expect("a name");
        let place = StateRoot::at(deep).group(&name);
        assert_eq!(
            place.nbd_socket().expect_err("too long").kind(),
            crate::Kind::Usage
        );
    }

    #[test]
    fn only_directories_with_a_record_are_groups() {
        let root = tempfile::tempdir().expect("a directory");
        let state = StateRoot::at(root.path());
        assert!(
            StateRoot::at(root.path().join("none"))
                .groups()
                .expect("empty")
                .is_empty()
        );
        for name in ["b", "a", "c"] {
            fs::create_dir(root.path().join(name)).expect("a directory");
        }
        let record = Record {
            target: "dir:/x".into(),
            disks: vec![],
            every: "5s".into(),
            lineage: None,
        };
        for name in ["b", "a"] {
            let place = state.group(&name.parse().expect("a name"));
            place.save_record(&record).expect("saved");
            assert_eq!(place.record(), Some(record.clone()));
        }
        let found = state.groups().expect("listed");
        let names: Vec<_> = found.iter().map(|place| place.group().as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
