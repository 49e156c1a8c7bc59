//! Mounting into a worker that is there already: this process enters its mount namespace, moves detached trees in, and comes back.
//!
//! Only for a worker whose init is still parked: nothing else has run in it, so the paths that are walked there are of its
//! root and of nobody's making. Away it makes nothing but raw system calls on prepared memory; whatever fails there, it comes
//! back. A child that did this in its place would cost twice as much as all the mounts.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open};

use super::raw::flag::CLONE_NEWNS;
use super::raw::{self, Errno};

/// One tree and where it goes.
#[derive(Debug)]
pub struct LateMount {
    /// A detached mount.
    pub tree: OwnedFd,
    /// Directories on the way, the outermost first; those that are missing are made.
    pub way: Vec<CString>,
    /// Where it is mounted; made too if it is missing.
    pub target: CString,
}

/// Why the mounts are not there.
#[derive(Debug)]
pub struct LateMountError {
    /// How many of the mounts had been begun with: 0 if the namespace could not be entered.
    pub begun: usize,
    /// The kernel's reason.
    pub source: io::Error,
}

/// Where this process is at home: its mount namespace, and its root and working directory in that.
#[derive(Debug)]
pub struct Home {
    namespace: OwnedFd,
    root: OwnedFd,
    cwd: OwnedFd,
}

impl Home {
    /// Where this process is now.
    ///
    /// # Errors
    /// Without `/proc`, or without room for three descriptors.
    pub fn here() -> io::Result<Self> {
        let at = |path: &CStr, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            namespace: at(c"/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: at(c"/", OFlags::PATH | OFlags::DIRECTORY)?,
            cwd: at(c".", OFlags::PATH | OFlags::DIRECTORY)?,
        })
    }

    /// Comes back from another mount namespace.
    fn come_back(&self) -> Result<(), Errno> {
        let number = |fd: &OwnedFd| raw::fd_arg(fd.as_raw_fd());
        raw::setns(number(&self.namespace), CLONE_NEWNS)?;
        // The namespace's own root may be another than the one that this process has in it.
        raw::fchdir(number(&self.root))?;
        raw::chroot(c".")?;
        raw::fchdir(number(&self.cwd)).map(|_| ())
    }
}

/// Mounts all of `mounts`, in order, in the mount namespace of the process that `worker` is a pidfd of. Aborts this process if
/// it cannot come back: it would look for everything in the worker.
///
/// # Errors
/// The first that failed; those before it are mounted. EINVAL in a process that shares its root with another one.
pub fn mount_into(worker: BorrowedFd<'_>, mounts: &[LateMount], home: &Home) -> Result<(), LateMountError> {
    /// The kernel may lack memory for a moment.
    const TRIES: u32 = 100;
    let failed =
        |begun: usize| move |Errno(errno)| LateMountError { begun, source: io::Error::from_raw_os_error(errno) };
    raw::setns(raw::fd_arg(worker.as_raw_fd()), CLONE_NEWNS).map_err(failed(0))?;
    let mounted = move_all(mounts);
    if !(0..TRIES).any(|_| home.come_back().is_ok()) {
        std::process::abort();
    }
    mounted.map_err(|(begun, errno)| failed(begun)(errno))
}

/// Moves all of them to where they go in the mount namespace that this process is in.
fn move_all(mounts: &[LateMount]) -> Result<(), (usize, Errno)> {
    // This process's own mask would make directories that nobody can enter.
    let mask = raw::umask(0o022).map_err(|errno| (0, errno))?;
    let mut moved = Ok(());
    for (mount, begun) in mounts.iter().zip(1..) {
        moved = move_one(mount).map_err(|errno| (begun, errno));
        if moved.is_err() {
            break;
        }
    }
    raw::umask(mask).map_err(|errno| (mounts.len(), errno)).and(moved)
}

fn move_one(mount: &LateMount) -> Result<(), Errno> {
    const ENOENT: Errno = Errno(2);
    let put = || raw::move_mount(mount.tree.as_raw_fd(), CWD.as_fd().as_raw_fd(), &mount.target);
    match put() {
        Err(ENOENT) => {
            for dir in &mount.way {
                make_dir(dir)?;
            }
            make_dir(&mount.target)?;
            put().map(|_| ())
        }
        put => put.map(|_| ()),
    }
}

fn make_dir(path: &CStr) -> Result<(), Errno> {
    match raw::mkdir(path, 0o755) {
        // EEXIST: it is there. EROFS: it is not for us to make, and whether it is there the mount will say.
        Ok(_) | Err(Errno(17 | 30)) => Ok(()),
        Err(errno) => Err(errno),
    }
}
