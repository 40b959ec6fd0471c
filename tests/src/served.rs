//! `standin serve`, running: a point as a disk.

use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Signal;

use crate::bench::Bench;
use crate::nbd::{Address, Client};
use crate::process::Beside;
use crate::standin;
use crate::time::wait_for;

/// The running process. Killed when dropped.
#[derive(Debug)]
pub struct Served {
    process: Beside,
    /// Where it listens.
    pub address: Address,
}

impl Served {
    /// Serves `point` and waits until somebody can connect.
    ///
    /// # Errors
    /// If it ends, or does not serve in time.
    pub fn start(bench: &Bench, point: &str, more: &[&str]) -> Result<Self> {
        let name = format!("serve-{}.sock", point.replace('@', "-"));
        Self::at(Address::Unix(bench.path(&name)), bench, point, more)
    }

    /// As [`start`](Self::start), on a free TCP port of the loopback.
    ///
    /// # Errors
    /// As [`start`](Self::start); if no port is free.
    pub fn start_tcp(bench: &Bench, point: &str, more: &[&str]) -> Result<Self> {
        Self::at(Address::free_port()?, bench, point, more)
    }

    fn at(address: Address, bench: &Bench, point: &str, more: &[&str]) -> Result<Self> {
        let (target, listen) = (bench.target(), address.to_string());
        let mut args = vec!["serve", point, "--target", &target, "--listen", &listen];
        args.extend(more);
        let log = bench.path("serve.log");
        let process = Beside::start(&mut standin::command(args), &log)?;
        let mut served = Self { process, address };
        wait_for("standin serve to serve", Duration::from_secs(60), || {
            if let Some(status) = served.process.ended()? {
                bail!("it ended with {status}:\n{}", served.process.log());
            }
            // Looked at first: between a connection to no socket and a look at it, it may come to be, and not listen yet.
            if served.socket_is_missing() {
                return Ok(None);
            }
            // A group of several disks may have no default export: a refusal is an answer.
            match Client::connect(&served.address, "") {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Ok(None),
                _ => Ok(Some(())),
            }
        })?;
        Ok(served)
    }

    /// Connecting to a socket that is not there is "not found" as well.
    fn socket_is_missing(&self) -> bool {
        matches!(&self.address, Address::Unix(path) if !path.exists())
    }

    /// `SIGTERM`, and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time, or not with success.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(Duration::from_secs(60))?;
        if !status.success() {
            bail!("serve ended with {status}:\n{}", self.process.log());
        }
        Ok(())
    }
}
