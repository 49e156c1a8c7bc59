//! The floor of a claim: what the kernel alone takes to carry a word from a client over a daemon to a parked init, which then
//! starts a program, in bare processes that do nothing else.
//!
//! Independent of halsup: every process reads a byte and passes it on. Each chain stays for the whole run, parked between two
//! samples as the daemon and its warm workers are.

use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;

use halsup::sys::raw;

use crate::Result;
use crate::place::{Place, now};

/// Which way the word goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    /// The init is the first of a pid namespace of its own.
    pub namespace: bool,
    /// The program's process is cloned before; the daemon itself wakes it, and all that is left is exec.
    pub cloned: bool,
    /// The daemon first mounts a directory in the init's mount namespace.
    pub mounts: Mounts,
    /// Processors of the client, the daemon, and the init with its program.
    pub processors: Option<[usize; 3]>,
}

/// Who mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mounts {
    #[default]
    Nobody,
    /// A child that enters the namespace.
    Child,
    /// The daemon itself, which enters it and comes back.
    Daemon,
}

/// A client's end of a chain of processes.
pub struct Chain {
    way: Way,
    daemon: libc::pid_t,
    client: UnixStream,
}

/// All that the processes of a chain use; made before the first is.
struct Plan {
    way: Way,
    program: CString,
    fifo: CString,
    project: CString,
    target: CString,
    stack: Vec<u128>,
    /// Of the child that mounts.
    second_stack: Vec<u128>,
    /// Read by the init, or by the program that was cloned before.
    woken: RawFd,
    init: RawFd,
    /// The daemon's own mount namespace.
    home: RawFd,
    tree: RawFd,
}

const STACK_WORDS: usize = 4096;
const CLONE_VM: usize = 0x100;
const CLONE_PIDFD: usize = 0x1000;
const CLONE_VFORK: usize = 0x4000;
const CLONE_NEWNS: usize = 0x2_0000;
const CLONE_NEWPID: usize = 0x2000_0000;
const SIGCHLD: usize = 17;

impl Chain {
    pub fn start(way: Way, place: &Place) -> Result<Self> {
        let text = |path: std::path::PathBuf| CString::new(path.into_os_string().into_encoded_bytes());
        let (project, target) = (place.path("floor-project"), place.path("floor-target"));
        std::fs::create_dir_all(&project)?;
        std::fs::create_dir_all(&target)?;
        let mut plan = Plan {
            way,
            program: text(place.shared().join("first"))?,
            fifo: text(place.shared().join("fifo"))?,
            project: text(project)?,
            target: text(target)?,
            stack: vec![0; STACK_WORDS],
            second_stack: vec![0; STACK_WORDS],
            woken: -1,
            init: -1,
            home: -1,
            tree: -1,
        };
        let (client, server) = UnixStream::pair()?;
        let server = server.as_raw_fd();
        // SAFETY: this program has one thread; the child only makes system calls and never returns.
        let daemon = match unsafe { libc::fork() } {
            -1 => return Err(std::io::Error::last_os_error().into()),
            0 => serve(&mut plan, server),
            pid => pid,
        };
        Ok(Self { way, daemon, client })
    }

    /// Nanoseconds from the word to the program's first instruction.
    pub fn claim(&mut self, place: &Place) -> Result<u64> {
        let pinned = self.way.processors;
        if let Some([client, ..]) = pinned {
            stay_on(Some(client));
        }
        let asked = now();
        self.client.write_all(&[1])?;
        let stamp = place.stamp();
        if pinned.is_some() {
            stay_on(None);
        }
        Ok(stamp? - asked)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: a child of this process that is not reaped yet; its own children go with it.
        unsafe { libc::kill(self.daemon, libc::SIGKILL) };
        // SAFETY: waitpid writes nothing where it is given a null pointer.
        unsafe { libc::waitpid(self.daemon, std::ptr::null_mut(), 0) };
    }
}

/// Keeps this process on one processor, or lets it run on all.
fn stay_on(processor: Option<usize>) {
    // SAFETY: a set of bits, which may be all zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for number in 0..64 {
        if processor.is_none_or(|only| only == number) {
            // SAFETY: a number below the set's size.
            unsafe { libc::CPU_SET(number, &mut set) };
        }
    }
    // SAFETY: the kernel reads one set. Where it does not agree, the row is one of all processors.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

