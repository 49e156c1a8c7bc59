//! Which cgroup is this container's own, where its cgroup namespace is the host's (`docker run --cgroupns host`).
//!
//! There the whole hierarchy can be seen and written, and a container that took its place below the real root would leave
//! the limits that its runtime gave it. Reads only.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::delegate::pause;
use super::discover::{SUPERVISOR, TOP, open_below, own_path, relative};
use super::events;
use crate::host::container::own_pid_namespace;
use crate::host::mountinfo::Mount;

const CGROUP_BYTES_MAX: u64 = 64 << 10;
/// Processes of the container's cgroup that are looked at.
const PIDS_MAX: usize = 4096;
/// How often and how long apart they are looked at while one of them is foreign.
const LOOKS: u32 = 25;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The cgroup of the container that this process is in, below the mount; `None` if it is in none, or in one with a cgroup
/// namespace of its own.
pub(super) fn own_cgroup(mounts: &[Mount], mount: BorrowedFd<'_>, own: &Path) -> Option<PathBuf> {
    if !own_pid_namespace() {
        return None;
    }
    let first = first_process(mounts)?;
    let cgroup = without_leaf(&first);
    if cgroup.as_os_str().is_empty() || !own.starts_with(cgroup) {
        return None;
    }
    let dir = open_below(mount, cgroup).ok()?;
    // It is the container's if nobody else lives in it. What the runtime executes here is foreign for a moment.
    for look in 0..LOOKS {
        let listed = events::pids(dir.as_fd(), "the container", PIDS_MAX).ok()?;
        if !listed.pids.contains(&0) {
            return Some(cgroup.to_path_buf());
        }
        if look + 1 < LOOKS {
            pause(LOOK_AGAIN);
        }
    }
    None
}

/// Where PID 1 is, below the mount that shows it.
fn first_process(mounts: &[Mount]) -> Option<PathBuf> {
    let mut text = String::new();
    File::open("/proc/1/cgroup").ok()?.take(CGROUP_BYTES_MAX).read_to_string(&mut text).ok()?;
    let path = own_path(&text)?;
    mounts.iter().filter(|mount| mount.fs_type == super::FS_TYPE).find_map(|mount| relative(&mount.root, path))
}

/// The cgroup that a daemon's leaf was made in: PID 1 is a daemon that has moved itself, or was moved by one.
fn without_leaf(cgroup: &Path) -> &Path {
    let mut levels = cgroup.ancestors();
    let leaf = levels.next().and_then(Path::file_name);
    let top = levels.nth(1).and_then(Path::file_name);
    match levels.next() {
        Some(above) if leaf == Some(SUPERVISOR.as_ref()) && top == Some(TOP.as_ref()) => above,
        Some(_) | None => cgroup,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_again_after_its_first_process_has_moved() {
        for (first, container) in [
            ("docker/1", "docker/1"),
            ("docker/1/halsup/default/supervisor", "docker/1"),
            ("docker/1/supervisor", "docker/1/supervisor"),
            ("halsup/default/supervisor", ""),
            ("", ""),
        ] {
            assert_eq!(without_leaf(Path::new(first)), Path::new(container), "{first}");
        }
    }
}
