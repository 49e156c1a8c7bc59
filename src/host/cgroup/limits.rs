//! Writes a worker's limits and proves each by reading it back: a limit is enforced, or its name and the reason are told.

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::CgroupError;
use super::controller::{Availability, Controller, Controllers, Missing};
use super::files::{ATTRIBUTE_BYTES_MAX, read_attribute, write_and_read_back};
use crate::spec::{Cpuset, Limit, Limits, LimitsMode};

/// The period of `cpu.max`, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel rounds sizes down to whole pages, of 64 KiB at the most.
const PAGE_BYTES_MAX: u64 = 64 << 10;

/// One limit of a worker, by the kernel's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitName {
    /// `memory.high`.
    MemoryHigh,
    /// `memory.max`.
    MemoryMax,
    /// `memory.swap.max`.
    SwapMax,
    /// `memory.oom.group`.
    OomGroup,
    /// `cpu.max`.
    CpuMax,
    /// `cpu.weight`.
    CpuWeight,
    /// `pids.max`.
    PidsMax,
    /// `cpuset.cpus`.
    Cpus,
}

impl LimitName {
    /// The file that holds it.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::MemoryHigh => "memory.high",
            Self::MemoryMax => "memory.max",
            Self::SwapMax => "memory.swap.max",
            Self::OomGroup => "memory.oom.group",
            Self::CpuMax => "cpu.max",
            Self::CpuWeight => "cpu.weight",
            Self::PidsMax => "pids.max",
            Self::Cpus => "cpuset.cpus",
        }
    }

    /// The controller that enforces it.
    #[must_use]
    pub fn controller(self) -> Controller {
        match self {
            Self::MemoryHigh | Self::MemoryMax | Self::SwapMax | Self::OomGroup => Controller::Memory,
            Self::CpuMax | Self::CpuWeight => Controller::Cpu,
            Self::PidsMax => Controller::Pids,
            Self::Cpus => Controller::Cpuset,
        }
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file())
    }
}

/// A limit that is not enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissedLimit {
    /// Which.
    pub limit: LimitName,
    /// Why.
    pub reason: Missing,
}

/// What became of a worker's limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// The limits that are not enforced; all of them defaults that nobody asked for.
    pub missing: Vec<MissedLimit>,
}

impl Enforcement {
    /// Whether every limit is enforced.
    #[must_use]
    pub fn enforced(&self) -> bool {
        self.missing.is_empty()
    }
}

/// A limit that a worker is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLimit {
    /// Which.
    pub limit: LimitName,
    /// Its value, as the kernel is told.
    pub value: String,
    /// Whether an operator wrote it down.
    pub asked: bool,
}

/// Writes all `limits` into the cgroup at `dir`, which `name`s it in errors.
pub(super) fn apply(
    dir: BorrowedFd<'_>,
    name: &str,
    controllers: &Controllers,
    limits: &Limits,
    mode: LimitsMode,
) -> Result<Enforcement, CgroupError> {
    let mut enforcement = Enforcement::default();
    for order in wanted_limits(limits) {
        let Some(reason) = enforce(dir, name, controllers, &order)? else { continue };
        if order.asked || mode == LimitsMode::Require {
            return Err(CgroupError::Limit { limit: order.limit, value: order.value, source: reason });
        }
        enforcement.missing.push(MissedLimit { limit: order.limit, reason });
    }
    Ok(enforcement)
}

/// As [`apply`], for a cgroup that has other limits: those that `limits` does not name are lifted.
pub(super) fn apply_anew(
    dir: BorrowedFd<'_>,
    name: &str,
    controllers: &Controllers,
    limits: &Limits,
    mode: LimitsMode,
) -> Result<Enforcement, CgroupError> {
    let lifted = [
        (LimitName::MemoryMax, limits.memory_bytes.is_none()),
        (LimitName::CpuMax, limits.cpu_millis.is_none()),
        (LimitName::PidsMax, limits.pids.is_none()),
    ];
    for (limit, _) in lifted.into_iter().filter(|(_, is_lifted)| *is_lifted) {
        // One that cannot be lifted was never in force.
        enforce(dir, name, controllers, &WantedLimit { limit, value: "max".to_owned(), asked: false })?;
    }
    apply(dir, name, controllers, limits, mode)
}

