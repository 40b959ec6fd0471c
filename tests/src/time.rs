//! Deadlines and random moments. Waiting is always for something, and always bounded.

use std::time::Duration;

use anyhow::{Result, bail};
use block::{Clock, SystemClock};

/// Seconds since the first call in this process.
#[must_use]
pub fn elapsed() -> Duration {
    static CLOCK: std::sync::OnceLock<SystemClock> = std::sync::OnceLock::new();
    CLOCK.get_or_init(SystemClock::new).monotonic()
}

/// Returns `duration` later: for a crash at a chosen moment, not for waiting until something is so.
pub fn let_pass(duration: Duration) {
    let end = elapsed() + duration;
    while let Some(left) = end.checked_sub(elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Calls `attempt` until it gives a value.
///
/// # Errors
/// An error of `attempt` at once; `what` when `limit` has passed.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = elapsed() + limit;
    loop {
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if elapsed() >= end {
            bail!("waited {limit:?} in vain for {what}");
        }
        let_pass(Duration::from_millis(10));
    }
}

/// A count from the environment: how thorough this run shall be.
///
/// # Panics
/// If the variable is set and no number: a typing error must not pass as a short run.
#[must_use]
pub fn count_from_env(name: &str, fallback: u64) -> u64 {
    std::env::var(name).map_or(fallback, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {value}"))
    })
}
