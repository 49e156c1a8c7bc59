//! The system calls of a worker's init, beside those of [`super::raw`]. Built without std: needs nothing but `core`.
//!
//! The init is one process with one thread and static memory; its program is cloned with `CLONE_VM | CLONE_VFORK`, so the
//! init stands still until the program has exec'd or failed.

use core::ffi::{CStr, c_char};

use super::raw::flag::{CLONE_PIDFD, CLONE_VFORK, CLONE_VM};
use super::raw::{self, Errno, Result, nr};
use crate::protocol::init::{Entry, FIRST_PASSED_FD, Header, MAGIC, ORDER_FDS_MAX, Order, Report, SOCKET_FD, step};

/// A start image, mapped until it is let go of, its offsets turned into pointers.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    base: *mut u8,
    header: Header,
}

const EINVAL: Errno = Errno(22);
/// No start image names a larger descriptor.
const KEPT_FIRST_MAX: u64 = 1024;

impl Image {
    /// Maps the image that the daemon passed as `fd` and checks it; every offset is checked against its size.
    ///
    /// # Errors
    /// EINVAL for an image that is not what the daemon builds.
    pub fn map(fd: i32) -> Result<Self> {
        const SEEK_END: usize = 2;
        let bytes = raw::lseek(raw::fd_arg(fd), 0, SEEK_END)?;
        if bytes < size_of::<Header>() {
            return Err(EINVAL);
        }
        const READ_WRITE: usize = 3;
        const MAP_PRIVATE: usize = 2;
        // SAFETY: a private mapping at an address of the kernel's choice; the file is sealed, so it cannot shrink below it.
        let base = raw::check(unsafe { raw::syscall(nr::MMAP, 0, bytes, READ_WRITE, MAP_PRIVATE, raw::fd_arg(fd), 0) })?
            as *mut u8;
        // SAFETY: the mapping is page-aligned and at least a header long.
        let header = unsafe { base.cast::<Header>().read() };
        let image = Self { base, header };
        match image.check(bytes) {
            Ok(()) => Ok(image),
            Err(errno) => {
                unmap(base, bytes);
                Err(errno)
            }
        }
    }

    fn check(&self, bytes: usize) -> Result<()> {
        let (image, header) = (self, self.header);
        if header.magic != MAGIC || header.bytes != bytes as u64 {
            return Err(EINVAL);
        }
        for table in [header.paths, header.argv, header.envp] {
            image.relocate(table)?;
        }
        image.inside(header.cwd, 1)?;
        image.inside(header.rlimits, header.rlimit_count.checked_mul(16).ok_or(EINVAL)?)?;
        image.inside(header.seccomp, header.seccomp_len.checked_mul(8).ok_or(EINVAL)?)?;
        if header.kept_first > KEPT_FIRST_MAX { Err(EINVAL) } else { Ok(()) }
    }

    /// Unmaps it.
    pub fn let_go(self) {
        #[expect(clippy::cast_possible_truncation, reason = "the size of the mapping")]
        unmap(self.base, self.header.bytes as usize);
    }

    /// What the daemon wants of this worker.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    fn inside(&self, offset: u64, bytes: u64) -> Result<*mut u8> {
        let end = offset.checked_add(bytes).ok_or(EINVAL)?;
        if end > self.header.bytes {
            return Err(EINVAL);
        }
        // The sum is at most the mapping's size, which is a usize.
        #[expect(clippy::cast_possible_truncation, reason = "at most the size of the mapping")]
        Ok(self.base.wrapping_add(offset as usize))
    }

    /// Turns a table of offsets into one of pointers, in place; the zero at its end stays a null pointer.
    fn relocate(&self, table: u64) -> Result<()> {
        if !table.is_multiple_of(8) {
            return Err(EINVAL);
        }
        let mut at = table;
        loop {
            let slot = self.inside(at, 8)?.cast::<u64>();
            // SAFETY: `inside` says that eight bytes are there, and tables are aligned to eight.
            let offset = unsafe { slot.read() };
            if offset == 0 {
                return Ok(());
            }
            let string = self.inside(offset, 1)?;
            // SAFETY: as above; the mapping is private, so the daemon's image is not changed.
            unsafe { slot.write(string as u64) };
            at = at.wrapping_add(8);
        }
    }

    fn table(&self, offset: u64) -> *const *const c_char {
        #[expect(clippy::cast_possible_truncation, reason = "checked against the mapping by map()")]
        let at = self.base.wrapping_add(offset as usize);
        at.cast::<*const c_char>()
    }

    /// The filter's instructions.
    fn filter(&self) -> &[u8] {
        #[expect(clippy::cast_possible_truncation, reason = "checked against the mapping by map()")]
        let (at, length) = (self.header.seccomp as usize, self.header.seccomp_len as usize);
        // SAFETY: map() checked that as many instructions of eight bytes are inside the mapping, which is there until `let_go`.
        unsafe { core::slice::from_raw_parts(self.base.wrapping_add(at), length.wrapping_mul(8)) }
    }

    fn cwd(&self) -> &CStr {
        #[expect(clippy::cast_possible_truncation, reason = "checked against the mapping by map()")]
        let at = self.base.wrapping_add(self.header.cwd as usize);
        // SAFETY: the daemon ends every string with NUL, and the image's last byte is one.
        unsafe { CStr::from_ptr(at.cast::<c_char>()) }
    }
}

