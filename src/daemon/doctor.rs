//! What this host has of what halsup needs, as `halsup doctor` shows it: the kernel's side from `host`, and what the daemon
//! itself wants of its surroundings. Looks and changes nothing; works without a daemon. What a running daemon says of its own
//! pools is in `troubles`, what can be said of a configuration without one in `absent`.

mod absent;
mod troubles;

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{Resource, getrlimit};

use super::log_sink;
use crate::host::doctor::{self, Probe, Weight};
use crate::host::volume::Room;
use crate::protocol::control::Check;
use crate::spec::{Config, DaemonSpec, format_bytes};

/// Descriptors that one worker takes of the daemon's.
const FILES_A_WORKER: u64 = 10;
/// Fewer workers than this are too few to be called well.
const WORKERS_MIN: u64 = 100;

/// Looks at the host, in the order in which it matters.
pub(super) fn checks(spec: &DaemonSpec) -> Vec<Check> {
    let mut checks: Vec<Check> = doctor::probe(&spec.instance).into_iter().map(check).collect();
    checks.push(open_files(getrlimit(Resource::Nofile).maximum));
    checks.push(directory("runtime directory", &spec.runtime_dir));
    checks.push(directory("state directory", &spec.state_dir));
    checks.push(log());
    checks.push(resolver(Path::new("/etc/resolv.conf")));
    checks
}

/// The same, and what can be seen of a daemon that does not run.
pub(super) fn without_daemon(config: &Config) -> Vec<Check> {
    let mut all = checks(&config.daemon);
    all.extend(absent::checks(config));
    all
}

fn good(name: impl Into<String>, found: impl Into<String>) -> Check {
    Check { name: name.into(), ok: true, found: found.into(), fix: None }
}

fn bad(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name: name.into(), ok: false, found: found.into(), fix: Some(fix.into()) }
}

/// Not as some want it, and no fault: what is lost in place of what to do.
fn partly(name: impl Into<String>, found: impl Into<String>, lost: impl Into<String>) -> Check {
    Check { name: name.into(), ok: true, found: found.into(), fix: Some(lost.into()) }
}

/// Whether workers, which have the host's resolver configuration, can ask anybody for names.
fn resolver(path: &Path) -> Check {
    let name = "dns";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            return partly(name, format!("read {}: {error}", path.display()), "workers resolve no names: write one");
        }
    };
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).collect();
    match servers.as_slice() {
        [] => {
            let lost = "workers resolve no external names: add a line `nameserver ADDRESS`, then halsup daemon restart";
            partly(name, format!("{} names no server", path.display()), lost)
        }
        some => good(name, format!("asks {}", some.join(", "))),
    }
}

/// Less than one part in this of a disk is too little.
const ROOM_PARTS: u64 = 50;
/// Less than this is too little on any disk, in bytes.
const ROOM_BYTES_MIN: u64 = 64 << 20;

/// Whether there is room for what workers write into volumes, images and logs.
fn room(room: Room, state_dir: &Path) -> Check {
    let name = "room";
    let found = format!("{} of {} are free", format_bytes(room.free_bytes), format_bytes(room.total_bytes));
    let few_files = room.total_inodes > 0 && room.free_inodes < room.total_inodes / ROOM_PARTS;
    if room.free_bytes < ROOM_BYTES_MIN || room.free_bytes < room.total_bytes / ROOM_PARTS || few_files {
        let found = if few_files {
            format!("only {} more files can be made", room.free_inodes)
        } else {
            format!("only {found}")
        };
        let fix = format!(
            "halsup volume ls --size says what takes it: remove what is not needed, or put state_dir ({}) on a larger disk",
            state_dir.display()
        );
        return bad(name, found, fix);
    }
    good(name, found)
}

/// What halsup can do without is no fault, but it is not there either: well, and with what that means as its fix.
fn check(probe: Probe) -> Check {
    let fix = (!probe.ok && !probe.fix.is_empty()).then_some(probe.fix);
    let found = probe.found.strip_prefix(&format!("{} ", probe.name)).unwrap_or(&probe.found).to_owned();
    Check { name: probe.name, ok: probe.ok || probe.weight == Weight::Optional, found, fix }
}

