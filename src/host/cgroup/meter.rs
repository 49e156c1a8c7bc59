//! What a worker uses between two moments: the counters of its cgroup, read at both.
//!
//! Tells nothing apart that goes on in the worker meanwhile: who wants the use of one piece of work has to see to it that there
//! is nothing else.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use super::files::{ATTRIBUTE_BYTES_MAX, read_open, write_open};
use super::{CgroupError, CpuStat, WorkerCgroup};

/// Processes that are looked at; beyond that nobody knows how many were left behind.
const PROCESSES_MAX: usize = 4096;

/// The counters of a worker at one moment.
#[derive(Debug)]
pub struct Meter {
    cpu: CpuStat,
    io: Option<IoStat>,
    processes: Option<BTreeSet<u32>>,
    /// `memory.peak`, which for whoever has it open so counts from here (Linux 6.12).
    peak: Option<OwnedFd>,
}

/// What was used since a [`Meter`] was made. What no controller counts, or this kernel cannot tell, is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time, in microseconds.
    pub cpu_us: u64,
    /// Of it, in user mode.
    pub user_us: u64,
    /// Of it, in the kernel.
    pub system_us: u64,
    /// The most memory that it had at once, all of it and not only what came in between; in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Read from devices, in bytes.
    pub read_bytes: Option<u64>,
    /// Written to devices, in bytes; what waits in memory to be written is not.
    pub written_bytes: Option<u64>,
    /// Processes that are there and were not before.
    pub leaked_processes: Option<u64>,
}

/// Sums of `io.stat` over all devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct IoStat {
    read_bytes: u64,
    written_bytes: u64,
}

impl IoStat {
    fn parse(text: &str) -> Self {
        let sum = |key: &str| {
            let fields = text.lines().flat_map(str::split_whitespace);
            let values = fields.filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok());
            values.fold(0, u64::saturating_add)
        };
        Self { read_bytes: sum("rbytes="), written_bytes: sum("wbytes=") }
    }
}

impl Meter {
    /// Reads the counters of a worker, and has its peak of memory count from here.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn begin(cgroup: &WorkerCgroup) -> Result<Self, CgroupError> {
        Ok(Self {
            cpu: cpu(cgroup)?,
            io: cgroup.optional("io.stat", IoStat::parse)?,
            processes: processes(cgroup)?,
            peak: reset_peak(cgroup.dir()),
        })
    }

    /// What was used since then.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn used(&self, cgroup: &WorkerCgroup) -> Result<Used, CgroupError> {
        let now = cpu(cgroup)?;
        let io = self.io.zip(cgroup.optional("io.stat", IoStat::parse)?);
        let leaked = self.processes.as_ref().zip(processes(cgroup)?);
        let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
        // A peak that cannot be read is not known.
        let peak = self.peak.as_ref().and_then(|peak| read_open(peak.as_fd(), &mut buffer).ok());
        Ok(Used {
            cpu_us: now.usage_us.saturating_sub(self.cpu.usage_us),
            user_us: now.user_us.saturating_sub(self.cpu.user_us),
            system_us: now.system_us.saturating_sub(self.cpu.system_us),
            memory_peak_bytes: peak.and_then(|text| text.trim().parse().ok()),
            read_bytes: io.map(|(before, now)| now.read_bytes.saturating_sub(before.read_bytes)),
            written_bytes: io.map(|(before, now)| now.written_bytes.saturating_sub(before.written_bytes)),
            leaked_processes: leaked
                .map(|(before, now)| u64::try_from(now.difference(before).count()).unwrap_or(u64::MAX)),
        })
    }
}

fn cpu(cgroup: &WorkerCgroup) -> Result<CpuStat, CgroupError> {
    Ok(cgroup.optional("cpu.stat", CpuStat::parse)?.unwrap_or_default())
}

/// The processes of a worker; `None` if there are more than are looked at.
fn processes(cgroup: &WorkerCgroup) -> Result<Option<BTreeSet<u32>>, CgroupError> {
    let found = cgroup.pids(PROCESSES_MAX)?;
    Ok((!found.more).then(|| found.pids.into_iter().collect()))
}

/// `memory.peak`, counting from now; `None` where there is none, or where the kernel has one peak for all (before 6.12).
fn reset_peak(dir: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let peak = openat(dir, "memory.peak", flags, Mode::empty()).ok()?;
    write_open(peak.as_fd(), "reset").ok()?;
    Some(peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_summed_over_devices() {
        let text = "8:0 rbytes=10 wbytes=3 rios=1 wios=1 dbytes=7 dios=0\n254:16 rbytes=5 wbytes=0 rios=1 wios=0\n";
        assert_eq!(IoStat::parse(text), IoStat { read_bytes: 15, written_bytes: 3 });
        assert_eq!(IoStat::parse(""), IoStat::default());
        assert_eq!(IoStat::parse("8:0 \n8:16 rbytes=x"), IoStat::default());
    }
}
