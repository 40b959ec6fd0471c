//! A block device, or a file, that is a [`Dir`]: for what wants a device of its own and no file system on it.
//!
//! ```text
//!   names --> slots ----> segments of 128 KiB, from anywhere on the device
//!             (record.rs)  (space.rs: which are free; extents.rs: which are a file's)
//! ```
//!
//! It keeps the promises of [`Dir`] and [`File`]: what completed survives the process; what was synced survives the
//! power. Directories inside it, mapped words and reserved space it does not have.
//!
//! | the order is | so that, if the process ends in between |
//! |---|---|
//! | bytes, length, pages of a segment | what was not written reads as zeroes, not as what an earlier file left |
//! | a record is freed, then its place is used again | no two files have it |
//!
//! A loss of power keeps no order: two records may claim one place of a file (neither counts then), and a page may
//! read as what an earlier or a later file wrote there. So whoever keeps files here, and does not sync each write, knows
//! their content by checksums that say whose it is.
//!
//! Rule: a device that holds anything else is never written to.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

use crate::{Dir, File, Space, dir, index};
use disk::Disk;
use file::DeviceFile;
use inode::{Claim, Inode};
use layout::{
    COUNT_MAX, Damaged, Entry, Half, Layout, NAME_MAX, RECORDS, SEGMENT, SLOT, SLOTS, SUPERBLOCK,
    Slot, Superblock,
};
use record::{FreeSlot, Record};

mod disk;
mod extents;
mod file;
mod inode;
mod layout;
mod record;
mod space;

/// What must be zero at both ends of a device that is used for the first time. File systems, partition tables and
/// volume managers have their marks there.
const BLANK_BYTES: u64 = 1 << 20;
/// Bytes that are read or zeroed at once.
const STEP: u64 = 1 << 20;

/// A directory on a bare device. One process at a time may have it, which is the caller's to see to.
pub struct DeviceDir {
    what: String,
    disk: Arc<Disk>,
    /// Held while names change on the device.
    changes: Mutex<Changes>,
    /// Held while they are looked at or changed in memory, never across the device's work.
    files: Mutex<HashMap<String, Arc<Inode>>>,
    locks: Arc<Mutex<HashSet<String>>>,
    /// Failures of the device that a sync passed on.
    told: AtomicU64,
}

#[derive(Default)]
struct Changes {
    /// The last is used next.
    free_slots: Vec<FreeSlot>,
    /// Files whose name another has now, and whose slot could not be written: they would come back with it.
    replaced: Vec<Arc<Inode>>,
}

