//! clone3(2): a child on a stack of its own, in the daemon's memory, and the ownership of what it reads there.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::after_clone::run_plan;
use super::plan::{Given, LOW_END, Numbers, Progress, SLOTS};
use super::raw::flag::{
    CLONE_CLEAR_SIGHAND, CLONE_FILES, CLONE_INTO_CGROUP, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, CLONE_PIDFD,
    CLONE_VM,
};
use super::raw::{self, CloneArgs, Errno};

pub use super::plan::{
    EXTRA_MOUNTS_MAX, ExtraMount, NOTIFY_TARGET, Overlay, PASSED_MAX, Plan, SLOTTED_STACKS_MAX, Stage, WORK_TARGET,
};

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
    /// Clones a child that carries `plan` out on `stack`, inside `cgroup`, in a new pid namespace; gives back its pidfd
    /// and pid at once, while it goes on by itself and makes its other namespaces.
    ///
    /// # Errors
    /// What clone3(2) says: EAGAIN at a process limit, ENOMEM, EBUSY for a cgroup that cannot hold processes.
    pub fn begin(plan: Plan, stack: Stack, cgroup: Option<BorrowedFd<'_>>) -> io::Result<(Self, OwnedFd, i32)> {
        let mut flags = CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWPID;
        if plan.own_net {
            flags |= CLONE_NEWNET;
        }
        let mut numbers = Numbers::of(&plan);
        let leaves_table = stack.place(&mut numbers)?;
        if leaves_table {
            flags |= CLONE_FILES;
        }
        let given = Given { plan, numbers, leaves_table, progress: Progress::default() };
        let mut birth = Self { given: ManuallyDrop::new(Box::new(given)), stack: ManuallyDrop::new(stack) };
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
        let stack = ManuallyDrop::into_inner(self.stack);
        stack.clear();
        stack
    }
}

/// A stack for one child, and perhaps low descriptor numbers for what it is given; reused once the child has exec'd or is
/// gone.
#[derive(Debug)]
pub struct Stack {
    base: *mut libc::c_void,
    /// `/dev/null` at consecutive numbers below [`LOW_END`], the first to fill the others with; or nothing.
    slots: Vec<OwnedFd>,
}

