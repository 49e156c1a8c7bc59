//! What this host has of what halsup needs, one probe per need, with what to do about it.
//!
//! Looks and never changes anything: no namespace, cgroup or mount is made. `halsup doctor` shows the table, the daemon logs
//! what is missing at its start.

use std::fs;
use std::path::Path;

use caps::{CapSet, Capability};

use super::cgroup::{Availability, Controller, Delegation, Location};
use super::{container, kernel};
use crate::spec::InstanceName;

/// What a missing thing means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Without it no worker can be started.
    Needed,
    /// Without it something is done another way, or not offered.
    Optional,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What was looked at, such as `kernel` or `controller memory`.
    pub name: String,
    /// What it means if it is missing.
    pub weight: Weight,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it, or what is done without it; empty where nothing is to be done.
    pub fix: String,
}

impl Probe {
    fn new(name: impl Into<String>, weight: Weight, ok: bool, found: impl Into<String>, fix: &str) -> Self {
        let fix = if ok { String::new() } else { fix.to_owned() };
        Self { name: name.into(), weight, ok, found: found.into(), fix }
    }
}

/// Capabilities by what they are for.
const CAPABILITIES: [(Capability, Weight, &str); 11] = [
    (Capability::CAP_SYS_ADMIN, Weight::Needed, "needed for namespaces and mounts"),
    (Capability::CAP_SETUID, Weight::Needed, "needed to give workers users of their own"),
    (Capability::CAP_SETGID, Weight::Needed, "needed to give workers groups of their own"),
    (Capability::CAP_SETPCAP, Weight::Needed, "needed to take capabilities from workers"),
    (Capability::CAP_CHOWN, Weight::Needed, "needed to give workers their directories"),
    (Capability::CAP_DAC_OVERRIDE, Weight::Needed, "needed to remove what workers leave"),
    (Capability::CAP_FOWNER, Weight::Needed, "needed to remove what workers leave"),
    (Capability::CAP_KILL, Weight::Needed, "needed to end workers of other users"),
    (Capability::CAP_NET_ADMIN, Weight::Optional, "needed for net = \"own\" alone"),
    (
        Capability::CAP_SYS_RESOURCE,
        Weight::Optional,
        "without it hard limits cannot be raised nor the OOM score lowered",
    ),
    (Capability::CAP_SYS_NICE, Weight::Optional, "without it the daemon runs at normal priority"),
];

/// Looks at everything.
#[must_use]
pub fn probe(instance: &InstanceName) -> Vec<Probe> {
    let mut probes = vec![kernel_version()];
    probes.extend(container::inside().then(container));
    probes.extend(newer_kernels());
    probes.extend(cgroups(instance));
    probes.extend(namespaces());
    probes.push(user_namespaces());
    probes.push(seccomp());
    probes.push(overlay());
    probes.extend(capabilities());
    probes
}

fn kernel_version() -> Probe {
    let (major, minor) = kernel::OLDEST;
    let ok = kernel::version() >= kernel::OLDEST;
    Probe::new("kernel", Weight::Needed, ok, kernel::release(), &format!("use Linux {major}.{minor} or newer"))
}

fn container() -> Probe {
    let missing = container::missing();
    let found = missing.as_ref().map_or_else(|| "this is one, with what workers need".to_owned(), ToString::to_string);
    Probe::new("container", Weight::Needed, missing.is_none(), found, container::FIX)
}

/// What newer kernels do better, by version: the calls themselves can be tried only on something alive.
fn newer_kernels() -> impl Iterator<Item = Probe> {
    let table = [
        ("peer pidfd", (6, 5), "without it callers are identified by pid and its start time"),
        (
            "exit status by pidfd",
            (6, 15),
            "without it the exit of a worker that ended while the daemon was away may be unknown",
        ),
    ];
    table.into_iter().map(|(name, since, fix)| {
        let ok = kernel::version() >= since;
        let found = format!("{} Linux {}.{}", if ok { "present since" } else { "needs" }, since.0, since.1);
        Probe::new(name, Weight::Optional, ok, found, fix)
    })
}

