//! Errors of the kernel's, on demand: a daemon is traced, and chosen system calls of its fail without being made.
//!
//! The product has no seam for it and no idea of it: whoever makes the call, std, rustix, nix or `sys`, meets the error. A
//! test attaches an [`Injector`], sets [`Rule`]s, looks at what they were applied to, and drops it before its `Daemon`.
//! Children of the daemon are not traced. Only for x86_64, whose registers it knows.

#![expect(
    clippy::disallowed_methods,
    reason = "the tracer is a thread of the test, and deadlines are on the real clock"
)]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::fixture::EVENT_DEADLINE;

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    /// It is not made, and fails.
    Fail(Errno),
    /// Its third argument, the length of a buffer, is at most this.
    Shorten(u64),
    /// It is made, and only written down.
    Note,
}

/// Which of the calls that match are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    Always,
    /// Only this one, counted from 1.
    Nth(u64),
    /// One, then one not, and so on.
    EveryOther,
}

/// Calls that are to go otherwise than the kernel has it.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// By number; none is all but those of [`UNFAILING`].
    calls: Vec<i64>,
    /// Only those about a file whose path ends like this: of the descriptor in their first argument, or named.
    about: Option<&'static str>,
    /// Only those that are made after one of this number.
    after: Option<i64>,
    when: When,
    what: What,
}

impl Rule {
    pub(crate) fn new(calls: &[i64], what: What) -> Self {
        Self { calls: calls.to_vec(), about: None, after: None, when: When::Always, what }
    }

    pub(crate) fn fail(calls: &[i64], errno: Errno) -> Self {
        Self::new(calls, What::Fail(errno))
    }

    pub(crate) fn about(self, suffix: &'static str) -> Self {
        Self { about: Some(suffix), ..self }
    }

    pub(crate) fn after(self, call: i64) -> Self {
        Self { after: Some(call), ..self }
    }

    pub(crate) fn when(self, when: When) -> Self {
        Self { when, ..self }
    }
}

/// Calls that no kernel refuses, whose refusal would be a leak of the test's making, or that give memory to the allocator,
/// which ends the program without it.
const UNFAILING: [i64; 30] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_waitid,
];

#[derive(Debug)]
struct Armed {
    rule: Rule,
    matched: u64,
}

#[derive(Debug, Default)]
struct Plan {
    rules: Vec<Armed>,
    /// What rules were applied to, in order.
    applied: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    news: Condvar,
    leave: AtomicBool,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("no holder of the plan panics")
    }
}

/// Words to start a daemon behind, for [`Injector::at_gate`]: it waits there, as a shell, until it is traced.
pub(crate) fn gate_words(dir: &Path) -> [String; 3] {
    let dir = dir.display();
    let script = format!("echo $$ > {dir}/gate.pid; read -r nothing < {dir}/gate; exec \"$0\" \"$@\"");
    ["sh".to_owned(), "-c".to_owned(), script]
}

