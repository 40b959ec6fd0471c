//! Whether anything grows that should not: figures of the processes and their directories, looked at all
//! the time, and the last quarter of the run held against its first half.
//!
//! Rule: only looks at calm moments count for the verdict. While a target is away diffs pile up, as they
//! should, and that one quarter met a longer fault than another says nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::time::{elapsed, let_pass};

/// What is looked at; how much it may exceed the first half's most, in percent and a constant; what it may
/// reach in any case.
const FIGURES: [(&str, u64, u64, u64); 7] = [
    // The store's index lies in memory: its growth is allowed for separately.
    ("memory_bytes", 15, 12 << 20, 0),
    // The store keeps up to 64 containers and 64 trees open, which a first half may not have reached.
    ("fds", 10, 6, 190),
    // A connection has threads, and guests reconnect.
    ("threads", 10, 8, 0),
    ("state_files", 0, 4, 0),
    ("state_bytes", 25, 1 << 20, 0),
    ("diff_files", 50, 16, 0),
    ("diff_bytes", 100, 16 << 20, 0),
];
/// What the store keeps in memory for each chunk of 4 KiB, within budgets of 64 and 24 MiB: 17 bytes in a
/// table that doubles, twice that while it does, and 40 in a manifest.
const INDEX_BYTES_PER_CHUNK: u64 = 91;
/// A point's record, its names and its disks.
const BYTES_PER_POINT: u64 = 2048;

/// Where a group's figures are found.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// As the report names it.
    pub(crate) name: &'static str,
    /// The process; changes when it is started anew, 0 while there is none.
    pub(crate) pid: Arc<AtomicU32>,
    /// The group's state directory.
    pub(crate) state: PathBuf,
    /// The group's diff directory.
    pub(crate) diffs: PathBuf,
    /// Where its points go.
    pub(crate) target: PathBuf,
}

#[derive(Clone, Debug)]
struct Look {
    at: Duration,
    calm: bool,
    figures: BTreeMap<&'static str, u64>,
    /// Bytes and points on the target: these may grow.
    stored_bytes: u64,
    points: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    calm: AtomicBool,
    looks: Mutex<BTreeMap<&'static str, Vec<Look>>>,
}

/// Looks at intervals. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks at `watched` every `interval`.
    #[must_use]
    pub(crate) fn start(watched: Vec<Watched>, interval: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !told.stop.load(Ordering::Relaxed) {
                for group in &watched {
                    let calm = told.calm.load(Ordering::Acquire);
                    // Who is being started anew has no figures at that moment.
                    let Ok(mut look) = look(group) else { continue };
                    look.calm = calm && told.calm.load(Ordering::Acquire);
                    let mut looks = told.looks.lock().expect("no holder panics");
                    looks.entry(group.name).or_default().push(look);
                }
                wait(&told.stop, interval);
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Whether nothing out of the ordinary is under way.
    pub(crate) fn set_calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::Release);
    }

    /// What was seen, by group.
    #[must_use]
    pub(crate) fn growth(&self) -> Vec<Growth> {
        let looks = self.shared.looks.lock().expect("no holder panics");
        looks
            .iter()
            .flat_map(|(group, looks)| of_group(group, looks))
            .collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait(stop: &AtomicBool, interval: Duration) {
    let end = elapsed() + interval;
    while elapsed() < end && !stop.load(Ordering::Relaxed) {
        let_pass(Duration::from_millis(50).min(interval));
    }
}

/// One figure of one group through the run.
#[derive(Clone, Debug)]
pub struct Growth {
    /// The group.
    pub group: &'static str,
    /// The figure.
    pub figure: &'static str,
    /// Least and most of each quarter, at calm moments; `None` if there was none.
    pub quarters: [Option<(u64, u64)>; 4],
    /// The most at any moment.
    pub most: u64,
    /// What the last quarter may reach.
    pub limit: Option<u64>,
}

impl Growth {
    /// Whether it stayed within its limit. A run too short to say anything passes.
    #[must_use]
    pub fn passed(&self) -> bool {
        match (self.limit, self.quarters[3]) {
            (Some(limit), Some((_, most))) => most <= limit,
            _ => true,
        }
    }

    /// For the report.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "group": self.group, "figure": self.figure, "quarters": self.quarters, "most": self.most,
            "limit": self.limit, "passed": self.passed(),
        })
    }
}

