//! Who may open a disk while somebody else has it open.
//!
//! | | writer of ours | reader of ours | QEMU writing | QEMU reading |
//! |---|---|---|---|---|
//! | writer of ours | refused | refused | refused | refused |
//! | reader of ours | refused | allowed | refused | allowed |
//!
//! Two kinds of lock are taken: `flock`, which tools of the host use (udev leaves a locked block
//! device alone), and open-file-description locks on the bytes that QEMU uses (block/file-posix.c):
//! byte 100 + p is read-locked by whoever uses permission p, byte 200 + p by whoever does not let
//! others use it. A writer of ours write-locks the whole file, which collides with all of them.
//!
//! Rule: locks belong to the open file, so they end with the process, however it ends.

use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::FlockOperation;

use crate::Access;

const USES: i64 = 100;
const FORBIDS: i64 = 200;
/// QEMU's permissions, by bit (include/block/block-common.h).
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes the locks that go with `access`; `WouldBlock` if somebody has the file.
pub(crate) fn lock(file: impl AsFd, access: Access) -> io::Result<()> {
    match access {
        Access::ReadWrite => {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // Length 0 reaches to the largest offset.
            set(&file, libc::F_WRLCK, 0, 0)
        }
        Access::ReadOnly => {
            flock(&file, FlockOperation::NonBlockingLockShared)?;
            for byte in [USES + CONSISTENT_READ, FORBIDS + WRITE, FORBIDS + RESIZE] {
                set(&file, libc::F_RDLCK, byte, 1)?;
            }
            for byte in [FORBIDS + CONSISTENT_READ, USES + WRITE, USES + RESIZE] {
                check_free(&file, byte)?;
            }
            Ok(())
        }
    }
}

fn flock(file: impl AsFd, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::fs::flock(file, operation)?)
}

fn set(file: impl AsFd, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let range = byte_lock(kind, start, len)?;
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(()),
        // POSIX allows either errno for a lock that somebody holds.
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        Err(e) => Err(e.into()),
    }
}

fn check_free(file: impl AsFd, byte: i64) -> io::Result<()> {
    let mut range = byte_lock(libc::F_WRLCK, byte, 1)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut range))?;
    if i32::from(range.l_type) == libc::F_UNLCK {
        Ok(())
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn byte_lock(kind: i32, start: i64, len: i64) -> io::Result<libc::flock> {
    let small = |value: i32| i16::try_from(value).map_err(io::Error::other);
    Ok(libc::flock {
        l_type: small(kind)?,
        l_whence: small(libc::SEEK_SET)?,
        l_start: start,
        l_len: len,
        l_pid: 0,
    })
}