/// Which of `limits` are in force in the cgroup at `dir` without writing any: for a worker that is taken over.
pub(super) fn look(
    dir: BorrowedFd<'_>,
    name: &str,
    controllers: &Controllers,
    limits: &Limits,
) -> Result<Enforcement, CgroupError> {
    let mut enforcement = Enforcement::default();
    for order in wanted_limits(limits) {
        if let Some(reason) = missing(dir, name, controllers, &order)? {
            enforcement.missing.push(MissedLimit { limit: order.limit, reason });
        }
    }
    Ok(enforcement)
}

/// Why one limit is not in force, read only.
fn missing(
    dir: BorrowedFd<'_>,
    name: &str,
    controllers: &Controllers,
    order: &WantedLimit,
) -> Result<Option<Missing>, CgroupError> {
    let controller = order.limit.controller();
    if let Availability::Missing(reason) = controllers.availability(controller) {
        return Ok(Some(reason));
    }
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    match read_attribute(dir, order.limit.file(), &mut buffer) {
        Ok(held) => verdict(dir, name, order, held),
        Err(Errno::NOENT) => Ok(Some(Missing::NoFile(controller))),
        Err(errno) => Ok(Some(Missing::Refused(errno))),
    }
}

/// All that `limits` asks for, in the order in which it is written.
#[must_use]
pub fn wanted_limits(limits: &Limits) -> Vec<WantedLimit> {
    let mut orders = Vec::with_capacity(8);
    let mut number = |limit, value: Option<Limit<u64>>, text: fn(u64) -> String| {
        orders.extend(value.map(|Limit { value, asked }| WantedLimit { limit, value: text(value), asked }));
    };
    number(LimitName::MemoryHigh, limits.memory_high_bytes, decimal);
    number(LimitName::MemoryMax, limits.memory_bytes, decimal);
    number(LimitName::SwapMax, limits.swap_bytes, decimal);
    number(LimitName::OomGroup, limits.oom_group.then_some(Limit { value: 1, asked: false }), decimal);
    number(LimitName::CpuMax, limits.cpu_millis, cpu_max);
    number(LimitName::CpuWeight, limits.cpu_weight, decimal);
    number(LimitName::PidsMax, limits.pids, decimal);
    orders.extend(limits.cpuset.as_ref().map(|Limit { value, asked }| WantedLimit {
        limit: LimitName::Cpus,
        value: cpu_list(value),
        asked: *asked,
    }));
    orders
}

/// Writes one limit; the reason if it is not in force afterwards.
fn enforce(
    dir: BorrowedFd<'_>,
    name: &str,
    controllers: &Controllers,
    order: &WantedLimit,
) -> Result<Option<Missing>, CgroupError> {
    let controller = order.limit.controller();
    if let Availability::Missing(reason) = controllers.availability(controller) {
        return Ok(Some(reason));
    }
    let file = order.limit.file();
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    let held = match write_and_read_back(dir, file, &order.value, &mut buffer) {
        Ok(held) => held,
        Err(Errno::NOENT) => return Ok(Some(Missing::NoFile(controller))),
        Err(errno) => return Ok(Some(Missing::Refused(errno))),
    };
    verdict(dir, name, order, held)
}

/// Why a limit is not in force when its file says `held`.
fn verdict(dir: BorrowedFd<'_>, name: &str, order: &WantedLimit, held: &str) -> Result<Option<Missing>, CgroupError> {
    if !kept(order.limit, &order.value, held) {
        return Ok(Some(Missing::NotKept));
    }
    if order.limit != LimitName::Cpus {
        return Ok(None);
    }
    // With none of them online the kernel silently uses the parent's processors.
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    let effective = read_attribute(dir, "cpuset.cpus.effective", &mut buffer).map_err(|source| CgroupError::Read {
        name: name.to_owned(),
        file: "cpuset.cpus.effective",
        source,
    })?;
    Ok((!within(effective, &order.value)).then_some(Missing::NoSuchProcessor))
}

/// Whether what the kernel holds is what was written.
fn kept(limit: LimitName, written: &str, held: &str) -> bool {
    let held = held.trim_end();
    match limit {
        LimitName::MemoryHigh | LimitName::MemoryMax | LimitName::SwapMax => {
            let (Ok(written), Ok(held)) = (written.parse::<u64>(), held.parse::<u64>()) else { return false };
            written.checked_sub(held).is_some_and(|lost| lost < PAGE_BYTES_MAX)
        }
        LimitName::OomGroup | LimitName::CpuMax | LimitName::CpuWeight | LimitName::PidsMax | LimitName::Cpus => {
            written == held
        }
    }
}

fn decimal(value: u64) -> String {
    value.to_string()
}

