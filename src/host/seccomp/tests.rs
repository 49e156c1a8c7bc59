//! Programs run in a small interpreter of their own and are compared with what the policy says, computed the slow way.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::bpf::{self, AUDIT_ARCH, X32_FIRST};
use super::policy::{Action, Compare, Condition, Policy, Rule};
use super::*;
use crate::sys::syscall_names;

const KERNEL: (u32, u32) = (6, 1);
const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);

/// `struct seccomp_data` without the instruction pointer, which no program here reads.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    fn new(number: u32, arguments: [u64; 6]) -> Self {
        Self { number, arch: AUDIT_ARCH.unwrap(), arguments }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            _ => {
                let argument = self.arguments[usize::try_from((offset - 16) / 8).unwrap()];
                let half = if offset.is_multiple_of(8) { argument } else { argument >> 32 };
                u32::try_from(half & 0xffff_ffff).unwrap()
            }
        }
    }
}

/// Runs a program as the kernel would: the verdict, and after how many instructions.
fn run(filter: &Filter, call: &Call) -> (u32, usize) {
    let mut accumulator = 0_u32;
    let mut at = 0_usize;
    for steps in 1.. {
        let bytes = filter.program()[at].to_ne_bytes();
        let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        at += 1;
        let jump = |condition: bool| usize::from(if condition { bytes[2] } else { bytes[3] });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
    unreachable!()
}

fn holds(condition: &Condition, arguments: &[u64; 6]) -> bool {
    let (argument, value) = (arguments[usize::from(condition.argument)], condition.value);
    match condition.compare {
        Compare::Equal => argument == value,
        Compare::NotEqual => argument != value,
        Compare::Less => argument < value,
        Compare::LessOrEqual => argument <= value,
        Compare::Greater => argument > value,
        Compare::GreaterOrEqual => argument >= value,
        Compare::Masked(mask) => argument & mask == value & mask,
        Compare::NotMasked(mask) => argument & mask != value & mask,
    }
}

static NEWEST: LazyLock<u32> = LazyLock::new(|| syscall_names::all().map(|(_, number)| number).max().unwrap());

/// What a policy says, read off its definition.
fn expected(policy: &Policy, call: &Call) -> Action {
    if cfg!(target_arch = "x86_64") && call.number >= X32_FIRST {
        return Action::KillProcess;
    }
    if call.number > *NEWEST && matches!(policy.default, Action::Errno(_)) {
        return ENOSYS;
    }
    let rules: &[Rule] = policy.rules.get(&call.number).map_or(&[], Vec::as_slice);
    let matching = rules.iter().filter(|rule| rule.conditions.iter().all(|c| holds(c, &call.arguments)));
    matching.map(|rule| rule.action).min().unwrap_or(policy.default)
}

fn number(name: &str) -> u32 {
    syscall_names::all().find(|(known, _)| *known == name).map(|(_, number)| number).unwrap()
}

fn verdict(filter: &Filter, name: &str, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(filter, &Call::new(number(name), all)).0
}

#[test]
fn the_allow_list_answers_as_its_table_says() {
    const HIGH: u64 = 0xdead_beef_0000_0000;
    let filter = Filter::allow_list().unwrap();
    let family = Action::Errno(97);
    let table: &[(&str, &[u64], Action)] = &[
        ("read", &[], Action::Allow),
        ("execve", &[], Action::Allow),
        ("openat2", &[], Action::Allow),
        ("fchmodat2", &[], Action::Allow),
        ("clone", &[0x0120_0011], Action::Allow),
        ("clone", &[0x003d_0f00], Action::Allow),
        ("clone", &[0x1000_0000], EPERM),
        ("clone", &[0x2000_0000 | 17], EPERM),
        ("clone", &[0x0002_0000], EPERM),
        ("clone", &[0x4000_0000 | HIGH], EPERM),
        ("clone", &[0x0200_0000], EPERM),
        ("clone", &[0x0400_0000], EPERM),
        ("clone", &[0x0800_0000], EPERM),
        ("clone3", &[], ENOSYS),
        ("unshare", &[0], EPERM),
        ("setns", &[], EPERM),
        ("socket", &[1, 1, 0], Action::Allow),
        ("socket", &[2, 1, 6], Action::Allow),
        ("socket", &[10, 2, 0], Action::Allow),
        ("socket", &[16, 3, 0], Action::Allow),
        ("socket", &[16, 3, 9], Action::Errno(93)),
        ("socket", &[16 | HIGH, 3, 9 | HIGH], Action::Errno(93)),
        ("socket", &[17, 3, 0], family),
        ("socket", &[38, 5, 0], family),
        ("socket", &[38 | HIGH, 5, 0], family),
        ("socket", &[40, 1, 0], family),
        ("socketpair", &[1, 1, 0], Action::Allow),
        ("socketpair", &[30, 1, 0], family),
        ("ioctl", &[0, 0x5413], Action::Allow),
        ("ioctl", &[0, 0x5412], EPERM),
        ("ioctl", &[0, 0x5412 | HIGH], EPERM),
        ("ioctl", &[0, 0x541c], EPERM),
        ("ioctl", &[0, 0x541c | HIGH], EPERM),
        ("ioctl", &[0, 0x5423], EPERM),
        ("personality", &[0], Action::Allow),
        ("personality", &[0xffff_ffff], Action::Allow),
        ("personality", &[0x0004_0000], EPERM),
        ("personality", &[0x0004_0000 | HIGH], EPERM),
    ];
    for (name, arguments, action) in table {
        assert_eq!(verdict(&filter, name, arguments), action.value(), "{name} {arguments:x?}");
    }
}

#[test]
fn the_dangerous_calls_are_refused() {
    let filter = Filter::allow_list().unwrap();
    for name in "mount umount2 pivot_root fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr setns
        unshare bpf perf_event_open userfaultfd keyctl add_key request_key io_uring_setup io_uring_enter io_uring_register
        kexec_load kexec_file_load init_module finit_module delete_module open_by_handle_at name_to_handle_at ptrace
        process_vm_readv process_vm_writev pidfd_getfd kcmp swapon swapoff reboot clock_settime settimeofday adjtimex
        clock_adjtime acct quotactl quotactl_fd nfsservctl syslog chroot sethostname setdomainname vhangup fanotify_init
        lookup_dcookie move_pages migrate_pages process_madvise"
        .split_ascii_whitespace()
    {
        assert_eq!(verdict(&filter, name, &[]), EPERM.value(), "{name}");
    }
}

#[test]
fn foreign_numbers_kill_and_newer_ones_are_unknown() {
    let filter = Filter::allow_list().unwrap();
    let read = number("read");
    for arch in [0x4000_0003, 0x4000_0028, 0xc000_00f3, 0] {
        let call = Call { arch, ..Call::new(read, [0; 6]) };
        assert_eq!(run(&filter, &call).0, Action::KillProcess.value(), "{arch:#x}");
    }
    assert_eq!(run(&filter, &Call::new(*NEWEST + 1, [0; 6])).0, ENOSYS.value());
    if cfg!(target_arch = "x86_64") {
        for foreign in [X32_FIRST, X32_FIRST + read, u32::MAX] {
            assert_eq!(run(&filter, &Call::new(foreign, [0; 6])).0, Action::KillProcess.value());
        }
    }
}

#[test]
fn the_allow_list_is_short_and_quick() {
    let filter = Filter::allow_list().unwrap();
    assert!(filter.instructions() < 400, "{} instructions", filter.instructions());
    let slowest = (0..500).map(|number| run(&filter, &Call::new(number, [0; 6])).1).max().unwrap();
    assert!(slowest < 40, "{slowest} steps");
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Values that are often equal, and often differ in one half alone.
    fn value(&mut self) -> u64 {
        let edges = [0, 1, 2, 0xffff_ffff, 0x8000_0000];
        let mut half = || edges[usize::try_from(self.below(5)).unwrap()];
        (half() << 32) | half()
    }

    fn action(&mut self) -> Action {
        let actions = [
            Action::KillProcess,
            Action::KillThread,
            Action::Trap,
            Action::Errno(1),
            Action::Errno(38),
            Action::Trace(7),
            Action::Log,
            Action::Allow,
        ];
        actions[usize::try_from(self.below(8)).unwrap()]
    }

    fn condition(&mut self) -> Condition {
        let compares = [
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
            Compare::Masked(self.value()),
            Compare::NotMasked(self.value()),
        ];
        let compare = compares[usize::try_from(self.below(8)).unwrap()];
        Condition { argument: u8::try_from(self.below(6)).unwrap(), compare, value: self.value() }
    }

    fn policy(&mut self) -> Policy {
        let mut policy = Policy::new(self.action());
        for _ in 0..self.below(120) {
            let number = u32::try_from(self.below(470)).unwrap();
            let conditions = (0..self.below(7)).map(|_| self.condition()).collect();
            let action = self.action();
            policy.add(number, action, conditions);
        }
        policy
    }
}

#[test]
fn random_policies_mean_what_they_say() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen = BTreeMap::new();
    for round in 0..300 {
        let policy = random.policy();
        let filter = bpf::compile(&policy).unwrap();
        let mut numbers: Vec<u32> = policy.rules.keys().flat_map(|n| [n.saturating_sub(1), *n, n + 1]).collect();
        numbers.extend([0, 335, 424, 469, 470, 1 << 30, u32::MAX]);
        for number in numbers {
            for _ in 0..8 {
                let call = Call::new(number, std::array::from_fn(|_| random.value()));
                let action = expected(&policy, &call);
                *seen.entry(action).or_insert(0) += 1;
                assert_eq!(run(&filter, &call).0, action.value(), "round {round}: {call:x?} in {policy:?}");
            }
        }
    }
    assert!(seen.len() >= 8, "every action is met: {seen:?}");
}

