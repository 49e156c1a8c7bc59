//! Becoming another program, and back again if that goes wrong: execveat(2) by descriptor, and signal handlers that do it
//! when this process crashes or hangs before it has called [`disarm`].
//!
//! The handlers make one system call on memory that was prepared before they were installed; nothing else is safe there.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use super::raw::{self, Errno};

/// What a crash raises, and the alarm of a hang.
const SIGNALS: [c_int; 7] =
    [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGTRAP, libc::SIGALRM];
/// Large enough for a handler that makes a few system calls; an overflown stack has none left.
const HANDLER_STACK_BYTES: usize = 64 * 1024;

static PROGRAM: AtomicI32 = AtomicI32::new(-1);
static VERDICT: AtomicI32 = AtomicI32::new(-1);
static ARGV: AtomicPtr<*const c_char> = AtomicPtr::new(std::ptr::null_mut());
static ENVP: AtomicPtr<*const c_char> = AtomicPtr::new(std::ptr::null_mut());

/// Arguments or environment as execve(2) takes them.
#[derive(Debug)]
struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(strings: &[CString]) -> Self {
        let owned = strings.to_vec();
        let pointers = owned.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

/// Becomes the program that `program` names. All signals are blocked across it: the new one unblocks them when it listens.
/// Returns only if it failed.
#[must_use]
pub fn become_program(program: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> io::Error {
    let (argv, envp) = (Strings::new(argv), Strings::new(envp));
    let mask = raw::set_signal_mask(u64::MAX);
    // SAFETY: both are arrays of pointers to strings that live until the end of this function, ended by a null pointer.
    let errno = unsafe { execute(program.as_raw_fd(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    if let Ok(mask) = mask {
        // Only numbers that are masks can be refused, and this one was one.
        match raw::set_signal_mask(mask) {
            Ok(_) | Err(_) => {}
        }
    }
    io::Error::from_raw_os_error(errno.0)
}

/// # Safety
/// `argv` and `envp` are arrays of pointers to strings ended by NUL, ended by a null pointer.
unsafe fn execute(program: i32, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    const AT_EMPTY_PATH: usize = 0x1000;
    let empty: &CStr = c"";
    let (path, argv, envp) = (empty.as_ptr() as usize, argv as usize, envp as usize);
    // SAFETY: the caller vouches for the arrays; the path is a constant.
    let returned = unsafe { raw::syscall(raw::nr::EXECVEAT, raw::fd_arg(program), path, argv, envp, AT_EMPTY_PATH, 0) };
    match raw::check(returned) {
        Ok(_) => Errno(0),
        Err(errno) => errno,
    }
}

/// From now on a crash, or `patience` without [`disarm`], makes this process the program `program` again; the number of the
/// signal is written to `verdict` first. To be called once, before anything can go wrong. The memory for it is never
/// given back: a handler may run at any time.
///
/// # Errors
/// ENOMEM.
pub fn arm(
    program: BorrowedFd<'_>,
    verdict: BorrowedFd<'_>,
    argv: &[CString],
    envp: &[CString],
    patience: Duration,
) -> io::Result<()> {
    let leak = |strings: &[CString]| Box::leak(Box::new(Strings::new(strings))).pointers.as_mut_ptr();
    ARGV.store(leak(argv), Ordering::Release);
    ENVP.store(leak(envp), Ordering::Release);
    VERDICT.store(verdict.as_raw_fd(), Ordering::Release);
    PROGRAM.store(program.as_raw_fd(), Ordering::Release);
    let stack = Box::leak(vec![0_u8; HANDLER_STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: HANDLER_STACK_BYTES };
    // SAFETY: the stack is leaked, so it is this thread's own for ever.
    if unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in SIGNALS {
        handle(signal, fall_back as *const () as usize, libc::SA_ONSTACK | libc::SA_NODEFER)?;
    }
    alarm(patience)?;
    // The program before this one has blocked all signals; what tells of a crash has to come through from now on.
    let blocked = SIGNALS.iter().fold(u64::MAX, |mask, signal| mask & !(1_u64 << (signal - 1)));
    raw::set_signal_mask(blocked).map(drop).map_err(|errno| io::Error::from_raw_os_error(errno.0))
}

/// This process is healthy: it does not become anything else any more.
///
/// # Errors
/// None in practice.
pub fn disarm() -> io::Result<()> {
    alarm(Duration::ZERO)?;
    for signal in SIGNALS {
        handle(signal, libc::SIG_DFL, 0)?;
    }
    PROGRAM.store(-1, Ordering::Release);
    Ok(())
}

/// Lets all signals through.
///
/// # Errors
/// None in practice.
pub fn unblock_signals() -> io::Result<()> {
    raw::set_signal_mask(0).map(drop).map_err(|errno| io::Error::from_raw_os_error(errno.0))
}

fn handle(signal: c_int, handler: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction: an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handler is a function of this program that is safe in a signal's context, or the default action.
    let done = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn alarm(after: Duration) -> io::Result<()> {
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // Without the names of the fields' types: musl's are deprecated in libc, for they are to grow.
    let after = libc::timeval {
        tv_sec: after.as_secs().try_into().map_err(io::Error::other)?,
        tv_usec: after.subsec_micros().cast_signed().into(),
    };
    let timer = libc::itimerval { it_interval: none, it_value: after };
    // SAFETY: the kernel reads one whole itimerval.
    let done = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Becomes the program that [`arm`] was given, with `reason` as the verdict; returns if that was never called, or fails.
pub fn fall_back_now(reason: &str) {
    let (program, verdict) = (PROGRAM.load(Ordering::Acquire), VERDICT.load(Ordering::Acquire));
    if program < 0 {
        return;
    }
    let (at, length) = (reason.as_ptr() as usize, reason.len());
    // SAFETY: the kernel reads a string of this length that lives until the call returns.
    unsafe { raw::syscall(raw::nr::PWRITE64, raw::fd_arg(verdict), at, length, 0, 0, 0) };
    if raw::set_signal_mask(u64::MAX).is_ok() {
        // SAFETY: `arm` has stored whole arrays and leaked them.
        unsafe { execute(program, ARGV.load(Ordering::Acquire), ENVP.load(Ordering::Acquire)) };
    }
}

/// Takes ownership of a descriptor that another program has left open for this one; `None` if nothing is open at that number.
/// To be called only before this program opens anything of its own, and once for each number.
#[must_use]
pub fn own(number: i32) -> Option<OwnedFd> {
    const F_GETFD: usize = 1;
    // SAFETY: fcntl with F_GETFD takes numbers only.
    let open = raw::check(unsafe { raw::syscall(raw::nr::FCNTL, raw::fd_arg(number), F_GETFD, 0, 0, 0, 0) });
    if number <= 2 || open.is_err() {
        return None;
    }
    // SAFETY: it is open, and by the caller's word nothing in this program owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

extern "C" fn fall_back(signal: c_int) {
    let (program, verdict) = (PROGRAM.load(Ordering::Acquire), VERDICT.load(Ordering::Acquire));
    let number = [u8::try_from(signal).unwrap_or(0)];
    // SAFETY: the kernel reads one byte of this frame; without a verdict the next program does not know why it is back.
    unsafe { raw::syscall(raw::nr::PWRITE64, raw::fd_arg(verdict), number.as_ptr() as usize, 1, 0, 0, 0) };
    // SAFETY: `arm` has stored whole arrays and leaked them before it installed this handler.
    unsafe { execute(program, ARGV.load(Ordering::Acquire), ENVP.load(Ordering::Acquire)) };
    raw::exit(127)
}
