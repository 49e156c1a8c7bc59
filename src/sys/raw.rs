//! System calls without libc: for code between clone and exec, which shares libc's errno with the daemon, and for the
//! worker's init, which has no libc. Needs nothing but `core`; allocates, formats and panics nowhere.
//!
//! Numbers and structures are those of x86-64 Linux, from the kernel's `syscall_64.tbl` and `include/uapi`.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("halsup speaks to the x86-64 kernel only so far: sys/raw.rs has the numbers to add for another one");

use core::arch::asm;
use core::ffi::CStr;

/// An error number as the kernel returned it, 1..=4095.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Interrupted system call.
    pub const INTR: Self = Self(4);
    /// Try again.
    pub const AGAIN: Self = Self(11);
    /// No child processes.
    pub const CHILD: Self = Self(10);
}

/// What a raw call gives back.
pub type Result<T> = core::result::Result<T, Errno>;

/// System call numbers.
pub mod nr {
    #![expect(missing_docs, reason = "each is the kernel's own name")]
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const LSEEK: usize = 8;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const SOCKET: usize = 41;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const PWRITE64: usize = 18;
    pub const FCNTL: usize = 72;
    pub const GETPID: usize = 39;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const CHDIR: usize = 80;
    pub const MKDIR: usize = 83;
    pub const FCHDIR: usize = 81;
    pub const UMASK: usize = 95;
    pub const GETPPID: usize = 110;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const GETRESUID: usize = 118;
    pub const SETRESGID: usize = 119;
    pub const GETRESGID: usize = 120;
    pub const CAPSET: usize = 126;
    pub const PIVOT_ROOT: usize = 155;
    pub const CHROOT: usize = 161;
    pub const PRCTL: usize = 157;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const SETHOSTNAME: usize = 170;
    pub const KEYCTL: usize = 250;
    pub const PPOLL: usize = 271;
    pub const UNSHARE: usize = 272;
    pub const SIGNALFD4: usize = 289;
    pub const DUP3: usize = 292;
    pub const PRLIMIT64: usize = 302;
    pub const OPENAT: usize = 257;
    pub const SETNS: usize = 308;
    pub const SECCOMP: usize = 317;
    pub const EXECVEAT: usize = 322;
    pub const OPEN_TREE: usize = 428;
    pub const MOVE_MOUNT: usize = 429;
    pub const CLONE: usize = 56;
    pub const CLONE3: usize = 435;
    pub const SCHED_SETATTR: usize = 314;
    pub const SCHED_GETATTR: usize = 315;
    pub const CLOSE_RANGE: usize = 436;
    pub const MOUNT_SETATTR: usize = 442;
    pub const CLOCK_GETTIME: usize = 228;
}

/// Flags of clone3(2), unshare(2) and setns(2), which libc has with 32 bits only: there `CLONE_INTO_CGROUP` is 0.
pub mod flag {
    #![expect(missing_docs, reason = "each is the kernel's own name")]
    pub const CLONE_VM: usize = 0x100;
    pub const CLONE_PIDFD: usize = 0x1000;
    pub const CLONE_VFORK: usize = 0x4000;
    pub const CLONE_NEWNS: usize = 0x2_0000;
    pub const CLONE_NEWCGROUP: usize = 0x200_0000;
    pub const CLONE_FILES: usize = 0x400;
    pub const CLONE_NEWUTS: usize = 0x400_0000;
    pub const CLONE_NEWIPC: usize = 0x800_0000;
    pub const CLONE_NEWUSER: usize = 0x1000_0000;
    pub const CLONE_NEWPID: usize = 0x2000_0000;
    pub const CLONE_NEWNET: usize = 0x4000_0000;
    pub const CLONE_CLEAR_SIGHAND: usize = 0x1_0000_0000;
    pub const CLONE_INTO_CGROUP: usize = 0x2_0000_0000;
}

/// Makes a system call with six arguments; a negative return is the negated error number.
///
/// # Safety
/// The arguments must be what this call expects: pointers valid for what the kernel reads and writes through them, and
/// the effect on memory, descriptors and credentials must be one that the caller's own obligations allow.
#[inline(always)]
pub unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for number and arguments; the registers named are all that the instruction changes.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Turns the kernel's return into a result.
#[inline(always)]
pub fn check(returned: isize) -> Result<usize> {
    if (-4095..0).contains(&returned) {
        // The range above fits an i32.
        #[expect(clippy::cast_possible_truncation, reason = "-4095..0 fits")]
        return Err(Errno(returned.wrapping_neg() as i32));
    }
    Ok(returned.cast_unsigned())
}

