//! Names of the files of a group.
//!
//! ```text
//! state/ tracking              the lineage that counts, replaced whole     (lineage.rs)
//!        suspect.BOOT          a flush of production failed on that boot   (intent.rs)
//!        live.LINEAGE          its open generation and flags, mapped       (live.rs)
//!        doubt.LINEAGE         the live state was found to be forgotten by the kernel (live.rs)
//!        intent.LINEAGE        its intent log                             (intent.rs)
//!        cut.LINEAGE.GEN       what is said of a cut, if anything          (lineage.rs)
//! maps/  DISK.GEN.LINEAGE.map  dirty map                                   (map.rs)
//! diffs/ DISK.GEN.LINEAGE.diff granules written, in frames                    (log.rs)
//!        forsaken.LINEAGE      its intent log could not be written         (intent.rs)
//!        probe                 there for a moment, to see whether it can be written (map_only.rs)
//! ```
//!
//! Rule: a file of another lineage than the one that `tracking` names is debris, and is removed.

use std::io;

use block::{ByteRange, Dir, File, Name};

use crate::{Generation, Lineage};

pub(crate) const TRACKING: &str = "tracking";
pub(crate) const TRACKING_NEW: &str = "tracking.new";
pub(crate) const LOCK: &str = "lock";
/// In the diff directory: what tries whether it works.
pub(crate) const PROBE: &str = "probe";
const SUSPECT: &str = "suspect.";
const FORSAKEN: &str = "forsaken.";

pub(crate) fn live(lineage: Lineage) -> String {
    format!("live.{}", lineage.short())
}

pub(crate) fn intent(lineage: Lineage) -> String {
    format!("intent.{}", lineage.short())
}

pub(crate) fn note(lineage: Lineage, generation: Generation) -> String {
    format!("cut.{}.{generation}", lineage.short())
}

pub(crate) fn map(disk: &Name, generation: Generation, lineage: Lineage) -> String {
    format!("{disk}.{generation}.{}.map", lineage.short())
}

pub(crate) fn diff(disk: &Name, generation: Generation, lineage: Lineage) -> String {
    format!("{disk}.{generation}.{}.diff", lineage.short())
}

/// What the name of a map or a diff says; `None` for files that are not ours.
pub(crate) fn parse(name: &str) -> Option<(Generation, &str)> {
    let stem = name
        .strip_suffix(".map")
        .or_else(|| name.strip_suffix(".diff"))?;
    let (rest, lineage) = stem.rsplit_once('.')?;
    let (_, generation) = rest.rsplit_once('.')?;
    let hex = lineage.len() == 8 && lineage.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then_some((Generation(generation.parse().ok()?), lineage))
}

/// What the name of a file of the state directory says of its lineage; `None` if nothing.
pub(crate) fn parse_state(name: &str) -> Option<(Option<Generation>, &str)> {
    for prefix in ["live.", "doubt.", "intent."] {
        if let Some(lineage) = name.strip_prefix(prefix) {
            return Some((None, lineage));
        }
    }
    let (lineage, generation) = name.strip_prefix("cut.")?.split_once('.')?;
    Some((Some(Generation(generation.parse().ok()?)), lineage))
}

/// Notes, durably, that a flush of production failed on this boot of the machine. The name says it all:
/// a file is made whole or not at all.
pub(crate) fn suspect(state: &dyn Dir, boot: &str) -> io::Result<()> {
    match state.create(&suspect_name(boot)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => drop(other?),
    }
    state.sync()
}

/// The notes of earlier boots.
pub(crate) fn old_suspicions(state: &dyn Dir, boot: &str) -> io::Result<Vec<String>> {
    let ours = suspect_name(boot);
    let mut names = state.list()?;
    names.retain(|name| name.starts_with(SUSPECT) && *name != ours);
    Ok(names)
}

fn suspect_name(boot: &str) -> String {
    format!("{SUSPECT}{:08x}", crc32c::crc32c(boot.as_bytes()))
}

/// Removes a file that may be gone already.
pub(crate) fn remove(dir: &dyn Dir, name: &str) -> io::Result<()> {
    match dir.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(crate) fn doubted(lineage: Lineage) -> String {
    format!("doubt.{}", lineage.short())
}

/// Notes that the live state of a lineage may be an old one.
pub(crate) fn doubt(state: &dyn Dir, lineage: Lineage) -> io::Result<()> {
    match state.create(&doubted(lineage)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn is_doubted(state: &dyn Dir, lineage: Lineage) -> bool {
    !matches!(state.open(&doubted(lineage)), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Frees the space of a part of a file that nobody needs, where the file system can.
pub(crate) fn free(file: &dyn File, range: ByteRange) -> io::Result<()> {
    match file.punch_hole(range) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

/// Notes beside the diffs that nobody may go on with a lineage. Not synced: a guest's write waits for it.
pub(crate) fn forsake(diffs: &dyn Dir, lineage: Lineage) -> io::Result<()> {
    match diffs.create(&forsaken_name(lineage)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn is_forsaken(diffs: &dyn Dir, lineage: Lineage) -> bool {
    // Where it cannot be asked, there are no diffs to believe either.
    diffs.open(&forsaken_name(lineage)).is_ok()
}

fn forsaken_name(lineage: Lineage) -> String {
    format!("{FORSAKEN}{}", lineage.short())
}

/// What the name of a note of [`forsake`] says; `None` if it is none.
pub(crate) fn parse_forsaken(name: &str) -> Option<&str> {
    name.strip_prefix(FORSAKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let disk: Name = "web.disk-1.0".parse().unwrap();
        let lineage = Lineage([0xab; 16]);
        let generation = Generation(17);
        for name in [
            map(&disk, generation, lineage),
            diff(&disk, generation, lineage),
        ] {
            assert_eq!(parse(&name), Some((generation, "abababab")), "{name}");
        }
        for name in [live(lineage), doubted(lineage), intent(lineage)] {
            assert_eq!(parse_state(&name), Some((None, "abababab")), "{name}");
        }
        assert_eq!(
            parse_state(&note(lineage, generation)),
            Some((Some(generation), "abababab"))
        );
        for foreign in [
            "web.map",
            "a.b.c.map",
            "notes.txt",
            "web.1.abab.map",
            "tracking",
        ] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }
}