/// The hard limit, to which the daemon raises its own.
fn open_files(limit: Option<u64>) -> Check {
    let name = "open files".to_owned();
    let Some(limit) = limit else {
        return Check { name, ok: true, found: "no limit".to_owned(), fix: None };
    };
    let workers = limit / FILES_A_WORKER;
    let ok = workers >= WORKERS_MIN;
    let fix = format!("raise the hard limit, by ulimit -Hn or LimitNOFILE=, to {FILES_A_WORKER} for each worker");
    Check { name, ok, found: format!("at most {limit}, enough for {workers} workers"), fix: (!ok).then_some(fix) }
}

/// Whether a directory can be written, or made where it is not yet.
fn directory(name: &str, path: &Path) -> Check {
    let name = name.to_owned();
    let nearest = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    let shown = path.display();
    match accessat(CWD, nearest, wanted, AtFlags::EACCESS) {
        Ok(()) if !nearest.is_dir() => Check {
            name,
            ok: false,
            found: format!("{} is not a directory", nearest.display()),
            fix: Some(format!("move it away: {shown} is to be made there")),
        },
        Ok(()) if nearest == path => Check { name, ok: true, found: format!("{shown} can be written"), fix: None },
        Ok(()) => Check { name, ok: true, found: format!("{shown} can be made"), fix: None },
        Err(error) => Check {
            name,
            ok: false,
            found: format!("{} cannot be written: {error}", nearest.display()),
            fix: Some("run as root, or name another directory in the configuration".to_owned()),
        },
    }
}

/// Where a daemon that is started like this would log to.
fn log() -> Check {
    let to = if log_sink::Sink::stderr().is_journal() { "the journal" } else { "standard error" };
    Check { name: "log".to_owned(), ok: true, found: format!("goes to {to}"), fix: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_done_another_way_is_no_fault() {
        let probe = |weight| Probe {
            name: "x".to_owned(),
            weight,
            ok: false,
            found: "missing".to_owned(),
            fix: "get one".to_owned(),
        };
        let needed = check(probe(Weight::Needed));
        assert_eq!((needed.ok, needed.fix.as_deref()), (false, Some("get one")));
        let optional = check(probe(Weight::Optional));
        assert_eq!((optional.ok, optional.found.as_str(), optional.fix.as_deref()), (true, "missing", Some("get one")));
    }

    #[test]
    fn open_files_are_counted_in_workers() {
        assert_eq!(open_files(Some(20_000)).found, "at most 20000, enough for 2000 workers");
        assert!(open_files(Some(1_000)).ok && open_files(None).ok);
        assert!(!open_files(Some(999)).ok);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_a_fault() {
        let of = |free_bytes, free_inodes| {
            let disk = Room { total_bytes: 100 << 30, free_bytes, total_inodes: 1000, free_inodes };
            room(disk, Path::new("/var/lib/halsup"))
        };
        assert!(of(50 << 30, 500).ok);
        assert_eq!(of(1 << 30, 500).found, "only 1g of 100g are free");
        assert_eq!(of(50 << 30, 3).found, "only 3 more files can be made");
        assert!(of(0, 500).fix.unwrap().contains("halsup volume ls --size"));
    }

    #[test]
    fn a_resolver_without_a_server_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        assert!(resolver(&path).fix.is_some());
        std::fs::write(&path, "search example.org\n").unwrap();
        assert!(resolver(&path).found.ends_with("names no server"));
        std::fs::write(&path, "nameserver 10.0.0.1\nnameserver ::1\n").unwrap();
        assert_eq!(resolver(&path), good("dns", "asks 10.0.0.1, ::1"));
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        assert!(directory("x", dir.path()).found.ends_with("can be written"));
        assert!(directory("x", &dir.path().join("a/b")).found.ends_with("can be made"));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(!directory("x", &file.join("b")).ok);
    }

    #[test]
    fn everything_is_looked_at_without_a_daemon() {
        let config = crate::spec::parse_config("", &std::collections::BTreeMap::new()).unwrap();
        let checks = checks(&config.daemon);
        for name in ["kernel", "open files", "runtime directory", "state directory", "log"] {
            assert_eq!(checks.iter().filter(|check| check.name == name).count(), 1, "{name}");
        }
    }
}
