//! The filter of a process that reads what others wrote and puts it into files: no program, no process, no socket, no mount.

use super::policy::{Action, Compare, Condition, Policy};
use crate::sys::syscall_names;

const EPERM: u16 = 1;

/// Memory, what is open, files below a directory, and the way out. `prctl` names an anonymous mapping in newer C libraries.
const ALLOWED: &str = "
    brk clock_gettime close copy_file_range dup exit exit_group fadvise64 fallocate fchmod fchown fchownat fcntl fdatasync
    fsetxattr fstat fstatfs fstatvfs fsync ftruncate futex getdents64 getpid getrandom gettid linkat lseek madvise mkdirat
    mmap mprotect mremap munmap newfstatat openat openat2 poll ppoll pread64 prctl pwrite64 read readlinkat readv recvmsg
    restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sched_yield sendmsg sendto sigaltstack statx symlinkat syncfs
    tgkill unlinkat utimensat write writev";

/// The bits of a mode that say what kind of file it is of, and a pipe's.
const KIND: u64 = 0o170_000;
const PIPE: u64 = 0o010_000;

/// What is not in the list fails with EPERM; another architecture's calls kill.
pub(super) fn policy() -> Policy {
    let mut policy = Policy::new(Action::Errno(EPERM));
    for (name, number) in syscall_names::all() {
        if ALLOWED.split_whitespace().any(|allowed| allowed == name) {
            policy.add(number, Action::Allow, Vec::new());
        } else if name == "mknodat" {
            // Anybody may make a character device 0:0, which hides files in an overlay; Linux 6.1 and 6.12 were seen not to ask
            // Landlock about it.
            let pipe = Condition { argument: 2, compare: Compare::Masked(KIND), value: PIPE };
            policy.add(number, Action::Allow, vec![pipe]);
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_started_and_nobody_is_talked_to() {
        let policy = policy();
        for forbidden in
            ["execve", "execveat", "clone", "clone3", "fork", "socket", "connect", "mount", "ptrace", "kill"]
        {
            let number = syscall_names::all().find(|(name, _)| *name == forbidden).map(|(_, number)| number);
            assert!(number.is_none_or(|number| !policy.rules.contains_key(&number)), "{forbidden}");
        }
    }
}
