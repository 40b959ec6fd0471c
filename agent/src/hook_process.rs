//! One hook, as a process: started without a shell, watched, and killed if it hangs.
//!
//! Rule: whoever waits for it waits so long as it may take, and a second more to see it dead.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use block::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How long a killed process may take to be gone; one that the kernel holds on to is left behind.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Why a hook did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It could not be started or watched.
    #[error("it cannot be run")]
    Run(#[from] io::Error),
    /// It said that it failed.
    #[error("it ended with {0}")]
    Status(ExitStatus),
    /// It took too long, and was killed.
    #[error("it did not end within {0:?} and was killed, with all that it had started")]
    TimedOut(Duration),
}

/// Runs a program to its end. What it prints goes to standard error: standard output is for data.
pub(crate) fn run(
    words: &[String],
    env: &[(&str, String)],
    timeout: Duration,
    clock: &dyn Clock,
) -> Result<(), Failure> {
    let (program, args) = words.split_first().expect("a command has a word");
    let talk = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(talk()?)
        .stderr(talk()?)
        // A group of its own: a hang is ended with all its children, and Ctrl-C is not for it.
        .process_group(0);
    let mut child = command.spawn()?;
    let watched = watch(&child).and_then(|pidfd| ends_within(&pidfd, timeout, clock));
    if matches!(watched, Ok(true)) {
        let status = child.wait()?;
        return match status.success() {
            true => Ok(()),
            false => Err(Failure::Status(status)),
        };
    }
    end(&mut child, clock);
    watched?;
    Err(Failure::TimedOut(timeout))
}

fn pid(child: &Child) -> Pid {
    let raw = i32::try_from(child.id()).expect("a process id is an i32");
    Pid::from_raw(raw).expect("a child is not process 0")
}

fn watch(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid(child), PidfdFlags::empty())?)
}

/// Whether the process has ended by then.
fn ends_within(pidfd: &OwnedFd, limit: Duration, clock: &dyn Clock) -> io::Result<bool> {
    let end = clock.monotonic() + limit;
    loop {
        let left = end.saturating_sub(clock.monotonic());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills the process and its group. It is our child and not waited for yet, so its number is its own.
fn end(child: &mut Child, clock: &dyn Clock) {
    // Where the group is gone there is nothing to kill.
    let _ = kill_process_group(pid(child), Signal::KILL);
    let gone = watch(child).and_then(|pidfd| ends_within(&pidfd, LAST_BREATH, clock));
    let reaped = match gone {
        Ok(true) => child.wait().map(Some),
        _ => child.try_wait(),
    };
    if !matches!(reaped, Ok(Some(_))) {
        tracing::warn!(
            pid = child.id(),
            "a killed hook does not end; it is left behind"
        );
    }
}

#[cfg(test)]
mod tests {
    use block::SystemClock;

    use super::*;

    fn sh(script: &str, timeout: Duration) -> Result<(), Failure> {
        let words = ["sh", "-c", script].map(str::to_owned);
        let env = [("STANDIN_TEST", "yes".to_owned())];
        run(&words, &env, timeout, &SystemClock::new())
    }

    #[test]
    fn what_a_hook_says_is_heard() {
        let long = Duration::from_secs(60);
        sh("test \"$STANDIN_TEST\" = yes", long).expect("it succeeds");
        assert!(
            matches!(sh("exit 3", long), Err(Failure::Status(status)) if status.code() == Some(3))
        );
        let missing = run(&["/no/such/program".into()], &[], long, &SystemClock::new());
        assert!(matches!(missing, Err(Failure::Run(_))));
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        let made = Command::new("mkfifo").arg(&fifo).status();
        assert!(made.expect("mkfifo is there").success());
        let open = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let reader = rustix::fs::open(&fifo, open, rustix::fs::Mode::empty()).expect("opens");
        // Both the shell and its child hold the pipe open until they are dead.
        let script = format!("exec 3>{}; sleep 1000 & wait", fifo.display());
        let hung = sh(&script, Duration::from_millis(300));
        assert!(matches!(hung, Err(Failure::TimedOut(_))));
        let minute = Timespec::try_from(Duration::from_secs(60)).expect("short");
        let mut ends = [PollFd::new(&reader, PollFlags::IN)];
        assert_eq!(poll(&mut ends, Some(&minute)), Ok(1));
        assert!(ends[0].revents().contains(PollFlags::HUP));
    }
}
