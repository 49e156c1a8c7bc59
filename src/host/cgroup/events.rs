//! What a cgroup's counters say: events, use, processes. Parsers of the kernel's `key value` lines.
//!
//! A key that the kernel does not have reads as 0: older kernels count less.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::{pread, retry_on_intr};

use super::CgroupError;
use super::files::open_read;

/// What `cgroup.events` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupEvents {
    /// Any process is in it or below.
    pub populated: bool,
    /// All of it is frozen.
    pub frozen: bool,
}

/// Counters of `memory.events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Throttled at `memory.high`.
    pub high: u64,
    /// Reached `memory.max`.
    pub max: u64,
    /// An allocation was about to fail for the limit.
    pub oom: u64,
    /// Processes killed by any out-of-memory killer.
    pub oom_kill: u64,
    /// Times that the whole group was killed.
    pub oom_group_kill: u64,
}

/// Counters of `pids.events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsEvents {
    /// Forks refused by `pids.max`.
    pub max: u64,
}

/// Times of `cpu.stat`, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStat {
    /// Processor time used.
    pub usage_us: u64,
    /// Of it, in user mode.
    pub user_us: u64,
    /// Of it, in the kernel.
    pub system_us: u64,
    /// Periods in which `cpu.max` held it back.
    pub throttled_periods: u64,
    /// Time for which `cpu.max` held it back.
    pub throttled_us: u64,
}

/// What a worker uses. What no controller counts is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// `memory.current`.
    pub memory_bytes: Option<u64>,
    /// `memory.peak` (Linux 5.19).
    pub memory_peak_bytes: Option<u64>,
    /// `pids.current`, threads included.
    pub pids: Option<u64>,
    /// `cpu.stat`, which is there without the controller, but then never throttled.
    pub cpu: CpuStat,
}

/// Processes in a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pids {
    /// Their numbers in this pid namespace; 0 for one outside it.
    pub pids: Vec<u32>,
    /// Whether there are more than were asked for.
    pub more: bool,
}

impl CgroupEvents {
    pub(super) fn parse(text: &str) -> Self {
        Self { populated: value(text, "populated") == 1, frozen: value(text, "frozen") == 1 }
    }
}

impl MemoryEvents {
    pub(super) fn parse(text: &str) -> Self {
        Self {
            high: value(text, "high"),
            max: value(text, "max"),
            oom: value(text, "oom"),
            oom_kill: value(text, "oom_kill"),
            oom_group_kill: value(text, "oom_group_kill"),
        }
    }
}

impl PidsEvents {
    pub(super) fn parse(text: &str) -> Self {
        Self { max: value(text, "max") }
    }
}

impl CpuStat {
    pub(super) fn parse(text: &str) -> Self {
        Self {
            usage_us: value(text, "usage_usec"),
            user_us: value(text, "user_usec"),
            system_us: value(text, "system_usec"),
            throttled_periods: value(text, "nr_throttled"),
            throttled_us: value(text, "throttled_usec"),
        }
    }
}

fn value(text: &str, key: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// Reads `cgroup.procs` of `dir` until its end or `max` processes.
pub(super) fn pids(dir: BorrowedFd<'_>, name: &str, max: usize) -> Result<Pids, CgroupError> {
    let failed = |source| CgroupError::Read { name: name.to_owned(), file: "cgroup.procs", source };
    let fd = open_read(dir, "cgroup.procs").map_err(failed)?;
    let mut found = Pids::default();
    let mut number: Option<u32> = None;
    let mut offset = 0_u64;
    let mut buffer = [0_u8; 4096];
    loop {
        let count = retry_on_intr(|| pread(fd.as_fd(), &mut buffer, offset)).map_err(failed)?;
        for byte in buffer.get(..count).unwrap_or_default() {
            if byte.is_ascii_digit() {
                let digit = u32::from(byte - b'0');
                number = Some(number.unwrap_or(0).wrapping_mul(10).wrapping_add(digit));
            } else if let Some(pid) = number.take() {
                if found.pids.len() == max {
                    found.more = true;
                    return Ok(found);
                }
                found.pids.push(pid);
            }
        }
        if count == 0 {
            return Ok(found);
        }
        offset = offset.saturating_add(u64::try_from(count).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_matched_whole() {
        let text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n";
        let parsed = MemoryEvents::parse(text);
        assert_eq!(parsed, MemoryEvents { high: 2, max: 3, oom: 4, oom_kill: 5, oom_group_kill: 6 });
        assert_eq!(MemoryEvents::parse("oom_kill 5\n"), MemoryEvents { oom_kill: 5, ..MemoryEvents::default() });
    }

    #[test]
    fn what_an_older_kernel_lacks_is_zero() {
        assert_eq!(CgroupEvents::parse("populated 1\n"), CgroupEvents { populated: true, frozen: false });
        assert_eq!(PidsEvents::parse(""), PidsEvents { max: 0 });
        let stat = CpuStat::parse(
            "usage_usec 10\nuser_usec 4\nsystem_usec 6\nnr_periods 3\nnr_throttled 2\nthrottled_usec 99\n",
        );
        assert_eq!(stat, CpuStat { usage_us: 10, user_us: 4, system_us: 6, throttled_periods: 2, throttled_us: 99 });
    }
}
