//! How the process that reads an archive is shut in, before it reads the first byte.
//!
//! Its `/` is the target, empty and mounted so that ids 0..65,535 on the disk are a private range here; it is root of a user
//! namespace over that range and of nothing else, in a mount namespace that it has no rights over, without network. It
//! can make files and give them to any id of the range; Landlock and a filter take away programs, devices and all other
//! calls. Nothing of the host is open but the archive and the socket to the daemon (HARDENING F1, F6).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use caps::{CapSet, Capability, CapsHashSet};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};

use crate::host::mounts::enter_root;
use crate::host::seccomp::Filter;
use crate::host::spawn::close_inherited;
use crate::sys::confine::{
    LANDLOCK_EXECUTE, LANDLOCK_IOCTL_DEV, LANDLOCK_MAKE_BLOCK, LANDLOCK_MAKE_CHAR, LANDLOCK_MAKE_SOCK, filter, landlock,
};
use crate::sys::mount::{MountAttr, PRIVATE, mount_setattr};
use crate::sys::raw::{self, flag};

/// Memory that it may map, in bytes: names of a million entries, and the window of a decompressor.
const MEMORY_BYTES: u64 = 1 << 30;
/// Time on a processor, in seconds.
const CPU_SECONDS: u64 = 3_600;
/// Descriptors: one for each directory on the deepest way, and some.
const DESCRIPTORS: u64 = 512;

/// What a maker of files needs: to give them away, to work in directories closed to their owner, to set the modes of what is
/// given away. Over the range alone.
const KEPT: [Capability; 4] =
    [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER, Capability::CAP_FSETID];

/// A process could not be shut in.
#[derive(Debug, thiserror::Error)]
#[error("shut the reader of the archive in: {operation}")]
pub(super) struct ConfineError {
    operation: &'static str,
    source: io::Error,
}

fn step<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError { operation, source: source.into() }
}

fn os(errno: raw::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}

/// Shuts this process in; the target's directory, which is `/` from now on.
///
/// # Errors
/// [`ConfineError`]; then nothing may be read.
pub(super) fn confine(
    tree: OwnedFd,
    userns: OwnedFd,
    kept: &[&OwnedFd],
    (parent, file_bytes): (u32, u64),
) -> Result<OwnedFd, ConfineError> {
    let spaces = flag::CLONE_NEWNS | flag::CLONE_NEWNET | flag::CLONE_NEWIPC | flag::CLONE_NEWUTS;
    raw::unshare(spaces).map_err(os).map_err(step("leave the host's namespaces"))?;
    // The daemon's would take from modes that an archive says.
    rustix::process::umask(Mode::empty());
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("make the mounts private"))?;
    // A clone of a mount that is shared, as those of a host with systemd are, is shared with it and can be no root.
    let alone = MountAttr { propagation: PRIVATE, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), &alone, true).map_err(step("make the target's mount private"))?;
    enter_root(&tree).map_err(io::Error::other).map_err(step("make the target its root"))?;
    raw::setns(raw::fd_arg(userns.as_raw_fd()), flag::CLONE_NEWUSER)
        .map_err(os)
        .map_err(step("join the user namespace"))?;
    drop((tree, userns));
    raw::setgroups(&[]).map_err(os).map_err(step("drop the groups"))?;
    raw::setresgid(0, 0, 0).map_err(os).map_err(step("set the gid"))?;
    raw::setresuid(0, 0, 0).map_err(os).map_err(step("set the uid"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("keep its memory to itself"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("tie it to the daemon's life"))?;
    // Whose parent has died before that was asked for belongs to somebody else by now.
    let is_there = getppid().map(Pid::as_raw_nonzero).is_some_and(|pid| u32::try_from(pid.get()) == Ok(parent));
    if !is_there {
        return Err(step("find the daemon")(io::Error::from(io::ErrorKind::NotFound)));
    }
    limit(file_bytes)?;
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let root = open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(step("open the target"))?;
    let numbers = kept.iter().map(|fd| fd.as_raw_fd()).chain([root.as_raw_fd()]);
    close_inherited(numbers).map_err(step("close what it has no use for"))?;
    let taken = LANDLOCK_EXECUTE | LANDLOCK_MAKE_CHAR | LANDLOCK_MAKE_SOCK | LANDLOCK_MAKE_BLOCK | LANDLOCK_IOCTL_DEV;
    match landlock(root.as_fd(), taken) {
        // EOPNOTSUPP: the host was started without it; what is above shuts in as well.
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => {}
        Err(error) => return Err(step("restrict it by Landlock")(error)),
    }
    let program = Filter::reader().map_err(io::Error::other).map_err(step("make its system call filter"))?;
    filter(program.program()).map_err(step("install its system call filter"))?;
    Ok(root)
}

const EOPNOTSUPP: i32 = 95;

fn limit(file_bytes: u64) -> Result<(), ConfineError> {
    let limits = [
        (Resource::Fsize, file_bytes),
        (Resource::As, MEMORY_BYTES),
        (Resource::Cpu, CPU_SECONDS),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Nproc, 0),
        // Not zero: the kernel starts a handler of cores then (core(5)).
        (Resource::Core, 1),
    ];
    for (resource, value) in limits {
        let most = rustix::process::getrlimit(resource).maximum.map_or(value, |hard| hard.min(value));
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(step("limit its resources"))?;
    }
    Ok(())
}

fn drop_capabilities() -> Result<(), ConfineError> {
    let kept: CapsHashSet = KEPT.into_iter().collect();
    let failed = |error: caps::errors::CapsError| step("drop its capabilities")(io::Error::other(error));
    // Whatever is kept is kept by a process that executes nothing: nothing may come of an execution.
    caps::clear(None, CapSet::Bounding).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)
}
