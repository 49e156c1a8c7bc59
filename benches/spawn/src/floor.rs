//! The floors: the least that the kernel asks for the same result, as a bare program would write it.
//!
//! Independent of halsup's own spawning: its own clone, its own child, its own list of steps. Only the template mount
//! namespace is made by halsup, since it stands outside what is measured.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};

use halsup::sys::raw;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::Result;
use crate::place::{INSIDE, Place, now};

/// How much of halsup's work a floor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// `CLONE_VM` and exec.
    Plain,
    /// KERNEL.md section 1: namespaces, own cgroup, own root from a template, `/proc`.
    Isolated,
    /// Also all else that a worker of halsup has: `/tmp`, `/dev/shm`, `/dev/pts`, its directory, its ids, no capabilities,
    /// the system call filter, and a PID 1 that its program is a child of.
    Same,
}

/// What the child reads; it shares this memory.
pub struct Floor {
    work: Work,
    template: RawFd,
    cgroup: PathBuf,
    work_dir: OwnedFd,
    program: CString,
    fifo: CString,
    filter: Vec<u64>,
    stack: Vec<u128>,
    second_stack: Vec<u128>,
    failed: AtomicI32,
    /// When the child had done each of [`LAPS`].
    laps: [u64; LAPS.len()],
    /// Nanoseconds that each took in the last spawn.
    pub taken: [u64; LAPS.len()],
}

/// The steps of [`Work::Same`], as `--steps` names them.
pub const LAPS: [&str; 16] = [
    "cgroup",
    "clone, until the child runs",
    "clone the work directory's mount",
    "join the template, copy it",
    "/proc",
    "mount the work directory",
    "/tmp",
    "/dev/shm",
    "/dev/pts",
    "host name, keyring, bounding set",
    "ids, capabilities, no_new_privs",
    "clone the program's process",
    "system call filter",
    "exec → first instruction",
    "first instruction → end",
    "remove the cgroup",
];

const STACK_WORDS: usize = 4096;
const UID: u32 = 1_879_048_000;

const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_NEWNS: u64 = 0x2_0000;
const CLONE_NEWCGROUP: u64 = 0x200_0000;
const CLONE_NEWUTS: u64 = 0x400_0000;
const CLONE_NEWIPC: u64 = 0x800_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

impl Floor {
    pub fn new(work: Work, place: &Place, template: &OwnedFd, cgroup: PathBuf, filter: &[u64]) -> Result<Self> {
        let inside = work != Work::Plain;
        let at = if inside { PathBuf::from(INSIDE) } else { place.shared() };
        let text = |name: &str| CString::new(at.join(name).into_os_string().into_encoded_bytes());
        let dir = place.path("floor-work");
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            work,
            template: template.as_raw_fd(),
            cgroup,
            work_dir: open(&dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
            program: text("first")?,
            fifo: text("fifo")?,
            filter: filter.to_vec(),
            stack: vec![0; STACK_WORDS],
            second_stack: vec![0; STACK_WORDS],
            failed: AtomicI32::new(0),
            laps: [0; LAPS.len()],
            taken: [0; LAPS.len()],
        })
    }

    /// One spawn: nanoseconds from request to first instruction.
    pub fn spawn(&mut self, place: &Place) -> Result<u64> {
        let began = now();
        let mut flags = CLONE_VM | CLONE_PIDFD;
        let mut cgroup = None;
        if self.work != Work::Plain {
            flags |= CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_INTO_CGROUP;
            std::fs::create_dir(&self.cgroup)?;
            cgroup = Some(open(&self.cgroup, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        }
        self.laps[0] = now();
        let mut pidfd: RawFd = -1;
        let top = self.stack.as_mut_ptr() as u64;
        let cgroup_fd = cgroup.as_ref().map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned()));
        let args = clone_args(flags, &mut pidfd, top, cgroup_fd);
        // SAFETY: `self` and its stack outlive the child, which is waited for below; `child` takes exactly this pointer.
        raw::check(unsafe { clone3(&args, child, std::ptr::from_mut(self)) }).map_err(|e| os(e.0))?;
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so this is a new descriptor that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let stamp = place.stamp();
        waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)), WaitIdOptions::EXITED)?;
        self.laps[14] = now();
        if self.work != Work::Plain {
            remove_cgroup(&self.cgroup)?;
        }
        self.laps[15] = now();
        self.laps[13] = *stamp.as_ref().unwrap_or(&0);
        let starts = std::iter::once(&began).chain(&self.laps);
        for ((taken, end), start) in self.taken.iter_mut().zip(&self.laps).zip(starts) {
            *taken = end.saturating_sub(*start);
        }
        match self.failed.load(Ordering::Acquire) {
            0 => Ok(stamp? - began),
            errno => Err(os(errno).into()),
        }
    }
}

