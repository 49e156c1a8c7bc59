//! Daemons that come and go while their workers run on.

use rustix::process::Signal;
use serde_json::Value;

use super::service::{Caller, Process, Service, journal, property, systemctl, wait_until};
use super::unit::SLEEPERS;
use crate::look::{pid, signal};
use crate::needs::needs;
use crate::place::halsup;

/// Workers end as they are told by a file, one by one.
const ENDS: &str = "
[pool.web]
command = ['sh', '-c', 'sleep infinity & trap \"exit $(({slot} * 42))\" USR1; wait']
size = 2
[pool.abort]
command = ['sleep', 'infinity']
";

#[test]
fn a_restart_keeps_the_workers_and_a_stop_ends_them() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    service.ready_workers();
    let (daemon, before) = (service.daemon(), service.pids());
    systemctl(&["restart", "halsup"]);
    daemon.wait();
    assert_ne!(service.daemon().pid, daemon.pid);
    assert_eq!(service.pids(), before, "{}", journal());
    assert_eq!(property("halsup", "NFileDescriptorStore"), "3");
    let workers: Vec<Process> = before.iter().map(|pid| Process::open(&pid.to_string())).collect();
    service.stop();
    workers.iter().for_each(Process::wait);
}

#[test]
fn the_watchdog_ends_a_daemon_that_hangs_and_no_worker() {
    needs!(Root, Systemd);
    let service = Service::start_with(SLEEPERS, &[("halsup.service", "[Service]\nWatchdogSec=4s\n")]);
    service.ready_workers();
    let (daemon, before) = (service.daemon(), service.pids());
    systemctl(&["kill", "--kill-whom=main", "--signal=STOP", "halsup"]);
    let caller = Caller::call();
    daemon.wait();
    // Who called the one that hung is told by a closed connection or by the next daemon; a later caller only by the latter.
    assert!(caller.is_answered_within(crate::fixture::EVENT_DEADLINE));
    let next = Caller::call().answer();
    assert_ne!(next, daemon.pid);
    assert!(journal().contains("Watchdog timeout"), "{}", journal());
    assert_eq!(service.pids(), before, "{}", journal());
}

#[test]
fn a_daemon_that_is_fed_too_little_is_not_one_that_hangs() {
    needs!(Root, Systemd);
    let service = Service::start_with(SLEEPERS, &[("halsup.service", "[Service]\nWatchdogSec=2s\n")]);
    let daemon = service.daemon();
    service.ready_workers();
    // Three times the watchdog's time.
    assert!(!daemon.has_ended_within(std::time::Duration::from_secs(6)), "{}", journal());
    assert_eq!(property("halsup", "NRestarts"), "0");
}

#[test]
fn exits_while_no_daemon_runs_are_reported() {
    needs!(Root, Systemd);
    let service = Service::start_with(ENDS, &[("halsup.service", "[Service]\nRestartSec=5s\n")]);
    service.ready_workers();
    let workers = service.workers();
    let of = |name: &str| workers.iter().find(|one| one["name"] == name).cloned().expect("a worker");
    let ends: Vec<Process> =
        ["web.0", "web.1", "abort.0"].map(|name| Process::open(&pid(&of(name)).to_string())).into();
    let daemon = service.daemon();
    systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "halsup"]);
    daemon.wait();
    signal(pid(&of("web.0")), Signal::USR1);
    signal(pid(&of("web.1")), Signal::USR1);
    signal(pid(&of("abort.0")), Signal::ABORT);
    ends.iter().for_each(Process::wait);
    assert_eq!(property("halsup", "ActiveState"), "activating", "no daemon was there meanwhile");
    let certificate = |name: &str| -> Option<Value> {
        let inspected = halsup(&["inspect", name, "--json"]);
        let all = serde_json::from_str::<Value>(&inspected.stdout).ok()?;
        // The latest comes first.
        all["workers"][0]["certificates"].as_array()?.first().cloned()
    };
    for (name, cause) in [("web.0", "exited 0"), ("web.1", "exited 42"), ("abort.0", "signal 6")] {
        let first = wait_until(&format!("the certificate of {name}"), || certificate(name));
        assert_eq!(first["cause"], cause, "{name}: {first}\n{}", journal());
        assert_eq!(first["generation"], of(name)["generation"], "{name}: {first}");
    }
}

#[test]
fn a_cgroup_without_its_holder_is_made_anew() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    service.ready_workers();
    let (daemon, before) = (service.daemon(), service.pids());
    systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "halsup-workers"]);
    daemon.wait();
    wait_until("a new daemon", || Some(()).filter(|()| property("halsup", "ActiveState") == "active"));
    service.ready_workers();
    let after = service.pids();
    assert!(after.len() == before.len() && after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
}
