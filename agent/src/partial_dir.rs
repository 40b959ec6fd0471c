//! A folder in which one process makes something of several files, until they get their names.
//!
//! Rule: it is locked from before the first file to after the last: nobody takes away what another one is making, nor what is none
//! of ours.
//! Crash: the folder is left, unlocked; who makes the same thing next removes it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A folder that is ours.
pub(crate) struct PartialDir {
    path: PathBuf,
    /// Names of what may be in it.
    files: Vec<String>,
    _lock: File,
}

impl PartialDir {
    /// Makes the folder; one that was left is removed before, with those of `files` that are in it.
    ///
    /// # Errors
    /// `ResourceBusy` if another one makes them just now; `DirectoryNotEmpty` if something else is in a folder of that name.
    pub(crate) fn create(path: &Path, files: &[String]) -> io::Result<Self> {
        if let Some(old) = Self::left(path, files)? {
            old.remove()?;
        }
        fs::create_dir(path)?;
        // Whoever is faster locks it, and the other one learns that here.
        let new = Self::left(path, files)?;
        new.ok_or_else(|| io::ErrorKind::ResourceBusy.into())
    }

    /// A folder that is there, locked.
    fn left(path: &Path, files: &[String]) -> io::Result<Option<Self>> {
        let lock = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(e)) => return Err(e),
            Ok(()) => {}
        }
        let opened = lock.metadata()?;
        let is_there = fs::symlink_metadata(path).is_ok_and(|now| {
            now.is_dir() && (now.dev(), now.ino()) == (opened.dev(), opened.ino())
        });
        if !is_there {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Some(Self {
            path: path.to_owned(),
            files: files.to_vec(),
            _lock: lock,
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, with those of its files that are still in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for file in &self.files {
            match fs::remove_file(self.path.join(file)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        fs::remove_dir(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(path: &Path) -> io::Result<PartialDir> {
        PartialDir::create(path, &["a".into(), "b".into()])
    }

    /// The folder of a restore that was at work was removed by another one to the same place: the first then gave the second's
    /// half-written disk its final name, and reported success.
    #[test]
    fn nobody_takes_away_what_another_one_is_making() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("x.partial");
        let first = create(&path).expect("created");
        fs::write(path.join("a"), "first").expect("written");
        let second = create(&path).map(|_| ()).expect_err("it is locked");
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
        assert!(path.join("a").exists());
        drop(first);
        let third = create(&path).expect("created anew");
        assert!(!path.join("a").exists());
        third.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("x.partial");
        fs::create_dir(&path).expect("created");
        fs::write(path.join("letter"), "dear").expect("written");
        let refused = create(&path).map(|_| ()).expect_err("it is not empty");
        assert_eq!(refused.kind(), io::ErrorKind::DirectoryNotEmpty);
        assert!(path.join("letter").exists());
    }
}
