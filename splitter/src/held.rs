//! Whether the maps that an earlier process left still say all that was marked.
//!
//! A store is done once it is in the page cache. Where the disk below refuses it later, the cache lets go of
//! it, and the file reads as something else. Diffs carry checks; maps do not.
//!
//! | how it went | how it is found |
//! |---|---|
//! | the write back failed while this process had the file open | the handle is told ([`File::check_writeback`]) |
//! | it failed, nobody asked, and the process was killed | the next handle is told |
//! | it failed, somebody asked, and was killed before he acted | the doubt in the map ([`DirtyMap::check_doubt`]) |
//! | it failed, and the kernel forgot the file after the kill | no page of the file is cached any more |
//!
//! Not found: the kernel forgot the file, and then somebody who is not Standin read it, before the next
//! process of Standin was started.
//!
//! [`File::check_writeback`]: block::File::check_writeback

use std::io;

use block::{ByteRange, Dir};

use crate::group::Surroundings;
use crate::live::Live;
use crate::map::DirtyMap;
use crate::{Lineage, files};

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
