//! Whether a diff file still holds what its map says, and the map what was marked.
//!
//! A write is done once it is in the page cache. Where the disk below refuses it later, the cache lets go of
//! it, and the file reads as something else.
//!
//! | how it went | how it is found |
//! |---|---|
//! | the write back failed while this process had the file open | the handle is told ([`File::check_writeback`]) |
//! | it failed, nobody asked, and the process was killed | the next handle is told |
//! | it failed, somebody asked, and was killed before he acted | the doubt in the map ([`DirtyMap::check_data`]) |
//! | it failed, and the kernel forgot the file after the kill | no page of the file is cached any more |
//! | the file system could not give it a place; nobody is told | there is a hole |
//!
//! Not found: the kernel forgot the file, and then somebody who is not Standin read it, before the next
//! process of Standin was started.

use std::io;

use block::{ByteRange, Dir, File, GRANULE, GranuleRange};

use crate::coalesce::PIECE_GRANULES;
use crate::group::Surroundings;
use crate::live::Live;
use crate::map::DirtyMap;
use crate::runs::GranuleState;
use crate::{Lineage, files};

/// Reads granules that the map says are in the diff. `InvalidData` if there is a hole.
pub(crate) fn read_held(data: &dyn File, granules: GranuleRange, buf: &mut [u8]) -> io::Result<()> {
    data.read_exact_at(buf, granules.start * GRANULE)?;
    // After the read: what was lost since was still in the page cache.
    check_no_hole(data, granules)
}

/// What an earlier process left, before this one reads or writes it: `InvalidData` if any of it is lost or
/// may be.
pub(crate) fn check_kept(map: &DirtyMap, data: &dyn File) -> io::Result<()> {
    map.check_data(data)?;
    if map.data_is_doubtful() {
        return Err(lost("whoever asked for failed writes was killed".into()));
    }
    // What moved to a later generation left holes, rightly.
    let moved = map.absorbed_into().is_some();
    let (mut held, mut cached) = (false, false);
    let mut at = 0;
    while let Some(run) = map.next_run(at, PIECE_GRANULES) {
        at = run.granules.end;
        if run.state != GranuleState::Data {
            continue;
        }
        match check_no_hole(data, run.granules) {
            Err(_) if moved => continue,
            other => other?,
        }
        held = true;
        cached = cached || data.is_cached(bytes(run.granules))?;
    }
    match held && !cached {
        true => Err(lost("the system has forgotten how writing it went".into())),
        false => Ok(()),
    }
}

/// Before any map is mapped: whether the system knows how writing each of them back went, and that went
/// well. A map that was lost in part misses writes.
/// Crash: the system tells a failure once, so the lineage counts as lost while it is asked.
pub(crate) fn maps_are_kept(
    around: &Surroundings,
    lineage: Lineage,
    live: &Live,
) -> Result<(), String> {
    let short = lineage.short();
    let names = around.maps.list();
    let names = names.map_err(|error| format!("the map directory cannot be read: {error}"))?;
    // A later generation's are being made when a cut is killed, and do not count.
    let open = live.open_generation();
    let ours = |name: &&String| files::parse(name).is_some_and(|(g, l)| l == short && g <= open);
    live.lose();
    for name in names.iter().filter(ours) {
        is_kept(&*around.maps, name)
            .map_err(|error| format!("the dirty map {name} may miss writes ({error})"))?;
    }
    live.trust();
    Ok(())
}

fn is_kept(dir: &dyn Dir, name: &str) -> io::Result<()> {
    let file = dir.open(name)?;
    let all = ByteRange::new(0, file.len()?).expect("starts at zero");
    if !file.is_cached(all)? {
        let why = "the system has forgotten how writing it went";
        return Err(io::Error::other(why));
    }
    DirtyMap::check_doubt(&*file)?;
    file.check_writeback()
}

/// Whether a granule that the map says is in the diff lies in no hole.
pub(crate) fn is_held(data: &dyn File, granule: u64) -> io::Result<bool> {
    let one = GranuleRange {
        start: granule,
        end: granule + 1,
    };
    Ok(data.first_hole(bytes(one))?.is_none())
}

fn check_no_hole(data: &dyn File, granules: GranuleRange) -> io::Result<()> {
    match data.first_hole(bytes(granules))? {
        None => Ok(()),
        Some(at) => Err(lost(format!("what was written at byte {at} is gone"))),
    }
}

fn bytes(granules: GranuleRange) -> ByteRange {
    ByteRange::new(granules.start * GRANULE, granules.end * GRANULE).expect("granules are in order")
}

fn lost(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