/// A descriptor as the kernel takes it.
#[inline(always)]
pub const fn fd_arg(fd: i32) -> usize {
    // Sign extension is what the kernel expects of AT_FDCWD and harmless for the rest.
    (fd as isize).cast_unsigned()
}

/// A descriptor number as the kernel gives it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "descriptors are below 2^31")]
#[expect(clippy::cast_possible_wrap, reason = "descriptors are below 2^31")]
pub const fn fd_from(returned: usize) -> i32 {
    returned as i32
}

macro_rules! plain_calls {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),*) = $nr:ident;)*) => {$(
        $(#[$doc])*
        /// # Errors
        /// What the kernel says.
        #[inline(always)]
        pub fn $name($($arg: usize),*) -> Result<usize> {
            let args = plain_calls!(@six $($arg,)*);
            // SAFETY: the call takes numbers only, so it cannot touch this process's memory.
            check(unsafe { syscall(nr::$nr, args[0], args[1], args[2], args[3], args[4], args[5]) })
        }
    )*};
    (@six) => { [0; 6] };
    (@six $a:ident,) => { [$a, 0, 0, 0, 0, 0] };
    (@six $a:ident, $b:ident,) => { [$a, $b, 0, 0, 0, 0] };
    (@six $a:ident, $b:ident, $c:ident,) => { [$a, $b, $c, 0, 0, 0] };
    (@six $a:ident, $b:ident, $c:ident, $d:ident, $e:ident,) => { [$a, $b, $c, $d, $e, 0] };
}

plain_calls! {
    /// setns(2).
    setns(fd, kind) = SETNS;
    /// unshare(2).
    unshare(flags) = UNSHARE;
    /// setsid(2).
    setsid() = SETSID;
    /// fchdir(2).
    fchdir(fd) = FCHDIR;
    /// umask(2).
    umask(mask) = UMASK;
    /// setresuid(2).
    setresuid(real, effective, saved) = SETRESUID;
    /// setresgid(2).
    setresgid(real, effective, saved) = SETRESGID;
    /// close(2).
    close(fd) = CLOSE;
    /// close_range(2).
    close_range(first, last, flags) = CLOSE_RANGE;
    /// dup3(2).
    dup3(from, to, flags) = DUP3;
    /// prctl(2) with operations that take numbers only; never one that takes a pointer.
    prctl(operation, a, b, c, d) = PRCTL;
    /// keyctl(2) with operations that take numbers only.
    keyctl(operation, a) = KEYCTL;
    /// kill(2), for the init alone: inside its own pid namespace the numbers are its own children's.
    kill_in_own_namespace(pid, signal) = KILL;
    /// lseek(2).
    lseek(fd, offset, whence) = LSEEK;
}

/// Ends the calling thread.
#[inline(always)]
pub fn exit(code: i32) -> ! {
    // SAFETY: exit takes a number and does not return.
    unsafe { syscall(nr::EXIT, fd_arg(code), 0, 0, 0, 0, 0) };
    loop {
        core::hint::spin_loop();
    }
}

/// chdir(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn chdir(path: &CStr) -> Result<usize> {
    // SAFETY: the path ends with NUL and the kernel only reads it.
    check(unsafe { syscall(nr::CHDIR, path.as_ptr() as usize, 0, 0, 0, 0, 0) })
}

/// chroot(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn chroot(path: &CStr) -> Result<usize> {
    // SAFETY: the path ends with NUL and the kernel only reads it.
    check(unsafe { syscall(nr::CHROOT, path.as_ptr() as usize, 0, 0, 0, 0, 0) })
}

/// mount(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: usize, data: &CStr) -> Result<usize> {
    let (source, target, kind, data) = (source.as_ptr(), target.as_ptr(), kind.as_ptr(), data.as_ptr());
    // SAFETY: every string ends with NUL and the kernel only reads them.
    check(unsafe { syscall(nr::MOUNT, source as usize, target as usize, kind as usize, flags, data as usize, 0) })
}

/// umount2(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn umount2(target: &CStr, flags: usize) -> Result<usize> {
    // SAFETY: the path ends with NUL and the kernel only reads it.
    check(unsafe { syscall(nr::UMOUNT2, target.as_ptr() as usize, flags, 0, 0, 0, 0) })
}

/// pivot_root(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn pivot_root(new_root: &CStr, put_old: &CStr) -> Result<usize> {
    // SAFETY: both paths end with NUL and the kernel only reads them.
    check(unsafe { syscall(nr::PIVOT_ROOT, new_root.as_ptr() as usize, put_old.as_ptr() as usize, 0, 0, 0, 0) })
}