#[test]
fn every_comparison_at_every_edge() {
    let compares = [
        Compare::Equal,
        Compare::NotEqual,
        Compare::Less,
        Compare::LessOrEqual,
        Compare::Greater,
        Compare::GreaterOrEqual,
        Compare::Masked(0xffff_ffff),
        Compare::Masked(0x1_0000_0001),
        Compare::NotMasked(0xffff_ffff_ffff_ffff),
        Compare::NotMasked(0),
    ];
    let edges = [0, 1, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX - 1, u64::MAX];
    for compare in compares {
        for value in edges {
            let mut policy = Policy::new(Action::Allow);
            policy.add(1, Action::Trap, vec![Condition { argument: 5, compare, value }]);
            let filter = bpf::compile(&policy).unwrap();
            for argument in edges {
                let call = Call::new(1, [7, 7, 7, 7, 7, argument]);
                assert_eq!(
                    run(&filter, &call).0,
                    expected(&policy, &call).value(),
                    "{argument:x} {compare:?} {value:x}"
                );
            }
        }
    }
}

fn profile(json: &str) -> Result<Filter, SeccompError> {
    Filter::from_profile(json.as_bytes(), KERNEL)
}

#[test]
fn a_profile_of_docker_is_understood() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],
            "syscalls":[
              {"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},"excludes":{}},
              {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}],
               "excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390","s390x"]}},
              {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
              {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.2"}},
              {"names":["acct"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["ppc64le"]}},
              {"names":["uname"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","arm64"]}},
              {"name":"personality","action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
              {"names":["reboot"],"action":"SCMP_ACT_KILL_PROCESS"},
              {"names":["swapon"],"action":"SCMP_ACT_KILL"},
              {"names":["acct"],"action":"SCMP_ACT_TRAP"},
              {"names":["sync"],"action":"SCMP_ACT_LOG"},
              {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]}
            ]}"#,
    )
    .unwrap();
    let table: &[(&str, &[u64], Action)] = &[
        ("read", &[], Action::Allow),
        ("openat", &[], EPERM),
        ("clone", &[17], Action::Allow),
        ("clone", &[0x1000_0000], EPERM),
        ("clone3", &[], ENOSYS),
        ("mount", &[], EPERM),
        ("ptrace", &[], Action::Allow),
        ("bpf", &[], EPERM),
        ("uname", &[], Action::Allow),
        ("personality", &[0], Action::Allow),
        ("personality", &[8], Action::Allow),
        ("personality", &[1], EPERM),
        ("reboot", &[], Action::KillProcess),
        ("swapon", &[], Action::KillThread),
        ("acct", &[], Action::Trap),
        ("sync", &[], Action::Log),
        ("socket", &[40], EPERM),
        ("socket", &[2], Action::Allow),
    ];
    for (name, arguments, action) in table {
        assert_eq!(verdict(&filter, name, arguments), action.value(), "{name} {arguments:x?}");
    }
}

