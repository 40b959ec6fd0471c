//! A file as a block device of the host.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::process::{self, command};

const LIMIT: Duration = Duration::from_secs(60);

/// A loop device; detached when dropped.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Over `file`, with sectors of `sector_bytes`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(file: &Path, sector_bytes: u32) -> Result<Self> {
        let mut losetup = command("losetup");
        let sector = sector_bytes.to_string();
        losetup.args(["--find", "--show", "--sector-size", &sector]);
        let device = process::run(losetup.arg(file), LIMIT)?;
        Ok(Self(device.trim().to_owned()))
    }

    /// Its node in `/dev`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = process::say(command("losetup").arg("-d").arg(&self.0), LIMIT);
    }
}