fn unmap(base: *mut u8, bytes: usize) {
    // SAFETY: the caller has mapped exactly this, and nothing points into it any more.
    unsafe { raw::syscall(nr::MUNMAP, base as usize, bytes, 0, 0, 0, 0) };
}

/// Why the program does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStarted {
    /// One of [`step`].
    pub step: u64,
    /// The error of that step.
    pub errno: Errno,
}

/// The running program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its pid in this namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: i32,
}

#[repr(C, align(16))]
struct ProgramStack([u8; 16 * 1024]);

/// What a program has for its standard descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// The init's own.
    Inherited,
    /// These three.
    Given([i32; 3]),
    /// The slave end of its terminal, three times; it is the session's controlling one.
    Terminal(i32),
}

struct Attempt<'a> {
    image: Image,
    own: Option<&'a Image>,
    standard: Standard,
    failed: NotStarted,
}

/// Clones the program's process, which sets itself up and executes; returns when it has, or has failed. `own` is the image
/// whose filter this process is under.
///
/// # Errors
/// The step that failed, and how.
pub fn start_program(
    image: &Image,
    standard: Standard,
    own: Option<&Image>,
) -> core::result::Result<Program, NotStarted> {
    static mut STACK: ProgramStack = ProgramStack([0; 16 * 1024]);
    let mut attempt =
        Attempt { image: *image, own, standard, failed: NotStarted { step: step::CLONE, errno: Errno(0) } };
    let mut pidfd: i32 = -1;
    const SIGCHLD: usize = 17;
    let flags = CLONE_VM | CLONE_PIDFD | CLONE_VFORK | SIGCHLD;
    let stack = ((&raw mut STACK).cast::<u8>(), size_of::<ProgramStack>());
    // SAFETY: vfork keeps this frame and the static stack alive and untouched until the child has exec'd or exited;
    // `program_entry` takes exactly an attempt and does not return.
    let returned = unsafe { raw::clone(flags, stack, &raw mut pidfd, program_entry, &raw mut attempt) };
    // SAFETY: the child wrote through a pointer; reading it back volatile keeps the compiler from its earlier knowledge.
    let failed = unsafe { (&raw const attempt.failed).read_volatile() };
    match raw::check(returned) {
        Err(errno) => Err(NotStarted { step: step::CLONE, errno }),
        Ok(_) if failed.errno != Errno(0) => Err(failed),
        Ok(pid) => {
            // SAFETY: the kernel stored the descriptor here before clone returned.
            let pidfd = unsafe { (&raw const pidfd).read_volatile() };
            Ok(Program { pid: raw::fd_from(pid), pidfd })
        }
    }
}

unsafe extern "C" fn program_entry(attempt: *mut Attempt<'_>) -> ! {
    // SAFETY: `start_program` stands still in vfork and passed a pointer to its own local.
    let attempt = unsafe { &mut *attempt };
    attempt.failed = become_program(&attempt.image, attempt.standard, attempt.own);
    raw::exit(127)
}

