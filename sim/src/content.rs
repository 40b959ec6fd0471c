//! The bytes of a simulated file: sparse, in pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{ByteRange, index};

/// Page size in bytes.
pub(crate) const PAGE: u64 = 4096;

type Page = [u8; index(PAGE)];

/// Sparse bytes `0..len`; pages that are absent read as zeroes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// Shared between copies until one of them changes: a sync copies the whole file.
    pages: BTreeMap<u64, Arc<Page>>,
    len: u64,
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(ByteRange::new(len, self.len).expect("shrinking"));
        }
        self.len = len;
    }

    /// Bytes past the end read as zeroes here; callers check the length first.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) {
        for_each_page(offset, buf.len(), |page, at, span| {
            match self.pages.get(&page) {
                Some(bytes) => buf[span.clone()].copy_from_slice(&bytes[at..at + span.len()]),
                None => buf[span].fill(0),
            }
        });
    }

    pub(crate) fn write(&mut self, data: &[u8], offset: u64) {
        for_each_page(offset, data.len(), |page, at, span| {
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; index(PAGE)]));
            Arc::make_mut(bytes)[at..at + span.len()].copy_from_slice(&data[span]);
        });
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Zeroes a range and frees the pages that lie wholly inside. The length stays.
    pub(crate) fn zero(&mut self, range: ByteRange) {
        let inside: Vec<u64> = self
            .pages
            .range(range.start() / PAGE..range.end().div_ceil(PAGE))
            .map(|(page, _)| *page)
            .collect();
        for page in inside {
            let (first, last) = (page * PAGE, (page + 1) * PAGE);
            if range.start() <= first && last <= range.end() {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let from = index(range.start().max(first) - first);
                let to = index(range.end().min(last) - first);
                Arc::make_mut(bytes)[from..to].fill(0);
            }
        }
    }

    pub(crate) fn same_page(&self, page: u64, other: &Self) -> bool {
        self.pages.get(&page) == other.pages.get(&page)
    }

    /// Takes one page as it is in `other`.
    pub(crate) fn take_page(&mut self, page: u64, other: &Self) {
        match other.pages.get(&page) {
            Some(bytes) => self.pages.insert(page, bytes.clone()),
            None => self.pages.remove(&page),
        };
    }
}

/// Calls `visit(page, offset in page, span of the buffer)` for each page of a request.
fn for_each_page(
    offset: u64,
    len: usize,
    mut visit: impl FnMut(u64, usize, std::ops::Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let position = offset + done as u64;
        let at = index(position % PAGE);
        let count = (index(PAGE) - at).min(len - done);
        visit(position / PAGE, at, done..done + count);
        done += count;
    }
}
