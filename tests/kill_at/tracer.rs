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

/// Whose boundaries are counted, and who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The process that is traced.
    Itself,
    /// The program that it runs beside itself.
    Child,
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

    /// Takes hold of one as [`Self::attach_before_exec`] does; of its children too, if one of them is the victim.
    pub(crate) fn attach_for(victim: Victim, pid: u32, go_on: impl FnOnce()) -> Self {
        let traced = Self::attach_before_exec(pid, go_on);
        if victim == Victim::Child {
            let born = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
            let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC;
            ptrace::setoptions(traced.pid, options | born).expect("trace its children");
        }
        traced
    }

    /// Lets it run until boundary number `target` of its or its child's, and kills that one there. The process itself is
    /// left to its parent to reap only where the child is the victim.
    pub(crate) fn run_until_of(self, victim: Victim, target: u64) -> Outcome {
        match victim {
            Victim::Itself => {
                let pidfd = pidfd_of(self.pid);
                self.run_until(target, &pidfd)
            }
            Victim::Child => self.run_child_until(target),
        }
    }

    /// The same for the program that it runs beside itself; then waits for its own end.
    fn run_child_until(self, target: u64) -> Outcome {
        let (mut count, mut killed, mut reader) = (0, None, None);
        ptrace::cont(self.pid, None).expect("let it go on");
        loop {
            // Of this thread's alone: other tests have children too.
            let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Err(Errno::EINTR) => continue,
                status => status.expect("wait for one of them"),
            };
            let pid = status.pid().expect("it has one");
            let counts = reader == Some(pid);
            let go_on = |signal| if counts { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
            let gone_on = match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) if pid == self.pid => {
                    return killed.map_or(Outcome::Ended(count), Outcome::Killed);
                }
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => continue,
                WaitStatus::PtraceEvent(_, _, event) if event == nix::libc::PTRACE_EVENT_EXEC && pid != self.pid => {
                    reader = Some(pid);
                    ptrace::syscall(pid, None)
                }
                WaitStatus::PtraceSyscall(_) => {
                    count += 1;
                    if count == target {
                        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
                        killed = Some(call.split(' ').next().unwrap_or_default().trim().to_owned());
                        kill(&pidfd_of(pid));
                        continue;
                    }
                    go_on(None)
                }
                WaitStatus::Stopped(_, nix::sys::signal::Signal::SIGSTOP | nix::sys::signal::Signal::SIGTRAP) => {
                    go_on(None)
                }
                WaitStatus::Stopped(_, signal) => go_on(Some(signal)),
                WaitStatus::PtraceEvent(..) | WaitStatus::Continued(_) | WaitStatus::StillAlive => go_on(None),
            };
            // ESRCH: it is dead already; its status comes next.
            assert!(matches!(gone_on, Ok(()) | Err(Errno::ESRCH)), "let it go on: {gone_on:?}");
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

fn pidfd_of(pid: Pid) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).expect("a pid");
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("open its pidfd")
}

/// Kills a process, whatever it is doing.
pub(crate) fn kill(pidfd: &OwnedFd) {
    match pidfd_send_signal(pidfd.as_fd(), Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => panic!("kill the process: {errno}"),
    }
}
