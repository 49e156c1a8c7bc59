//! Mounting into a worker that is there already: a short-lived child enters its mount namespace and moves detached trees in.
//!
//! Only for a worker whose init is still parked: nothing else has run in it, so the paths that are walked there are of its
//! root and of nobody's making. The child is the daemon's own memory on another stack, as between clone and exec, and the
//! daemon stands still until it has ended: raw system calls on prepared memory, no allocation.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::raw::flag::{CLONE_CLEAR_SIGHAND, CLONE_FILES, CLONE_NEWNS, CLONE_PIDFD, CLONE_VFORK, CLONE_VM};
use super::raw::{self, Errno};
use super::spawn::{Stack, clone_into};

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
    /// Which one, by its place in the list; `None` if the namespace could not be entered.
    pub which: Option<usize>,
    /// The kernel's reason.
    pub source: io::Error,
}

struct Order<'a> {
    worker: i32,
    mounts: &'a [LateMount],
    at: AtomicU32,
    errno: AtomicI32,
}

/// Mounts all of `mounts`, in order, in the mount namespace of the process that `worker` is a pidfd of.
///
/// # Errors
/// The first that failed; those before it are mounted.
pub fn mount_into(worker: BorrowedFd<'_>, mounts: &[LateMount], stack: &mut Stack) -> Result<(), LateMountError> {
    let order = Order { worker: worker.as_raw_fd(), mounts, at: AtomicU32::new(0), errno: AtomicI32::new(0) };
    let flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_FILES | CLONE_CLEAR_SIGHAND;
    let at = std::ptr::from_ref(&order).cast_mut().cast();
    let failed = |source| LateMountError { which: None, source };
    // SAFETY: with CLONE_VFORK this frame, the order and the stack stay as they are until the child has exited; `carry_out`
    // takes exactly an order and writes only its atomics.
    let (pidfd, _) = unsafe { clone_into(flags, carry_out, at, stack, None) }.map_err(failed)?;
    super::process::wait_pidfd(&pidfd).map_err(failed)?;
    match order.errno.load(Ordering::Acquire) {
        0 => Ok(()),
        errno => {
            let step = order.at.load(Ordering::Acquire) as usize;
            Err(LateMountError { which: step.checked_sub(1), source: io::Error::from_raw_os_error(errno) })
        }
    }
}

unsafe extern "C" fn carry_out(order: *mut libc::c_void) -> ! {
    // SAFETY: the caller stands still in vfork and passed a pointer to its own order.
    let order = unsafe { &*order.cast::<Order<'_>>() };
    match steps(order) {
        Ok(()) => raw::exit(0),
        Err(errno) => {
            order.errno.store(errno.0, Ordering::Release);
            raw::exit(1)
        }
    }
}

fn steps(order: &Order<'_>) -> Result<(), Errno> {
    const CWD: i32 = -100;
    // Its own, like the root that the next call gives it: the daemon's mask would make directories that nobody can enter.
    raw::umask(0o022)?;
    raw::setns(raw::fd_arg(order.worker), CLONE_NEWNS)?;
    for mount in order.mounts {
        order.at.fetch_add(1, Ordering::Release);
        for dir in &mount.way {
            make_dir(dir)?;
        }
        make_dir(&mount.target)?;
        raw::move_mount(mount.tree.as_raw_fd(), CWD, &mount.target)?;
    }
    Ok(())
}

fn make_dir(path: &std::ffi::CStr) -> Result<(), Errno> {
    const CWD: i32 = -100;
    const MODE: usize = 0o755;
    // SAFETY: the path ends with NUL and the kernel only reads it.
    let made =
        raw::check(unsafe { raw::syscall(raw::nr::MKDIRAT, raw::fd_arg(CWD), path.as_ptr() as usize, MODE, 0, 0, 0) });
    match made {
        // EEXIST: it is there. EROFS: it is not for us to make, and whether it is there the mount will say.
        Ok(_) | Err(Errno(17 | 30)) => Ok(()),
        Err(errno) => Err(errno),
    }
}