/// Returns only if it failed.
fn become_program(image: &Image, standard: Standard, own: Option<&Image>) -> NotStarted {
    let header = image.header();
    let fail = |step: u64| move |errno: Errno| NotStarted { step, errno };
    let steps = || -> core::result::Result<(), NotStarted> {
        raw::setsid().map_err(fail(step::DESCRIPTORS))?;
        // The daemon's and its init's: a program is scheduled as it would be anywhere.
        match raw::take_turns(0) {
            // A filter around all of this that forbids it has kept the daemon from it too.
            Ok(()) | Err(_) => {}
        }
        take_standard(standard).map_err(fail(step::TERMINAL))?;
        #[expect(clippy::cast_possible_truncation, reason = "the daemon passes at most PASSED_MAX")]
        let passed = header.passed as usize;
        for n in 0..passed {
            raw::dup3(raw::fd_arg(FIRST_PASSED_FD).wrapping_add(n), n.wrapping_add(3), 0)
                .map_err(fail(step::DESCRIPTORS))?;
        }
        raw::close_range(passed.wrapping_add(3), usize::MAX >> 32, 0).map_err(fail(step::DESCRIPTORS))?;
        set_rlimits(image).map_err(fail(step::RLIMIT))?;
        #[expect(clippy::cast_possible_truncation, reason = "a mode")]
        raw::umask(header.umask as usize).map_err(fail(step::CWD))?;
        raw::chdir(image.cwd()).map_err(fail(step::CWD))?;
        raw::set_signal_mask(0).map_err(fail(step::EXEC))?;
        match own {
            // It has it from its init.
            Some(own) if own.filter() == image.filter() => Ok(()),
            Some(_) | None => install_filter(image).map_err(fail(step::SECCOMP)),
        }
    };
    match steps() {
        Err(failed) => failed,
        Ok(()) => NotStarted { step: step::EXEC, errno: exec_first(image) },
    }
}

fn take_standard(standard: Standard) -> Result<()> {
    const TIOCSCTTY: usize = 0x540E;
    let given = match standard {
        Standard::Inherited => return Ok(()),
        Standard::Given(given) => given,
        Standard::Terminal(slave) => {
            // SAFETY: takes a descriptor and a number.
            raw::check(unsafe { raw::syscall(nr::IOCTL, raw::fd_arg(slave), TIOCSCTTY, 0, 0, 0, 0) })?;
            [slave; 3]
        }
    };
    // None of them is 0, 1 or 2: those are the init's own.
    for (to, from) in given.into_iter().enumerate() {
        raw::dup3(raw::fd_arg(from), to, 0)?;
    }
    Ok(())
}

/// A terminal in the worker's own devpts.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    /// For the daemon.
    pub master: i32,
    /// For the program.
    pub slave: i32,
}

/// Makes a terminal of this size.
///
/// # Errors
/// ENOSPC where the worker has as many as its devpts allows; ENOENT where it has none.
pub fn open_terminal(window: u64) -> Result<Terminal> {
    const CWD: i32 = -100;
    const READ_WRITE_NOCTTY_CLOEXEC: usize = 2 | 0o400 | 0o2_000_000;
    const TIOCSPTLCK: usize = 0x4004_5431;
    const TIOCGPTPEER: usize = 0x5441;
    const TIOCSWINSZ: usize = 0x5414;
    let path = c"/dev/pts/ptmx".as_ptr() as usize;
    // SAFETY: the path ends with NUL and the kernel only reads it.
    let opened =
        raw::check(unsafe { raw::syscall(nr::OPENAT, raw::fd_arg(CWD), path, READ_WRITE_NOCTTY_CLOEXEC, 0, 0, 0) })?;
    let steps = || {
        let unlocked = 0_i32;
        // SAFETY: the kernel reads one int.
        raw::check(unsafe { raw::syscall(nr::IOCTL, opened, TIOCSPTLCK, (&raw const unlocked) as usize, 0, 0, 0) })?;
        #[expect(clippy::cast_possible_truncation, reason = "each half is a number of cells")]
        let size = [(window >> 32) as u16, window as u16, 0, 0];
        // SAFETY: the kernel reads one `struct winsize` of four shorts.
        raw::check(unsafe { raw::syscall(nr::IOCTL, opened, TIOCSWINSZ, size.as_ptr() as usize, 0, 0, 0) })?;
        // By the master, not by a path that the worker could have put something else on (HARDENING E2).
        // SAFETY: takes a descriptor and flags.
        raw::check(unsafe { raw::syscall(nr::IOCTL, opened, TIOCGPTPEER, READ_WRITE_NOCTTY_CLOEXEC, 0, 0, 0) })
    };
    match steps() {
        Ok(slave) => Ok(Terminal { master: raw::fd_from(opened), slave: raw::fd_from(slave) }),
        Err(errno) => {
            match raw::close(opened) {
                Ok(_) | Err(_) => {}
            }
            Err(errno)
        }
    }
}

