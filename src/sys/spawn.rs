//! clone3(2) and the code between clone and exec.
//!
//! The child runs on its own stack in the daemon's memory (`CLONE_VM`): it shares the heap, the thread-local storage and
//! libc's errno with a daemon that goes on running beside it. So everything after the clone is raw system calls on memory
//! prepared before it: no allocation, no formatting, no panic, no return. The first failure is left in the plan as stage
//! and error number, and the child exits; the daemon reads it when the pidfd says that the child is gone.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::raw::{self, Errno};

/// Descriptors that a worker's init can be given, standard ones included.
pub const PASSED_MAX: usize = 24;

/// Where a worker's own directory appears inside.
pub const WORK_TARGET: &CStr = c"/run/worker/work";
/// Where the directory with its notify socket appears inside.
pub const NOTIFY_TARGET: &CStr = c"/run/worker/notify";

/// The step that the child was at when it failed. The order is that of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[expect(missing_docs, reason = "host::spawn has a sentence for each")]
pub enum Stage {
    Started = 0,
    Session,
    OpenWorkDir,
    OpenRoot,
    JoinTemplate,
    Unshare,
    JoinNetwork,
    Loopback,
    AttachRoot,
    AttachWorkDir,
    MountProc,
    MaskProc,
    MountTmp,
    MountShm,
    MountPts,
    PivotRoot,
    Hostname,
    Keyring,
    BoundingSet,
    JoinUser,
    Groups,
    Gid,
    Uid,
    VerifyIds,
    Capabilities,
    NoNewPrivileges,
    ParentDeath,
    Descriptors,
    Exec,
}

impl Stage {
    const ALL: [Self; 29] = [
        Self::Started,
        Self::Session,
        Self::OpenWorkDir,
        Self::OpenRoot,
        Self::JoinTemplate,
        Self::Unshare,
        Self::JoinNetwork,
        Self::Loopback,
        Self::AttachRoot,
        Self::AttachWorkDir,
        Self::MountProc,
        Self::MaskProc,
        Self::MountTmp,
        Self::MountShm,
        Self::MountPts,
        Self::PivotRoot,
        Self::Hostname,
        Self::Keyring,
        Self::BoundingSet,
        Self::JoinUser,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::VerifyIds,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::ParentDeath,
        Self::Descriptors,
        Self::Exec,
    ];
}

/// The root of a worker whose root is a directory: an overlay, put together inside the template.
#[derive(Debug)]
pub struct Overlay {
    /// A directory with `upper` and `work` in it, on a filesystem that can be an overlay's upper layer.
    pub stage: OwnedFd,
    /// The lower directory, where it has to be id-mapped for this worker; else the template has it.
    pub mapped_lower: Option<OwnedFd>,
    /// Mounts of the template that move into the root: from, to.
    pub carry: Vec<(CString, CString)>,
}

/// All that the child needs, prepared before the clone and owned until the child has exec'd or is gone.
#[derive(Debug)]
pub struct Plan {
    /// Finished mount namespace that the child copies.
    pub template: Rc<OwnedFd>,
    /// Network namespace to join; `None` inherits the daemon's.
    pub net: Option<Rc<OwnedFd>>,
    /// Whether it gets a network namespace of its own.
    pub own_net: bool,
    /// User namespace to join, made for this worker's id range.
    pub userns: Option<Rc<OwnedFd>>,
    /// The worker's directory on the host.
    pub work_dir: OwnedFd,
    /// The directory with its notify socket, if it has one.
    pub notify_dir: Option<OwnedFd>,
    /// For a root that is a directory.
    pub overlay: Option<Overlay>,
    /// The program of the init, a sealed memfd.
    pub init: Rc<OwnedFd>,
    /// UTS host name.
    pub hostname: CString,
    /// Options of the private tmpfs on `/tmp`.
    pub tmp_options: CString,
    /// Options of the private tmpfs on `/dev/shm`.
    pub shm_options: CString,
    /// Whether `/proc` is made harmless to uid 0 (needed where uid 0 is the host's).
    pub mask_proc: bool,
    /// Whether the child is killed with the daemon.
    pub dies_with_parent: bool,
    /// Uid to become, in the terms of the user namespace that is joined.
    pub uid: u32,
    /// Gid to become, likewise, and the only supplementary group.
    pub gid: u32,
    /// Descriptors that become 0, 1, 2, … in this order; each number is at least [`PASSED_MAX`] (see [`OwnedFd`] users).
    pub passed: Vec<OwnedFd>,
}

