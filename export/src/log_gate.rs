//! Log lines that a client can cause, kept to a rate that cannot fill a disk.

use std::sync::Arc;
use std::time::Duration;

use block::Clock;
use parking_lot::Mutex;

const LINES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Lets through a few lines per window and counts what it held back.
pub(crate) struct LogGate {
    clock: Arc<dyn Clock>,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    start: Duration,
    lines: u32,
    suppressed: u64,
}

impl LogGate {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            window: Mutex::default(),
        }
    }

    /// `Some(lines held back before)` if the line may be written.
    pub(crate) fn pass(&self) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut window = self.window.lock();
        if now.saturating_sub(window.start) >= WINDOW {
            window.start = now;
            window.lines = 0;
        }
        if window.lines == LINES_MAX {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use block::UnixNanos;

    use super::*;

    #[derive(Default)]
    struct Hand(Mutex<Duration>);

    impl Clock for Hand {
        fn monotonic(&self) -> Duration {
            *self.0.lock()
        }
        fn wall(&self) -> UnixNanos {
            UnixNanos(0)
        }
    }

    #[test]
    fn a_flood_passes_ten_lines_and_the_next_window_tells_the_rest() {
        let clock = Arc::new(Hand::default());
        let gate = LogGate::new(clock.clone());
        let passed = (0..1000).filter(|_| gate.pass().is_some()).count();
        assert_eq!(passed, 10);
        *clock.0.lock() = WINDOW;
        assert_eq!(gate.pass(), Some(990));
        assert_eq!(gate.pass(), Some(0));
    }
}
