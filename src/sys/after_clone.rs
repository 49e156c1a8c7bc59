//! The code between clone and exec.
//!
//! The child runs on its own stack in the daemon's memory (`CLONE_VM`): it shares the heap, the thread-local storage and
//! libc's errno with a daemon that goes on running beside it. So everything here is raw system calls on memory prepared
//! before the clone: no allocation, no formatting, no panic, no return. The first failure is left as stage and error
//! number, and the child exits; the daemon reads it when the pidfd says that the child is gone.

use std::sync::atomic::Ordering;

use super::mount::{ATTR_IDMAP, ATTR_NODEV, ATTR_NOSUID, MountAttr};
use super::plan::{Given, LOW_END, NOTIFY_TARGET, Numbers, Plan, Progress, Stage, WORK_TARGET};
use super::raw::flag::{CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWUTS};
use super::raw::{self, Errno};

/// # Safety
/// `given` points to a [`Given`] that stays valid and, but for its atomics, unchanged while this runs.
pub(super) unsafe extern "C" fn run_plan(given: *mut libc::c_void) -> ! {
    // SAFETY: the caller keeps it alive; only its atomics are written, and only here.
    let given = unsafe { &*given.cast::<Given>() };
    let errno = match leave_table(given).and_then(|()| steps(&given.plan, &given.numbers, &given.progress)) {
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
const AT_RECURSIVE: usize = 0x8000;
const OPEN_TREE_CLOEXEC: usize = 0o2_000_000;

/// Out of the daemon's descriptor table, with a copy of its low end alone: with thousands of workers most of a spawn would
/// go into copying the rest and closing it again at exec.
fn leave_table(given: &Given) -> Result<(), Errno> {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    at(&given.progress, Stage::Descriptors);
    if given.leaves_table {
        raw::close_range(LOW_END, usize::MAX >> 32, CLOSE_RANGE_UNSHARE)?;
    }
    Ok(())
}

fn steps(plan: &Plan, numbers: &Numbers, progress: &Progress) -> Result<Never, Errno> {
    const AT_EMPTY_PATH: usize = 0x1000;
    let clone_of = |fd: i32| raw::open_tree(fd, c"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    at(progress, Stage::Session);
    raw::setsid()?;
    // Trees are cloned while the host's mounts are still this process's own; they are attached after the switch.
    at(progress, Stage::OpenWorkDir);
    let mut trees = Trees { work: clone_of(numbers.work_dir)?, notify: -1, stage: -1, lower: -1 };
    if numbers.notify_dir >= 0 {
        trees.notify = clone_of(numbers.notify_dir)?;
    }
    at(progress, Stage::OpenRoot);
    if numbers.stage >= 0 {
        trees.stage = clone_of(numbers.stage)?;
    }
    if numbers.mapped_lower >= 0 {
        trees.lower = clone_of(numbers.mapped_lower)?;
        id_map(trees.lower, numbers.userns)?;
    }
    at(progress, Stage::JoinTemplate);
    raw::setns(raw::fd_arg(numbers.template), CLONE_NEWNS)?;
    at(progress, Stage::Unshare);
    // All that the clone need not do: it would cost the daemon's loop, here it costs the child.
    raw::unshare(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWUTS)?;
    at(progress, Stage::JoinNetwork);
    if numbers.net >= 0 {
        raw::setns(raw::fd_arg(numbers.net), CLONE_NEWNET)?;
    }
    at(progress, Stage::Loopback);
    if plan.own_net {
        loopback_up()?;
    }
    mounts(plan, progress, &trees)?;
    at(progress, Stage::AttachExtra);
    extra_mounts(plan, &numbers.extra)?;
    become_worker(plan, numbers, progress)?;
    at(progress, Stage::Descriptors);
    for (to, from) in numbers.passed.into_iter().enumerate().take_while(|(_, from)| *from >= 0) {
        raw::dup3(raw::fd_arg(from), to, 0)?;
    }
    at(progress, Stage::Exec);
    exec(numbers.init)
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
            let tree = raw::open_tree(CWD, from, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)?;
            raw::move_mount(tree, CWD, to)?;
        }
        at(progress, Stage::PivotRoot);
        raw::chdir(c"/new")?;
        raw::pivot_root(c".", c".")?;
        raw::umount2(c".", MNT_DETACH)?;
        raw::chdir(c"/")?;
    }
    at(progress, Stage::AttachWorkDir);
    restrict(trees.work, ATTR_NOSUID | ATTR_NODEV)?;
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

/// Attaches what the daemon has prepared, and makes the directories that it appears on where the root can be written.
fn extra_mounts(plan: &Plan, trees: &[i32]) -> Result<(), Errno> {
    const CWD: i32 = -100;
    if plan.extra.is_empty() {
        return Ok(());
    }
    // The daemon's mask would keep the worker out of what is made here.
    let mask = raw::umask(0o022)?;
    for (mount, tree) in plan.extra.iter().zip(trees) {
        for directory in &mount.directories {
            match raw::mkdir(directory, 0o755) {
                // EEXIST: it is there; EROFS: the template has it, or the mount below says that it does not.
                Ok(_) | Err(Errno(17 | 30)) => {}
                Err(errno) => return Err(errno),
            }
        }
        raw::move_mount(*tree, CWD, &mount.target)?;
    }
    raw::umask(mask)?;
    Ok(())
}

/// Takes from uid 0 what procfs gives it by ownership alone.
fn mask_proc() -> Result<(), Errno> {
    for path in [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus", c"/proc/fs"] {
        match raw::mount(path, path, c"", MS_BIND, c"") {
            Ok(_) => {}
            // ENOENT: this kernel does not have the file, so there is nothing to guard.
            Err(Errno(2)) => continue,
            Err(errno) => return Err(errno),
        }
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
    set_attributes(
        tree,
        &MountAttr { set: ATTR_IDMAP, userns_fd: u64::from(userns.cast_unsigned()), ..MountAttr::default() },
    )
}

fn restrict(tree: i32, set: u64) -> Result<(), Errno> {
    set_attributes(tree, &MountAttr { set, ..MountAttr::default() })
}

fn set_attributes(tree: i32, attr: &MountAttr) -> Result<(), Errno> {
    let (empty, at) = (c"".as_ptr() as usize, std::ptr::from_ref(attr) as usize);
    let size = size_of::<MountAttr>();
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
const PR_SET_DUMPABLE: usize = 4;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
/// Above every capability there is; the kernel says EINVAL at the first that it does not know.
const CAPABILITIES_MAX: usize = 64;

fn become_worker(plan: &Plan, numbers: &Numbers, progress: &Progress) -> Result<(), Errno> {
    at(progress, Stage::Hostname);
    raw::sethostname(&plan.hostname)?;
    at(progress, Stage::Keyring);
    match raw::keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0) {
        // ENOSYS: a kernel without keyrings; EPERM: a container's filter. Then there is no keyring to inherit either way.
        Ok(_) | Err(Errno(38 | 1)) => {}
        Err(errno) => return Err(errno),
    }
    at(progress, Stage::JoinUser);
    if numbers.userns >= 0 {
        raw::setns(raw::fd_arg(numbers.userns), CLONE_NEWUSER)?;
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
    // Changing ids has made the memory that is shared with the daemon dumpable again, where the host's policy says so.
    raw::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)?;
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
