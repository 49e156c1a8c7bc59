//! What a reader could still do that an archive has taken over: it is stopped in the middle of one, and made to ask the
//! kernel for things. Only for x86_64, whose registers it knows.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::archive::Tar;
use super::{unfinished, wait_clean};
use crate::fixture::{Daemon, EVENT_DEADLINE, ended_within};
use crate::needs::needs;

/// An import whose archive is a pipe that says nothing more: its reader waits, for as long as this is held.
struct Waiting {
    import: Child,
    pipe: std::io::PipeWriter,
    reader: u32,
    root: PathBuf,
}

impl Waiting {
    /// Begins one; it has one file whole, `first`, and one half.
    fn begin(daemon: &mut Daemon) -> Self {
        let (theirs, pipe) = std::io::pipe().expect("make a pipe");
        let mut command = daemon.place().command(&["image", "import", "-", "--name", "half"]);
        let import = command.stdin(theirs).stderr(std::process::Stdio::null()).spawn().expect("run halsup");
        let mut tar = Tar::default();
        tar.program("first", b"#!/bin/sh\n").file("second", &[7; 100_000]);
        std::io::Write::write_all(&mut &pipe, &tar.0[..50_000]).expect("write a piece");
        let root = daemon.wait_until("a first file", |daemon| {
            let root = daemon.path("state/images/tmp").join(unfinished(daemon).first()?).join("root");
            root.join("second").exists().then_some(root)
        });
        let reader = super::kills::reader_of(daemon).expect("it waits");
        Self { import, pipe, reader, root }
    }

    fn pidfd(&self) -> OwnedFd {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.reader).expect("a pid")).expect("a pid");
        pidfd_open(pid, PidfdFlags::empty()).expect("open the reader's pidfd")
    }

    /// Ends it from its caller's side.
    fn end(mut self) {
        self.import.kill().expect("end it");
        self.import.wait().expect("reap it");
        drop(self.pipe);
    }
}

/// A process that makes the calls it is told to instead of its own.
struct Captive {
    pid: Pid,
    /// Its registers where it is about to make the call in which it was taken.
    registers: user_regs_struct,
}

impl Captive {
    /// Takes hold of a process that waits in a call.
    fn take(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).expect("trace it");
        ptrace::interrupt(pid).expect("stop it");
        wait(pid);
        to_next_call(pid);
        let registers = ptrace::getregs(pid).expect("read its registers");
        Self { pid, registers }
    }

    /// Puts a text into its memory, below what its stack is used for.
    fn text(&self, text: &[u8]) -> u64 {
        const BELOW: u64 = 4096;
        let at = (self.registers.rsp - BELOW) & !0xf;
        let memory = File::options().write(true).open(format!("/proc/{}/mem", self.pid)).expect("open its memory");
        memory.write_all_at(&[text, b"\0"].concat(), at).expect("write into its memory");
        at
    }

    /// Has it make a call; what came of it.
    fn call(&mut self, number: i64, arguments: [u64; 4]) -> Result<u64, Errno> {
        let [rdi, rsi, rdx, r10] = arguments;
        let orig_rax = number.cast_unsigned();
        let asked = user_regs_struct { orig_rax, rdi, rsi, rdx, r10, r8: 0, r9: 0, ..self.registers };
        ptrace::setregs(self.pid, asked).expect("change its call");
        to_next_call(self.pid);
        let result = ptrace::getregs(self.pid).expect("read its registers").rax.cast_signed();
        // Back before the instruction that made the call.
        let (rip, rax) = (self.registers.rip - 2, self.registers.orig_rax);
        let again = user_regs_struct { rip, rax, orig_rax: u64::MAX, ..self.registers };
        ptrace::setregs(self.pid, again).expect("put its registers back");
        to_next_call(self.pid);
        match i32::try_from(-result) {
            Ok(errno @ 1..4096) => Err(Errno::from_raw(errno)),
            _ => Ok(result.cast_unsigned()),
        }
    }

    fn let_go(self) {
        ptrace::detach(self.pid, None).expect("let it go");
    }
}

