//! Socket activation: listening sockets that the parent opened (`sd_listen_fds(3)`).
//!
//! The protocol: `LISTEN_PID` is this process, `LISTEN_FDS` counts descriptors from 3 on.

#![allow(
    unsafe_code,
    reason = "descriptors that come by number have no safe constructor"
)]

use std::env;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;
use rustix::net::sockopt;

/// Why there are no activated sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivationError {
    /// Not started by socket activation.
    #[error("this process was not given sockets: LISTEN_PID and LISTEN_FDS are not for it")]
    NotActivated,
    /// The parent lied.
    #[error("descriptor {0}, which LISTEN_FDS promises, is not a listening stream socket")]
    NotListening(RawFd),
    /// Each descriptor has one owner.
    #[error("the activated sockets are in use already")]
    Taken,
}

const FIRST: RawFd = 3;
const COUNT_MAX: i32 = 64;

/// The sockets, once per process.
pub(crate) fn take_listeners() -> Result<Vec<OwnedFd>, ActivationError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| env::var(name).ok()?.parse::<i32>().ok();
    let for_us = number("LISTEN_PID") == i32::try_from(std::process::id()).ok();
    let count = number("LISTEN_FDS").filter(|count| for_us && (1..=COUNT_MAX).contains(count));
    let count = count.ok_or(ActivationError::NotActivated)?;
    (FIRST..FIRST + count).try_for_each(check)?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(ActivationError::Taken);
    }
    Ok((FIRST..FIRST + count).map(take).collect())
}

fn check(raw: RawFd) -> Result<(), ActivationError> {
    // SAFETY: `raw` is not -1, and the borrow ends in this function. Should it not be open, the
    // calls below fail with EBADF; nobody closes it meanwhile, as nobody owns it.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    let listening = sockopt::socket_acceptconn(fd) == Ok(true)
        && sockopt::socket_type(fd) == Ok(rustix::net::SocketType::STREAM);
    let private = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
    if listening && private.is_ok() {
        Ok(())
    } else {
        Err(ActivationError::NotListening(raw))
    }
}

fn take(raw: RawFd) -> OwnedFd {
    // SAFETY: `check` found an open listening socket, which the parent passed for this process to
    // own, and TAKEN makes us the only taker.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
