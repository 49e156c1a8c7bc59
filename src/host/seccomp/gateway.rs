//! The filter of the gateway: it serves what it was handed and talks to the daemon. No process, no file but those that its
//! loader reads, no connection but to a unix socket, no listener of its own.

use std::collections::BTreeMap;

use super::policy::{Action, Compare, Condition, Policy};
use crate::sys::syscall_names;

const EPERM: u16 = 1;
const AF_UNIX: u64 = 1;
/// What opens a file to write it, or makes one: `O_WRONLY`, `O_RDWR`, `O_CREAT`, `O_TRUNC`, `O_APPEND`, `O_TMPFILE`.
const WRITES: u64 = 0o1 | 0o2 | 0o100 | 0o1_000 | 0o2_000 | 0o20_000_000;
const PROT_EXEC: u64 = 4;
const PROT_WRITE: u64 = 2;

/// Memory, time, what is open, and the way out. One `execve` is how it begins; its root has no other program.
const ALLOWED: &str = "
    accept4 brk clock_gettime close close_range connect epoll_create1 epoll_ctl epoll_wait eventfd2 execve exit_group fcntl fstat futex
    getpid getrandom getsockname getsockopt gettid ioctl lseek madvise mremap munmap newfstatat poll pread64 prlimit64 read readv
    recvfrom recvmsg rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sendmsg sendto set_robust_list
    set_tid_address setsockopt shutdown sigaltstack tgkill write writev";

/// What is not in the list fails with EPERM; another architecture's calls kill.
pub(super) fn policy() -> Policy {
    let mut policy = Policy::new(Action::Errno(EPERM));
    let numbers: BTreeMap<&str, u32> = syscall_names::all().collect();
    let conditional: [(&str, Vec<Condition>); 5] = [
        ("socket", vec![is(0, u64::MAX, AF_UNIX)]),
        ("socketpair", vec![is(0, u64::MAX, AF_UNIX)]),
        ("openat", vec![is(2, WRITES, 0)]),
        ("access", Vec::new()),
        ("arch_prctl", Vec::new()),
    ];
    for name in ALLOWED.split_whitespace() {
        if let Some(number) = numbers.get(name) {
            policy.add(*number, Action::Allow, Vec::new());
        }
    }
    for (name, conditions) in conditional {
        if let Some(number) = numbers.get(name) {
            policy.add(*number, Action::Allow, conditions);
        }
    }
    // No memory is ever both written and executed.
    for (name, argument) in [("mmap", 2), ("mprotect", 2)] {
        if let Some(number) = numbers.get(name) {
            for kind in [0, PROT_WRITE, PROT_EXEC] {
                policy.add(*number, Action::Allow, vec![is(argument, PROT_EXEC | PROT_WRITE, kind)]);
            }
        }
    }
    policy
}

fn is(argument: u8, mask: u64, value: u64) -> Condition {
    Condition { argument, compare: Compare::Masked(mask), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_started_bound_or_made() {
        let policy = policy();
        let numbers: BTreeMap<&str, u32> = syscall_names::all().collect();
        for forbidden in [
            "execveat",
            "clone",
            "clone3",
            "fork",
            "vfork",
            "bind",
            "listen",
            "mount",
            "ptrace",
            "kill",
            "memfd_create",
            "unlinkat",
            "mkdirat",
            "symlinkat",
            "renameat2",
            "openat2",
            "setns",
            "unshare",
            "io_uring_setup",
            "bpf",
            "keyctl",
            "prctl",
        ] {
            let number = numbers.get(forbidden);
            assert!(number.is_none_or(|number| !policy.rules.contains_key(number)), "{forbidden}");
        }
    }

    #[test]
    fn it_is_short() {
        assert!(policy().rules.len() <= 55, "{}", policy().rules.len());
    }
}