/// How far the child has come; it writes, the daemon reads.
#[derive(Debug, Default)]
struct Progress {
    stage: AtomicU32,
    errno: AtomicI32,
}

/// What the child is given: one pointer to both.
#[derive(Debug)]
struct Given {
    plan: Plan,
    progress: Progress,
}

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

const CLONE_VM: usize = 0x100;
const CLONE_PIDFD: usize = 0x1000;
const CLONE_NEWNS: usize = 0x2_0000;
const CLONE_NEWCGROUP: usize = 0x200_0000;
const CLONE_NEWUTS: usize = 0x400_0000;
const CLONE_NEWIPC: usize = 0x800_0000;
const CLONE_NEWUSER: usize = 0x1000_0000;
const CLONE_NEWPID: usize = 0x2000_0000;
const CLONE_NEWNET: usize = 0x4000_0000;
/// The 64-bit flags, which libc's 32-bit constants cannot hold.
const CLONE_CLEAR_SIGHAND: usize = 0x1_0000_0000;
const CLONE_INTO_CGROUP: usize = 0x2_0000_0000;

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

/// # Safety
/// `given` points to a [`Given`] that stays valid and, but for its atomics, unchanged while this runs.
unsafe extern "C" fn run_plan(given: *mut libc::c_void) -> ! {
    // SAFETY: the caller keeps it alive; only its atomics are written, and only here.
    let given = unsafe { &*given.cast::<Given>() };
    let errno = match steps(&given.plan, &given.progress) {
        Ok(never) => match never {},
        Err(errno) => errno,
    };
    given.progress.errno.store(errno.0, Ordering::Release);
    raw::exit(127)
}

enum Never {}

fn at(progress: &Progress, stage: Stage) {
    progress.stage.store(stage as u32, Ordering::Relaxed);
}

const OPEN_TREE_CLONE: usize = 0x1;
const OPEN_TREE_CLOEXEC: usize = 0o2_000_000;

