//! How many files the process may have open: each cut that waits keeps a few open for each disk, and a server each connection
//! and what each vault has open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Asks for as many as the process may ask for. Most systems start a process with 1,024: a few cuts of 64 disks, or a few vaults.
pub fn allow_many_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        debug!(%error, "the limit of open files stays as it is");
    }
}
