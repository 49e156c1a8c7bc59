//! What can be seen of a daemon that does not run: what would keep it from starting, and what the one before it left.

use std::path::Path;

use super::troubles::{damaged, image_check, quarantine_fix, root_check};
use super::{bad, good, partly, room};
use crate::host::cgroup::Location;
use crate::host::state_file::QUARANTINE;
use crate::host::volume::{VOLUMES, room_at};
use crate::host::{image_store, port};
use crate::protocol::control::Check;
use crate::spec::{Config, DaemonSpec, Net, PoolSpec, Root};

/// Ports that are tried for one pool.
const PORTS_MAX: u32 = 16;

/// All checks of a configuration and of what is left.
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    for pool in &config.pools {
        checks.extend(root_check(pool));
        if let Root::Image(name) = &pool.root
            && matches!(image_store::resolve(&config.daemon.state_dir, name.as_str()), Ok(None))
        {
            checks.push(image_check(pool, &super::super::pool::image_missing(name)));
        }
        checks.extend(ports_check(pool));
        checks.extend(volume_checks(&config.daemon, pool));
    }
    let state_dir = &config.daemon.state_dir;
    if let Ok(found) = room_at(state_dir) {
        checks.push(room(found, state_dir));
    }
    match damaged(&state_dir.join(QUARANTINE)) {
        0 => {}
        count => {
            checks.push(bad(
                "state files",
                format!("{count} damaged files are in quarantine"),
                quarantine_fix(state_dir),
            ));
        }
    }
    checks.push(orphans_check(&config.daemon));
    checks
}

/// Ports that a pool's workers are to have and somebody else has.
fn ports_check(pool: &PoolSpec) -> Option<Check> {
    let base = pool.base_port.filter(|_| pool.net == Net::Parent)?;
    let count = pool.policy.size.max.clamp(1, PORTS_MAX);
    let taken = (0..count)
        .filter_map(|slot| base.checked_add(u16::try_from(slot).ok()?))
        .find(|port| port::check_free(*port).is_err())?;
    let holder = port::holder(taken).map(|holder| format!(" by {holder}")).unwrap_or_default();
    let kind = if pool.service { "service" } else { "pool" };
    let variable = super::troubles::chromadb_port(pool);
    let fix = format!("use another port: `base_port` in [{kind}.{}]{variable}; or end who has it", pool.name);
    Some(bad(format!("port of {}", pool.name), format!("port {taken} is in use{holder}"), fix))
}

/// Volumes that were there and are not, as far as that can be seen: nothing is wrong with one that was never used.
fn volume_checks(daemon: &DaemonSpec, pool: &PoolSpec) -> Vec<Check> {
    let store = daemon.state_dir.join(VOLUMES);
    let is_there = |mount: &&crate::spec::VolumeMount| store.join(mount.name.as_str()).is_dir();
    let missing = pool.volumes.iter().filter(|mount| !is_there(mount));
    missing
        .map(|mount| {
            let lost = "nothing is lost, unless there was one: then halsup restore brings it back";
            partly(format!("volume {} of {}", mount.name, pool.name), "is made when a worker first has it", lost)
        })
        .collect()
}

/// Whether workers run that no daemon looks after.
fn orphans_check(daemon: &DaemonSpec) -> Check {
    let name = "orphans";
    let Ok(location) = Location::discover(&daemon.instance, daemon.cgroup.as_deref()) else {
        return good(name, "no cgroups, so none");
    };
    let count = processes_below(&location.path(), 0);
    if count == 0 {
        return good(name, "nothing runs without a daemon");
    }
    let found = format!("{count} processes of workers run without a daemon");
    bad(name, found, "halsup daemon start takes them over; halsup gc ends them")
}

/// Processes in the cgroups below `dir`, not in itself.
fn processes_below(dir: &Path, depth: u32) -> usize {
    /// Pools, workers, and what workers make.
    const DEPTH_MAX: u32 = 8;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let of_child = |child: std::fs::DirEntry| {
        let own = std::fs::read_to_string(child.path().join("cgroup.procs")).unwrap_or_default().lines().count();
        own + if depth < DEPTH_MAX { processes_below(&child.path(), depth + 1) } else { 0 }
    };
    children.map(of_child).sum()
}