fn set_rlimits(image: &Image) -> Result<()> {
    let header = image.header();
    let table = image.table(header.rlimits).cast::<u64>();
    #[expect(clippy::cast_possible_truncation, reason = "checked against the mapping by map()")]
    for n in 0..header.rlimit_count as usize {
        let at = table.wrapping_add(n.wrapping_mul(2));
        // SAFETY: map() checked that the table has `rlimit_count` pairs.
        let resource = unsafe { at.read_unaligned() };
        // SAFETY: as above, the pair's second half.
        let value = unsafe { at.wrapping_add(1).read_unaligned() };
        let limit = [value, value];
        // SAFETY: the kernel reads one `struct rlimit64`, two words, and writes nothing where the old one is not wanted.
        raw::check(unsafe { raw::syscall(nr::PRLIMIT64, 0, resource as usize, limit.as_ptr() as usize, 0, 0, 0) })?;
    }
    Ok(())
}

/// Puts this process under the image's filter for good, and all that it starts.
///
/// # Errors
/// What the kernel says.
pub fn install_filter(image: &Image) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    let header = image.header();
    if header.seccomp_len == 0 {
        return Ok(());
    }
    let len = u16::try_from(header.seccomp_len).map_err(|_too_long| EINVAL)?;
    let program = Program { len, filter: image.filter().as_ptr() };
    // SAFETY: the kernel reads a `struct sock_fprog` and `len` instructions of eight bytes, which map() checked.
    raw::check(unsafe {
        raw::syscall(nr::SECCOMP, SECCOMP_SET_MODE_FILTER, 0, (&raw const program) as usize, 0, 0, 0)
    })?;
    Ok(())
}

/// Tries every path, as execvp(3) does: goes on where a file is missing, and prefers to report that one was not allowed.
fn exec_first(image: &Image) -> Errno {
    const ENOENT: Errno = Errno(2);
    const EACCES: Errno = Errno(13);
    const ENOTDIR: Errno = Errno(20);
    let header = image.header();
    let (argv, envp) = (image.table(header.argv) as usize, image.table(header.envp) as usize);
    let mut path_at = image.table(header.paths);
    let mut worst = ENOENT;
    loop {
        // SAFETY: relocate() walked this table to its null pointer.
        let path = unsafe { path_at.read() };
        if path.is_null() {
            return worst;
        }
        // SAFETY: path, argv and envp are NUL-terminated strings and null-terminated tables inside the mapped image.
        let returned = unsafe { raw::syscall(nr::EXECVE, path as usize, argv, envp, 0, 0, 0) };
        let Err(errno) = raw::check(returned) else { return Errno(0) };
        match errno {
            ENOENT | ENOTDIR => {}
            EACCES => worst = EACCES,
            other => return other,
        }
        path_at = path_at.wrapping_add(1);
    }
}

/// A reaped child.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reaped {
    /// Its pid in this namespace.
    pub pid: i32,
    /// wait(2)'s status word.
    pub status: u32,
    /// Microseconds in user mode.
    pub user_usec: u64,
    /// Microseconds in system mode.
    pub system_usec: u64,
    /// Largest resident size in KiB.
    pub max_rss_kib: u64,
}