fn cgroups(instance: &InstanceName) -> Vec<Probe> {
    let fix = "mount cgroup2, or boot with systemd.unified_cgroup_hierarchy=1";
    let location = match Location::discover(instance, None) {
        Ok(location) => location,
        Err(error) => return vec![Probe::new("cgroup v2", Weight::Needed, false, error.to_string(), fix)],
    };
    let whose = match location.delegation {
        Delegation::Container => "in this container's cgroup, seen from the host's namespace",
        Delegation::Delegated | Delegation::Named => "delegated by systemd",
        Delegation::NamespaceRoot => "below the root of a cgroup namespace",
        Delegation::HierarchyRoot => "below the root of the hierarchy",
    };
    let found = format!("{} ({whose})", location.path().display());
    let mut probes = vec![Probe::new("cgroup v2", Weight::Needed, true, found, fix)];
    let controllers = match location.controllers() {
        Ok(controllers) => controllers,
        Err(error) => {
            probes.push(Probe::new(
                "controllers",
                Weight::Optional,
                false,
                error.to_string(),
                "limits are not enforced",
            ));
            return probes;
        }
    };
    probes.extend(controllers.iter().map(|(controller, availability)| {
        let name = format!("controller {controller}");
        let lost = match controller {
            Controller::Memory => "memory limits are not enforced and OOM kills not attributed",
            Controller::Cpu => "cpu limits are not enforced",
            Controller::Cpuset => "workers cannot be kept on given processors",
            Controller::Pids => "process limits are not enforced",
            Controller::Io => "disk use is not counted",
        };
        match availability {
            Availability::Enabled => Probe::new(name, Weight::Optional, true, "available", lost),
            Availability::Missing(reason) => Probe::new(name, Weight::Optional, false, reason.to_string(), lost),
        }
    }));
    probes
}

fn namespaces() -> impl Iterator<Item = Probe> {
    ["mnt", "pid", "ipc", "uts", "cgroup", "net"].into_iter().map(|name| {
        let ok = Path::new("/proc/self/ns").join(name).symlink_metadata().is_ok();
        let found = if ok { "present" } else { "missing" };
        Probe::new(format!("namespace {name}"), Weight::Needed, ok, found, "use a kernel with all namespaces enabled")
    })
}

fn user_namespaces() -> Probe {
    let present = Path::new("/proc/self/ns/user").symlink_metadata().is_ok();
    let max = read("/proc/sys/user/max_user_namespaces").trim().parse::<u64>().unwrap_or(0);
    let found = format!("at most {max}");
    let fix = "set sysctl user.max_user_namespaces; without them identity = \"mapped\" is refused";
    Probe::new("user namespaces", Weight::Optional, present && max > 0, found, fix)
}

fn seccomp() -> Probe {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    let has = |action| actions.split_ascii_whitespace().any(|found| found == action);
    let ok = ["kill_process", "errno", "allow"].into_iter().all(has);
    let found = if actions.is_empty() { "missing" } else { actions.trim() };
    Probe::new("seccomp", Weight::Needed, ok, found, "use a kernel with CONFIG_SECCOMP_FILTER")
}

fn overlay() -> Probe {
    let ok = read("/proc/filesystems").lines().any(|line| line.split_ascii_whitespace().last() == Some("overlay"));
    let found = if ok { "present" } else { "missing" };
    Probe::new("overlay", Weight::Optional, ok, found, "modprobe overlay; without it root = \"DIR\" is refused")
}

fn capabilities() -> impl Iterator<Item = Probe> {
    CAPABILITIES.into_iter().map(|(capability, weight, fix)| {
        let held = caps::has_cap(None, CapSet::Effective, capability);
        let found = match &held {
            Ok(true) => "held".to_owned(),
            Ok(false) => "missing".to_owned(),
            Err(error) => error.to_string(),
        };
        Probe::new(capability.to_string().to_lowercase(), weight, held.unwrap_or(false), found, fix)
    })
}

/// A small file of procfs; empty if it is not there.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::test_needs::{Need, met};

    #[test]
    fn every_miss_says_what_to_do() {
        let probes = probe(&InstanceName::default());
        for probe in &probes {
            assert_eq!(probe.fix.is_empty(), probe.ok, "{probe:?}");
            assert!(!probe.found.is_empty(), "{probe:?}");
        }
        let mut names: Vec<&str> = probes.iter().map(|probe| probe.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), probes.len(), "one probe per need");
    }

    #[test]
    fn what_the_kernel_shows_is_found() {
        if !met(&[Need::Root, Need::Cgroup2]) {
            return;
        }
        let probes = probe(&InstanceName::default());
        let ok = |name: &str| probes.iter().find(|probe| probe.name == name).map(|probe| probe.ok);
        assert_eq!(ok("cgroup v2"), Some(true));
        assert_eq!(ok("cap_setuid"), Some(true));
        assert_eq!(ok("namespace pid"), Some(true));
        let tree = fs::read_to_string("/proc/filesystems").unwrap();
        assert_eq!(ok("overlay"), Some(tree.contains("\toverlay\n")));
    }
}
