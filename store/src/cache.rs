//! A cache with a budget in bytes: what was not used for longest goes first.

use std::hash::Hash;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

/// Values by key, at most `budget` bytes of them (but at least the newest one).
pub(crate) struct ByteCache<K: Hash + Eq, V> {
    inner: Mutex<Inner<K, V>>,
    budget: usize,
}

struct Inner<K: Hash + Eq, V> {
    entries: LruCache<K, (Arc<V>, usize)>,
    bytes: usize,
}

impl<K: Hash + Eq, V> ByteCache<K, V> {
    pub(crate) fn new(budget: usize) -> Self {
        let inner = Inner {
            entries: LruCache::unbounded(),
            bytes: 0,
        };
        Self {
            inner: Mutex::new(inner),
            budget,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut inner = self.inner.lock();
        inner.entries.get(key).map(|(value, _)| Arc::clone(value))
    }

    /// Keeps `value`, which takes so many bytes.
    pub(crate) fn put(&self, key: K, value: Arc<V>, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.bytes += bytes;
        if let Some((_, (_, old))) = inner.entries.push(key, (value, bytes)) {
            inner.bytes -= old;
        }
        while inner.bytes > self.budget && inner.entries.len() > 1 {
            let Some((_, (_, old))) = inner.entries.pop_lru() else {
                break;
            };
            inner.bytes -= old;
        }
    }

    pub(crate) fn forget(&self, key: &K) {
        let mut inner = self.inner.lock();
        if let Some((_, bytes)) = inner.entries.pop(key) {
            inner.bytes -= bytes;
        }
    }
}
