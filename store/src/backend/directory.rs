//! Objects as the files of a directory.
//!
//! Rule: a file is written under a name that no object has, its bytes are synced, then it is renamed; so a crash
//! leaves whole objects, and debris that the next writer removes. Who only reads makes no folder.

use std::any::Any;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use block::{Dir, File, Space};
use lru::LruCache;
use parking_lot::Mutex;

use crate::backend::Backend;

/// Files that are kept open. A file that is removed meanwhile keeps its space until it is closed: they are few.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("is not zero");

/// Folders that are kept open. A large store has thousands, and a server a thousand stores: what is closed is opened again.
const FOLDERS_MAX: NonZeroUsize = NonZeroUsize::new(32).expect("is not zero");

/// What another process takes away of these is gone for whoever asks after it: no file of them is kept open.
const KEYS: &str = "keys";

/// Marks a file that is being written.
const TMP_MARK: &str = ".tmp-";

/// A [`Backend`] over a directory.
pub struct Directory {
    root: Arc<dyn Dir>,
    folders: Mutex<LruCache<String, Arc<dyn Dir>>>,
    files: Mutex<LruCache<String, Arc<dyn File>>>,
}

impl Directory {
    /// The objects in `root`.
    #[must_use]
    pub fn new(root: Arc<dyn Dir>) -> Self {
        Self {
            root,
            folders: Mutex::new(LruCache::new(FOLDERS_MAX)),
            files: Mutex::new(LruCache::new(FILES_MAX)),
        }
    }

    /// The same, as a place for a store.
    #[must_use]
    pub fn backend(root: &Arc<dyn Dir>) -> Arc<dyn Backend> {
        Arc::new(Self::new(Arc::clone(root)))
    }

    /// A folder, made if it is missing: for who writes.
    fn made(&self, folder: &str) -> io::Result<Arc<dyn Dir>> {
        self.folder(folder, |above, name| above.subdir(name))
    }

    /// A folder that is there: who reads makes none.
    fn found(&self, folder: &str) -> io::Result<Arc<dyn Dir>> {
        self.folder(folder, |above, name| above.existing_subdir(name))
    }

    fn folder(
        &self,
        folder: &str,
        step: impl Fn(&dyn Dir, &str) -> io::Result<Arc<dyn Dir>>,
    ) -> io::Result<Arc<dyn Dir>> {
        if folder.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(dir) = self.folders.lock().get(folder) {
            return Ok(Arc::clone(dir));
        }
        let mut dir = Arc::clone(&self.root);
        for part in folder.split('/') {
            dir = step(&*dir, part)?;
        }
        let kept = Arc::clone(&dir);
        self.folders.lock().put(folder.to_owned(), kept);
        Ok(dir)
    }

    /// `None` if it is not there: nothing was ever put into it.
    fn found_if_any(&self, folder: &str) -> io::Result<Option<Arc<dyn Dir>>> {
        match self.found(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            dir => dir.map(Some),
        }
    }

    /// The files of a folder whose names are asked for, and their lengths.
    fn lengths(
        &self,
        folder: &str,
        is_asked_for: impl Fn(&str) -> bool,
    ) -> io::Result<Vec<(String, u64)>> {
        let Some(dir) = self.found_if_any(folder)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for name in dir.list()?.into_iter().filter(|name| is_asked_for(name)) {
            match dir.open(&name).and_then(|file| file.len()) {
                // Somebody has removed it meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                len => found.push((name, len?)),
            }
        }
        Ok(found)
    }

    fn file(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.files.lock().get(name) {
            return Ok(Arc::clone(file));
        }
        let (folder, plain) = parted(name);
        let file = self.found(folder)?.open(plain)?;
        if folder == KEYS {
            return Ok(file);
        }
        self.files.lock().put(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn put(
        &self,
        name: &str,
        bytes: &[u8],
        epoch: u64,
        rename: impl Fn(&dyn Dir, &str, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        let (folder, plain) = parted(name);
        let dir = self.made(folder)?;
        let tmp = format!("{plain}{TMP_MARK}{epoch}");
        let put = || {
            let file = dir.create(&tmp)?;
            file.write_all_at(bytes, 0)?;
            file.sync_data()?;
            rename(&*dir, &tmp, plain)
        };
        put().inspect_err(|_| {
            // Debris does no harm; the next writer tries again.
            let _ = dir.remove(&tmp);
        })?;
        self.files.lock().pop(name);
        Ok(())
    }
}

impl Backend for Directory {
    fn create(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
        self.put(name, bytes, epoch, |dir, from, to| dir.rename_new(from, to))
    }

    fn replace(&self, name: &str, bytes: &[u8], epoch: u64) -> io::Result<()> {
        self.put(name, bytes, epoch, |dir, from, to| dir.rename(from, to))
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        if let Some(file) = self.files.lock().get(name) {
            return file.len();
        }
        // Who asks for the length does not always read it.
        let (folder, plain) = parted(name);
        self.found(folder)?.open(plain)?.len()
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(buf, offset)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (folder, plain) = parted(name);
        let removed = self.found(folder)?.remove(plain);
        // After it: somebody may have opened it again until then.
        self.files.lock().pop(name);
        removed
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        self.lengths(folder, |name| !name.contains(TMP_MARK))
    }

    fn half_created(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        self.lengths(folder, |name| name.contains(TMP_MARK))
    }

    /// Lengths are not asked for: a catalog has thousands of commits.
    fn list_between(&self, folder: &str, after: &str, before: &str) -> io::Result<Vec<String>> {
        let Some(dir) = self.found_if_any(folder)? else {
            return Ok(Vec::new());
        };
        let between = |name: &String| name.as_str() > after && name.as_str() < before;
        Ok(whole(dir.list()?).filter(between).collect())
    }

    fn recover(&self, folder: &str) -> io::Result<()> {
        let dir = self.made(folder)?;
        for debris in dir.list()?.iter().filter(|name| name.contains(TMP_MARK)) {
            dir.remove(debris)?;
        }
        dir.sync()?;
        // The folder's own name: who made it may not have lived to sync it.
        match folder.rsplit_once('/') {
            Some((above, _)) => self.made(above)?.sync(),
            None if folder.is_empty() => Ok(()),
            None => self.root.sync(),
        }
    }

    fn sync(&self, folder: &str) -> io::Result<()> {
        self.found(folder)?.sync()
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.made("lease")?.lock_exclusive("lock").map(Some)
    }

    fn space(&self) -> io::Result<Option<Space>> {
        self.root.space().map(Some)
    }

    fn describe(&self) -> String {
        self.root.describe()
    }
}

/// The folder of an object, and its plain name.
fn parted(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// The names of whole objects.
fn whole(names: Vec<String>) -> impl Iterator<Item = String> {
    names.into_iter().filter(|name| !name.contains(TMP_MARK))
}
