//! Starting a worker: clone, and the sentence for what went wrong.
//!
//! The order of calls: [`begin`], then either the init's first report or its death ends the birth, by
//! [`Birth::release`]; [`step_failed`] and [`program_failed`] put a failure into words.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::protocol::init::{Report, step};
use crate::sys::process;
use crate::sys::spawn::Stage;

pub use crate::sys::process::{Status, Waited, take_short_turns};
pub use crate::sys::spawn::{
    Birth, EXTRA_MOUNTS_MAX, ExtraMount, Gone, NOTIFY_TARGET, Overlay, PASSED_MAX, Plan, SLOTTED_STACKS_MAX, Stack,
    WORK_TARGET,
};

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The clone itself.
    #[error("clone a process into the worker's cgroup and namespaces")]
    Clone {
        /// The kernel's reason.
        source: io::Error,
    },
    /// Memory for the child's stack.
    #[error("map a stack for the child")]
    Stack {
        /// The kernel's reason.
        source: io::Error,
    },
    /// A step between clone and exec.
    #[error("{what}")]
    Step {
        /// The step, as a sentence's part.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A step of the init before the program ran.
    #[error("{what}")]
    Program {
        /// The step, as a sentence's part.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The child was killed before it could say anything.
    #[error("the worker's first process was killed before its program ran")]
    Killed,
}

/// A process that was just cloned.
#[derive(Debug)]
pub struct Child {
    /// Names it for ever.
    pub pidfd: OwnedFd,
    /// Its pid on the host; for people, never for system calls.
    pub pid: i32,
    /// What it still reads of the daemon's memory.
    pub birth: Birth,
}

/// Clones a worker's first process into `cgroup`; `stack` is one that an earlier birth gave back.
///
/// # Errors
/// [`SpawnError::Clone`], [`SpawnError::Stack`]; what goes wrong later shows at the child's exit or in its init's report.
pub fn begin(plan: Plan, cgroup: Option<BorrowedFd<'_>>, stack: Option<Stack>) -> Result<Child, SpawnError> {
    let stack = match stack {
        Some(stack) => stack,
        None => Stack::new().map_err(|source| SpawnError::Stack { source })?,
    };
    let (birth, pidfd, pid) = Birth::begin(plan, stack, cgroup).map_err(|source| SpawnError::Clone { source })?;
    Ok(Child { pidfd, pid, birth })
}

/// Closes every descriptor but the standard ones and the first `passed` after them, which it gives with their numbers: whoever
/// started the daemon may have left some open. To be called once, before anything is opened.
///
/// # Errors
/// EMFILE.
pub fn take_inherited(passed: usize) -> io::Result<Vec<(i32, OwnedFd)>> {
    process::take_inherited(passed)
}

/// Closes every descriptor but the standard ones and those in `kept`: whoever started the daemon may have left some open.
///
/// # Errors
/// None in practice.
pub fn close_inherited(kept: impl IntoIterator<Item = i32>) -> io::Result<()> {
    let mut kept: Vec<usize> = kept.into_iter().filter_map(|number| usize::try_from(number).ok()).collect();
    kept.sort_unstable();
    kept.push(usize::MAX >> 31);
    let mut first = 3;
    for number in kept {
        if number > first {
            let last = (number - 1).min(usize::MAX >> 32);
            let closed = crate::sys::raw::close_range(first, last, 0);
            closed.map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
        }
        first = first.max(number + 1);
    }
    Ok(())
}

/// Keeps others from reading this process's memory, and a core of it from being written.
///
/// # Errors
/// None in practice.
pub fn set_undumpable() -> io::Result<()> {
    process::set_undumpable()
}

/// Sends SIGKILL to a child.
///
/// # Errors
/// ESRCH if it was waited for already.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    process::pidfd_kill(pidfd)
}

/// Sends a signal by number.
///
/// # Errors
/// ESRCH if it is gone, EINVAL for a number that is no signal.
pub fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    process::pidfd_signal(pidfd, signal)
}

/// Waits for a child; blocks until it ends.
///
/// # Errors
/// ECHILD if it was waited for already.
pub fn wait(pidfd: &OwnedFd) -> io::Result<Waited> {
    process::wait_pidfd(pidfd)
}

