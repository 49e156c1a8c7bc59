//! clone3(2): a child on a stack of its own, in the daemon's memory, and the ownership of what it reads there.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::after_clone::run_plan;
use super::plan::{Given, Progress};
use super::raw::flag::{
    CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
    CLONE_PIDFD, CLONE_VM,
};
use super::raw::{self, Errno};

pub use super::plan::{NOTIFY_TARGET, Overlay, PASSED_MAX, Plan, Stage, WORK_TARGET};

/// A child between its clone and its exec or death. Holds what the child reads; dropping it without [`Birth::release`]
/// leaks that memory, because the child may still be reading.
#[derive(Debug)]
pub struct Birth {
    given: ManuallyDrop<Box<Given>>,
    stack: ManuallyDrop<Stack>,
}

/// What shows that a child does not use the daemon's memory any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Its init has spoken, so it has exec'd.
    InitSpoke,
    /// It was waited for.
    Waited,
}

impl Birth {
    /// Clones a child that carries `plan` out on `stack`, inside `cgroup`, in new pid, ipc and uts namespaces; gives back
    /// its pidfd and pid at once, while it goes on by itself.
    ///
    /// # Errors
    /// What clone3(2) says: EAGAIN at a process limit, ENOMEM, EBUSY for a cgroup that cannot hold processes.
    pub fn begin(plan: Plan, stack: Stack, cgroup: Option<BorrowedFd<'_>>) -> io::Result<(Self, OwnedFd, i32)> {
        let mut flags = CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC;
        if plan.own_net {
            flags |= CLONE_NEWNET;
        }
        let mut birth = Self {
            given: ManuallyDrop::new(Box::new(Given { plan, progress: Progress::default() })),
            stack: ManuallyDrop::new(stack),
        };
        let given: *mut Given = &raw mut **birth.given;
        #[cfg(debug_assertions)]
        super::tripwire::arm();
        // SAFETY: the boxed plan and the stack stay where they are until `release`, whose caller knows that the child is
        // done with them; nothing writes to the plan, and progress is atomic. `run_plan` takes exactly this pointer.
        let cloned = unsafe { clone_into(flags, run_plan, given.cast(), &mut birth.stack, cgroup) };
        match cloned {
            Ok((pidfd, pid)) => Ok((birth, pidfd, pid)),
            Err(error) => {
                birth.free();
                Err(error)
            }
        }
    }

    /// The step at which the child failed, once it is gone; `None` if it did not fail at a step (it was killed).
    #[must_use]
    pub fn failure(&self) -> Option<(Stage, i32)> {
        let errno = self.given.progress.errno.load(Ordering::Acquire);
        let at = self.given.progress.stage.load(Ordering::Relaxed);
        let stage = Stage::ALL.into_iter().find(|stage| *stage as u32 == at)?;
        (errno != 0).then_some((stage, errno))
    }

    /// Lets go of what the child has read: closes the plan's descriptors and gives the stack back for another child.
    #[must_use]
    pub fn release(self, _shown_by: Gone) -> Stack {
        self.free()
    }

    fn free(self) -> Stack {
        #[cfg(debug_assertions)]
        super::tripwire::disarm();
        drop(ManuallyDrop::into_inner(self.given));
        ManuallyDrop::into_inner(self.stack)
    }
}

/// A stack for one child; reused once the child has exec'd or is gone.
#[derive(Debug)]
pub struct Stack {
    base: *mut libc::c_void,
}

/// Size of a child's stack; the deepest frame of the child's code needs well under a page in release, more in debug builds.
const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

impl Stack {
    /// Maps a stack with a guard page below it.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), STACK_BYTES, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the first page lies inside the mapping made above, which nothing uses yet.
        if unsafe { libc::mprotect(stack.base, GUARD_BYTES, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and its owner drops it only when no child runs on it any more.
        unsafe { libc::munmap(self.base, STACK_BYTES) };
    }
}

/// `struct clone_args` of clone3(2), version 2 (with the cgroup).
#[derive(Debug, Default)]
#[repr(C, align(8))]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a user namespace whose ids 0..`count` are `base`..`base + count` outside, and returns its descriptor.
///
/// # Errors
/// What clone3(2) or writing the maps says; ENOSPC or EPERM where user namespaces are not allowed.
pub fn user_namespace(base: u32, count: u32, proc_dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    let mut stack = Stack::new()?;
    // SAFETY: `pause_forever` touches no memory, and the stack outlives the child: it is killed and waited for below.
    let (pidfd, pid) = unsafe {
        clone_into(
            CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWUSER,
            pause_forever,
            std::ptr::null_mut(),
            &mut stack,
            None,
        )
    }?;
    let made = (|| {
        let map = format!("0 {base} {count}\n");
        for file in ["uid_map", "gid_map"] {
            let fd = openat(proc_dir, format!("{pid}/{file}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&fd, map.as_bytes())?;
        }
        openat(proc_dir, format!("{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    })();
    // The pid is this child's until it is waited for here, so the paths above could not mean another process.
    super::process::pidfd_kill(&pidfd)?;
    super::process::wait_pidfd(&pidfd)?;
    Ok(made?)
}

unsafe extern "C" fn pause_forever(_: *mut libc::c_void) -> ! {
    loop {
        // SAFETY: ppoll on no descriptors without a timeout reads and writes no memory.
        unsafe { raw::syscall(raw::nr::PPOLL, 0, 0, 0, 0, 0, 0) };
    }
}

type Entry = unsafe extern "C" fn(*mut libc::c_void) -> !;

/// # Safety
/// `entry` must be sound to run with `argument` beside the caller, on `stack`, which must outlive the child.
unsafe fn clone_into(
    flags: usize,
    entry: Entry,
    argument: *mut libc::c_void,
    stack: &mut Stack,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(OwnedFd, i32)> {
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: (flags | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 }) as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: stack.base as u64,
        stack_size: STACK_BYTES as u64,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
        ..CloneArgs::default()
    };
    // No signal may run a handler, or end the child by a default action meant for the daemon's process group, before
    // exec; the init inherits the full mask and sets its own.
    let mask = raw::set_signal_mask(u64::MAX).map_err(os)?;
    // SAFETY: the caller vouches for entry, argument and stack; `args` is a complete clone_args.
    let returned = unsafe { clone3(&args, entry, argument) };
    raw::set_signal_mask(mask).map_err(os)?;
    let pid = raw::check(returned).map_err(os)?;
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pidfd, raw::fd_from(pid)))
}

fn os(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}

/// # Safety
/// As [`clone_into`]; with `CLONE_VM` and a stack of its own in `args`.
unsafe fn clone3(args: &CloneArgs, entry: Entry, argument: *mut libc::c_void) -> isize {
    let result: isize;
    // SAFETY: in the parent only rax, rcx and r11 change. The child starts with an empty stack, aligned to 16, and calls
    // `entry`, which does not return, so nothing of this frame is used by it.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") raw::nr::CLONE3 => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