/// Size of a child's stack; the deepest frame of the child's code needs well under a page in release, more in debug builds.
const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;
/// Where new descriptors have numbers from this on, copying and closing them costs a child more than moving its own does.
const MANY_DESCRIPTORS: i32 = 512;

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
        let stack = Self { base, slots: Vec::new() };
        // SAFETY: the first page lies inside the mapping made above, which nothing uses yet.
        if unsafe { libc::mprotect(stack.base, GUARD_BYTES, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// As [`Stack::new`], with low descriptor numbers reserved, so that its children need not copy a large descriptor table.
    /// To be called before much is open; `null` is `/dev/null`.
    ///
    /// # Errors
    /// ENOMEM, EMFILE.
    pub fn with_slots(null: BorrowedFd<'_>) -> io::Result<Self> {
        let mut stack = Self::new()?;
        let least = i32::try_from(PASSED_MAX).map_err(io::Error::other)?;
        for _ in 0..SLOTS {
            stack.slots.push(rustix::io::fcntl_dupfd_cloexec(null, least)?);
        }
        let low = |fd: &OwnedFd| usize::try_from(fd.as_raw_fd()).is_ok_and(|number| number < LOW_END);
        if !stack.slots.iter().all(low) {
            stack.slots.clear();
        }
        Ok(stack)
    }

    /// Whether it has low descriptor numbers.
    #[must_use]
    pub fn has_slots(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Puts what the child is given into the slots and writes their numbers down; whether that was possible and worth it.
    fn place(&self, numbers: &mut Numbers) -> io::Result<bool> {
        let (mut count, mut highest) = (0, 0);
        for number in numbers.present() {
            count += 1;
            highest = highest.max(*number);
        }
        if highest < MANY_DESCRIPTORS || count >= self.slots.len() {
            return Ok(false);
        }
        for (number, slot) in numbers.present().zip(self.slots.iter().skip(1)) {
            let slot = slot.as_raw_fd();
            replace(*number, slot)?;
            *number = slot;
        }
        Ok(true)
    }

    /// Lets go of what was put into the slots.
    fn clear(&self) {
        let Some((null, slots)) = self.slots.split_first() else { return };
        for slot in slots {
            // The number stays this stack's own either way, and a later birth replaces what is left at it.
            match replace(null.as_raw_fd(), slot.as_raw_fd()) {
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Makes `to`, a number of our own, another name of what `from` names.
fn replace(from: i32, to: i32) -> io::Result<()> {
    const O_CLOEXEC: usize = 0o2_000_000;
    raw::dup3(raw::fd_arg(from), raw::fd_arg(to), O_CLOEXEC).map(|_| ()).map_err(os)
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and its owner drops it only when no child runs on it any more.
        unsafe { libc::munmap(self.base, STACK_BYTES) };
    }
}

/// How the ids of a user namespace are mapped: `count` from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First one in the namespace.
    pub inside: u32,
    /// First one outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Makes a user namespace with these uids and gids, and returns its descriptor.
///
/// # Errors
/// What clone3(2) or writing the maps says; ENOSPC or EPERM where user namespaces are not allowed.
pub fn user_namespace(uids: IdRange, gids: IdRange, proc_dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    let mut stack = Stack::new()?;
    let parent = std::ptr::without_provenance_mut(std::process::id() as usize);
    // SAFETY: `pause_while_parent_lives` touches no memory, its argument is a number, and the stack outlives the child: it is
    // killed and waited for below, or, should this process be killed first, by the kernel.
    let (pidfd, pid) = unsafe {
        clone_into(
            CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWUSER,
            pause_while_parent_lives,
            parent,
            &mut stack,
            None,
        )
    }?;
    let made = (|| {
        for (file, ids) in [("uid_map", uids), ("gid_map", gids)] {
            let map = format!("{} {} {}\n", ids.inside, ids.outside, ids.count);
            let fd = openat(proc_dir, format!("{pid}/{file}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::retry_on_intr(|| rustix::io::write(&fd, map.as_bytes()))?;
        }
        openat(proc_dir, format!("{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    })();
    // The pid is this child's until it is waited for here, so the paths above could not mean another process.
    super::process::pidfd_kill(&pidfd)?;
    super::process::wait_pidfd(&pidfd)?;
    Ok(made?)
}

/// Waits to be killed. It holds all descriptors of its parent, its locks among them, so it must not outlive it.
unsafe extern "C" fn pause_while_parent_lives(parent: *mut libc::c_void) -> ! {
    const PR_SET_PDEATHSIG: usize = 1;
    const SIGKILL: usize = 9;
    // SAFETY: this prctl takes numbers only and concerns this process.
    let set = unsafe { raw::syscall(raw::nr::PRCTL, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0) };
    // SAFETY: getppid takes nothing.
    let now = unsafe { raw::syscall(raw::nr::GETPPID, 0, 0, 0, 0, 0, 0) };
    // The parent may have been killed before it was asked for.
    if set != 0 || now.cast_unsigned() != parent.addr() {
        raw::exit(1);
    }
    loop {
        // SAFETY: ppoll on no descriptors without a timeout reads and writes no memory.
        unsafe { raw::syscall(raw::nr::PPOLL, 0, 0, 0, 0, 0, 0) };
    }
}

type Entry = unsafe extern "C" fn(*mut libc::c_void) -> !;

/// # Safety
/// `entry` must be sound to run with `argument` beside the caller, on `stack`, which must outlive the child.
pub(super) unsafe fn clone_into(
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
    let returned = unsafe { raw::clone3(&args, entry, argument) };
    raw::set_signal_mask(mask).map_err(os)?;
    let pid = raw::check(returned).map_err(os)?;
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pidfd, raw::fd_from(pid)))
}

fn os(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}
