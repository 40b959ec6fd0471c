//! The audit log: who was refused, and who changed what. One JSON object a line, each with the SHA-256 of the line before.
//!
//! ```text
//! { "n": 7, "at": .., "event": "refused", "token": ID, "peer": ADDRESS, "vault": .., "what": .., "why": .., "previous": HEX }
//! ```
//!
//! Rule: a line that was changed, or removed from the middle, shows in the next one. Lines never hold secrets. They
//! are durable before the call is answered. docs/formats/audit.md has the files.
//! Crash: half a line at the end is no line; the next one is written over it.

use std::collections::HashMap;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, UnixNanos};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::server::audit::files::{Files, lines};
use crate::server::state_dir::StateDir;

mod files;

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
    /// Whether every line from the beginning of the first one's file up to the last of these follows from the one before.
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
    files: Files,
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

impl Audit {
    pub(crate) fn new(dir: &Arc<StateDir>, clock: &Arc<dyn Clock>) -> Self {
        Self {
            files: Files::new(dir),
            clock: Arc::clone(clock),
            minutes: Mutex::default(),
        }
    }

    /// Writes a line down; durable when this returns.
    pub(crate) fn write(&self, entry: Entry) -> io::Result<()> {
        let log = self.files.lock()?;
        let (mut file, tail) = log.to_append()?;
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
        file.sync_data()?;
        match tail.len {
            // The file may have been made for this line.
            0 => log.sync_names(),
            _ => Ok(()),
        }
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

    /// Lines after number `after`, and whether the log is whole up to them. Files that end before are not read.
    pub(crate) fn page(&self, after: u64) -> io::Result<AuditPage> {
        let mut page = AuditPage {
            lines: Vec::new(),
            whole: true,
            more: false,
        };
        let (mut chain, files) = self.files.lock()?.to_read(after)?;
        for text in files.into_iter().flat_map(lines) {
            if page.lines.len() == LINES_MAX {
                page.more = true;
                break;
            }
            let line = chain.follow(&text?);
            page.whole &= chain.whole;
            page.lines.extend(line.filter(|line| line.n > after));
        }
        Ok(page)
    }
}

/// Goes over lines and says whether each follows from the one before.
struct Chain {
    /// Number and digest of the line before; `None` where it was let go.
    before: Option<(u64, String)>,
    whole: bool,
}

impl Chain {
    /// After a line of this number and digest.
    fn after(before: Option<(u64, String)>) -> Self {
        let whole = true;
        Self { before, whole }
    }

    fn follow(&mut self, text: &[u8]) -> Option<AuditLine> {
        let line = serde_json::from_slice::<AuditLine>(text).ok();
        let before = self.before.as_ref();
        let fits = |line: &AuditLine| {
            before.is_none_or(|(n, digest)| line.n == n + 1 && line.previous == *digest)
        };
        self.whole = line.as_ref().is_some_and(fits);
        let expected = before.map_or(0, |(n, _)| n + 1);
        let n = line.as_ref().map_or(expected, |line| line.n);
        self.before = Some((n, digest(text)));
        line
    }
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
mod tests;