/// Reaps a child if it has ended; never blocks.
///
/// # Errors
/// ECHILD if it was waited for already.
pub fn try_wait(pidfd: &OwnedFd) -> io::Result<Option<Waited>> {
    process::try_wait_pidfd(pidfd)
}

/// How a process ended that is not our child; `None` while it lives, until somebody has reaped it, and before Linux 6.15.
#[must_use]
pub fn exit_info(pidfd: &OwnedFd) -> Option<Status> {
    process::exit_info(pidfd)
}

/// Whether a process has ended, whoever its parent is.
#[must_use]
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// The next child that has ended and was not waited for, by pid; for whoever is given orphans.
///
/// # Errors
/// ECHILD where there is no child at all.
pub fn peek_ended() -> io::Result<Option<i32>> {
    process::peek_any()
}

/// Reaps an orphan by pid; only for a pid that [`peek_ended`] has just named, which cannot have been used again.
///
/// # Errors
/// ECHILD if it is not our child.
pub fn reap_orphan(pid: i32) -> io::Result<Option<Waited>> {
    process::try_wait_pid(pid)
}

/// The host's pid of the process that a pidfd names, for people; `None` once it was waited for.
#[must_use]
pub fn pid_of(pidfd: &OwnedFd) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// Why a child ended without its init having said a word.
#[must_use]
pub fn step_failed(birth: &Birth) -> SpawnError {
    match birth.failure() {
        Some((stage, errno)) => SpawnError::Step { what: sentence(stage), source: io::Error::from_raw_os_error(errno) },
        None => SpawnError::Killed,
    }
}

const fn sentence(stage: Stage) -> &'static str {
    match stage {
        Stage::Started => "begin",
        Stage::Session => "make a session of its own",
        Stage::OpenWorkDir => "open its directory",
        Stage::OpenRoot => "open its root directory and map its ids (which a tmpfs allows from Linux 6.3 on)",
        Stage::JoinTemplate => "join the pool's template mount namespace",
        Stage::Unshare => "make its mount, cgroup, ipc and uts namespaces",
        Stage::JoinNetwork => "join the network namespace",
        Stage::Loopback => "bring up the loopback interface",
        Stage::AttachRoot => "mount its overlay root",
        Stage::AttachWorkDir => "mount its directory",
        Stage::MountProc => "mount its /proc",
        Stage::MaskProc => "mask its /proc",
        Stage::MountTmp => "mount its /tmp",
        Stage::MountShm => "mount its /dev/shm",
        Stage::MountPts => "mount its /dev/pts",
        Stage::AttachExtra => "mount its volumes",
        Stage::PivotRoot => "pivot to its root",
        Stage::Hostname => "set its host name",
        Stage::Keyring => "make its session keyring",
        Stage::BoundingSet => "empty its capability bounding set",
        Stage::JoinUser => "join its user namespace",
        Stage::Groups => "set its supplementary groups",
        Stage::Gid => "set its gid",
        Stage::Uid => "set its uid",
        Stage::VerifyIds => "verify its uid and gid",
        Stage::Capabilities => "drop its capabilities",
        Stage::NoNewPrivileges => "set no_new_privs",
        Stage::ParentDeath => "tie it to the daemon's life",
        Stage::Descriptors => "put its descriptors in place",
        Stage::Exec => "execute its init",
    }
}

/// Why the init says that the program does not run; `program` is the command's first word, `cwd` its directory.
#[must_use]
pub fn program_failed(report: &Report, program: &str, cwd: &str) -> SpawnError {
    let what = match report.a {
        step::IMAGE => "read the start image".to_owned(),
        step::CLONE => "clone the program's process".to_owned(),
        step::DESCRIPTORS => "put the program's descriptors in place".to_owned(),
        step::RLIMIT => "set the program's resource limits".to_owned(),
        step::CWD => format!("enter {cwd}"),
        step::SECCOMP => "install the system call filter".to_owned(),
        _ => format!("execute {program:?}"),
    };
    let errno = i32::try_from(report.b).unwrap_or(0);
    SpawnError::Program { what, source: io::Error::from_raw_os_error(errno) }
}
