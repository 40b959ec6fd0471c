//! Progress bars, on standard error, when a person looks.

use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use crate::printer::Printer;

/// A bar, or nothing.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    base: AtomicU64,
}

impl Bar {
    /// A bar of bytes; its length comes with the first progress.
    pub(crate) fn new(printer: &Printer, what: &str) -> Self {
        let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        Self::with_style(printer, what, style)
    }

    /// A bar of things that are counted.
    pub(crate) fn of_things(printer: &Printer, what: &str) -> Self {
        Self::with_style(printer, what, "{msg} [{bar:30}] {pos}/{len} {eta}")
    }

    fn with_style(printer: &Printer, what: &str, style: &str) -> Self {
        let bar = printer.is_watched().then(|| {
            let style = ProgressStyle::with_template(style).expect("a fixed template");
            ProgressBar::new(0)
                .with_style(style.progress_chars("=> "))
                .with_message(what.to_owned())
        });
        let base = AtomicU64::new(0);
        Self { bar, base }
    }

    /// Bytes done of bytes in all; from any thread.
    pub(crate) fn tell(&self, done: u64, all: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            // Threads report out of order.
            let done = self.base.fetch_max(done, Ordering::Relaxed).max(done);
            bar.set_position(done);
        }
    }

    /// Begins anew, for something else.
    pub(crate) fn restart(&self, what: &str) {
        self.base.store(0, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_message(what.to_owned());
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}
