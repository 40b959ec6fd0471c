//! The files of the log: `audit.log`, and those that were full before it, `audit.log.1` to `audit.log.8`, the oldest.
//!
//! Rule: lines are added, files renamed, and all of them opened, under the lock of `audit.lock`. The chain goes on over files.
//! Crash: a name may be free between two others; their order stays, and the next rotation begins there.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::sync::Arc;

use crate::server::audit::{AuditLine, Chain, digest};
use crate::server::state_dir::{Locked, StateDir, private};

const FILE: &str = "audit.log";
const LOCK: &str = "audit.lock";
/// Full files that are kept.
pub(super) const OLDER_MAX: usize = 8;
/// A file of so many bytes is full.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// No line is longer.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// Where they lie.
pub(super) struct Files {
    pub(super) dir: Arc<StateDir>,
    /// Tests have less to write.
    pub(super) bytes_max: u64,
}

/// The files, while nobody else changes them.
pub(super) struct Log<'a> {
    files: &'a Files,
    _locked: Locked,
}

/// Where the chain has come to.
pub(super) struct Tail {
    /// Bytes of whole lines in the newest file.
    pub(super) len: u64,
    pub(super) n: u64,
    pub(super) previous: String,
}

impl Files {
    pub(super) fn new(dir: &Arc<StateDir>) -> Self {
        Self {
            dir: Arc::clone(dir),
            bytes_max: FILE_BYTES_MAX,
        }
    }

    /// Waits until nobody else changes them; commands on this machine do, too.
    pub(super) fn lock(&self) -> io::Result<Log<'_>> {
        Ok(Log {
            files: self,
            _locked: self.dir.lock_as(LOCK)?,
        })
    }
}

impl Log<'_> {
    /// The file for the next line, and where the chain has come to. One that is full gets another name before.
    pub(super) fn to_append(&self) -> io::Result<(File, Tail)> {
        let (file, tail) = self.newest()?;
        if tail.len < self.files.bytes_max {
            return Ok((file, tail));
        }
        file.set_len(tail.len)?;
        file.sync_data()?;
        self.rotate()?;
        self.newest()
    }

    /// Where to read lines after number `after`: the files, oldest first, and what comes before the first of them.
    pub(super) fn to_read(&self, after: u64) -> io::Result<(Chain, Vec<File>)> {
        let mut files = self.older()?;
        files.extend(self.open(FILE)?);
        let mut from = files.len().saturating_sub(1);
        while from > 0 && first(&mut files[from])?.is_none_or(|n| n > after.saturating_add(1)) {
            from -= 1;
        }
        let before = match from {
            0 if self.has(OLDER_MAX) => None,
            0 => Some((0, digest(b""))),
            _ => Some(tail(&mut files[from - 1])?).map(|tail| (tail.n, tail.previous)),
        };
        let mut files = files.split_off(from);
        for file in &mut files {
            file.rewind()?;
        }
        Ok((Chain::after(before), files))
    }

    pub(super) fn sync_names(&self) -> io::Result<()> {
        self.files.dir.sync()
    }

    /// Made if it is missing. Where it holds nothing yet the chain goes on from the file before.
    fn newest(&self) -> io::Result<(File, Tail)> {
        let path = self.files.dir.path(FILE);
        let mut options = private();
        let mut file = options.read(true).write(true).truncate(false).open(path)?;
        let found = tail(&mut file)?;
        let before = match found.len {
            0 => self.older()?.pop(),
            _ => None,
        };
        match before {
            None => Ok((file, found)),
            Some(mut before) => {
                let tail = tail(&mut before)?;
                Ok((file, Tail { len: 0, ..tail }))
            }
        }
    }

    /// The full files that there are, oldest first.
    fn older(&self) -> io::Result<Vec<File>> {
        let names = (1..=OLDER_MAX).rev().map(older);
        let opened = names.filter_map(|name| self.open(&name).transpose());
        opened.collect()
    }

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.files.dir.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Gives each file the next one's name, up to one that is free; if none is, the oldest goes.
    fn rotate(&self) -> io::Result<()> {
        let free = (1..OLDER_MAX).find(|number| !self.has(*number));
        let mut to = free.unwrap_or(OLDER_MAX);
        while to > 1 {
            self.rename(&older(to - 1), &older(to))?;
            to -= 1;
        }
        self.rename(FILE, &older(1))
    }

    /// Durable one by one: a later one must not be there without an earlier one.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let dir = &self.files.dir;
        fs::rename(dir.path(from), dir.path(to))?;
        dir.sync()
    }

    fn has(&self, number: usize) -> bool {
        self.files.dir.path(&older(number)).exists()
    }
}

fn older(number: usize) -> String {
    format!("{FILE}.{number}")
}

/// The whole lines of a file, without their ends.
pub(super) fn lines(file: File) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut file = io::BufReader::new(file);
    std::iter::from_fn(move || line(&mut file).transpose())
}

/// `None` at the end of the file, or where half a line is.
fn line(file: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    file.take(LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
    let is_whole = text.pop() == Some(b'\n');
    Ok(is_whole.then_some(text))
}

/// The number of the first line; `None` if there is none.
fn first(file: &mut File) -> io::Result<Option<u64>> {
    file.rewind()?;
    let text = line(&mut io::BufReader::new(file))?.unwrap_or_default();
    let line = serde_json::from_slice::<AuditLine>(&text);
    Ok(line.ok().map(|line| line.n))
}

/// The last whole line of a file.
fn tail(file: &mut File) -> io::Result<Tail> {
    let len = file.seek(SeekFrom::End(0))?;
    // A whole line, and half of another.
    let from = len.saturating_sub(2 * LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(2 * LINE_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let lines = &bytes[..whole];
    let before = lines.iter().rev().skip(1).position(|byte| *byte == b'\n');
    let start = before.map_or(0, |back| whole - 1 - back);
    let last = lines
        .get(start..whole.saturating_sub(1))
        .unwrap_or_default();
    let line = serde_json::from_slice::<AuditLine>(last);
    Ok(Tail {
        len: from + whole as u64,
        // A last line that somebody has spoilt: the next one shows it.
        n: line.map_or(0, |line| line.n),
        previous: digest(last),
    })
}
