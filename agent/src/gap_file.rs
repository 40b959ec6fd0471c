//! The gap ledger on disk: `STATE/GROUP/gaps`, lines that are only appended. `docs/formats/gaps.md` draws it.
//!
//! ```text
//!  crc32c of the rest, 8 hex digits | space | one JSON object | newline
//! ```
//!
//! Rule: a line whose checksum is wrong is no line. The last one may be torn: what is appended next takes
//! its place.
//!
//! Rule: it does not grow for ever. Past a size it is written anew, with old gaps summed up.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use block::{Dir, File, index};
use serde::{Deserialize, Serialize};

use crate::api::{Cause, ClockMove, Gap, OlderGaps};

/// Its name in the state directory of the group.
const NAME: &str = "gaps";
/// Its name while it is written anew.
const NEW_NAME: &str = "gaps.new";
/// Past this many bytes it is written anew.
const LEN_MAX: u64 = 1 << 20;
/// What is read of a file that somebody else made longer.
const READ_MAX: u64 = 16 << 20;
/// Gaps, and moves of the clock, that are kept one by one.
const KEPT_MAX: usize = 1_000;
/// Lines that wait for a disk that takes none.
const WAITING_MAX: usize = 1_000;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// A time of which there is no point.
    Gap(Gap),
    /// The wall clock was moved.
    Clock(ClockMove),
    /// Something that will be the cause of a gap, if there is one.
    Reason(Reason),
    /// A process began to protect the group.
    Start(Start),
    /// Gaps whose lines were dropped.
    Older(OlderGaps),
}

/// What happened in a generation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Reason {
    /// The history, in hex.
    pub(crate) lineage: String,
    pub(crate) generation: u64,
    pub(crate) cause: Cause,
    /// The cut that sealed the generation will be no point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lost: bool,
}

/// The beginning of a process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// In nanoseconds since 1970 UTC.
    pub(crate) at_unix_ns: u64,
    /// Points further apart than this left a gap; `None` where cuts were made when told.
    pub(crate) owed_s: Option<f64>,
}

/// All that a ledger says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contents {
    pub(crate) gaps: VecDeque<Gap>,
    pub(crate) clock: VecDeque<ClockMove>,
    pub(crate) older: OlderGaps,
    pub(crate) reasons: Vec<Reason>,
    /// The last process.
    pub(crate) start: Option<Start>,
    /// Lines that do not count, but for a torn last one.
    pub(crate) damaged: u64,
}

impl Contents {
    /// What the bytes say, and how many of them, from the start, are whole lines.
    pub(crate) fn parse(bytes: &[u8]) -> (Self, usize) {
        let (mut contents, mut whole, mut damaged) = (Self::default(), 0, 0);
        let mut at = 0;
        while let Some(len) = bytes[at..].iter().position(|byte| *byte == b'\n') {
            let line = decode(&bytes[at..at + len]);
            at += len + 1;
            match line {
                Some(line) => {
                    contents.add(line);
                    contents.damaged += std::mem::take(&mut damaged);
                    whole = at;
                }
                // The last one may be torn: it is damaged only if another follows.
                None => damaged += 1,
            }
        }
        (contents, whole)
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Gap(gap) => {
                self.gaps.push_back(gap);
                if self.gaps.len() > KEPT_MAX
                    && let Some(old) = self.gaps.pop_front()
                {
                    self.older.add(&old);
                }
            }
            Line::Clock(moved) => {
                self.clock.push_back(moved);
                if self.clock.len() > KEPT_MAX {
                    self.clock.pop_front();
                }
            }
            Line::Reason(reason) => self.reasons.push(reason),
            Line::Start(start) => self.start = Some(start),
            Line::Older(older) => self.older = older,
        }
    }

    /// The same, as a file.
    fn lines(&self, reasons: &[Reason]) -> Vec<u8> {
        let older = (self.older.gaps > 0).then(|| Line::Older(self.older.clone()));
        let lines = older
            .into_iter()
            .chain(self.gaps.iter().cloned().map(Line::Gap))
            .chain(self.clock.iter().cloned().map(Line::Clock))
            .chain(self.start.map(Line::Start))
            .chain(reasons.iter().cloned().map(Line::Reason));
        lines.flat_map(|line| encode(&line)).collect()
    }
}

