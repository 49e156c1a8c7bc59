//! Follows one process from system call to system call and kills it at the one that was chosen.
//!
//! A boundary is an entry into a system call or the return from one. A kill at an entry comes before the call has any
//! effect, a kill at its return after all of it. Only the process itself is traced: what it clones runs on untouched. All
//! calls for one process come from one thread, as ptrace(2) wants.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{Signal, pidfd_send_signal};

/// How a traced process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Killed at the boundary that was chosen; the call that it was in.
    Killed(String),
    /// It ended before that, killed by somebody else or by itself, after so many boundaries.
    Ended(u64),
}

/// A process that is being traced and stands still.
#[derive(Debug)]
pub(crate) struct Traced {
    pid: Pid,
}

impl Traced {
    /// Takes hold of a process that runs.
    pub(crate) fn attach(pid: u32) -> Self {
        let traced = Self::seize(pid, Options::empty());
        ptrace::interrupt(traced.pid).expect("interrupt the process");
        traced.wait();
        traced
    }

    /// Takes hold of one that waits for a line to become another program, and lets it: it stands at its first instruction.
    pub(crate) fn attach_before_exec(pid: u32, go_on: impl FnOnce()) -> Self {
        let traced = Self::seize(pid, Options::PTRACE_O_TRACEEXEC);
        go_on();
        loop {
            match traced.wait() {
                WaitStatus::PtraceEvent(_, _, event) if event == nix::libc::PTRACE_EVENT_EXEC => return traced,
                WaitStatus::Stopped(_, signal) => ptrace::cont(traced.pid, signal).expect("let it go on"),
                WaitStatus::PtraceEvent(..) => ptrace::cont(traced.pid, None).expect("let it go on"),
                other @ (WaitStatus::Exited(..)
                | WaitStatus::Signaled(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_)
                | WaitStatus::StillAlive) => panic!("the process did not become another program: {other:?}"),
            }
        }
    }

    fn seize(pid: u32, more: Options) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | more;
        ptrace::seize(pid, options).expect("trace the process");
        Self { pid }
    }

    fn wait(&self) -> WaitStatus {
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                status => return status.expect("wait for the process"),
            }
        }
    }

    /// Lets it run until boundary number `target`, and kills it there.
    pub(crate) fn run_until(self, target: u64, pidfd: &OwnedFd) -> Outcome {
        let mut count = 0;
        let mut signal = None;
        loop {
            match ptrace::syscall(self.pid, signal.take()) {
                // It is dead already; its status comes next.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => panic!("let the process go on: {errno}"),
            }
            match self.wait() {
                WaitStatus::PtraceSyscall(_) => {
                    count += 1;
                    if count == target {
                        let call = fs::read_to_string(format!("/proc/{}/syscall", self.pid)).unwrap_or_default();
                        kill(pidfd);
                        while !matches!(self.wait(), WaitStatus::Signaled(..) | WaitStatus::Exited(..)) {}
                        return Outcome::Killed(call.split(' ').next().unwrap_or_default().trim().to_owned());
                    }
                }
                WaitStatus::Stopped(_, stopped_by) => signal = Some(stopped_by),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Outcome::Ended(count),
                WaitStatus::PtraceEvent(..) | WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
    }
}

/// Kills a process, whatever it is doing.
pub(crate) fn kill(pidfd: &OwnedFd) {
    match pidfd_send_signal(pidfd.as_fd(), Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => panic!("kill the process: {errno}"),
    }
}
