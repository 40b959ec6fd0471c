//! The audit log: who was refused, and who changed what. One JSON object a line, each with the SHA-256 of the line before.
//!
//! ```text
//! { "n": 7, "at": .., "event": "refused", "token": ID, "peer": ADDRESS, "vault": .., "what": .., "why": .., "previous": HEX }
//! ```
//!
//! Rule: a line that was changed, or removed from the middle, shows in the next one. Lines never hold secrets. Refusals and
//! whatever destroys something are durable before they are answered.
//! Crash: half a line at the end is no line; the next one is written over it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, UnixNanos};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::server::state_dir::{StateDir, private};

const FILE: &str = "audit.log";
/// No line is longer.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// Longest text of a field, in characters.
const FIELD_CHARS_MAX: usize = 500;
/// Longest run of hexadecimal digits that is written down: ids, lineages. A token's secret has 64, and comes here in paths and
/// arguments of whoever pastes a token where its id belongs.
const DIGITS_MAX: usize = 32;
/// Lines that are read at once for who asks.
pub(crate) const LINES_MAX: usize = 1_000;
/// Refusals of a token, and of all strangers, that are written down in a minute, and as many poisoned regions: the log must not
/// be a way to fill the disk.
const LINES_PER_MINUTE: u32 = 60;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Somebody may not do what was asked for, or is not known.
    Refused,
    /// Chunks that are not what their fingerprints say.
    Poisoned,
    /// A token was made or taken back.
    Token,
    /// A vault was made.
    Vault,
    /// A chore was asked for.
    Chore,
    /// Somebody began to read a vault; once an hour.
    Read,
    /// The server began or ended.
    Server,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditLine {
    /// Its number, from 1.
    pub n: u64,
    /// When, RFC 3339.
    pub at: String,
    /// What happened.
    pub event: Event,
    /// Whose token, by its id.
    pub token: Option<String>,
    /// From where.
    pub peer: Option<String>,
    /// In which vault.
    pub vault: Option<String>,
    /// What was asked for.
    pub what: String,
    /// Why it was refused, or what became of it.
    pub why: Option<String>,
    /// SHA-256 of the line before, without its end; of nothing for the first.
    pub previous: String,
}

/// A part of the log.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditPage {
    /// The lines, oldest first.
    pub lines: Vec<AuditLine>,
    /// Whether every line up to the last of these is as it was written.
    pub whole: bool,
    /// Whether there are more.
    pub more: bool,
}

/// What is to be written down.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) event: Event,
    pub(crate) token: Option<String>,
    pub(crate) peer: Option<String>,
    pub(crate) vault: Option<String>,
    pub(crate) what: String,
    pub(crate) why: Option<String>,
}

/// The log.
pub(crate) struct Audit {
    dir: Arc<StateDir>,
    clock: Arc<dyn Clock>,
    /// By what happened and the token; strangers have none.
    minutes: Mutex<HashMap<(Event, Option<String>), Minute>>,
}

/// How many lines were written down in a minute.
#[derive(Default)]
struct Minute {
    number: u64,
    count: u32,
    left_out: u64,
}

/// Where the chain has come to.
struct Tail {
    /// Bytes of whole lines.
    len: u64,
    n: u64,
    previous: String,
}

impl Audit {
    pub(crate) fn new(dir: &Arc<StateDir>, clock: &Arc<dyn Clock>) -> Self {
        Self {
            dir: Arc::clone(dir),
            clock: Arc::clone(clock),
            minutes: Mutex::default(),
        }
    }

    /// Writes a line down; durable when this returns, where the event asks for it.
    pub(crate) fn write(&self, entry: Entry) -> io::Result<()> {
        let path = self.dir.path(FILE);
        let fresh = !path.exists();
        let mut file = private()
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        // Commands on this machine write, too. It goes with the file.
        flock(&file, FlockOperation::LockExclusive)?;
        let tail = tail(&mut file)?;
        let line = AuditLine {
            n: tail.n + 1,
            at: rfc3339(self.clock.wall()),
            event: entry.event,
            token: entry.token.as_deref().map(field),
            peer: entry.peer.as_deref().map(field),
            vault: entry.vault.as_deref().map(field),
            what: field(&entry.what),
            why: entry.why.as_deref().map(field),
            previous: tail.previous,
        };
        let mut text = serde_json::to_vec(&line).expect("a line is plain data");
        text.push(b'\n');
        file.set_len(tail.len)?;
        file.seek(SeekFrom::Start(tail.len))?;
        file.write_all(&text)?;
        if line.event != Event::Read {
            file.sync_data()?;
        }
        if fresh {
            self.dir.sync()?;
        }
        Ok(())
    }

    /// Whether a line that its cause can ask for again and again is to be written down, and how many like it were not before it.
    pub(crate) fn is_due(&self, event: Event, token: Option<&str>) -> Option<u64> {
        let number = self.clock.monotonic().as_secs() / Duration::from_mins(1).as_secs();
        let mut all = self.minutes.lock();
        // There are as many as there are tokens; those that nothing is owed are made anew.
        all.retain(|_, minute| minute.number == number || minute.left_out > 0);
        let key = (event, token.map(str::to_owned));
        let minute = all.entry(key).or_default();
        if minute.number != number {
            minute.number = number;
            minute.count = 0;
        }
        if minute.count >= LINES_PER_MINUTE {
            minute.left_out += 1;
            return None;
        }
        minute.count += 1;
        Some(std::mem::take(&mut minute.left_out))
    }