/// open_tree(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn open_tree(dir: i32, path: &CStr, flags: usize) -> Result<i32> {
    // SAFETY: the path ends with NUL and the kernel only reads it.
    check(unsafe { syscall(nr::OPEN_TREE, fd_arg(dir), path.as_ptr() as usize, flags, 0, 0, 0) }).map(fd_from)
}

/// move_mount(2) of the mount that `from` is open on, to `path` below `to`.
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn move_mount(from: i32, to: i32, path: &CStr) -> Result<usize> {
    const F_EMPTY_PATH: usize = 0x4;
    let (empty, path) = (c"".as_ptr() as usize, path.as_ptr() as usize);
    // SAFETY: both paths end with NUL and the kernel only reads them.
    check(unsafe { syscall(nr::MOVE_MOUNT, fd_arg(from), empty, fd_arg(to), path, F_EMPTY_PATH, 0) })
}

/// mkdir(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn mkdir(path: &CStr, mode: usize) -> Result<usize> {
    // SAFETY: the path ends with NUL and the kernel only reads it.
    check(unsafe { syscall(nr::MKDIR, path.as_ptr() as usize, mode, 0, 0, 0, 0) })
}

/// sethostname(2).
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn sethostname(name: &CStr) -> Result<usize> {
    // SAFETY: the kernel reads exactly the bytes before the NUL.
    check(unsafe { syscall(nr::SETHOSTNAME, name.as_ptr() as usize, name.count_bytes(), 0, 0, 0, 0) })
}

/// setgroups(2) to exactly this list.
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn setgroups(groups: &[u32]) -> Result<usize> {
    // SAFETY: the kernel reads `len` words of the slice.
    check(unsafe { syscall(nr::SETGROUPS, groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0) })
}

/// The real, effective and saved uid.
///
/// # Errors
/// None in practice.
#[inline(always)]
pub fn getresuid() -> Result<[u32; 3]> {
    let mut ids = [u32::MAX; 3];
    let at = ids.as_mut_ptr();
    // SAFETY: three words of `ids` are written, one through each pointer.
    check(unsafe {
        syscall(nr::GETRESUID, at as usize, at.wrapping_add(1) as usize, at.wrapping_add(2) as usize, 0, 0, 0)
    })?;
    Ok(ids)
}

/// The real, effective and saved gid.
///
/// # Errors
/// None in practice.
#[inline(always)]
pub fn getresgid() -> Result<[u32; 3]> {
    let mut ids = [u32::MAX; 3];
    let at = ids.as_mut_ptr();
    // SAFETY: three words of `ids` are written, one through each pointer.
    check(unsafe {
        syscall(nr::GETRESGID, at as usize, at.wrapping_add(1) as usize, at.wrapping_add(2) as usize, 0, 0, 0)
    })?;
    Ok(ids)
}

/// Empties the effective, permitted and inheritable capability sets of the calling thread.
///
/// # Errors
/// What the kernel says.
#[inline(always)]
pub fn drop_capabilities() -> Result<usize> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let sets = [0_u32; 6];
    // SAFETY: the kernel reads an eight-byte header and, for version 3, two sets of three words.
    check(unsafe { syscall(nr::CAPSET, header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0, 0) })
}

/// Replaces the thread's signal mask (bit N-1 is signal N) and returns the old one.
///
/// # Errors
/// None in practice.
#[inline(always)]
pub fn set_signal_mask(mask: u64) -> Result<u64> {
    const SETMASK: usize = 2;
    let mut old = 0_u64;
    let (new_at, old_at) = ((&raw const mask) as usize, (&raw mut old) as usize);
    // SAFETY: the kernel reads and writes one eight-byte set.
    check(unsafe { syscall(nr::RT_SIGPROCMASK, SETMASK, new_at, old_at, 8, 0, 0) })?;
    Ok(old)
}

/// `struct sched_attr`, its first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Has this process take turns of so many nanoseconds on a processor, at least 100,000; 0 is the kernel's own length. It gets no
/// more of the processor by shorter turns, but each comes sooner (Linux 6.12 and newer; others take no notice). Who is
/// scheduled in another way than most stays so, and inherits nothing.
///
/// # Errors
/// EPERM or ENOSYS under a filter that does not allow it.
pub fn take_turns(nanoseconds: u64) -> Result<()> {
    let mut attr = SchedAttr::default();
    let at = (&raw mut attr) as usize;
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    check(unsafe { syscall(nr::SCHED_GETATTR, 0, at, size_of::<SchedAttr>(), 0, 0, 0) })?;
    // SAFETY: the kernel wrote through a pointer; reading back volatile keeps the compiler from its earlier knowledge.
    let found = unsafe { (&raw const attr).read_volatile() };
    if found.policy != 0 || found.runtime == nanoseconds {
        return Ok(());
    }
    let wanted = SchedAttr { runtime: nanoseconds, ..found };
    // SAFETY: the kernel reads one `struct sched_attr`.
    check(unsafe { syscall(nr::SCHED_SETATTR, 0, (&raw const wanted) as usize, 0, 0, 0, 0) })?;
    Ok(())
}