fn steps(plan: &Plan, progress: &Progress) -> Result<Never, Errno> {
    const AT_EMPTY_PATH: usize = 0x1000;
    let clone_of = |fd: i32| raw::open_tree(fd, c"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    at(progress, Stage::Session);
    raw::setsid()?;
    // Trees are cloned while the host's mounts are still this process's own; they are attached after the switch.
    at(progress, Stage::OpenWorkDir);
    let mut trees = Trees { work: clone_of(plan.work_dir.as_raw_fd())?, notify: -1, stage: -1, lower: -1 };
    if let Some(notify) = &plan.notify_dir {
        trees.notify = clone_of(notify.as_raw_fd())?;
    }
    at(progress, Stage::OpenRoot);
    if let Some(overlay) = &plan.overlay {
        trees.stage = clone_of(overlay.stage.as_raw_fd())?;
        if let Some(lower) = &overlay.mapped_lower {
            trees.lower = clone_of(lower.as_raw_fd())?;
            id_map(trees.lower, plan.userns.as_ref().map_or(-1, |fd| fd.as_raw_fd()))?;
        }
    }
    at(progress, Stage::JoinTemplate);
    raw::setns(raw::fd_arg(plan.template.as_raw_fd()), CLONE_NEWNS)?;
    at(progress, Stage::Unshare);
    raw::unshare(CLONE_NEWNS | CLONE_NEWCGROUP)?;
    at(progress, Stage::JoinNetwork);
    if let Some(net) = &plan.net {
        raw::setns(raw::fd_arg(net.as_raw_fd()), CLONE_NEWNET)?;
    }
    at(progress, Stage::Loopback);
    if plan.own_net {
        loopback_up()?;
    }
    mounts(plan, progress, &trees)?;
    become_worker(plan, progress)?;
    at(progress, Stage::Descriptors);
    for (to, from) in plan.passed.iter().enumerate() {
        raw::dup3(raw::fd_arg(from.as_raw_fd()), to, 0)?;
    }
    at(progress, Stage::Exec);
    exec(plan.init.as_raw_fd())
}

/// Detached mounts, made while the host's are still this process's own; -1 is none.
struct Trees {
    work: i32,
    notify: i32,
    stage: i32,
    lower: i32,
}

const MS_RDONLY: usize = 1;
const MS_NOSUID: usize = 2;
const MS_NODEV: usize = 4;
const MS_NOEXEC: usize = 8;
const MS_REMOUNT: usize = 32;
const MS_BIND: usize = 4096;
const MNT_DETACH: usize = 2;

fn mounts(plan: &Plan, progress: &Progress, trees: &Trees) -> Result<(), Errno> {
    const CWD: i32 = -100;
    at(progress, Stage::AttachRoot);
    if let Some(overlay) = &plan.overlay {
        raw::move_mount(trees.stage, CWD, c"/stage")?;
        if trees.lower >= 0 {
            raw::move_mount(trees.lower, CWD, c"/lower")?;
        }
        let layers = c"lowerdir=/lower,upperdir=/stage/upper,workdir=/stage/work";
        raw::mount(c"overlay", c"/new", c"overlay", MS_NOSUID | MS_NODEV, layers)?;
        for (from, to) in &overlay.carry {
            let tree = raw::open_tree(CWD, from, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)?;
            raw::move_mount(tree, CWD, to)?;
        }
        at(progress, Stage::PivotRoot);
        raw::chdir(c"/new")?;
        raw::pivot_root(c".", c".")?;
        raw::umount2(c".", MNT_DETACH)?;
        raw::chdir(c"/")?;
    }
    at(progress, Stage::AttachWorkDir);
    raw::move_mount(trees.work, CWD, WORK_TARGET)?;
    if trees.notify >= 0 {
        raw::move_mount(trees.notify, CWD, NOTIFY_TARGET)?;
    }
    at(progress, Stage::MountProc);
    raw::mount(c"proc", c"/proc", c"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, c"")?;
    at(progress, Stage::MaskProc);
    if plan.mask_proc {
        mask_proc()?;
    }
    at(progress, Stage::MountTmp);
    raw::mount(c"tmpfs", c"/tmp", c"tmpfs", MS_NOSUID | MS_NODEV, &plan.tmp_options)?;
    at(progress, Stage::MountShm);
    raw::mount(c"tmpfs", c"/dev/shm", c"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, &plan.shm_options)?;
    at(progress, Stage::MountPts);
    raw::mount(
        c"devpts",
        c"/dev/pts",
        c"devpts",
        MS_NOSUID | MS_NOEXEC,
        c"newinstance,ptmxmode=0666,mode=0620,max=64",
    )?;
    Ok(())
}

/// Takes from uid 0 what procfs gives it by ownership alone.
fn mask_proc() -> Result<(), Errno> {
    for path in [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus", c"/proc/fs"] {
        raw::mount(path, path, c"", MS_BIND, c"")?;
        raw::mount(c"", path, c"", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, c"")?;
    }
    for path in
        [c"/proc/kcore", c"/proc/keys", c"/proc/timer_list", c"/proc/kmsg", c"/proc/kpagecount", c"/proc/kpageflags"]
    {
        match raw::mount(c"/dev/null", path, c"", MS_BIND, c"") {
            // ENOENT: this kernel does not have the file, so there is nothing to hide.
            Ok(_) | Err(Errno(2)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn id_map(tree: i32, userns: i32) -> Result<(), Errno> {
    let attr = super::mount::MountAttr {
        set: super::mount::ATTR_IDMAP,
        userns_fd: u64::from(userns.cast_unsigned()),
        ..Default::default()
    };
    let (empty, at) = (c"".as_ptr() as usize, (&raw const attr) as usize);
    let size = size_of::<super::mount::MountAttr>();
    // SAFETY: the path ends with NUL and the kernel reads `size` bytes of `attr`.
    raw::check(unsafe { raw::syscall(raw::nr::MOUNT_SETATTR, raw::fd_arg(tree), empty, 0x1000, at, size, 0) })?;
    Ok(())
}

/// Brings `lo` up in a fresh network namespace.
fn loopback_up() -> Result<(), Errno> {
    const AF_INET: usize = 2;
    const SOCK_DGRAM_CLOEXEC: usize = 2 | 0o2_000_000;
    const SIOCSIFFLAGS: usize = 0x8914;
    #[repr(C)]
    struct InterfaceFlags {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let request = InterfaceFlags { name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0", flags: 1, rest: [0; 22] };
    // SAFETY: socket takes numbers only.
    let fd = raw::check(unsafe { raw::syscall(raw::nr::SOCKET, AF_INET, SOCK_DGRAM_CLOEXEC, 0, 0, 0, 0) })?;
    // SAFETY: the request is a whole `struct ifreq` of 40 bytes, which the kernel reads.
    raw::check(unsafe { raw::syscall(raw::nr::IOCTL, fd, SIOCSIFFLAGS, (&raw const request) as usize, 0, 0, 0) })?;
    raw::close(fd)?;
    Ok(())
}

const PR_SET_PDEATHSIG: usize = 1;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
/// Above every capability there is; the kernel says EINVAL at the first that it does not know.
const CAPABILITIES_MAX: usize = 64;

fn become_worker(plan: &Plan, progress: &Progress) -> Result<(), Errno> {
    at(progress, Stage::Hostname);
    raw::sethostname(&plan.hostname)?;
    at(progress, Stage::Keyring);
    match raw::keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0) {
        // ENOSYS: a kernel without keyrings; EPERM: a container's filter. Then there is no keyring to inherit either way.
        Ok(_) | Err(Errno(38 | 1)) => {}
        Err(errno) => return Err(errno),
    }
    at(progress, Stage::JoinUser);
    if let Some(userns) = &plan.userns {
        raw::setns(raw::fd_arg(userns.as_raw_fd()), CLONE_NEWUSER)?;
    }
    at(progress, Stage::BoundingSet);
    for capability in 0..CAPABILITIES_MAX {
        match raw::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) {
            Ok(_) => {}
            Err(Errno(22)) if capability > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    at(progress, Stage::Groups);
    raw::setgroups(&[plan.gid])?;
    at(progress, Stage::Gid);
    let gid = plan.gid as usize;
    raw::setresgid(gid, gid, gid)?;
    at(progress, Stage::Uid);
    let uid = plan.uid as usize;
    raw::setresuid(uid, uid, uid)?;
    at(progress, Stage::VerifyIds);
    if raw::getresuid()? != [plan.uid; 3] || raw::getresgid()? != [plan.gid; 3] {
        return Err(Errno(1));
    }
    at(progress, Stage::Capabilities);
    raw::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)?;
    raw::drop_capabilities()?;
    at(progress, Stage::NoNewPrivileges);
    raw::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    at(progress, Stage::ParentDeath);
    if plan.dies_with_parent {
        // After the change of ids, which clears it.
        raw::prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)?;
    }
    Ok(())
}

fn exec(init: i32) -> Result<Never, Errno> {
    const AT_EMPTY_PATH: usize = 0x1000;
    let argv: [*const libc::c_char; 2] = [c"halsup-init".as_ptr(), std::ptr::null()];
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    let empty = c"".as_ptr() as usize;
    let (argv_at, envp_at) = (argv.as_ptr() as usize, envp.as_ptr() as usize);
    // SAFETY: argv and envp are arrays of strings that end with a null pointer; on success this does not return.
    let returned =
        unsafe { raw::syscall(raw::nr::EXECVEAT, raw::fd_arg(init), empty, argv_at, envp_at, AT_EMPTY_PATH, 0) };
    match raw::check(returned) {
        Ok(_) => Err(Errno(0)),
        Err(errno) => Err(errno),
    }
}