/// `quota period`, both in microseconds. A thousandth of a processor is a hundred microseconds of the period.
fn cpu_max(millis: u64) -> String {
    format!("{} {CPU_PERIOD_US}", millis.saturating_mul(CPU_PERIOD_US / 1000))
}

/// As the kernel writes a set: `0-1,4`.
fn cpu_list(cpus: &Cpuset) -> String {
    let has = |cpu: usize| cpus.bits.get(cpu / 64).is_some_and(|word| (word >> (cpu % 64)) & 1 == 1);
    let end = cpus.bits.len() * 64;
    let mut ranges = Vec::new();
    let mut cpu = 0;
    while cpu < end {
        if !has(cpu) {
            cpu += 1;
            continue;
        }
        let first = cpu;
        while has(cpu + 1) {
            cpu += 1;
        }
        ranges.push(if first == cpu { first.to_string() } else { format!("{first}-{cpu}") });
        cpu += 1;
    }
    ranges.join(",")
}

/// Whether the list `inner` is not empty and names nothing but what `outer` names.
fn within(inner: &str, outer: &str) -> bool {
    let outer: Vec<(u32, u32)> = ranges(outer).collect();
    let mut any = false;
    ranges(inner).all(|(first, last)| {
        any = true;
        outer.iter().any(|(from, to)| *from <= first && last <= *to)
    }) && any
}

fn ranges(list: &str) -> impl Iterator<Item = (u32, u32)> + '_ {
    list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(list: &[usize]) -> Cpuset {
        let mut bits = [0_u64; 16];
        for cpu in list {
            bits[cpu / 64] |= 1 << (cpu % 64);
        }
        Cpuset { bits }
    }

    #[test]
    fn sizes_may_lose_a_page_and_nothing_else() {
        assert!(kept(LimitName::MemoryMax, "67108864", "67108864\n"));
        assert!(kept(LimitName::MemoryMax, "67108865", "67108864\n"));
        assert!(!kept(LimitName::MemoryMax, "67108864", "67108868\n"));
        assert!(!kept(LimitName::MemoryMax, "67174400", "67108864\n"));
        assert!(!kept(LimitName::MemoryMax, "67108864", "max\n"));
        assert!(!kept(LimitName::PidsMax, "100", "99\n"));
        assert!(kept(LimitName::CpuMax, "50000 100000", "50000 100000\n"));
        assert!(!kept(LimitName::CpuMax, "50000 100000", "max 100000\n"));
    }

    #[test]
    fn values_are_spelled_as_the_kernel_does() {
        assert_eq!(cpu_max(500), "50000 100000");
        assert_eq!(cpu_max(2000), "200000 100000");
        assert_eq!(cpu_max(u64::MAX), format!("{} 100000", u64::MAX));
        assert_eq!(cpu_list(&cpus(&[0, 1, 4])), "0-1,4");
        assert_eq!(cpu_list(&cpus(&[63, 64, 65, 1023])), "63-65,1023");
        assert_eq!(cpu_list(&cpus(&[])), "");
        assert_eq!(cpu_list(&Cpuset { bits: [u64::MAX; 16] }), "0-1023");
    }

    #[test]
    fn effective_processors_lie_within_those_asked_for() {
        assert!(within("0-1\n", "0-1,4"));
        assert!(within("4\n", "0-1,4"));
        assert!(!within("0-3\n", "0-1,4"));
        assert!(!within("\n", "0-1"));
        assert!(within("0,2\n", "0-2"));
    }

    #[test]
    fn every_limit_becomes_one_order() {
        let number = |value| Some(Limit { value, asked: true });
        let limits = Limits {
            memory_bytes: number(1),
            memory_high_bytes: number(2),
            swap_bytes: number(0),
            oom_group: true,
            cpu_millis: number(10),
            cpu_weight: number(100),
            pids: number(5),
            cpuset: Some(Limit { value: cpus(&[0]), asked: false }),
        };
        let spelled: Vec<String> =
            wanted_limits(&limits).iter().map(|o| format!("{}={} {}", o.limit, o.value, o.asked)).collect();
        assert_eq!(
            spelled,
            [
                "memory.high=2 true",
                "memory.max=1 true",
                "memory.swap.max=0 true",
                "memory.oom.group=1 false",
                "cpu.max=1000 100000 true",
                "cpu.weight=100 true",
                "pids.max=5 true",
                "cpuset.cpus=0 false",
            ]
        );
    }
}
