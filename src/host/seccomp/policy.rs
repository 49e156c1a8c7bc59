//! What a filter is to do, before it is a program: rules by system call number.

use std::collections::BTreeMap;

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Action {
    /// End the process by SIGSYS, uncatchable.
    KillProcess,
    /// End the thread by SIGSYS, uncatchable.
    KillThread,
    /// Send SIGSYS.
    Trap,
    /// Fail with this errno.
    Errno(u16),
    /// Ask a tracer, with this message; without one it fails with ENOSYS.
    Trace(u16),
    /// Allow and log.
    Log,
    /// Allow.
    Allow,
}

impl Action {
    /// The kernel's `SECCOMP_RET_*` with its data.
    pub(super) fn value(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Trace(message) => 0x7ff0_0000 | u32::from(message),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument's bits of this mask equal the value's.
    Masked(u64),
    /// The argument's bits of this mask differ from the value's.
    NotMasked(u64),
}

/// One comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0..=5.
    pub(super) argument: u8,
    pub(super) compare: Compare,
    pub(super) value: u64,
}

impl Condition {
    /// Compares the low 32 bits alone: where the kernel takes an `int`, it drops the others, and a caller may put anything
    /// there (CVE-2019-10063).
    pub(super) fn int_equals(argument: u8, value: u32) -> Self {
        Self { argument, compare: Compare::Masked(u64::from(u32::MAX)), value: u64::from(value) }
    }

    /// As [`Self::int_equals`], the opposite.
    pub(super) fn int_differs(argument: u8, value: u32) -> Self {
        Self { argument, compare: Compare::NotMasked(u64::from(u32::MAX)), value: u64::from(value) }
    }
}

/// An action for calls of which all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) action: Action,
    pub(super) conditions: Vec<Condition>,
}

/// A whole filter. Of all rules that match, the most restrictive decides; of none, `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) default: Action,
    pub(super) rules: BTreeMap<u32, Vec<Rule>>,
}

impl Policy {
    pub(super) fn new(default: Action) -> Self {
        Self { default, rules: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, number: u32, action: Action, conditions: Vec<Condition>) {
        self.rules.entry(number).or_default().push(Rule { action, conditions });
    }
}