/// Reaps one child; with `block`, waits for it.
///
/// # Errors
/// ECHILD when there is none.
pub fn reap(block: bool) -> Result<Option<Reaped>> {
    const WNOHANG: usize = 1;
    const WALL: usize = 0x4000_0000;
    let mut status = 0_u32;
    // `struct rusage`: two timevals, then fourteen longs of which the first is the resident size.
    let mut usage = [0_u64; 18];
    let options = if block { WALL } else { WALL | WNOHANG };
    let (status_at, usage_at) = ((&raw mut status) as usize, usage.as_mut_ptr() as usize);
    // SAFETY: the kernel writes one status word and one rusage of 144 bytes.
    let pid = raw::check(unsafe { raw::syscall(nr::WAIT4, usize::MAX, status_at, options, usage_at, 0, 0) })?;
    if pid == 0 {
        return Ok(None);
    }
    let usec = |seconds: u64, micro: u64| seconds.wrapping_mul(1_000_000).wrapping_add(micro);
    Ok(Some(Reaped {
        pid: raw::fd_from(pid),
        status,
        user_usec: usec(usage[0], usage[1]),
        system_usec: usec(usage[2], usage[3]),
        max_rss_kib: usage[4],
    }))
}

/// Sends a report, with a descriptor if `passing` is one. A daemon that is gone or does not read is not waited for.
///
/// # Errors
/// EPIPE when the daemon is gone, EAGAIN when it does not read.
pub fn send_report(report: &Report, passing: Option<i32>) -> Result<()> {
    // SAFETY: a report is words without padding.
    let bytes = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(report).cast::<u8>(), size_of::<Report>()) };
    raw::send_packet(SOCKET_FD, bytes, passing)
}

/// An `SCM_RIGHTS` with room for all descriptors of an order.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct OrderRights {
    len: usize,
    level: i32,
    kind: i32,
    fds: [i32; ORDER_FDS_MAX],
}

/// Takes one packet of a daemon: the order, and the descriptors that came with it, -1 for none; they are the caller's.
///
/// # Errors
/// EAGAIN when there is none.
pub fn receive_order() -> Result<(Order, [i32; ORDER_FDS_MAX])> {
    const MSG_DONTWAIT_CMSG_CLOEXEC: usize = 0x40 | 0x4000_0000;
    const HEADER_BYTES: usize = 16;
    let mut order = Order::default();
    let mut rights = OrderRights { len: 0, level: 0, kind: 0, fds: [-1; ORDER_FDS_MAX] };
    let vector = [(&raw mut order) as usize, size_of::<Order>()];
    let mut message = raw::Message {
        name: 0,
        name_len: 0,
        vector: &raw const vector,
        vector_len: 1,
        control: (&raw mut rights) as usize,
        control_len: size_of::<OrderRights>(),
        flags: 0,
    };
    let at = (&raw mut message) as usize;
    // SAFETY: the message points to one order and to room for one control message, all alive here.
    raw::check(unsafe { raw::syscall(nr::RECVMSG, raw::fd_arg(SOCKET_FD), at, MSG_DONTWAIT_CMSG_CLOEXEC, 0, 0, 0) })?;
    // SAFETY: the kernel wrote through pointers; reading back volatile keeps the compiler from its earlier knowledge.
    let order = unsafe { (&raw const order).read_volatile() };
    // SAFETY: as above.
    let rights = unsafe { (&raw const rights).read_volatile() };
    let mut fds = [-1; ORDER_FDS_MAX];
    if rights.level == raw::SOL_SOCKET && rights.kind == raw::SCM_RIGHTS {
        let count = rights.len.saturating_sub(HEADER_BYTES) / size_of::<i32>();
        for (to, from) in fds.iter_mut().zip(rights.fds).take(count) {
            *to = from;
        }
    }
    Ok((order, fds))
}

/// Makes `to` another name of what `from` names and closes `from`.
///
/// # Errors
/// EBADF.
pub fn move_descriptor(from: i32, to: i32) -> Result<()> {
    copy_descriptor(from, to)?;
    raw::close(raw::fd_arg(from)).map(|_| ())
}

/// Makes `to` another name of what `from` names.
///
/// # Errors
/// EBADF.
pub fn copy_descriptor(from: i32, to: i32) -> Result<()> {
    const O_CLOEXEC: usize = 0o2_000_000;
    raw::dup3(raw::fd_arg(from), raw::fd_arg(to), O_CLOEXEC).map(|_| ())
}