/// Traces a daemon, until it is dropped.
#[derive(Debug)]
pub(crate) struct Injector {
    shared: Arc<Shared>,
    attached: Receiver<OwnedFd>,
    pidfd: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Injector {
    /// Traces a daemon that runs.
    pub(crate) fn attach(pid: u32) -> Self {
        let mut injector = Self::begin(Vec::new(), move || (pid, None));
        injector.pidfd = Some(injector.attached.recv_timeout(EVENT_DEADLINE).expect("the daemon can be traced"));
        injector
    }

    /// Traces from its first instruction on what is started next behind [`gate_words`] of `dir`.
    pub(crate) fn at_gate(dir: &Path, rules: Vec<Rule>) -> Self {
        let (gate, named) = (dir.join("gate"), dir.join("gate.pid"));
        for old in [&gate, &named] {
            if old.exists() {
                fs::remove_file(old).expect("remove the gate of the start before");
            }
        }
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("make the gate");
        Self::begin(rules, move || {
            // This waits for who reads from the gate, and says before who it is.
            let opened = File::options().write(true).open(&gate).expect("open the gate");
            let pid = fs::read_to_string(&named).expect("read who is at the gate");
            (pid.trim().parse().expect("a pid"), Some(opened))
        })
    }

    fn begin(rules: Vec<Rule>, find: impl FnOnce() -> (u32, Option<File>) + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let (say, attached) = channel();
        let theirs = Arc::clone(&shared);
        let mut injector = Self { shared, attached, pidfd: None, thread: None };
        injector.set(rules);
        injector.thread = Some(std::thread::spawn(move || {
            let (pid, gate) = find();
            trace(pid, gate, &theirs, &say);
        }));
        injector
    }

    /// Replaces all rules, and forgets what they were applied to.
    pub(crate) fn set(&self, rules: Vec<Rule>) {
        let rules = rules.into_iter().map(|rule| Armed { rule, matched: 0 }).collect();
        *self.shared.plan() = Plan { rules, applied: Vec::new() };
    }

    /// What rules were applied to since they were set.
    pub(crate) fn applied(&self) -> Vec<String> {
        self.shared.plan().applied.clone()
    }

    /// Waits for a first application since rules were set, and says to what; `None` if there is none in this time.
    pub(crate) fn is_applied_within(&self, time: Duration) -> Option<String> {
        let plan = self.shared.plan();
        let waited = self.shared.news.wait_timeout_while(plan, time, |plan| plan.applied.is_empty());
        waited.expect("no holder of the plan panics").0.applied.first().cloned()
    }

    /// Waits until rules were applied so often since they were set.
    ///
    /// # Panics
    /// At [`EVENT_DEADLINE`].
    #[track_caller]
    pub(crate) fn wait_applied(&self, count: usize) {
        let plan = self.shared.plan();
        let waited = self.shared.news.wait_timeout_while(plan, EVENT_DEADLINE, |plan| plan.applied.len() < count);
        let (plan, late) = waited.expect("no holder of the plan panics");
        assert!(!late.timed_out(), "the rules {:?} were applied to {:?} only", plan.rules, plan.applied);
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::SeqCst);
        let Some(pidfd) = self.pidfd.take().or_else(|| self.attached.try_recv().ok()) else { return };
        // A tracer is told of every signal, and nobody else is told of this one.
        match pidfd_send_signal(&pidfd, rustix::process::Signal::WINCH) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => panic!("wake the tracer: {errno}"),
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the tracer panicked");
        }
    }
}

fn trace(pid: u32, gate: Option<File>, shared: &Shared, say: &Sender<OwnedFd>) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("trace the daemon");
    let pidfd = pidfd_open(rustix::process::Pid::from_raw(pid.as_raw()).expect("a pid"), PidfdFlags::empty());
    ptrace::interrupt(pid).expect("stop the daemon for the first time");
    let mut result = None;
    // Its end is left to its parent to hear of, which is this process too.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
    let mut open = Some((gate, pidfd.expect("open its pidfd")));
    loop {
        let mut signal = None;
        match waitid(Id::Pid(pid), flags) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) | Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return,
            Ok(WaitStatus::PtraceSyscall(_)) => {
                if let Err(errno) = at_call(pid, shared, &mut result) {
                    // Killed meanwhile.
                    assert_eq!(errno, Errno::ESRCH);
                }
            }
            Ok(WaitStatus::Stopped(_, sent) | WaitStatus::PtraceEvent(_, sent, 0)) if sent != Signal::SIGWINCH => {
                signal = Some(sent);
            }
            Ok(WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)) => {
                if shared.leave.load(Ordering::SeqCst) {
                    ptrace::detach(pid, None).ok();
                    return;
                }
            }
            other => panic!("wait for the daemon: {other:?}"),
        }
        // ESRCH: killed meanwhile, as the next wait says.
        ptrace::syscall(pid, signal).ok();
        if let Some((gate, pidfd)) = open.take() {
            say.send(pidfd).ok();
            drop(gate);
        }
    }
}

