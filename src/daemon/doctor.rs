//! What this host has of what halsup needs, as `halsup doctor` shows it: the kernel's side from `host`, and what the daemon
//! itself wants of its surroundings. Looks and changes nothing; works without a daemon.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{Resource, getrlimit};

use super::log_sink;
use crate::host::doctor::{self, Probe, Weight};
use crate::protocol::control::Check;
use crate::spec::InstanceName;

/// Descriptors that one worker takes of the daemon's.
const FILES_A_WORKER: u64 = 10;
/// Fewer workers than this are too few to be called well.
const WORKERS_MIN: u64 = 100;

/// Looks at everything, in the order in which it matters.
pub(super) fn checks(instance: &InstanceName) -> Vec<Check> {
    let mut checks: Vec<Check> = doctor::probe(instance).into_iter().map(check).collect();
    checks.push(open_files(getrlimit(Resource::Nofile).maximum));
    checks.push(directory("runtime directory", &default_dir("/run/halsup", instance)));
    checks.push(directory("state directory", &default_dir("/var/lib/halsup", instance)));
    checks.push(log());
    checks
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

fn default_dir(base: &str, instance: &InstanceName) -> PathBuf {
    match instance.as_str() {
        "default" => PathBuf::from(base),
        name => PathBuf::from(format!("{base}-{name}")),
    }
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
        let checks = checks(&InstanceName::default());
        for name in ["kernel", "open files", "runtime directory", "state directory", "log"] {
            assert_eq!(checks.iter().filter(|check| check.name == name).count(), 1, "{name}");
        }
    }
}