#[test]
fn the_most_restrictive_rule_wins() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["kill"],"action":"SCMP_ACT_ALLOW"},
            {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]}]}"#,
    )
    .unwrap();
    assert_eq!(verdict(&filter, "kill", &[1, 9]), Action::Errno(5).value());
    assert_eq!(verdict(&filter, "kill", &[1, 15]), Action::Allow.value());
    // A call newer than the list follows the default where that is no errno.
    assert_eq!(run(&filter, &Call::new(100_000, [0; 6])).0, Action::Allow.value());
}

#[test]
fn bad_profiles_say_what_is_wrong() {
    let entry = |entry: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{entry}]}}"#);
    let argument =
        |argument: &str| entry(&format!(r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{argument}]}}"#));
    let names = vec!["\"read\""; 20_000].join(",");
    let table = [
        ("{}".into(), "defaultAction"),
        ("[".into(), "EOF"),
        (r#"{"defaultAction":"ALLOW"}"#.into(), "SCMP_ACT_ALLOW"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.into(), "listener"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#.into(), "4095"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrno":"EPERM"}"#.into(), "errnoRet"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["x86"]}"#.into(), "SCMP_ARCH_"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","syscals":[]}"#.into(), "syscals"),
        (entry(r#"{"names":["read"],"action":"SCMP_ACT_PERMIT"}"#), "syscalls[0]"),
        (entry(r#"{"action":"SCMP_ACT_ALLOW"}"#), "at least one name"),
        (entry(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","arg":[]}"#), "unknown field `arg`"),
        (entry(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"six"}}"#), "minKernel"),
        (argument(r#"{"index":6,"value":1,"op":"SCMP_CMP_EQ"}"#), "0..=5"),
        (argument(r#"{"index":0,"value":1,"op":"SCMP_CMP_IS"}"#), "SCMP_CMP_EQ"),
        (argument(r#"{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}"#), "invalid value"),
        (entry(&format!(r#"{{"names":[{names}],"action":"SCMP_ACT_ALLOW"}}"#)), "more rules"),
        (" ".repeat(PROFILE_BYTES_MAX + 1), "more than"),
        ("[".repeat(200_000), ""),
    ];
    for (json, expected) in table {
        let error = profile(&json).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {cause}").contains(expected), "{error}: {cause} lacks {expected:?}");
    }
}

#[test]
fn a_program_beyond_the_kernels_limit_is_refused() {
    let mut policy = Policy::new(Action::Allow);
    for value in 0..1500 {
        policy.add(1, Action::Trap, vec![Condition { argument: 0, compare: Compare::Equal, value }]);
    }
    assert!(matches!(bpf::compile(&policy), Err(SeccompError::TooLong { instructions }) if instructions > 4096));
}
