//! The built-in filter: what Docker's default profile allows a container without capabilities, minus what a worker has no
//! need of and others have been broken by (HARDENING 2I).
//!
//! Missing on purpose, beside all that changes the system: namespaces and mounts, `ptrace` and `process_vm_*`, keyrings, `bpf`,
//! `io_uring`, `userfaultfd`, `perf_event_open`, file handles, `modify_ldt`, `pidfd_getfd`, sockets but for unix, internet and
//! route netlink. What is missing fails with EPERM, what is newer than this list with ENOSYS.

use std::collections::BTreeMap;

use super::policy::{Action, Compare, Condition, Policy};
use crate::sys::syscall_names;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;
const EAFNOSUPPORT: u16 = 97;
const EPROTONOSUPPORT: u16 = 93;

/// Allowed whatever the arguments. A name that an architecture does not have is left out there.
const ALLOWED: &str = "
    accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown clock_getres clock_gettime
    clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group
    faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
    flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
    getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioprio_get ioprio_set kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat open
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64
    preadv preadv2 prlimit64 process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl
    semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid
    setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statx symlink
    symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime
    utimensat utimes vfork vmsplice wait4 waitid write writev
";

/// `CLONE_NEW*` but for `CLONE_NEWTIME`, whose bit is part of the exit signal in `clone`.
const NAMESPACES: u64 = 0x7e02_0000;
const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const NETLINK_ROUTE: u32 = 0;
/// Types into a terminal as if its user did (CVE-2017-5226).
const TIOCSTI: u32 = 0x5412;
/// Pastes into a console (CVE-2023-1523).
const TIOCLINUX: u32 = 0x541c;
/// Loads line disciplines, of which several were exploitable.
const TIOCSETD: u32 = 0x5423;
/// Asks `personality` for the present value.
const PERSONALITY_QUERY: u32 = u32::MAX;

pub(super) fn policy() -> Policy {
    let numbers: BTreeMap<&str, u32> = syscall_names::all().collect();
    let mut policy = Policy::new(Action::Errno(EPERM));
    let mut add = |name: &str, action, conditions| {
        if let Some(number) = numbers.get(name) {
            policy.add(*number, action, conditions);
        }
    };
    for name in ALLOWED.split_ascii_whitespace() {
        add(name, Action::Allow, Vec::new());
    }

    let none_of_them = Condition { argument: 0, compare: Compare::Masked(NAMESPACES), value: 0 };
    add("clone", Action::Allow, vec![none_of_them]);
    // Its flags are in memory, where no filter sees them; on ENOSYS every C library takes `clone`.
    add("clone3", Action::Errno(ENOSYS), Vec::new());

    for name in ["socket", "socketpair"] {
        add(name, Action::Allow, Vec::new());
        let others = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK].map(|family| Condition::int_differs(0, family));
        add(name, Action::Errno(EAFNOSUPPORT), others.to_vec());
        // The C library lists interfaces through it when it resolves names.
        let netlink = [Condition::int_equals(0, AF_NETLINK), Condition::int_differs(2, NETLINK_ROUTE)];
        add(name, Action::Errno(EPROTONOSUPPORT), netlink.to_vec());
    }

    add("ioctl", Action::Allow, Vec::new());
    for request in [TIOCSTI, TIOCLINUX, TIOCSETD] {
        add("ioctl", Action::Errno(EPERM), vec![Condition::int_equals(1, request)]);
    }

    for persona in [0, PERSONALITY_QUERY] {
        add("personality", Action::Allow, vec![Condition::int_equals(0, persona)]);
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_the_kernels() {
        let numbers: BTreeMap<&str, u32> = syscall_names::all().collect();
        let unknown: Vec<&str> = ALLOWED.split_ascii_whitespace().filter(|name| !numbers.contains_key(name)).collect();
        if cfg!(target_arch = "x86_64") {
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }
}