/// The ledger of a group that is being protected.
pub(crate) struct GapFile {
    dir: Arc<dyn Dir>,
    file: Arc<dyn File>,
    /// Where the next line goes.
    end: u64,
    contents: Contents,
    /// Could not be written yet.
    waiting: VecDeque<Line>,
}

/// Whether a line must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    Yes,
    No,
}

impl GapFile {
    /// Opens it, or makes one.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn open(dir: Arc<dyn Dir>) -> io::Result<Self> {
        let file = match dir.open(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = dir.create(NAME)?;
                dir.sync()?;
                file
            }
            opened => opened?,
        };
        let (contents, whole) = Contents::parse(&bytes_of(&*file)?);
        Ok(Self {
            dir,
            file,
            end: whole as u64,
            contents,
            waiting: VecDeque::new(),
        })
    }

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Appends a line. `reasons` are those that still count, for a file that is written anew.
    ///
    /// # Errors
    /// The operating system's. The line is not lost: it is written before the next one.
    pub(crate) fn append(
        &mut self,
        line: Line,
        durable: Durable,
        reasons: &[Reason],
    ) -> io::Result<()> {
        if !matches!(line, Line::Reason(_)) {
            self.contents.add(line.clone());
        }
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(line);
        while let Some(line) = self.waiting.front() {
            let bytes = encode(line);
            // Crash: a line that is torn is overwritten by the next, or is no line.
            self.file.write_all_at(&bytes, self.end)?;
            self.end += bytes.len() as u64;
            self.waiting.pop_front();
        }
        if durable == Durable::Yes {
            self.file.sync_data()?;
        }
        match self.end > LEN_MAX {
            true => self.write_anew(reasons),
            false => Ok(()),
        }
    }

    fn write_anew(&mut self, reasons: &[Reason]) -> io::Result<()> {
        let bytes = self.contents.lines(reasons);
        match self.dir.remove(NEW_NAME) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.dir.create(NEW_NAME)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_data()?;
        // Crash: the old one or the new one, both whole.
        self.dir.rename(NEW_NAME, NAME)?;
        self.dir.sync()?;
        (self.file, self.end) = (file, bytes.len() as u64);
        Ok(())
    }
}

/// What the ledger in `dir` says, whether a process writes to it or not; nothing if there is none.
///
/// # Errors
/// The operating system's.
pub(crate) fn read(dir: &dyn Dir) -> io::Result<Contents> {
    match dir.open(NAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contents::default()),
        opened => Ok(Contents::parse(&bytes_of(&*opened?)?).0),
    }
}

fn bytes_of(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; index(file.len()?.min(READ_MAX))];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn encode(line: &Line) -> Vec<u8> {
    framed(&serde_json::to_vec(line).expect("a line is plain data"))
}

fn framed(text: &[u8]) -> Vec<u8> {
    let sum = format!("{:08x} ", crc32c::crc32c(text));
    [sum.as_bytes(), text, b"\n"].concat()
}

fn decode(line: &[u8]) -> Option<Line> {
    let (sum, text) = line.split_at_checked(8)?;
    let text = text.strip_prefix(b" ")?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    if sum != crc32c::crc32c(text) {
        return None;
    }
    serde_json::from_slice(text).ok()
}

/// What is read and written again says the same; the bytes as they are, and as texts of whole lines.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    write_again(bytes);
    let texts = bytes.split(|byte| *byte == b'\n');
    let lines: Vec<_> = texts.flat_map(framed).collect();
    write_again(&lines);
}

#[cfg(feature = "fuzzing")]
fn write_again(bytes: &[u8]) {
    let (contents, whole) = Contents::parse(bytes);
    assert!(whole <= bytes.len(), "{whole} of {}", bytes.len());
    let again = contents.lines(&contents.reasons);
    let (same, all) = Contents::parse(&again);
    assert_eq!((all, same.gaps.len()), (again.len(), contents.gaps.len()));
    assert_eq!(
        (same.reasons.len(), same.damaged),
        (contents.reasons.len(), 0)
    );
}

#[cfg(test)]
mod tests {
    use sim::SimWorld;

    use super::*;

