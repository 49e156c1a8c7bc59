//! The daemon as PID 1 of a pid namespace, as in a container: it reaps what it is given and ends when it is asked to.

#![expect(clippy::disallowed_types, reason = "enters the namespace with nsenter(1)")]

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;

use crate::fixture::Daemon;
use crate::leftovers::sweep_cgroups;
use crate::look::{healthy, pid, signal, wait_healthy};
use crate::needs::{cgroup_mount, needs};
use crate::place::run;

const ALONE: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];
const POOL: &str = "[pool.calm]\nsize = 2\ncommand = ['sleep', 'infinity']\n";
/// Leaves as many zombies as its argument says to whoever is given them.
const LEAVE_ZOMBIES: &str = "
import os, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os._exit(0)
";

/// The children of a process of this machine, ended ones included.
fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").expect("list /proc").map_while(Result::ok);
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_parent = |process: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // After the name, which is in parentheses and may hold any character: state and parent.
        let after = stat.rsplit_once(") ").map(|(_, after)| after).unwrap_or_default();
        after.split(' ').nth(1) == Some(&parent.to_string())
    };
    numbers.filter(of_parent).collect()
}

/// The daemon's number on this machine; `unshare` is its parent.
#[track_caller]
fn first_process(daemon: &Daemon) -> i32 {
    let parent = i32::try_from(daemon.pid()).expect("a pid");
    let children = children(parent);
    assert_eq!(children.len(), 1, "{children:?}");
    children[0]
}

#[test]
fn thousands_of_orphans_at_once_are_reaped_while_it_answers_and_no_worker_is_mistaken_for_one() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = Daemon::start_under(&ALONE, POOL);
    let calm = wait_healthy(&mut daemon, 2);
    let first = first_process(&daemon);
    assert_eq!(children(first).len(), 2, "the inits of its workers");
    // An emulated guest takes its time over each fork; the one with Docker has the whole number.
    let count = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 1_000 } else { 10_000 };
    let mut inside = Command::new("nsenter");
    inside.args(["--pid", "--target", &first.to_string(), "python3", "-c", LEAVE_ZOMBIES, &count.to_string()]);
    let left = run(&mut inside);
    assert_eq!(left.status, 0, "{left:?}");
    // Ends with the zombies still there where nobody reaps: their parent has ended, so they are PID 1's.
    daemon.wait_until("all orphans are reaped", |daemon| {
        assert_eq!(daemon.cli(&["status", "--ready"]).status, 0);
        Some(()).filter(|()| children(first).len() == 2)
    });

    // A worker that ends among orphans is heard of as ever.
    signal(pid_on_host(first, &calm[0]), Signal::KILL);
    let again = daemon.wait_until("its replacement", |daemon| {
        Some(healthy(daemon)).filter(|workers| workers.len() == 2 && workers.iter().any(|one| one["restarts"] == 1))
    });
    assert!(again.iter().any(|worker| worker["last_exit"] == "signal 9"), "{again:?}");
    signal(first, Signal::TERM);
    assert_eq!(daemon.stop(), 0);
}

/// The number on this machine of a worker's program, which the daemon knows by that of its own namespace.
#[track_caller]
fn pid_on_host(first: i32, worker: &serde_json::Value) -> i32 {
    let numbers = |process: i32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default().to_owned();
        line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<i32>>()
    };
    let programs = children(first).into_iter().flat_map(children);
    // On this machine, then in the daemon's namespace, then in its own.
    programs.into_iter().find(|&process| numbers(process).get(1) == Some(&pid(worker))).expect("the program runs")
}

#[test]
fn every_signal_that_asks_for_the_end_brings_it_and_others_change_nothing() {
    needs!(Root, CgroupTree);
    // SIGUSR2 leaves workers to the next daemon; those of PID 1 could not live that long, and end in order.
    for end in [Signal::TERM, Signal::INT, Signal::POWER, Signal::USR2] {
        let mut daemon = Daemon::start_under(&ALONE, POOL);
        wait_healthy(&mut daemon, 2);
        let first = first_process(&daemon);
        for harmless in [Signal::USR1, Signal::PIPE, Signal::ALARM, Signal::WINCH] {
            signal(first, harmless);
        }
        assert_eq!(daemon.cli(&["status", "--ready"]).status, 0);
        signal(first, end);
        assert_eq!(daemon.stop(), 0, "{end:?}");
        let ended = daemon.stderr().matches("ended: shutdown").count();
        assert_eq!(ended, 2, "{end:?}: {}", daemon.stderr());
    }
}

/// A cgroup that is removed with its value, with what is in it.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.0.exists() {
            sweep_cgroups(&self.0);
        }
    }
}

#[test]
fn limits_are_enforced_although_something_foreign_is_in_the_container_s_cgroup_for_a_moment() {
    needs!(Root, CgroupTree, Cgroup2("memory"));
    // What a runtime executes in a container is foreign until it has joined the pid namespace: only the runtime can move it.
    let name = format!("halsup-test-{}-container", std::process::id());
    let mount = cgroup_mount().expect("there is a hierarchy");
    let cgroup = Cgroup(mount.join(name));
    let (place, root) = (cgroup.0.display(), mount.display());
    let script = format!(
        r#"mkdir {place} && sh -c 'echo 0 >{place}/cgroup.procs && {{ sleep 1 & }}' || exit 1
        exec unshare --pid --fork --mount-proc sh -c '
            echo 0 >{place}/cgroup.procs && exec unshare --cgroup sh -c "
                umount {root} && mount -t cgroup2 none {root} && exec \"\$@\"" sh "$@"' sh "$@""#
    );
    let mut daemon = Daemon::start_under(&["sh", "-c", &script, "sh"], POOL);
    wait_healthy(&mut daemon, 2);
    let status = daemon.cli(&["status", "--json"]).json();
    assert_eq!(status["limits_enforced"], true, "{status}");
    let left = std::fs::read_to_string(cgroup.0.join("cgroup.procs")).expect("read cgroup.procs");
    assert_eq!(left, "", "everything was moved out of it");
    signal(first_process(&daemon), Signal::TERM);
    assert_eq!(daemon.stop(), 0);
}
