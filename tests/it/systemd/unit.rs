//! The units themselves: right for systemd, active when they answer, reloaded, and gone without a trace.

use std::fs;
use std::time::Duration;

use super::service::{
    Caller, NAMES, Process, SOCKET, Service, journal, property, shipped, systemctl, tool, wait_until,
};
use crate::needs::needs;
use crate::place::halsup;

pub(super) const SLEEPERS: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\nsize = 3\n";
/// Long enough for an answer that comes to have come, in an emulated guest.
const NOT_SOON: Duration = Duration::from_secs(2);

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    needs!(Root, Systemd);
    let _installed = Service::install(SLEEPERS, &[]);
    let units = NAMES.map(|name| shipped(name).display().to_string());
    let mut arguments = vec!["verify", "--man=no"];
    arguments.extend(units.iter().map(String::as_str));
    let output = tool("systemd-analyze", &arguments);
    assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (0, "", ""));
}

/// The start is held up before the program runs: a unit that does not wait for `READY=1` is active meanwhile.
#[test]
fn the_unit_is_active_when_the_socket_answers_and_not_before() {
    needs!(Root, Systemd);
    let held =
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'read line </run/held; exec /usr/local/bin/halsup daemon run'\n";
    let fifo = "/run/held";
    assert_eq!(tool("mkfifo", &[fifo]).status, 0);
    let _installed = Service::install(SLEEPERS, &[("halsup.service", held)]);
    systemctl(&["start", "--no-block", "halsup"]);
    wait_until("its process", || Some(()).filter(|()| property("halsup", "MainPID") != "0"));
    let caller = Caller::call();
    assert!(!caller.is_answered_within(NOT_SOON), "nobody can have answered");
    assert_eq!(property("halsup", "ActiveState"), "activating");
    fs::write(fifo, "go\n").expect("let it go");
    fs::remove_file(fifo).expect("remove it");
    let active =
        wait_until("an active unit", || Some(property("halsup", "ActiveState")).filter(|state| state != "activating"));
    assert_eq!(active, "active", "{}", journal());
    assert_eq!(caller.answer(), property("halsup", "MainPID"));
}

/// Without its socket unit, nothing but the daemon listens: who starts it can connect as soon as `start` returns.
#[test]
fn without_the_socket_unit_a_start_returns_when_the_socket_is_there() {
    needs!(Root, Systemd);
    let service = Service::install(SLEEPERS, &[]);
    fs::remove_file("/etc/systemd/system/halsup.socket").expect("remove the unit");
    systemctl(&["daemon-reload"]);
    systemctl(&["start", "halsup"]);
    assert_eq!(Caller::call().answer(), property("halsup", "MainPID"));
    assert_eq!(property("halsup.socket", "ActiveState"), "inactive");
    service.stop();
}

#[test]
fn a_stop_leaves_nothing() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    let daemon = service.daemon();
    let workers: Vec<Process> =
        service.ready_workers().iter().map(|one| Process::open(&one["pid"].to_string())).collect();
    assert_eq!(workers.len(), 3);
    service.stop();
    workers.iter().chain([&daemon]).for_each(|process| {
        assert!(process.has_ended_within(Duration::ZERO), "{} is still there", process.pid);
    });
    assert_eq!(property("halsup", "Result"), "success");
    assert!(fs::metadata(SOCKET).is_err());
}

#[test]
fn a_stop_in_which_the_daemon_hangs_leaves_nothing() {
    needs!(Root, Systemd);
    // A daemon that hangs hears no signal that can be heard; one that is ignored comes to the same.
    let deaf = "[Service]\nTimeoutStopSec=2s\nKillSignal=SIGWINCH\n";
    let service = Service::start_with(SLEEPERS, &[("halsup.service", deaf)]);
    let workers: Vec<Process> =
        service.ready_workers().iter().map(|one| Process::open(&one["pid"].to_string())).collect();
    service.stop();
    workers.iter().for_each(|process| assert!(process.has_ended_within(Duration::ZERO), "{}", process.pid));
    assert_eq!(property("halsup", "Result"), "timeout");
}

/// The directory of a process's cgroup.
pub(super) fn cgroup_of(pid: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read its cgroup");
    format!("/sys/fs/cgroup{}", text.trim_end().strip_prefix("0::").expect("version 2"))
}

#[test]
fn workers_live_in_the_unit_that_is_not_restarted() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    assert_eq!(cgroup_of(&service.daemon().pid), "/sys/fs/cgroup/system.slice/halsup.service");
    for worker in service.ready_workers() {
        let cgroup = cgroup_of(&worker["pid"].to_string());
        assert!(cgroup.starts_with("/sys/fs/cgroup/system.slice/halsup-workers.service/pool.web/w-"), "{cgroup}");
        assert_eq!(fs::read_to_string(format!("{cgroup}/pids.max")).expect("read it"), "100\n", "limits are enforced");
    }
}

#[test]
fn a_reload_is_told_and_takes_over_what_differs() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    let (daemon, workers) = (service.daemon(), service.ready_workers());
    systemctl(&["log-level", "debug"]);
    service.configure(&SLEEPERS.replace("size = 3", "size = 4"));
    systemctl(&["reload", "halsup"]);
    systemctl(&["log-level", "info"]);
    assert_eq!(service.ready_workers().len(), workers.len() + 1);
    assert_eq!(service.daemon().pid, daemon.pid);
    let told = |word: &str| {
        tool("journalctl", &["--boot", "--no-pager", "--output=cat", "--grep", word]).stdout.contains(&daemon.pid)
    };
    wait_until("RELOADING=1 in the journal", || Some(()).filter(|()| told("RELOADING=1")));

    service.configure("[pool.web]\nnonsense = 1\n");
    let refused = tool("systemctl", &["reload", "halsup"]);
    assert_ne!(refused.status, 0, "{refused:?}");
    assert_eq!(property("halsup", "ActiveState"), "active");
    assert_eq!(service.workers().len(), workers.len() + 1, "nothing was changed");
    service.configure(SLEEPERS);
}

#[test]
fn systemd_keeps_a_descriptor_for_each_worker() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    service.ready_workers();
    let stored = |count: &str| {
        wait_until(&format!("{count} descriptors"), || {
            Some(()).filter(|()| property("halsup", "NFileDescriptorStore") == count)
        });
    };
    stored("3");
    assert_eq!(halsup(&["stop", "web.1"]).status, 0);
    stored("2");
    assert_eq!(halsup(&["start", "web.1"]).status, 0);
    stored("3");
    service.stop();
}

#[test]
fn a_newer_systemd_can_reload_by_signal() {
    needs!(Root, SystemdSince(253));
    let drop_in = fs::read_to_string(shipped("notify-reload.conf")).expect("read the drop-in");
    let service = Service::start_with(SLEEPERS, &[("halsup.service", &drop_in)]);
    assert_eq!(property("halsup", "Type"), "notify-reload");
    let (daemon, workers) = (service.daemon(), service.ready_workers());
    service.configure(&SLEEPERS.replace("size = 3", "size = 4"));
    systemctl(&["reload", "halsup"]);
    // The reload is over when systemctl returns: what it added is there, if not yet ready.
    assert_eq!(service.workers().len(), workers.len() + 1);
    assert_eq!(property("halsup", "ActiveState"), "active");
    assert_eq!(service.daemon().pid, daemon.pid);
}