fn of_group(group: &'static str, looks: &[Look]) -> Vec<Growth> {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return Vec::new();
    };
    let quarter = |look: &Look| {
        let share = (look.at - first.at).as_secs_f64() / (last.at - first.at).as_secs_f64();
        // The last look ends the last quarter.
        if share < 0.25 {
            0
        } else if share < 0.5 {
            1
        } else if share < 0.75 {
            2
        } else {
            3
        }
    };
    let halfway = looks.iter().rfind(|look| quarter(look) < 2);
    let halfway = halfway.unwrap_or(first);
    let allowed = (last.stored_bytes.saturating_sub(halfway.stored_bytes)) / 4096
        * INDEX_BYTES_PER_CHUNK
        + last.points.saturating_sub(halfway.points) * BYTES_PER_POINT;
    FIGURES
        .iter()
        .map(|&(figure, percent, constant, floor)| {
            let mut quarters: [Option<(u64, u64)>; 4] = [None; 4];
            for look in looks.iter().filter(|look| look.calm) {
                let value = look.figures[figure];
                let slot = &mut quarters[quarter(look)];
                *slot = Some(slot.map_or((value, value), |(least, most)| {
                    (least.min(value), most.max(value))
                }));
            }
            let early = quarters[0].into_iter().chain(quarters[1]);
            let early = early.map(|(_, most)| most).max();
            let index = if figure == "memory_bytes" { allowed } else { 0 };
            Growth {
                group,
                figure,
                quarters,
                most: looks
                    .iter()
                    .map(|look| look.figures[figure])
                    .max()
                    .unwrap_or(0),
                limit: early.map(|most| floor.max(most + most * percent / 100 + constant + index)),
            }
        })
        .collect()
}

fn look(group: &Watched) -> Result<Look> {
    let pid = group.pid.load(Ordering::Acquire);
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let (state_files, state_bytes) = files(&group.state)?;
    let (diff_files, diff_bytes) = files(&group.diffs)?;
    let mut figures = BTreeMap::new();
    figures.insert("memory_bytes", anonymous_memory(&proc)?);
    figures.insert("fds", entries(&proc.join("fd"))?);
    figures.insert("threads", entries(&proc.join("task"))?);
    figures.insert("state_files", state_files);
    figures.insert("state_bytes", state_bytes);
    figures.insert("diff_files", diff_files);
    figures.insert("diff_bytes", diff_bytes);
    // The target may be away: then it has not grown.
    let (_, stored_bytes) = files(&group.target.join("containers")).unwrap_or_default();
    let (points, _) = files(&group.target.join("trees")).unwrap_or_default();
    Ok(Look {
        at: elapsed(),
        calm: false,
        figures,
        stored_bytes,
        points,
    })
}

fn anonymous_memory(proc: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(proc.join("status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.context("no RssAnon")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<u64>()? * 1024)
}

fn entries(directory: &Path) -> Result<u64> {
    Ok(std::fs::read_dir(directory)?.count() as u64)
}

/// How many files there are below, and what they occupy. Who vanishes meanwhile does not count.
fn files(directory: &Path) -> Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(directory)? {
        let Ok(entry) = entry else { continue };
        let Ok(about) = entry.metadata() else {
            continue;
        };
        if about.is_dir() {
            let (more, larger) = files(&entry.path()).unwrap_or_default();
            count += more;
            bytes += larger;
        } else {
            count += 1;
            bytes += std::os::unix::fs::MetadataExt::blocks(&about) * 512;
        }
    }
    Ok((count, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(fds: impl Fn(u64) -> u64) -> Vec<Look> {
        (0..40)
            .map(|at| Look {
                at: Duration::from_secs(at),
                calm: at % 2 == 0,
                figures: FIGURES
                    .iter()
                    .map(|(name, ..)| (*name, if *name == "fds" { 200 + fds(at) } else { 0 }))
                    .collect(),
                stored_bytes: 0,
                points: 0,
            })
            .collect()
    }

    fn fds_of(looks: &[Look]) -> Growth {
        let mut found = of_group("g", looks).into_iter();
        found.find(|growth| growth.figure == "fds").expect("listed")
    }

    #[test]
    fn what_grows_all_the_time_fails_and_what_swings_passes() {
        assert!(!fds_of(&looks(|at| 20 + 10 * at)).passed());
        let swinging = fds_of(&looks(|at| 20 + at / 2 % 8));
        assert!(swinging.passed());
        assert_eq!(swinging.quarters[0], Some((220, 224)));
        assert_eq!(swinging.limit, Some(227 + 22 + 6));
    }

    #[test]
    fn a_peak_during_an_event_is_shown_and_does_not_count() {
        let growth = fds_of(&looks(|at| if at == 35 { 1000 } else { 20 }));
        assert!(growth.passed());
        assert_eq!(growth.most, 1200);
    }
}
