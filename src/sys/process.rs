//! Processes by pidfd: waiting and signalling, with what the safe wrappers leave out.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::plan::LOW_END;
use super::raw;

/// How a process ended and what it used, from waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// Exit code, or the signal that ended it.
    pub status: Status,
    /// Time on a processor in user mode, its waited-for children included, in microseconds.
    pub user_usec: u64,
    /// The same in the kernel.
    pub system_usec: u64,
    /// Largest resident size of it or a waited-for child, in KiB.
    pub max_rss_kib: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `exit(code)`.
    Exited(i32),
    /// Ended by a signal.
    Signalled(i32),
}

/// Has this process and those that it starts take short turns on a processor: what wakes them is answered soon also where all
/// processors are busy, at nobody's cost.
///
/// # Errors
/// EPERM or ENOSYS under a filter that does not allow it.
pub fn take_short_turns() -> io::Result<()> {
    /// The shortest that there are.
    const NANOSECONDS: u64 = 100_000;
    raw::take_turns(NANOSECONDS).map_err(|errno| io::Error::from_raw_os_error(errno.0))
}

/// Sends SIGKILL to the process that `pidfd` names.
///
/// # Errors
/// ESRCH if it was waited for already.
pub fn pidfd_kill(pidfd: &OwnedFd) -> io::Result<()> {
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).map_err(io::Error::from)
}

/// Sends a signal by number to the process that `pidfd` names.
///
/// # Errors
/// ESRCH if it is gone, EINVAL for a number that is no signal.
pub fn pidfd_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal with a null siginfo takes numbers only.
    let returned = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for a child and reaps it; blocks until it ends.
///
/// # Errors
/// ECHILD if it is not our child or was reaped.
pub fn wait_pidfd(pidfd: &OwnedFd) -> io::Result<Waited> {
    loop {
        match wait(libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned(), 0) {
            Ok(Some((_, waited))) => return Ok(waited),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reaps a child if it has ended; never blocks.
///
/// # Errors
/// ECHILD if it is not our child or was reaped.
pub fn try_wait_pidfd(pidfd: &OwnedFd) -> io::Result<Option<Waited>> {
    wait(libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned(), libc::WNOHANG).map(|w| w.map(|(_, waited)| waited))
}

/// Looks whether any child has ended, without reaping it; its pid.
///
/// # Errors
/// ECHILD where there is no child.
pub fn peek_any() -> io::Result<Option<i32>> {
    wait(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT).map(|w| w.map(|(pid, _)| pid))
}

/// Reaps the child with this pid if it has ended; never blocks. For orphans that PID 1 is given, which have no pidfd.
///
/// # Errors
/// ECHILD if it is not our child.
pub fn try_wait_pid(pid: i32) -> io::Result<Option<Waited>> {
    wait(libc::P_PID, pid.cast_unsigned(), libc::WNOHANG).map(|w| w.map(|(_, waited)| waited))
}

fn wait(kind: libc::idtype_t, id: libc::id_t, options: i32) -> io::Result<Option<(i32, Waited)>> {
    // SAFETY: all-zero bytes are a valid siginfo_t and a valid rusage: both are plain integers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // The system call, not the library's waitid: only the former gives the resource usage.
    // SAFETY: both pointers are to whole structures of the kinds that the kernel fills in.
    let returned =
        unsafe { libc::syscall(libc::SYS_waitid, kind, id, &raw mut info, options | libc::WEXITED, &raw mut usage) };
    if returned != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid succeeded, so the fields of a child's event, or zeroes, are there.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let value = unsafe { info.si_status() };
    let status = if info.si_code == libc::CLD_EXITED { Status::Exited(value) } else { Status::Signalled(value) };
    let usec =
        |t: libc::timeval| t.tv_sec.cast_unsigned().saturating_mul(1_000_000).saturating_add(t.tv_usec.cast_unsigned());
    let waited = Waited {
        status,
        user_usec: usec(usage.ru_utime),
        system_usec: usec(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss.cast_unsigned(),
    };
    Ok(Some((pid, waited)))
}

/// How the process that `pidfd` names ended, for one that is not our child: the kernel keeps it once somebody has reaped it.
/// `None` while it lives or is a zombie, and before Linux 6.15.
#[must_use]
pub fn exit_info(pidfd: &OwnedFd) -> Option<Status> {
    /// `_IOWR(0xFF, 11, struct pidfd_info)` with the structure's first size, 64 bytes.
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // The system call, not the library's ioctl: the libraries do not agree on the type of the request.
    // SAFETY: the kernel reads and writes one structure of 64 bytes, which is the size that the request's number names.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if returned != 0 || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    let signal = info.exit_code & 0x7f;
    Some(if signal == 0 { Status::Exited((info.exit_code >> 8) & 0xff) } else { Status::Signalled(signal) })
}

/// Closes what this process was born with from 3 on, but for the first `passed`, which it gives, close-on-exec and out of the
/// way of the low numbers that workers' descriptors are put in, with the number that each had. To be called once, before
/// anything is opened.
///
/// # Errors
/// EMFILE where the numbers above are not allowed.
pub fn take_inherited(passed: usize) -> io::Result<Vec<(i32, OwnedFd)>> {
    const FIRST: usize = 3;
    let failed = |errno: raw::Errno| io::Error::from_raw_os_error(errno.0);
    raw::close_range(FIRST.saturating_add(passed), usize::MAX >> 32, 0).map_err(failed)?;
    let least = i32::try_from(LOW_END).map_err(io::Error::other)?;
    let mut taken = Vec::new();
    for number in (FIRST..).take(passed) {
        let number = i32::try_from(number).map_err(io::Error::other)?;
        // SAFETY: F_DUPFD_CLOEXEC takes and gives numbers only.
        let moved = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, least) };
        let refused = io::Error::last_os_error();
        if moved < 0 && refused.raw_os_error() == Some(libc::EBADF) {
            continue;
        }
        // SAFETY: the call did not find it closed, and what a process is born with nobody owns but who takes it here.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        if moved < 0 {
            return Err(refused);
        }
        // SAFETY: the call succeeded, so the number is open and nobody else owns it.
        taken.push((number, unsafe { OwnedFd::from_raw_fd(moved) }));
    }
    Ok(taken)
}

/// Keeps other processes from reading this one's memory and from getting a core of it; children made with `CLONE_VM`
/// are covered until they exec.
///
/// # Errors
/// None in practice.
pub fn set_undumpable() -> io::Result<()> {
    const PR_SET_DUMPABLE: usize = 4;
    raw::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0).map(|_| ()).map_err(|e| io::Error::from_raw_os_error(e.0))
}