fn die_with_parent() {
    // SAFETY: takes two numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// The daemon: wakes the init, or the program, for each word of the client.
fn serve(plan: &mut Plan, server: RawFd) -> ! {
    die_with_parent();
    let mut pair = [-1; 2];
    // SAFETY: the kernel writes two descriptors.
    unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) };
    plan.woken = pair[1];
    let mut flags = SIGCHLD | CLONE_PIDFD;
    if plan.way.namespace {
        flags |= CLONE_NEWPID;
    }
    if plan.way.mounts != Mounts::Nobody {
        flags |= CLONE_NEWNS;
    }
    let mut init: RawFd = -1;
    // SAFETY: without a stack and CLONE_VM this is a fork, and the child never returns from `park`.
    let cloned = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut init, 0, 0) };
    match cloned {
        -1 => raw::exit(1),
        0 => park(plan),
        _ => plan.init = init,
    }
    // SAFETY: a path that ends with NUL.
    plan.home = unsafe { libc::open(c"/proc/self/ns/mnt".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if let Some([_, daemon, _]) = plan.way.processors {
        stay_on(Some(daemon));
    }
    while hear(server) {
        if plan.way.mounts != Mounts::Nobody && mount(plan).is_err() {
            raw::exit(1);
        }
        // SAFETY: the kernel reads one byte.
        unsafe { libc::write(pair[0], [1_u8].as_ptr().cast(), 1) };
    }
    raw::exit(0)
}

fn hear(from: RawFd) -> bool {
    let mut byte = 0_u8;
    // SAFETY: the kernel writes one byte.
    unsafe { libc::read(from, (&raw mut byte).cast(), 1) == 1 }
}

/// A directory appears in the init's mount namespace by a child that enters it.
fn mount(plan: &mut Plan) -> raw::Result<()> {
    const OPEN_TREE_CLONE_CLOEXEC: usize = 1 | 0o2_000_000;
    const AT_EMPTY_PATH: usize = 0x1000;
    const NOSUID_NODEV: u64 = 2 | 4;
    const PRIVATE: u64 = 1 << 18;
    plan.tree = raw::open_tree(-100, &plan.project, OPEN_TREE_CLONE_CLOEXEC)?;
    let attr = [NOSUID_NODEV, 0, PRIVATE, 0];
    // SAFETY: an empty path, and the kernel reads one `struct mount_attr` of four words.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            plan.tree,
            c"".as_ptr(),
            AT_EMPTY_PATH,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    if set != 0 {
        return Err(raw::Errno(1));
    }
    if plan.way.mounts == Mounts::Daemon {
        raw::setns(raw::fd_arg(plan.init), CLONE_NEWNS)?;
        raw::move_mount(plan.tree, -100, &plan.target)?;
        raw::setns(raw::fd_arg(plan.home), CLONE_NEWNS)?;
        // SAFETY: this process's own and used no more.
        unsafe { libc::close(plan.tree) };
        return Ok(());
    }
    let stack = (plan.second_stack.as_mut_ptr().cast::<u8>(), STACK_WORDS * size_of::<u128>());
    let mut pidfd = -1;
    // SAFETY: vfork keeps the plan and the stack until the child has ended; `enter` takes exactly a plan.
    let child = raw::check(unsafe {
        raw::clone(
            CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD,
            stack,
            &raw mut pidfd,
            enter,
            std::ptr::from_mut(plan),
        )
    })?;
    // SAFETY: the kernel writes nothing where it is given null pointers.
    unsafe { raw::syscall(raw::nr::WAIT4, child, 0, 0, 0, 0, 0) };
    // SAFETY: both are this process's own and used no more.
    unsafe { (libc::close(pidfd), libc::close(plan.tree)) };
    Ok(())
}

unsafe extern "C" fn enter(plan: *mut Plan) -> ! {
    // SAFETY: its maker stands still in vfork.
    let plan = unsafe { &*plan };
    let entered = raw::setns(raw::fd_arg(plan.init), CLONE_NEWNS);
    let moved = entered.and_then(|_| raw::move_mount(plan.tree, -100, &plan.target));
    raw::exit(i32::from(moved.is_err()))
}

/// The init: starts the program each time that it is woken, and reaps it.
fn park(plan: &mut Plan) -> ! {
    const WAIT_ALL: usize = 0x4000_0000;
    die_with_parent();
    if let Some([.., init]) = plan.way.processors {
        stay_on(Some(init));
    }
    if plan.way.mounts != Mounts::Nobody {
        // SAFETY: strings that end with NUL, and no data. What is mounted here is nobody else's.
        unsafe {
            libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            )
        };
    }
    let stack = (plan.stack.as_mut_ptr().cast::<u8>(), STACK_WORDS * size_of::<u128>());
    while plan.way.cloned || hear(plan.woken) {
        let mut pidfd = -1;
        let waits = if plan.way.cloned { 0 } else { CLONE_VFORK };
        // SAFETY: the plan and the stack stay until the child has exec'd or ended, for which this waits in either way.
        let child = unsafe {
            raw::clone(CLONE_VM | waits | CLONE_PIDFD | SIGCHLD, stack, &raw mut pidfd, begin, std::ptr::from_mut(plan))
        };
        if raw::check(child).is_err() {
            raw::exit(1);
        }
        // SAFETY: the kernel writes nothing where it is given null pointers.
        unsafe { raw::syscall(raw::nr::WAIT4, usize::MAX, 0, WAIT_ALL, 0, 0, 0) };
        // SAFETY: a descriptor of this process.
        unsafe { libc::close(pidfd) };
        if plan.way.mounts != Mounts::Nobody {
            // SAFETY: a path that ends with NUL.
            unsafe { libc::umount2(plan.target.as_ptr(), libc::MNT_DETACH) };
        }
    }
    raw::exit(0)
}

unsafe extern "C" fn begin(plan: *mut Plan) -> ! {
    // SAFETY: the init waits for the end of this process, or for its exec.
    let plan = unsafe { &*plan };
    if plan.way.cloned && !hear(plan.woken) {
        raw::exit(0);
    }
    let argv = [plan.program.as_ptr(), plan.fifo.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let (path, argv, envp) = (plan.program.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize);
    // SAFETY: a path and two tables that end as they must; on success this does not return.
    unsafe { raw::syscall(raw::nr::EXECVE, path, argv, envp, 0, 0, 0) };
    raw::exit(1)
}
