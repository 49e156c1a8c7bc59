//! What becomes of workers when their daemon is killed, and what the next daemon finds.

#![expect(clippy::disallowed_types, reason = "a process that has ended lends its pid")]

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::Value;

use crate::checker::pause;
use crate::fixture::{Daemon, ended_within};
use crate::look::{certificates, pid, signal, wait_healthy};
use crate::needs::needs;
use crate::place::{Place, directory};

const POOLS: &str = "[pool.now]\non_supervisor_death = '0s'\ncommand = ['sleep', 'infinity']\n\
    [pool.soon]\non_supervisor_death = '2s'\ncommand = ['sleep', 'infinity']\n\
    [pool.never]\non_supervisor_death = 'forever'\ncommand = ['sleep', 'infinity']\n";

/// A pidfd of a worker's program, by the name of its pool.
fn program(workers: &[Value], pool: &str) -> OwnedFd {
    let worker =
        workers.iter().find(|worker| worker["pool"] == pool).unwrap_or_else(|| panic!("no {pool}: {workers:?}"));
    pidfd_open(Pid::from_raw(pid(worker)).expect("a pid"), PidfdFlags::empty()).expect("it runs")
}

fn gone_within(program: &OwnedFd, time: Duration) -> bool {
    ended_within(program.as_fd(), time)
}

#[test]
fn workers_outlive_their_daemon_for_as_long_as_was_said_and_the_next_daemon_takes_over_who_lives() {
    needs!(Root, CgroupTree);
    let place = Place::new(POOLS);
    let started = place.cli(&["daemon", "start"]);
    assert_eq!(started.status, 0, "{started:?}");
    assert_eq!(place.cli(&["start", "all"]).status, 0);
    let workers = place.cli(&["ps", "--json"]).json()["workers"].as_array().cloned().expect("workers");
    let [now, soon, never] = ["now", "soon", "never"].map(|pool| program(&workers, pool));
    let daemon = place.cli(&["status", "--json"]).json()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    signal(daemon.expect("the daemon's pid"), Signal::KILL);
    assert!(gone_within(&now, Duration::from_secs(1)), "0s");
    assert!(!gone_within(&soon, Duration::from_secs(1)), "2s are not over");
    // A busy machine may take its time over it.
    assert!(gone_within(&soon, Duration::from_secs(20)), "2s are over");
    assert!(!gone_within(&never, Duration::from_millis(1)), "for ever");
    let mut next = Daemon::start_in(place);
    wait_healthy(&mut next, 3);
    assert!(!gone_within(&never, Duration::from_millis(1)), "who lives is taken over");
    assert_eq!(certificates(&next, "never.0").len(), 0);
    for (pool, note) in [("now.0", "on_supervisor_death = \"0s\""), ("soon.0", "no daemon came back")] {
        let told = certificates(&next, pool);
        assert_eq!(told.len(), 1, "{pool}: {told:?}");
        assert_eq!(told[0]["cause"], "shutdown", "{pool}: {told:?}");
        assert!(told[0]["note"].as_str().is_some_and(|said| said.contains(note)), "{pool}: {told:?}");
    }
}

#[test]
fn the_locks_of_a_killed_daemon_are_waited_for_while_what_it_had_cloned_still_has_them() {
    needs!(Root, CgroupTree);
    let dir = directory();
    std::fs::create_dir(dir.path().join("state")).expect("make a directory");
    let mut ended = Command::new("true").spawn().expect("run true");
    ended.wait().expect("reap it");
    let lock = std::fs::File::create(dir.path().join("state/lock")).expect("make a lock");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("take the lock");
    rustix::io::write(&lock, format!("{:<15}\n", ended.id()).as_bytes()).expect("write who has it");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pause(Duration::from_millis(200));
            drop(lock);
        });
        let mut daemon = Daemon::try_start(dir, &[], "[pool.web]\ncommand = ['sleep', 'infinity']\n")
            .unwrap_or_else(|refusal| panic!("{refusal}"));
        wait_healthy(&mut daemon, 1);
    });
}