/// Writes an entry into the exit ledger. One write of one page that is there already: it neither waits nor allocates.
///
/// # Errors
/// EBADF, EIO.
pub fn write_entry(ledger: i32, at: u64, entry: &Entry) -> Result<()> {
    let (bytes, len) = (core::ptr::from_ref(entry) as usize, size_of::<Entry>());
    // SAFETY: the kernel reads one whole entry.
    #[expect(clippy::cast_possible_truncation, reason = "usize is u64 here")]
    raw::check(unsafe { raw::syscall(nr::PWRITE64, raw::fd_arg(ledger), bytes, len, at as usize, 0, 0) })?;
    Ok(())
}

/// Opens a signalfd for every signal.
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn signalfd_all() -> Result<i32> {
    const NONBLOCK_CLOEXEC: usize = 0o4000 | 0o2_000_000;
    let mask = u64::MAX;
    let at = (&raw const mask) as usize;
    // SAFETY: the kernel reads one eight-byte set.
    raw::check(unsafe { raw::syscall(nr::SIGNALFD4, usize::MAX, at, 8, NONBLOCK_CLOEXEC, 0, 0) }).map(raw::fd_from)
}

/// The next pending signal and who sent it, or `None`. The sender is a pid of this namespace; 0 is somebody outside it.
#[must_use]
pub fn next_signal(signalfd: i32) -> Option<(u32, u32)> {
    let mut info = [0_u32; 32];
    let at = info.as_mut_ptr() as usize;
    // SAFETY: the kernel writes one `struct signalfd_siginfo` of 128 bytes.
    match raw::check(unsafe { raw::syscall(nr::READ, raw::fd_arg(signalfd), at, 128, 0, 0, 0) }) {
        // ssi_signo and ssi_pid.
        Ok(128) => Some((info[0], info[3])),
        Ok(_) | Err(_) => None,
    }
}

/// Gives every signal its default action; an ignored one would stay ignored in the program.
pub fn reset_signals() {
    const RT_SIGACTION: usize = 13;
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads one `struct sigaction` of 32 bytes; for KILL and STOP it refuses, which is as well.
        unsafe { raw::syscall(RT_SIGACTION, signal, default.as_ptr() as usize, 0, 8, 0, 0) };
    }
}

/// Makes this process one that the out-of-memory killer may take: the daemon that it was cloned from is not.
pub fn be_killable() {
    const WRITE_ONLY: usize = 1;
    let (path, value) = (c"/proc/self/oom_score_adj".as_ptr() as usize, b"0");
    // SAFETY: the path ends with NUL and the kernel only reads it.
    let opened = raw::check(unsafe { raw::syscall(nr::OPENAT, raw::fd_arg(-100), path, WRITE_ONLY, 0, 0, 0) });
    // Without /proc, or refused: then it stays what it is, which is at most too well protected.
    let Ok(fd) = opened else { return };
    // SAFETY: the kernel reads one byte of a constant.
    unsafe { raw::syscall(nr::WRITE, fd, value.as_ptr() as usize, 1, 0, 0, 0) };
    match raw::close(fd) {
        Ok(_) | Err(_) => {}
    }
}

/// Waits until one of three descriptors is readable or the time is up; a negative descriptor is left out.
/// Gives back whether each is readable.
#[must_use]
pub fn wait_readable(fds: [i32; 3], timeout_msec: Option<u64>) -> [bool; 3] {
    const POLLIN: i16 = 1;
    #[repr(C)]
    struct PollFd {
        fd: i32,
        events: i16,
        returned: i16,
    }
    let mut fds = fds.map(|fd| PollFd { fd, events: POLLIN, returned: 0 });
    let timeout = timeout_msec.map(|ms| [ms / 1000, (ms % 1000).wrapping_mul(1_000_000)]);
    let timeout_at = timeout.as_ref().map_or(0, |t| t.as_ptr() as usize);
    // SAFETY: the kernel reads and writes three pollfds and reads one timespec or none.
    unsafe { raw::syscall(nr::PPOLL, fds.as_mut_ptr() as usize, fds.len(), timeout_at, 0, 8, 0) };
    fds.map(|fd| fd.returned != 0)
}

/// Milliseconds of the monotonic clock.
#[must_use]
pub fn now_msec() -> u64 {
    const MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes one timespec.
    unsafe { raw::syscall(nr::CLOCK_GETTIME, MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0, 0) };
    time[0].wrapping_mul(1000).wrapping_add(time[1] / 1_000_000)
}