    /// Lines after number `after`, and whether the log is whole up to them.
    pub(crate) fn page(&self, after: u64) -> io::Result<AuditPage> {
        let mut page = AuditPage {
            lines: Vec::new(),
            whole: true,
            more: false,
        };
        let mut chain = Chain::default();
        let mut file = match File::open(self.dir.path(FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(page),
            opened => io::BufReader::new(opened?),
        };
        let mut text = Vec::new();
        while read_line(&mut file, &mut text)? {
            if page.lines.len() == LINES_MAX {
                page.more = true;
                break;
            }
            let line = chain.follow(&text);
            page.whole &= chain.whole;
            page.lines.extend(line.filter(|line| line.n > after));
        }
        Ok(page)
    }
}

/// Goes over lines and says whether each follows from the one before.
struct Chain {
    n: u64,
    previous: String,
    whole: bool,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            n: 0,
            previous: digest(b""),
            whole: true,
        }
    }
}

impl Chain {
    fn follow(&mut self, text: &[u8]) -> Option<AuditLine> {
        let line = serde_json::from_slice::<AuditLine>(text).ok();
        let fits = |line: &AuditLine| line.n == self.n + 1 && line.previous == self.previous;
        self.whole = line.as_ref().is_some_and(fits);
        self.n = line.as_ref().map_or(self.n + 1, |line| line.n);
        self.previous = digest(text);
        line
    }
}

/// A whole line without its end; `false` at the end of the log, or where half a line is.
fn read_line(file: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    file.take(LINE_BYTES_MAX).read_until(b'\n', text)?;
    Ok(text.pop() == Some(b'\n'))
}

/// The last whole line of the log.
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

fn digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// A text without what could be a secret, and not too long.
fn field(text: &str) -> String {
    let mut safe = String::new();
    let mut digits = 0;
    for char in text.chars().chain([' ']) {
        if char.is_ascii_hexdigit() {
            digits += 1;
        } else {
            if digits > DIGITS_MAX {
                safe.truncate(safe.len() - digits);
                safe.push_str("***");
            }
            digits = 0;
        }
        safe.push(char);
    }
    safe.pop();
    safe.chars().take(FIELD_CHARS_MAX).collect()
}

fn rfc3339(at: UnixNanos) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(at.0));
    format!("{:.3}", time.unwrap_or(jiff::Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::SystemClock;

    fn audit(dir: &tempfile::TempDir) -> Audit {
        let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
        Audit::new(&state, &(Arc::new(SystemClock::new()) as Arc<dyn Clock>))
    }

    fn refused(what: &str) -> Entry {
        Entry {
            event: Event::Refused,
            token: None,
            peer: Some("10.0.0.1:5".into()),
            vault: None,
            what: what.into(),
            why: Some("no \"token\"\n".into()),
        }
    }

    fn spoil(audit: &Audit, from: &str, to: &str) {
        let path = audit.dir.path(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }

    #[test]
    fn lines_follow_from_each_other_over_restarts_and_torn_ends() {
        let dir = tempfile::tempdir().unwrap();
        audit(&dir).write(refused("one")).unwrap();
        let again = audit(&dir);
        again.write(refused("two")).unwrap();
        let mut file = private().append(true).open(again.dir.path(FILE)).unwrap();
        file.write_all(b"{\"n\":3,\"at\":").unwrap();
        again.write(refused("three")).unwrap();
        let page = again.page(1).unwrap();
        assert!(page.whole && !page.more);
        let whats: Vec<_> = page
            .lines
            .iter()
            .map(|line| (line.n, &*line.what))
            .collect();
        assert_eq!(whats, [(2, "two"), (3, "three")]);
    }

    #[test]
    fn a_line_that_was_changed_or_removed_shows() {
        let removed = "{\"n\":2";
        for (from, to) in [
            ("two", "ten"),
            ("10.0.0.1", "10.0.0.2"),
            (removed, "{\"n\":9"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let audit = audit(&dir);
            for what in ["one", "two", "three"] {
                audit.write(refused(what)).unwrap();
            }
            assert!(audit.page(0).unwrap().whole);
            spoil(&audit, from, to);
            assert!(!audit.page(0).unwrap().whole, "{from}");
        }
        let dir = tempfile::tempdir().unwrap();
        let audit = audit(&dir);
        for what in ["one", "two", "three"] {
            audit.write(refused(what)).unwrap();
        }
        let path = audit.dir.path(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        let without: String = text
            .lines()
            .filter(|line| !line.contains("two"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(&path, without).unwrap();
        assert!(!audit.page(0).unwrap().whole);
    }

    #[test]
    fn whoever_is_refused_cannot_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let audit = audit(&dir);
        for token in [None, Some("revoked")] {
            let due = |_: &u32| audit.is_due(Event::Refused, token).is_some();
            let written = (0..1_000).filter(due);
            // The minute may end meanwhile.
            assert!(written.count() <= 2 * LINES_PER_MINUTE as usize);
        }
        assert!(audit.is_due(Event::Refused, Some("another")).is_some());
        let poisoned = audit.is_due(Event::Poisoned, Some("revoked"));
        assert_eq!(poisoned, Some(0), "refusals leave no poison out");
    }

    /// Who pasted a whole token where its id belongs had its secret in the log.
    #[test]
    fn secrets_are_not_written_down_wherever_they_stand() {
        let secret = "0123456789abcdef".repeat(4);
        let what = format!("DELETE /v1/tokens/standin-0123456789ab-{secret}");
        let hidden = "DELETE /v1/tokens/standin-0123456789ab-***";
        assert_eq!(field(&what), hidden);
        assert_eq!(
            field(&format!("{what}/{secret}x")),
            format!("{hidden}/***x")
        );
        let lineage = "lineage 0123456789abcdef0123456789abcdef, point g@1";
        assert_eq!(field(lineage), lineage);
    }
}
