//! What pools may not have in common, and what they may not have together.
//!
//! Called once all pools of a file are read, and by whoever adds a pool to those that run.

use std::collections::BTreeMap;

use super::error::{ConfigErrors, Faults, Place};
use super::pool::{Checked, WORKERS_MAX};
use crate::spec::{DaemonSpec, Listen, Net, PoolName, PoolSpec, Root};

/// The most pools and services of one daemon.
const POOLS_MAX: usize = 256;

/// Checks pools that come from different places, such as a file and the command line, against each other.
///
/// # Errors
/// Names, ports or sockets that two of them want, more than 256 pools or 10,000 workers, binds of the daemon's own
/// directories.
pub fn check_pools(daemon: &DaemonSpec, pools: &[PoolSpec]) -> Result<(), ConfigErrors> {
    let pools: Vec<Checked> = pools.iter().cloned().map(Checked::outside).collect();
    all(daemon, &pools).or(()).map_err(|faults| faults.into_errors(""))
}

/// All checks between pools.
pub(super) fn all(daemon: &DaemonSpec, pools: &[Checked]) -> Faults {
    let mut faults = Faults::default();
    names(pools, &mut faults);
    amounts(pools, &mut faults);
    ports(pools, &mut faults);
    sockets(pools, &mut faults);
    pools.iter().for_each(|pool| own_directories(daemon, pool, &mut faults));
    pools.iter().for_each(|pool| images(daemon, pool, &mut faults));
    faults
}

/// Whether the pools that roles speak of exist.
pub(super) fn roles(role_pools: &[(PoolName, Place)], pools: &[Checked]) -> Faults {
    let mut faults = Faults::default();
    for (name, place) in role_pools {
        if !pools.iter().any(|pool| pool.spec.name == *name) {
            let near = super::keys::nearest(name.as_str(), pools.iter().map(|pool| pool.spec.name.as_str()));
            faults.push(place.fault(format!("no pool or service is named {:?}", name.as_str()), "").suggest(near));
        }
    }
    faults
}

fn names(pools: &[Checked], faults: &mut Faults) {
    let mut seen = BTreeMap::new();
    for pool in pools {
        if seen.insert(&pool.spec.name, ()).is_some() {
            faults.push(pool.place().fault("another pool or service has this name", ""));
        }
    }
}

fn amounts(pools: &[Checked], faults: &mut Faults) {
    if let Some(pool) = pools.get(POOLS_MAX) {
        faults.push(pool.place().fault(format!("{} pools and services", pools.len()), format!("at most {POOLS_MAX}")));
    }
    let mut workers = 0u64;
    for pool in pools {
        let before = workers;
        workers += u64::from(pool.spec.policy.size.max);
        if before <= u64::from(WORKERS_MAX) && workers > u64::from(WORKERS_MAX) {
            let what = format!("with this pool there are {workers} workers");
            faults.push(pool.place_of("size").fault(what, format!("at most {WORKERS_MAX} in all pools together")));
        }
    }
}

/// The first and last port of a pool's workers.
fn port_range(pool: &PoolSpec) -> Option<(u32, u32)> {
    if let Some(ports) = pool.ports {
        return Some((u32::from(ports.first), u32::from(ports.last)));
    }
    let base = u32::from(pool.base_port?);
    Some((base, base + pool.policy.size.max.saturating_sub(1)))
}

/// Pools in one network have different ports; in networks of their own, workers meet nobody.
fn ports(pools: &[Checked], faults: &mut Faults) {
    let shared = |pool: &&Checked| pool.spec.net != Net::Own;
    let mut ranges: Vec<(&Net, u32, u32, &Checked)> = Vec::new();
    for pool in pools.iter().filter(shared) {
        if let Some((first, last)) = port_range(&pool.spec) {
            ranges.push((&pool.spec.net, first, last, pool));
        }
    }
    for (at, (net, first, last, pool)) in ranges.iter().enumerate() {
        let meets = |(other_net, other_first, other_last, _): &&(&Net, u32, u32, &Checked)| {
            other_net == net && first <= other_last && other_first <= last
        };
        if let Some((_, other_first, other_last, other)) = ranges.iter().take(at).find(meets) {
            let what =
                format!("ports {first} to {last} overlap ports {other_first} to {other_last} of {}", other.spec.name);
            let key = if pool.spec.ports.is_some() { "ports" } else { "base_port" };
            faults.push(pool.place_of(key).fault(what, ""));
        }
    }
}

/// The daemon binds each socket once, in its own network, where `parent` pools have their ports.
fn sockets(pools: &[Checked], faults: &mut Faults) {
    let mut seen: Vec<(&Listen, &PoolName)> = Vec::new();
    for pool in pools {
        for listen in &pool.spec.listen {
            if let Some((_, other)) = seen.iter().find(|(other, _)| *other == listen) {
                faults.push(pool.place_of("listen").fault(format!("{other} listens at the same place"), ""));
            }
            seen.push((listen, &pool.spec.name));
            let Listen::Tcp(address) = listen else { continue };
            let port = u32::from(address.port());
            let holds = |other: &&Checked| {
                other.spec.net == Net::Parent
                    && port_range(&other.spec).is_some_and(|(first, last)| (first..=last).contains(&port))
            };
            if let Some(other) = pools.iter().find(holds) {
                let what = format!("port {port} is one of the ports of {}", other.spec.name);
                faults.push(pool.place_of("listen").fault(what, ""));
            }
        }
    }
}

/// Only images that the operator has listed are roots, if a list was made.
fn images(daemon: &DaemonSpec, pool: &Checked, faults: &mut Faults) {
    if let Root::Image(name) = &pool.spec.root
        && let Err(violation) = daemon.check_image(name)
    {
        faults.push(pool.place_of("root").fault(violation, ""));
    }
}

/// Nothing of halsup's own is to be seen inside a worker.
fn own_directories(daemon: &DaemonSpec, pool: &Checked, faults: &mut Faults) {
    let told = ["sessions", "pool"].map(|name| daemon.home.join(name));
    // By default what is told to scripts lies in the state directory, which says it all.
    let told = told.iter().filter(|dir| !dir.starts_with(&daemon.state_dir));
    for own in [&daemon.runtime_dir, &daemon.state_dir].into_iter().chain(told) {
        let shows = |path: &std::path::Path| path.starts_with(own) || own.starts_with(path);
        if pool.spec.binds.iter().any(|bind| shows(&bind.source)) {
            let what = format!("would show halsup's own {} inside", own.display());
            faults.push(pool.place_of("bind").fault(what, ""));
        }
    }
}
