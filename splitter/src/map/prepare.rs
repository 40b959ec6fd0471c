//! Body pages that are made ready before anybody writes.
//!
//! The first mark in a page reserves it, and its first store is a page fault; in both the file system may
//! wait for a commit of its journal. After a cut every page is a first one, and a write that waits there
//! holds its gate, for which the next cut waits. Guests mostly write where they wrote before: so the pages
//! of the map before are made ready in the next one before the cut.

use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use super::{DirtyMap, GROUP_GRANULES, PAGE_GRANULES};

/// Pages of all maps of a group: 256 GiB of disks in 16 MiB. Those of guests that wrote more come as they are
/// needed; a group of many disks must not take twice the memory, nor its cuts seconds.
const PAGES_MAX: usize = 4096;
/// Pages of one map.
const PAGES_OF_A_DISK: RangeInclusive<usize> = 32..=512;

/// How many pages each of so many disks may have made ready.
pub(crate) fn pages_of_each(disk_count: usize) -> usize {
    (PAGES_MAX / disk_count.max(1)).clamp(*PAGES_OF_A_DISK.start(), *PAGES_OF_A_DISK.end())
}

impl DirtyMap {
    /// Makes ready what `before` uses, at most `pages_max` pages of it, in a map that nobody else has yet. Fails on a full disk: better
    /// here, where it costs a cut, than in a guest's write, where it would cost the lineage.
    pub(crate) fn prepare_like(&self, before: &DirtyMap, pages_max: usize) -> io::Result<()> {
        let mut next = before.next_entered_page(0);
        for _ in 0..pages_max {
            let Some(page) = next.filter(|page| *page < self.shape.page_count) else {
                break;
            };
            self.file.allocate(self.shape.body_page(page))?;
            // The store that faults: the word is zero.
            self.group(page * PAGE_GRANULES / GROUP_GRANULES)
                .store(0, Ordering::Relaxed);
            let (word, bit) = (block::index(page / 64), 1 << (page % 64));
            self.ready[word].fetch_or(bit, Ordering::Release);
            next = before.next_entered_page(page + 1);
        }
        Ok(())
    }

    /// Whether a page is reserved already.
    pub(super) fn is_ready(&self, page: u64) -> bool {
        self.ready[block::index(page / 64)].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }
}