/// Removes a cgroup whose last process has just been reaped.
pub fn remove_cgroup(path: &std::path::Path) -> Result<()> {
    let deadline = now() + 1_000_000_000;
    while let Err(error) = std::fs::remove_dir(path) {
        if now() > deadline {
            return Err(error.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn os(errno: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}

fn clone_args(flags: u64, pidfd: &mut RawFd, stack: u64, cgroup: u64) -> [u64; 11] {
    const SIGCHLD: u64 = 17;
    let bytes = (STACK_WORDS * size_of::<u128>()) as u64;
    [flags, std::ptr::from_mut(pidfd) as u64, 0, 0, SIGCHLD, stack, bytes, 0, 0, 0, cgroup]
}

/// # Safety
/// `entry` must be sound to run with `floor` on the stack in `args`, beside the caller.
unsafe fn clone3(args: &[u64; 11], entry: unsafe extern "C" fn(*mut Floor) -> !, floor: *mut Floor) -> isize {
    let result: isize;
    // SAFETY: in the parent rax, rcx and r11 change; the child has a stack of its own and never returns from `entry`.
    unsafe {
        std::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r12", "call r13", "ud2", "2:",
            inlateout("rax") raw::nr::CLONE3 => result, in("rdi") args.as_ptr(), in("rsi") size_of_val(args),
            in("r12") floor, in("r13") entry, lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

unsafe extern "C" fn child(floor: *mut Floor) -> ! {
    // SAFETY: `spawn` keeps the floor until this process is gone, and meanwhile only reads `failed`.
    let floor = unsafe { &mut *floor };
    lap(floor, 1);
    let done = match floor.work {
        Work::Plain => Ok(()),
        Work::Isolated => isolate(floor),
        Work::Same => isolate(floor).and_then(|()| furnish(floor)),
    };
    if let Err(raw::Errno(errno)) = done {
        floor.failed.store(errno, Ordering::Release);
        raw::exit(1);
    }
    if floor.work == Work::Same { as_pid_1(floor) } else { exec(floor) }
}

fn lap(floor: &mut Floor, number: usize) {
    const MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes one timespec.
    unsafe { raw::syscall(raw::nr::CLOCK_GETTIME, MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0, 0) };
    if let Some(lap) = floor.laps.get_mut(number) {
        *lap = time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1]);
    }
}

fn exec(floor: &Floor) -> ! {
    const EXECVE: usize = 59;
    let argv = [floor.program.as_ptr(), floor.fifo.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let (path, argv, envp) = (floor.program.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize);
    // SAFETY: a path and two tables that end as they must; on success this does not return.
    if let Err(raw::Errno(errno)) = raw::check(unsafe { raw::syscall(EXECVE, path, argv, envp, 0, 0, 0) }) {
        floor.failed.store(errno, Ordering::Release);
    }
    raw::exit(1)
}

fn isolate(floor: &mut Floor) -> raw::Result<()> {
    let number = |flags: u64| usize::try_from(flags).unwrap_or(0);
    let tree =
        if floor.work == Work::Same { raw::open_tree(floor.work_dir.as_raw_fd(), c"", 0x1 | 0x1000)? } else { -1 };
    lap(floor, 2);
    raw::setns(raw::fd_arg(floor.template), number(CLONE_NEWNS))?;
    raw::unshare(number(CLONE_NEWNS | CLONE_NEWCGROUP))?;
    lap(floor, 3);
    raw::mount(c"proc", c"/proc", c"proc", 14, c"")?;
    lap(floor, 4);
    if tree >= 0 {
        raw::move_mount(tree, -100, c"/run/worker/work")?;
    }
    lap(floor, 5);
    Ok(())
}

fn furnish(floor: &mut Floor) -> raw::Result<()> {
    let size: &CStr = c"mode=1777,size=64m,nr_inodes=65536";
    raw::mount(c"tmpfs", c"/tmp", c"tmpfs", 6, size)?;
    lap(floor, 6);
    raw::mount(c"tmpfs", c"/dev/shm", c"tmpfs", 14, size)?;
    lap(floor, 7);
    raw::mount(c"devpts", c"/dev/pts", c"devpts", 10, c"newinstance,ptmxmode=0666,mode=0620,max=64")?;
    lap(floor, 8);
    raw::sethostname(c"bench")?;
    raw::keyctl(1, 0)?;
    for capability in 0..41 {
        raw::prctl(24, capability, 0, 0, 0)?;
    }
    lap(floor, 9);
    raw::setsid()?;
    raw::setgroups(&[UID])?;
    raw::setresgid(UID as usize, UID as usize, UID as usize)?;
    raw::setresuid(UID as usize, UID as usize, UID as usize)?;
    raw::drop_capabilities()?;
    raw::prctl(38, 1, 0, 0, 0)?;
    lap(floor, 10);
    Ok(())
}

/// The program as a child of a PID 1 that reaps it, in the cheapest way there is: the same memory, no exec of an init.
fn as_pid_1(floor: &mut Floor) -> ! {
    const WAIT_ALL: usize = 0x4000_0000;
    let mut pidfd = -1;
    let stack = floor.second_stack.as_mut_ptr() as u64;
    let args = clone_args(CLONE_VM | CLONE_VFORK | CLONE_PIDFD, &mut pidfd, stack, 0);
    // SAFETY: vfork keeps this frame and the floor's second stack until the program runs.
    unsafe { clone3(&args, filtered, std::ptr::from_mut(floor)) };
    // SAFETY: wait4 writes nothing where it is given null pointers.
    unsafe { raw::syscall(raw::nr::WAIT4, usize::MAX, 0, WAIT_ALL, 0, 0, 0) };
    raw::exit(0)
}

unsafe extern "C" fn filtered(floor: *mut Floor) -> ! {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u64,
    }
    // SAFETY: the PID 1 stands still in vfork.
    let floor = unsafe { &mut *floor };
    lap(floor, 11);
    let length = u16::try_from(floor.filter.len()).unwrap_or(0);
    let program = Program { length, filter: floor.filter.as_ptr() };
    // SAFETY: the kernel reads a `struct sock_fprog` and its instructions.
    unsafe { raw::syscall(raw::nr::SECCOMP, 1, 0, (&raw const program) as usize, 0, 0, 0) };
    lap(floor, 12);
    exec(floor)
}