/// Why a device is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceDirError {
    /// Another's files are on it.
    #[error("`{device}` holds the files of {owner}")]
    Owned {
        /// Which device.
        device: String,
        /// Whose.
        owner: String,
    },
    /// Something else is, or was, on it.
    #[error("`{device}` is not blank: its first or its last MiB holds something else")]
    NotBlank {
        /// Which device.
        device: String,
    },
    /// It was ours; its first page is damaged, or it is smaller than it was.
    #[error("`{device}` is damaged: {what}")]
    Damaged {
        /// Which device.
        device: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Too small.
    #[error("`{device}` has {size} bytes; {} are the least", layout::SIZE_MIN)]
    TooSmall {
        /// Which device.
        device: String,
        /// Its bytes.
        size: u64,
    },
    /// The operating system's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl DeviceDir {
    /// The directory on the device `name` in `dir`; made there, for `owner`, if the device is blank.
    ///
    /// # Errors
    /// As [`DeviceDirError`] has them; unless it is `Io` nothing was written.
    pub fn open(dir: Arc<dyn Dir>, name: &str, owner: &str) -> Result<Self, DeviceDirError> {
        let device = dir.open(name)?;
        let what = format!("{}/{name}", dir.describe());
        let layout = match read_superblock(&*device, &what)? {
            Some(superblock) if superblock.owner != owner => {
                return Err(DeviceDirError::Owned {
                    device: what,
                    owner: superblock.owner,
                });
            }
            Some(superblock) => superblock.layout,
            None => make(&*device, &what, owner)?,
        };
        Ok(Self::load(what, Arc::new(Disk::new(device, layout)))?)
    }

    fn load(what: String, disk: Arc<Disk>) -> io::Result<Self> {
        let (found, free_slots) = read_slots(&disk)?;
        let mut claims = read_entries(&disk, &found)?;
        let mut files = HashMap::new();
        for (name, record) in found {
            let claims = claims.remove(&record.says.id).unwrap_or_default();
            let inode = Inode::found(Arc::clone(&disk), record, claims)?;
            files.insert(name, Arc::new(inode));
        }
        let changes = Changes {
            free_slots,
            replaced: Vec::new(),
        };
        // Of what an earlier process was not told, files tell.
        let told = AtomicU64::new(disk.failures());
        Ok(Self {
            what,
            disk,
            changes: Mutex::new(changes),
            files: Mutex::new(files),
            locks: Arc::default(),
            told,
        })
    }

    fn known(&self, name: &str) -> io::Result<Arc<Inode>> {
        let found = self.files.lock().get(name).cloned();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file(&self, inode: Arc<Inode>) -> Arc<dyn File> {
        Arc::new(DeviceFile::new(Arc::clone(&self.disk), inode))
    }

    fn renamed(&self, from: &str, to: &str, replacing: bool) -> io::Result<()> {
        check_name(to)?;
        let mut changes = self.changes.lock();
        changes.finish()?;
        let inode = self.known(from)?;
        if self.known(to).is_ok() && !replacing {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if from == to {
            return Ok(());
        }
        let before = self.known(to).ok();
        // Nobody makes it longer meanwhile, and so later than what takes its name.
        let mut alone = before.as_ref().map(|before| before.alone());
        inode.rename(to)?;
        if let Some(alone) = &mut alone {
            alone.replace();
        }
        drop(alone);
        let mut files = self.files.lock();
        files.remove(from);
        files.insert(to.to_owned(), inode);
        drop(files);
        changes.replaced.extend(before);
        // What fails here is tried again with the next change.
        let _ = changes.finish();
        Ok(())
    }
}

impl Changes {
    fn finish(&mut self) -> io::Result<()> {
        while let Some(inode) = self.replaced.last() {
            let slot = inode.unlink(&mut inode.alone())?;
            self.replaced.pop();
            self.free_slots.push(slot);
        }
        Ok(())
    }
}

/// The files by name, and the free slots, the lowest last.
fn read_slots(disk: &Disk) -> io::Result<(HashMap<String, Record>, Vec<FreeSlot>)> {
    let mut found = Found::default();
    let mut bytes = vec![0; index(u64::from(SLOTS) * SLOT)];
    disk.device.read_exact_at(&mut bytes, Layout::slot_at(0))?;
    for (number, bytes) in (0..).zip(bytes.chunks_exact(index(SLOT))) {
        match Slot::of_halves(bytes) {
            Some((half, says)) => found.see(Record {
                number,
                half,
                says,
                replaced: false,
            }),
            None => found.free.push(FreeSlot {
                number,
                half: Half::Second,
            }),
        }
    }
    disk.go_on_after(found.highest);
    for record in std::mem::take(&mut found.outdated) {
        // Else it would come back once the other is removed.
        found.free.push(record.remove(disk)?);
    }
    found
        .free
        .sort_unstable_by_key(|slot| std::cmp::Reverse(slot.number));
    Ok((found.by_name, found.free))
}

/// What segments say of known files, by their ids.
fn read_entries(
    disk: &Disk,
    files: &HashMap<String, Record>,
) -> io::Result<HashMap<u64, Vec<Claim>>> {
    let mut claims: HashMap<u64, Vec<Claim>> = files
        .values()
        .map(|record| (record.says.id, Vec::new()))
        .collect();
    let all = u64::from(disk.layout.segments) * layout::ENTRY;
    let (mut at, mut segment, mut highest) = (0, 0, 0);
    while at < all {
        let mut bytes = vec![0; index(STEP.min(all - at))];
        disk.device
            .read_exact_at(&mut bytes, Layout::entry_at(0) + at)?;
        at += bytes.len() as u64;
        for entry in Entry::decode_all(&bytes) {
            // Also those of files that are gone: their records stay until others take their place.
            highest = highest.max(entry.id);
            if let Some(claims) = claims.get_mut(&entry.id).filter(|_| entry.pages != 0) {
                claims.push(Claim {
                    segment,
                    position: entry.position,
                    pages: entry.pages,
                });
            }
            segment += 1;
        }
    }
    disk.go_on_after(highest);
    if disk.next_sequence() > COUNT_MAX / 2 {
        // What is written from here on would not be believed some day.
        let sentence = "a record on the device has a number that was never given";
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    Ok(claims)
}

/// The slots that count.
#[derive(Default)]
struct Found {
    by_name: HashMap<String, Record>,
    ids: HashSet<u64>,
    /// Whose name another has since, or whose id is another's.
    outdated: Vec<Record>,
    free: Vec<FreeSlot>,
    highest: u64,
}

impl Found {
    fn see(&mut self, record: Record) {
        self.highest = self.highest.max(record.says.id).max(record.says.sequence);
        if record.says.is_gone() {
            let Record { number, half, .. } = record;
            self.free.push(FreeSlot { number, half });
            return;
        }
        // A file stays in its slot, and ids are given once: two of one id come from nothing that we do.
        if !self.ids.insert(record.says.id) {
            self.outdated.push(record);
            return;
        }
        let name = record.says.name.clone();
        match self.by_name.get(&name) {
            Some(known) if known.says.sequence > record.says.sequence => self.outdated.push(record),
            _ => self.outdated.extend(self.by_name.insert(name, record)),
        }
    }
}

impl Dir for DeviceDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        check_name(name)?;
        let mut changes = self.changes.lock();
        if self.known(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let slot = *changes.free_slots.last().ok_or_else(|| {
            let sentence = format!("the device has {SLOTS} files, as many as it can have");
            io::Error::new(io::ErrorKind::StorageFull, sentence)
        })?;
        let inode = Arc::new(Inode::create(Arc::clone(&self.disk), slot, name)?);
        changes.free_slots.pop();
        let mut files = self.files.lock();
        files.insert(name.to_owned(), Arc::clone(&inode));
        drop(files);
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.known(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.renamed(from, to, true)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.renamed(from, to, false)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut changes = self.changes.lock();
        changes.finish()?;
        let inode = self.known(name)?;
        let slot = inode.unlink(&mut inode.alone())?;
        changes.free_slots.push(slot);
        self.files.lock().remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.sync();
        // Also what somebody else was told: it may have been a name.
        self.disk.tell(&self.told)?;
        synced
    }

    fn subdir(&self, _name: &str) -> io::Result<Arc<dyn Dir>> {
        Err(unsupported(
            "a directory on a device has no directories in it",
        ))
    }

    fn existing_subdir(&self, _name: &str) -> io::Result<Arc<dyn Dir>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn lock_exclusive(&self, name: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        if !self.locks.lock().insert(name.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock {
            name: name.to_owned(),
            locks: Arc::clone(&self.locks),
        }))
    }

    fn space(&self) -> io::Result<Space> {
        let space = self.disk.space.lock();
        Ok(Space {
            free_bytes: u64::from(space.free()) * SEGMENT,
            total_bytes: u64::from(space.total()) * SEGMENT,
        })
    }

    fn granularity(&self) -> u64 {
        SEGMENT
    }

    fn describe(&self) -> String {
        self.what.clone()
    }
}

struct Lock {
    name: String,
    locks: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locks.lock().remove(&self.name);
    }
}

fn read_superblock(file: &dyn File, device: &str) -> Result<Option<Superblock>, DeviceDirError> {
    let damaged = |what| DeviceDirError::Damaged {
        device: device.to_owned(),
        what,
    };
    let size = file.len()?;
    if size < SUPERBLOCK {
        return Ok(None);
    }
    let mut bytes = vec![0; index(SUPERBLOCK)];
    file.read_exact_at(&mut bytes, 0)?;
    match Superblock::decode(&bytes) {
        Err(Damaged) => Err(damaged("its first sector does not match its checksum")),
        Ok(Some(superblock)) if superblock.layout.end() > size => {
            Err(damaged("it is smaller than when it was first used"))
        }
        Ok(found) => Ok(found),
    }
}

/// Makes an empty directory. It is one once the superblock is there, which is written last.
fn make(file: &dyn File, device: &str, owner: &str) -> Result<Layout, DeviceDirError> {
    let (size, device) = (file.len()?, device.to_owned());
    let Some(layout) = Layout::fitting(size) else {
        return Err(DeviceDirError::TooSmall { device, size });
    };
    if !is_zero(file, 0)? || !is_zero(file, size - BLANK_BYTES)? {
        return Err(DeviceDirError::NotBlank { device });
    }
    let owner = owner.to_owned();
    let superblock = Superblock { layout, owner }.encode().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the owner's name is too long")
    })?;
    let zeroes = vec![0; index(STEP)];
    let mut at = RECORDS;
    while at < layout.data() {
        let len = STEP.min(layout.data() - at);
        file.write_all_at(&zeroes[..index(len)], at)?;
        at += len;
    }
    file.sync_data()?;
    file.write_all_at(&superblock, 0)?;
    file.sync_data()?;
    Ok(layout)
}

fn is_zero(file: &dyn File, at: u64) -> io::Result<bool> {
    let mut bytes = vec![0; index(BLANK_BYTES)];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// A plain name that fits in a slot.
fn check_name(name: &str) -> io::Result<()> {
    dir::check_name(name)?;
    if name.len() <= NAME_MAX {
        return Ok(());
    }
    Err(io::ErrorKind::InvalidFilename.into())
}

fn unsupported(sentence: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, sentence)
}
