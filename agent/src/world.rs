//! The outside world, as values that are passed in.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, SystemClock, UnixNanos};

use crate::{Error, Result};

/// Clock, random numbers and the name of this run of the machine.
#[derive(Clone)]
pub struct World {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Names the run of the machine: the page cache does not outlive it.
    pub boot: String,
    /// When that run began.
    pub booted_at: UnixNanos,
    /// Sixteen random bytes, different at every call.
    pub random: Arc<dyn Fn() -> [u8; 16] + Send + Sync>,
}

impl World {
    /// The real one.
    ///
    /// # Errors
    /// If the kernel does not name its boot.
    pub fn real() -> Result<Self> {
        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(BOOT_ID).map_err(Error::file("read", BOOT_ID))?;
        let clock = SystemClock::new();
        let running = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let running = Duration::try_from(running).unwrap_or_default();
        let running_ns = u64::try_from(running.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self {
            booted_at: UnixNanos(clock.wall().0.saturating_sub(running_ns)),
            clock: Arc::new(clock),
            boot: boot.trim().to_owned(),
            random: Arc::new(|| *uuid::Uuid::new_v4().as_bytes()),
        })
    }
}