/// The daemon stands before or after a system call.
fn at_call(pid: Pid, shared: &Shared, result: &mut Option<Errno>) -> nix::Result<()> {
    let mut regs = ptrace::getregs(pid)?;
    if ptrace::syscall_info(pid)?.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        if let Some(errno) = result.take() {
            regs.rax = (-i64::from(errno as i32)).cast_unsigned();
            ptrace::setregs(pid, regs)?;
        }
        return Ok(());
    }
    let mut plan = shared.plan();
    let Some((what, text)) = decide(&mut plan, pid, &regs) else { return Ok(()) };
    plan.applied.push(text);
    drop(plan);
    shared.news.notify_all();
    match what {
        What::Fail(errno) => {
            *result = Some(errno);
            regs.orig_rax = u64::MAX;
        }
        What::Shorten(most) => regs.rdx = regs.rdx.min(most),
        What::Note => return Ok(()),
    }
    ptrace::setregs(pid, regs)
}

/// What becomes of a call, and how that is told.
fn decide(plan: &mut Plan, pid: Pid, regs: &user_regs_struct) -> Option<(What, String)> {
    let call = regs.orig_rax.cast_signed();
    for armed in &mut plan.rules {
        if armed.rule.after.is_some() {
            armed.rule.after = armed.rule.after.filter(|after| *after != call);
            continue;
        }
        let rule = &armed.rule;
        let meant = if rule.calls.is_empty() { !UNFAILING.contains(&call) } else { rule.calls.contains(&call) };
        if !meant || (call == libc::SYS_fcntl && !duplicates(regs)) {
            continue;
        }
        let objects = objects(pid, regs);
        if rule.about.is_some_and(|suffix| !objects.iter().any(|object| object.ends_with(suffix))) {
            continue;
        }
        armed.matched += 1;
        let now = match rule.when {
            When::Always => true,
            When::Nth(number) => armed.matched == number,
            When::EveryOther => armed.matched % 2 == 1,
        };
        if now {
            return Some((rule.what, format!("{call}({:?}): {:?}", objects, rule.what)));
        }
    }
    None
}

/// Of fcntl(2), only what gives out a descriptor.
const fn duplicates(regs: &user_regs_struct) -> bool {
    regs.rsi == libc::F_DUPFD.cast_unsigned() as u64 || regs.rsi == libc::F_DUPFD_CLOEXEC.cast_unsigned() as u64
}

/// The files that a call is about, by the descriptor in its first argument and by names in memory.
fn objects(pid: Pid, regs: &user_regs_struct) -> Vec<String> {
    let names: &[u64] = match regs.orig_rax.cast_signed() {
        libc::SYS_open | libc::SYS_unlink | libc::SYS_rmdir | libc::SYS_mkdir => &[regs.rdi],
        libc::SYS_rename => &[regs.rdi, regs.rsi],
        libc::SYS_openat | libc::SYS_unlinkat | libc::SYS_mkdirat | libc::SYS_fchownat => &[regs.rsi],
        libc::SYS_renameat | libc::SYS_renameat2 => &[regs.rsi, regs.r10],
        _ => &[],
    };
    let link = fs::read_link(format!("/proc/{pid}/fd/{}", regs.rdi)).ok();
    let mut objects: Vec<String> = link.map(|link| link.to_string_lossy().into_owned()).into_iter().collect();
    if let Ok(memory) = File::open(format!("/proc/{pid}/mem")) {
        objects.extend(names.iter().filter_map(|&at| text_at(&memory, at)));
    }
    objects
}

fn text_at(memory: &File, at: u64) -> Option<String> {
    let mut bytes = [0; 256];
    let count = memory.read_at(&mut bytes, at).ok()?;
    let text = bytes[..count].split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[test]
fn a_call_of_a_traced_program_fails_as_it_is_told() {
    crate::needs::needs!(Root);
    let dir = crate::place::directory();
    let [shell, flag, script] = gate_words(dir.path());
    let injector = Injector::at_gate(
        dir.path(),
        vec![Rule::fail(&[libc::SYS_openat, libc::SYS_open], Errno::EDQUOT).about("/no-such-directory/no-such-file")],
    );
    // Not a child of this process: a wait for a child that is traced from here may be told of its stops instead of its end.
    let output = crate::place::run(crate::place::command_of("sh".into()).args([
        "-c",
        "\"$@\"; exit $?",
        "sh",
        &shell,
        &flag,
        &script,
        "cat",
        "/no-such-directory/no-such-file",
    ]));
    assert!(output.stderr.contains("quota"), "{output:?}");
    assert_eq!(injector.applied().len(), 1, "{:?}", injector.applied());
}
