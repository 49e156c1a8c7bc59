//! A daemon that is killed, stopped or told other things: what runs goes on, what waits is run, nothing is run twice.

use rustix::process::Signal;
use serde_json::Value;

use super::{BASH, config, events, inspect, submit, tasks, text, wait_output, wait_state};
use crate::fixture::Daemon;
use crate::look::signal;
use crate::needs::needs;

#[track_caller]
fn kill_and_start(daemon: &mut Daemon) {
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    daemon.start_again();
}

#[test]
fn a_killed_daemon_follows_what_runs_to_its_end_and_then_runs_what_waited() {
    needs!(Root, CgroupTree, Program("bash"));
    let mut daemon = Daemon::start(&config(&BASH, "max_concurrent = 1\n"));
    submit(&daemon, "runs", "echo be''gun; read line; echo got-$line; exit 3");
    submit(&daemon, "waits", "echo second-$((20+2)); exit 0");
    submit(&daemon, "also", "exit 0");
    wait_output(&mut daemon, "runs", "begun");
    let before = inspect(&daemon, "runs");
    let known = before["task"]["sequence"].as_u64().expect("a place");
    kill_and_start(&mut daemon);
    let after = inspect(&daemon, "runs");
    assert_eq!(
        (&after["task"]["state"], &after["task"]["worker"], &after["task"]["began"]),
        (&"running".into(), &before["task"]["worker"], &before["task"]["began"])
    );
    assert!(after["output"].as_str().is_some_and(|text| text.contains("begun")), "{after}");
    assert_eq!(inspect(&daemon, "waits")["task"]["state"], "pending");
    assert_eq!(daemon.cli(&["send", "--enter", "task-runs", "it"]).status, 0);
    // Who has followed it until then goes on where it was.
    let rest = daemon.cli(&["task", "follow", "runs", "--after", &known.to_string(), "--json"]);
    assert_eq!(rest.status, 3, "{rest:?}");
    let rest = events(&rest);
    assert!(text(&rest).contains("got-it") && !text(&rest).contains("begun"), "{rest:?}");
    let waited = wait_state(&mut daemon, "waits", "completed");
    assert!(waited["output"].as_str().is_some_and(|text| text.contains("second-22")), "{waited}");
    wait_state(&mut daemon, "also", "completed");
    kill_and_start(&mut daemon);
    let names: Vec<Value> = tasks(&daemon).iter().map(|task| task["state"].clone()).collect();
    assert_eq!(names, ["failed", "completed", "completed"], "what is over stays over");
    assert_eq!(inspect(&daemon, "runs")["task"]["exit"], "exited 3");
    let status = daemon.cli(&["task", "status", "--json"]).json();
    assert_eq!((&status["completed"], &status["failed"]), (&2.into(), &1.into()));
}

#[test]
fn what_ended_while_no_daemon_ran_is_known_and_not_run_again() {
    needs!(Root, CgroupTree, Program("bash"));
    let mut daemon = Daemon::start(&config(&BASH, ""));
    submit(&daemon, "away", "echo be''gun; exec sleep 1000");
    wait_output(&mut daemon, "away", "begun");
    let name = inspect(&daemon, "away")["task"]["worker"].as_str().expect("a worker").to_owned();
    let program = crate::look::pid(&crate::look::worker(&daemon, &name));
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    signal(program, Signal::KILL);
    daemon.start_again();
    let told = wait_state(&mut daemon, "away", "failed");
    assert_eq!(
        (&told["task"]["exit"], told["task"]["error"].as_str()),
        (&"signal 9".into(), Some("Process was killed by signal 9 (SIGKILL)"))
    );
    assert_eq!(tasks(&daemon).len(), 1);
}

#[test]
fn a_daemon_that_is_stopped_cancels_all_and_the_next_runs_none_of_them() {
    needs!(Root, CgroupTree, Program("bash"));
    let mut daemon = Daemon::start(&config(&BASH, "max_concurrent = 1\n"));
    submit(&daemon, "runs", "echo be''gun; sleep 1000");
    submit(&daemon, "waits", "exit 0");
    wait_output(&mut daemon, "runs", "begun");
    assert_eq!(daemon.cli(&["daemon", "stop"]).status, 0);
    daemon.start_again();
    let states: Vec<Value> = tasks(&daemon).iter().map(|task| task["state"].clone()).collect();
    assert_eq!(states, ["cancelled", "cancelled"]);
    assert_eq!(daemon.cli(&["task", "status", "--json"]).json()["cancelled"], 2);
    submit(&daemon, "next", "exit 0");
    wait_state(&mut daemon, "next", "completed");
}

#[test]
fn a_reload_changes_how_many_run_and_what_is_known_for_how_long() {
    needs!(Root, CgroupTree, Program("bash"));
    let mut daemon = Daemon::start(&config(&BASH, "max_concurrent = 1\n"));
    submit(&daemon, "one", "read line; exit 0");
    submit(&daemon, "two", "read line; exit 0");
    wait_state(&mut daemon, "one", "running");
    assert_eq!(inspect(&daemon, "two")["task"]["state"], "pending");
    let path = daemon.path("config.toml");
    let text = std::fs::read_to_string(&path).expect("read it");
    let text =
        text.replace("max_concurrent = 1", "max_concurrent = 2").replace("retention = '10m'", "retention = '1s'");
    std::fs::write(&path, text).expect("write it");
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    wait_state(&mut daemon, "two", "running");
    assert_eq!(daemon.cli(&["task", "cancel", "one", "two"]).status, 0);
    daemon.wait_until("nothing is known", |daemon| tasks(daemon).is_empty().then_some(()));
    assert_eq!(std::fs::read_dir(daemon.path("state/tasks")).expect("list it").count(), 0, "their output is removed");
    submit(&daemon, "one", "exit 0");
}
