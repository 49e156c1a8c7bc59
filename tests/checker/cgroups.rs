//! Processes and cgroups of an instance, and whose they are (I1 and the cgroups of I2).

use std::fs;
use std::path::{Path, PathBuf};

use super::proc::Process;
use super::told::Told;
use super::{Findings, Instance, Invariant, below};

/// The daemon's own leaf.
const SUPERVISOR: &str = "supervisor";

/// Where the version 2 hierarchy is mounted.
pub(crate) fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The instance's cgroup, wherever in the hierarchy its daemon put it.
pub(crate) fn base(instance: &str) -> Option<PathBuf> {
    let mount = mount()?;
    let usual = mount.join("halsup").join(instance);
    if usual.is_dir() { Some(usual) } else { find(&mount, instance) }
}

fn find(top: &Path, name: &str) -> Option<PathBuf> {
    children(top)
        .into_iter()
        .find_map(|path| if path.file_name().is_some_and(|own| own == name) { Some(path) } else { find(&path, name) })
}

/// The cgroups directly below one.
pub(crate) fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// A process as a report names it.
fn named(process: &Process) -> String {
    format!("process {} {:?}", process.pid, process.command_line())
}

/// Where a process is below the instance's cgroup; `None` is outside.
fn place<'p>(process: &'p Process, instance: &Instance) -> Option<&'p str> {
    let (_, rest) = process.cgroup.split_once(&format!("/{}", instance.name))?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
}

/// Whether a process has the environment of one of the instance's workers.
fn is_workers(process: &Process, instance: &Instance) -> bool {
    let environment = process.environment();
    let own = format!("HALSUP_INSTANCE={}", instance.name);
    let variables = || environment.split(|&byte| byte == 0);
    variables().any(|one| one == own.as_bytes()) && variables().any(|one| one.starts_with(b"HALSUP_WORKER="))
}

/// I1 and I2 of a running instance: each process and each cgroup belongs to the daemon or to a worker that it tells of.
pub(crate) fn owned(
    instance: &Instance,
    base: Option<&Path>,
    told: &Told,
    processes: &[Process],
    found: &mut Findings,
) {
    let in_namespace = mount().is_some_and(|mount| mount.join("cgroup.type").exists());
    for process in processes {
        if process.is_zombie() {
            if process.parent == told.pid {
                found.add(Invariant::Processes, format!("{} ended and is not reaped", named(process)));
            }
            continue;
        }
        let Some(place) = place(process, instance) else {
            if is_workers(process, instance) {
                found.add(Invariant::Processes, format!("{} is in {}", named(process), process.cgroup));
            }
            continue;
        };
        let mut parts = place.split('/');
        let (top, leaf) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let has_owner = match top.strip_prefix("pool.") {
            Some(pool) => told.owner(pool, leaf).is_some(),
            // A daemon in a container takes along what lives in the root of its cgroup namespace.
            None => top == SUPERVISOR && (process.pid == told.pid || in_namespace),
        };
        if !has_owner {
            found.add(Invariant::Processes, format!("{} in {place:?} has no owner", named(process)));
        }
    }
    let Some(base) = base else {
        return found.add(Invariant::Objects, format!("the instance {} has no cgroup", instance.name));
    };
    for top in children(base) {
        let name = below(&top, base).into_owned();
        let Some(pool) = name.strip_prefix("pool.").filter(|pool| told.pools().contains(pool)) else {
            if name != SUPERVISOR {
                found.add(Invariant::Objects, format!("cgroup {} has no owner", top.display()));
            }
            continue;
        };
        for leaf in children(&top) {
            if told.owner(pool, &below(&leaf, &top)).is_none() {
                found.add(Invariant::Objects, format!("cgroup {} has no owner", leaf.display()));
            }
        }
    }
}

/// I1 and I2 of a stopped instance: neither processes nor cgroups, but the leaf that a daemon cannot remove while it is in it,
/// which is removed here.
pub(crate) fn none(instance: &Instance, processes: &[Process], found: &mut Findings) {
    for process in processes.iter().filter(|process| !process.is_zombie()) {
        if place(process, instance).is_some() || is_workers(process, instance) {
            found.add(Invariant::Processes, format!("{} in {}", named(process), process.cgroup));
        }
    }
    let Some(base) = base(&instance.name) else { return };
    let before = found.0.len();
    list(&base, found);
    if found.0.len() == before
        && let Err(error) = remove(&base)
    {
        found.add(Invariant::Objects, format!("cgroup {}: {error}", base.display()));
    }
}

fn list(dir: &Path, found: &mut Findings) {
    for child in children(dir) {
        if child.file_name().is_none_or(|name| name != SUPERVISOR) {
            found.add(Invariant::Objects, format!("cgroup {}", child.display()));
        }
        list(&child, found);
    }
}

/// Removes a cgroup with all that is below it. Another's cgroup beside it, and the directory above, are left alone.
pub(crate) fn remove(dir: &Path) -> std::io::Result<()> {
    for child in children(dir) {
        remove(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