    fn gap(from: u64) -> Line {
        Line::Gap(Gap {
            from_unix_ns: from,
            until_unix_ns: Some(from + 5_000_000_000),
            seconds: 5.0,
            causes: vec![Cause::DiffSpace],
            cuts_lost: 1,
            point: Some("g@7".into()),
        })
    }

    fn reason(generation: u64) -> Reason {
        Reason {
            lineage: "ab".into(),
            generation,
            cause: Cause::TargetBehind,
            lost: true,
        }
    }

    #[test]
    fn lines_come_back() {
        let world = SimWorld::new(1);
        let mut file = GapFile::open(world.dir()).expect("made");
        let clock = Line::Clock(ClockMove {
            at_unix_ns: 9,
            moved_s: -7200.5,
        });
        let start = Start {
            at_unix_ns: 5,
            owed_s: Some(1.5),
        };
        for line in [gap(1), clock, Line::Start(start), Line::Reason(reason(3))] {
            file.append(line, Durable::Yes, &[]).expect("appended");
        }
        let contents = read(&*world.dir()).expect("read");
        assert_eq!((contents.gaps.len(), contents.clock.len()), (1, 1));
        assert_eq!(contents.reasons, [reason(3)]);
        assert_eq!((contents.start, contents.damaged), (Some(start), 0));
    }

    /// After a power cut, and after a disk that was full in the middle of a line.
    #[test]
    fn a_torn_line_is_no_line_and_the_next_one_takes_its_place() {
        let whole = [encode(&gap(1)), encode(&gap(2))].concat();
        for cut in encode(&gap(1)).len()..whole.len() - 1 {
            let world = SimWorld::new(1);
            let file = world.dir().create(NAME).expect("made");
            file.write_all_at(&whole[..cut], 0).expect("written");
            let mut file = GapFile::open(world.dir()).expect("opened");
            assert_eq!(file.contents().gaps.len(), 1);
            file.append(gap(3), Durable::Yes, &[]).expect("appended");
            let contents = read(&*world.dir()).expect("read");
            let from: Vec<_> = contents.gaps.iter().map(|gap| gap.from_unix_ns).collect();
            assert_eq!(from, [1, 3], "cut at {cut}");
        }
    }

    #[test]
    fn rot_in_the_middle_costs_one_line() {
        let mut bytes = [encode(&gap(1)), encode(&gap(2)), encode(&gap(3))].concat();
        let at = encode(&gap(1)).len() + 20;
        bytes[at] ^= 1;
        let (contents, whole) = Contents::parse(&bytes);
        assert_eq!((contents.gaps.len(), contents.damaged), (2, 1));
        assert_eq!(whole, bytes.len());
    }

    #[test]
    fn what_a_full_disk_refused_is_written_later() {
        let world = SimWorld::new(1);
        let mut file = GapFile::open(world.dir()).expect("made");
        let full = |_: &str| Some(io::ErrorKind::StorageFull);
        world.set_fault(Some(Arc::new(full)));
        file.append(gap(1), Durable::Yes, &[]).expect_err("full");
        world.set_fault(None);
        file.append(gap(2), Durable::Yes, &[]).expect("room");
        assert_eq!(read(&*world.dir()).expect("read").gaps.len(), 2);
    }

    #[test]
    fn it_does_not_grow_for_ever_and_forgets_no_second() {
        let world = SimWorld::new(1);
        let mut file = GapFile::open(world.dir()).expect("made");
        for at in 0..9_000 {
            file.append(gap(at), Durable::No, &[reason(4)])
                .expect("appended");
        }
        let len = world
            .dir()
            .open(NAME)
            .expect("there")
            .len()
            .expect("a length");
        assert!(len <= LEN_MAX, "{len}");
        let contents = read(&*world.dir()).expect("read");
        assert_eq!(
            contents.gaps.back().map(|gap| gap.from_unix_ns),
            Some(8_999)
        );
        assert_eq!(contents.gaps.len() as u64 + contents.older.gaps, 9_000);
        let older = contents.older.seconds;
        assert!(
            (older - 5.0 * contents.older.gaps as f64).abs() < 1.0,
            "{older}"
        );
        assert_eq!(contents.reasons, [reason(4)]);
    }
}
