//! Whether this is a container, and what of a container halsup cannot do without.
//!
//! Looks and changes nothing. `daemon` asks before it touches anything, `doctor` shows it.

use std::path::Path;

use caps::{CapSet, Capability};
use rustix::io::Errno;

use super::{cgroup, mountinfo};

/// What to do about a container that lacks something, and what can be done in it as it is.
pub const FIX: &str = "start it with `docker run --privileged`, or with --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw; without that only what needs no \
    daemon works (check, doctor, man), and talking to a daemon whose control socket is mounted here";

/// The number of the first pid namespace, from linux/proc_ns.h (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// AppArmor profiles of Docker, Podman and containerd.
const DEFAULT_PROFILES: [&str; 3] = ["docker-default", "containers-default", "cri-containerd.apparmor.d"];
/// Files that container engines leave in what they start.
const MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// What a container was not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Namespaces and mounts need it.
    #[error("CAP_SYS_ADMIN is missing")]
    SysAdmin,
    /// An AppArmor profile that an engine puts around a container denies every mount.
    #[error("AppArmor's profile {profile} forbids mounts")]
    Profile {
        /// Its name.
        profile: String,
    },
    /// A seccomp filter forbids what a worker's root is made with.
    #[error("a seccomp filter forbids pivot_root")]
    Seccomp,
    /// Workers' cgroups cannot be made.
    #[error("cgroup v2 on {mount_point} is read-only")]
    ReadOnlyCgroups {
        /// Where it is mounted.
        mount_point: String,
    },
}

/// Whether this process is in a container, or in another pid namespace than the host's.
#[must_use]
pub fn inside() -> bool {
    own_pid_namespace() || MARKS.iter().any(|mark| Path::new(mark).exists())
}

pub(super) fn own_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name != Path::new(FIRST_PID_NAMESPACE))
}

/// What is missing, if this is a container. What cannot be found out is left to whoever then fails at it.
#[must_use]
pub fn missing() -> Option<Missing> {
    if !inside() {
        return None;
    }
    if matches!(caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN), Ok(false)) {
        return Some(Missing::SysAdmin);
    }
    default_profile().or_else(filtered).or_else(|| read_only(&mountinfo::read().ok()?))
}

/// The profile of the engines' own that this process is under; one that an operator wrote may well allow what is needed.
fn default_profile() -> Option<Missing> {
    let label = std::fs::read_to_string("/proc/self/attr/current").ok()?;
    let profile = enforced(&label)?.to_owned();
    DEFAULT_PROFILES.iter().any(|name| profile.starts_with(name)).then_some(Missing::Profile { profile })
}

/// The name in `docker-default (enforce)`.
fn enforced(label: &str) -> Option<&str> {
    label.trim_end_matches(['\n', '\0']).strip_suffix(" (enforce)")
}

/// Asks for what cannot be: who may call it hears that the empty path leads nowhere, who may not does not.
fn filtered() -> Option<Missing> {
    matches!(rustix::process::pivot_root("", ""), Err(Errno::PERM | Errno::NOSYS)).then_some(Missing::Seccomp)
}

/// Nothing is missing while one of several mounts can be written: which of them shows our cgroup is `cgroup`'s to say.
fn read_only(mounts: &[mountinfo::Mount]) -> Option<Missing> {
    let mut hierarchies = mounts.iter().filter(|mount| mount.fs_type == cgroup::FS_TYPE);
    let first = hierarchies.clone().next()?;
    let all = hierarchies.all(|mount| mount.read_only || mount.super_options.split(',').any(|option| option == "ro"));
    all.then(|| Missing::ReadOnlyCgroups { mount_point: first.mount_point.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_profile_that_is_enforced_forbids() {
        assert_eq!(enforced("docker-default (enforce)\n"), Some("docker-default"));
        for label in ["docker-default (complain)\n", "unconfined\n", "kernel\n", ""] {
            assert_eq!(enforced(label), None, "{label:?}");
        }
    }

    #[test]
    fn a_hierarchy_that_cannot_be_written_is_missing() {
        let table = [
            ("31 30 0:2 / /sys/fs/cgroup ro,nosuid - cgroup2 c rw\n", Some("/sys/fs/cgroup")),
            ("31 30 0:2 / /sys/fs/cgroup rw,nosuid - cgroup2 c ro,nsdelegate\n", Some("/sys/fs/cgroup")),
            ("31 30 0:2 / /sys/fs/cgroup rw,nosuid - cgroup2 c rw,nsdelegate\n", None),
            ("31 30 0:2 / /a ro - cgroup2 c rw\n32 30 0:2 / /b rw - cgroup2 c rw\n", None),
            ("31 30 0:2 / /sys/fs/cgroup ro - cgroup c rw,memory\n", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|path| Missing::ReadOnlyCgroups { mount_point: path.to_owned() });
            assert_eq!(read_only(&mountinfo::parse(text.as_bytes())), expected, "{text}");
        }
    }
}
