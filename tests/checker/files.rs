//! Files, directories, sockets and mounts of an instance, and whose they are (the rest of I2).

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::told::Told;
use super::{Findings, Instance, Invariant, below};

/// What a daemon has in its runtime directory while it runs.
const RUNTIME: [&str; 5] = ["control.sock", "exits", "lock", "notify", "work"];
/// What of it stays: an empty directory and a lock do no harm, and a lock that is removed is no lock.
const RUNTIME_LEFT: [&str; 4] = ["exits", "lock", "notify", "work"];
/// What is in its state directory, always.
const STATE: [&str; 12] = [
    "certificates",
    "certificates.1",
    "images",
    "lock",
    "logs",
    "overlay",
    "pool",
    "quarantine",
    "sessions",
    "state",
    "tasks",
    "volumes",
];

/// What is in a directory; nothing where it is not there.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// The same without what lay there before the daemon came.
fn own_entries(instance: &Instance, dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter(|entry| !instance.known.contains(entry)).collect()
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Where something is mounted below `dir`, the last mount first.
pub(crate) fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

/// The paths that unix sockets are bound to below `dir`.
fn bound(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let table = String::from_utf8_lossy(&table).into_owned();
    let paths = table.lines().filter_map(|line| line.split_whitespace().nth(7).map(PathBuf::from));
    paths.filter(|path| path.starts_with(dir)).collect()
}

/// I2 of a running instance.
pub(crate) fn owned(instance: &Instance, told: &Told, found: &mut Findings) {
    let mut orphan = |what: String| found.add(Invariant::Objects, format!("{what} has no owner"));
    let bound = bound(&instance.dir);
    for entry in own_entries(instance, &instance.runtime_dir) {
        let is_socket = fs::symlink_metadata(&entry).is_ok_and(|meta| meta.file_type().is_socket());
        let is_bound = is_socket && bound.contains(&entry);
        let its = name(&entry);
        // The gateway's socket, in a directory that only root enters.
        let is_gateways = its == "gateway" && told.pools().contains(&"gateway");
        if !RUNTIME.contains(&its.as_str()) && !is_bound && !is_gateways {
            orphan(entry.display().to_string());
        }
    }
    unknown_state(instance, &mut orphan);
    for dir in work_places(instance) {
        for entry in own_entries(instance, &dir) {
            let its = name(&entry);
            if !told.workers.iter().any(|worker| worker.is_live() && worker.place() == its) {
                orphan(entry.display().to_string());
            }
        }
    }
    for point in mounts(&instance.dir) {
        orphan(format!("mount on {}", point.display()));
    }
}

/// I2 of a stopped instance.
pub(crate) fn none(instance: &Instance, found: &mut Findings) {
    let mut left = |what: String| found.add(Invariant::Objects, format!("{what} is left"));
    for entry in own_entries(instance, &instance.runtime_dir) {
        if !RUNTIME_LEFT.contains(&name(&entry).as_str()) {
            left(entry.display().to_string());
        }
    }
    unknown_state(instance, &mut left);
    // They tell of workers and sessions, of which there are none.
    for dir in ["sessions", "pool/workers"] {
        own_entries(instance, &instance.state_dir.join(dir))
            .into_iter()
            .for_each(|entry| left(entry.display().to_string()));
    }
    for dir in work_places(instance) {
        own_entries(instance, &dir).into_iter().for_each(|entry| left(entry.display().to_string()));
    }
    // What is not finished is nobody's once the daemon has ended.
    let unfinished = own_entries(instance, &instance.state_dir.join("images/tmp"));
    unfinished.into_iter().for_each(|entry| left(entry.display().to_string()));
    for point in mounts(&instance.dir) {
        left(format!("mount on {}", point.display()));
    }
    for path in bound(&instance.runtime_dir).into_iter().chain(bound(&instance.state_dir)) {
        left(format!("a socket bound to {}", path.display()));
    }
}

/// The directories with one entry for each worker.
fn work_places(instance: &Instance) -> [PathBuf; 3] {
    let (run, state) = (&instance.runtime_dir, &instance.state_dir);
    [run.join("work"), run.join("notify"), state.join("overlay")]
}

fn unknown_state(instance: &Instance, say: &mut impl FnMut(String)) {
    for entry in own_entries(instance, &instance.state_dir) {
        if !STATE.contains(&name(&entry).as_str()) {
            say(entry.display().to_string());
        }
    }
    for entry in own_entries(instance, &instance.state_dir.join("volumes")) {
        // What is not a volume yet or no longer begins with a dot.
        if name(&entry).starts_with('.') {
            say(entry.display().to_string());
        }
    }
    for entry in own_entries(instance, &instance.state_dir.join("logs")) {
        let file = name(&entry);
        let audit = ["audit.log", "security.log"].iter().any(|log| file.starts_with(log));
        if !audit && !["workers", "daemon.log"].contains(&file.as_str()) {
            say(entry.display().to_string());
        }
    }
    for entry in own_entries(instance, &instance.state_dir.join("logs/workers")) {
        // `web.0.log`, and what was rotated away: `web.0.log.1`.
        let file = below(&entry, &instance.state_dir).into_owned();
        let rotated = file.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('.');
        if !rotated.ends_with(".log") {
            say(entry.display().to_string());
        }
    }
}