/// `struct msghdr`.
#[repr(C)]
#[derive(Debug)]
#[expect(missing_docs, reason = "each is the kernel's own name")]
pub struct Message {
    pub name: usize,
    pub name_len: u32,
    pub vector: *const [usize; 2],
    pub vector_len: usize,
    pub control: usize,
    pub control_len: usize,
    pub flags: i32,
}

/// One `SCM_RIGHTS` with one descriptor, padded to the next word.
#[repr(C, align(8))]
struct Rights {
    len: usize,
    level: i32,
    kind: i32,
    fd: i32,
    pad: i32,
}

/// Level of control messages.
pub const SOL_SOCKET: i32 = 1;
/// Kind of a control message that brings descriptors.
pub const SCM_RIGHTS: i32 = 1;

/// Sends one packet, with a descriptor if `passing` is one. A peer that is gone or does not read is not waited for.
///
/// # Errors
/// EPIPE when the peer is gone, EAGAIN when it does not read.
pub fn send_packet(socket: i32, bytes: &[u8], passing: Option<i32>) -> Result<()> {
    const MSG_DONTWAIT_NOSIGNAL: usize = 0x40 | 0x4000;
    const RIGHTS_BYTES: usize = 20;
    let rights = Rights { len: RIGHTS_BYTES, level: SOL_SOCKET, kind: SCM_RIGHTS, fd: passing.unwrap_or(-1), pad: 0 };
    let vector = [bytes.as_ptr() as usize, bytes.len()];
    let (control, control_len) =
        if passing.is_some() { ((&raw const rights) as usize, size_of::<Rights>()) } else { (0, 0) };
    let message =
        Message { name: 0, name_len: 0, vector: &raw const vector, vector_len: 1, control, control_len, flags: 0 };
    let at = (&raw const message) as usize;
    // SAFETY: the message points to whole bytes and at most one whole control message, all alive here.
    check(unsafe { syscall(nr::SENDMSG, fd_arg(socket), at, MSG_DONTWAIT_NOSIGNAL, 0, 0, 0) })?;
    Ok(())
}

/// clone(2) of a child that runs `entry` from the upper end of `stack` on; the parent gets its pid, and its pidfd where
/// `flags` say so. For who is under a filter, which cannot look at what clone3(2) is given.
///
/// # Safety
/// As of [`clone3`]; `pidfd` is written to.
pub unsafe fn clone<T>(
    flags: usize,
    stack: (*mut u8, usize),
    pidfd: *mut i32,
    entry: unsafe extern "C" fn(*mut T) -> !,
    argument: *mut T,
) -> isize {
    let top = stack.0.wrapping_add(stack.1) as usize;
    // SAFETY: the caller vouches for all of them.
    unsafe { child([nr::CLONE, flags, top, pidfd as usize], entry, argument) }
}

/// `struct clone_args` of clone3(2), version 2 (with the cgroup).
#[derive(Debug, Default)]
#[repr(C, align(8))]
#[expect(missing_docs, reason = "each is the kernel's own name")]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// clone3(2) of a child that runs `entry` on the stack that `args` names; the parent gets its pid.
///
/// # Safety
/// `args` must have `CLONE_VM` and a stack of the child's own, which outlives it; `entry` must be sound to run with
/// `argument` beside the caller, or instead of it where `args` has `CLONE_VFORK`.
pub unsafe fn clone3<T>(args: &CloneArgs, entry: unsafe extern "C" fn(*mut T) -> !, argument: *mut T) -> isize {
    let at = core::ptr::from_ref(args) as usize;
    // SAFETY: the caller vouches for all of them.
    unsafe { child([nr::CLONE3, at, size_of::<CloneArgs>(), 0], entry, argument) }
}

/// Makes a call, given by its number and its first three arguments, that returns twice: here, and with 0 in a child that has a
/// stack of its own.
///
/// # Safety
/// As of [`clone3`].
unsafe fn child<T>(call: [usize; 4], entry: unsafe extern "C" fn(*mut T) -> !, argument: *mut T) -> isize {
    let [number, a, b, c] = call;
    let result: isize;
    // SAFETY: in the parent only rax, rcx and r11 change. The child starts with an empty stack, aligned to 16, and calls
    // `entry`, which does not return, so nothing of this frame is used by it. Without their flags, clone(2) does not look at
    // its last two arguments.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") 0,
            in("r8") 0,
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