/// To where it makes a call or comes back from one.
fn to_next_call(pid: Pid) {
    ptrace::syscall(pid, None).expect("let it go on");
    assert_eq!(wait(pid), WaitStatus::PtraceSyscall(pid));
}

fn wait(pid: Pid) -> WaitStatus {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            status => return status.expect("wait for it"),
        }
    }
}

const HERE: u64 = (libc::AT_FDCWD as i64).cast_unsigned();

#[test]
fn a_reader_that_was_taken_over_can_only_make_files() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start("");
    let waiting = Waiting::begin(&mut daemon);
    let mut captive = Captive::take(waiting.reader);
    // That it does what it is told is seen by what it may do.
    let place = captive.text(b"/pipe");
    assert_eq!(captive.call(libc::SYS_mknodat, [HERE, place, u64::from(libc::S_IFIFO | 0o600), 0]), Ok(0));
    let made = fs::symlink_metadata(waiting.root.join("pipe")).expect("it was made");
    assert!(made.file_type().is_fifo());

    let first = captive.text(b"/first");
    for (what, number, arguments) in [
        ("a socket", libc::SYS_socket, [1, 1, 0, 0]),
        ("a pair of sockets", libc::SYS_socketpair, [1, 1, 0, first]),
        ("a file in memory", libc::SYS_memfd_create, [first, 0, 0, 0]),
        ("a program", libc::SYS_execve, [first, 0, 0, 0]),
        ("a process", libc::SYS_clone, [17, 0, 0, 0]),
        ("a namespace", libc::SYS_unshare, [0x1000_0000, 0, 0, 0]),
        ("a directory to be its root", libc::SYS_chroot, [first, 0, 0, 0]),
        ("an event", libc::SYS_eventfd2, [0, 0, 0, 0]),
        ("a ring", libc::SYS_io_uring_setup, [8, first, 0, 0]),
        ("a key", libc::SYS_keyctl, [0, 0, 0, 0]),
        ("another name", libc::SYS_rename, [first, first, 0, 0]),
    ] {
        assert_eq!(captive.call(number, arguments), Err(Errno::EPERM), "{what}");
    }
    captive.let_go();
    waiting.end();
    wait_clean(&mut daemon);
}

#[test]
fn a_reader_that_was_taken_over_makes_nothing_that_is_more_than_a_file() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start("");
    let waiting = Waiting::begin(&mut daemon);
    let mut captive = Captive::take(waiting.reader);
    // A character device 0:0 needs no right of its own: it is what hides a file in an overlay.
    for (what, kind) in [("socket", libc::S_IFSOCK), ("whiteout", libc::S_IFCHR)] {
        let place = captive.text(format!("/{what}").as_bytes());
        let mode = u64::from(kind | 0o600);
        assert_eq!(captive.call(libc::SYS_mknodat, [HERE, place, mode, 0]), Err(Errno::EPERM), "{what}");
        assert!(!waiting.root.join(what).exists(), "{what}");
    }
    captive.let_go();
    waiting.end();
    wait_clean(&mut daemon);
}

#[test]
fn a_reader_ends_with_its_daemon_also_where_its_archive_says_nothing() {
    needs!(Root, CgroupTree, Userns);
    let mut daemon = Daemon::start("");
    let waiting = Waiting::begin(&mut daemon);
    let reader = waiting.pidfd();
    assert!(!ended_within(std::os::fd::AsFd::as_fd(&reader), Duration::ZERO), "it waits for its archive");
    let pid = i32::try_from(daemon.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    let killed = pidfd_open(pid, PidfdFlags::empty()).expect("open the daemon's pidfd");
    pidfd_send_signal(&killed, Signal::KILL).expect("kill the daemon");
    // The pipe is held open here: nothing but the daemon's death can end it.
    assert!(ended_within(std::os::fd::AsFd::as_fd(&reader), EVENT_DEADLINE), "it outlives its daemon");
    waiting.end();
    daemon.start_again();
    wait_clean(&mut daemon);
}
