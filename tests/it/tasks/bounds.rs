//! How many run, who waits, who is refused, and that whoever is ended is gone.

use super::{BASH, config, inspect, processes_with, run, submit, tasks, wait_output, wait_state};
use crate::fixture::Daemon;
use crate::needs::needs;

#[test]
fn fifty_tasks_are_five_at_once_first_come_first_served_and_none_is_lost() {
    needs!(Root, CgroupTree);
    let script = "read line; sleep 0.2; echo done-$line";
    let mut daemon =
        Daemon::start(&config(&["sh", "-c", script], "max_concurrent = 5\nqueue = 50\nprompt_delay = '0s'\n"));
    let names: Vec<String> = (0..50).map(|number| format!("t-{number}")).collect();
    for name in &names {
        submit(&daemon, name, name);
    }
    let all = daemon.wait_until("all are over", |daemon| {
        let status = daemon.cli(&["task", "status", "--json"]).json();
        assert!(status["running"].as_u64() <= Some(5), "{status}");
        Some(tasks(daemon)).filter(|tasks| tasks.iter().all(|task| task["state"] == "completed"))
    });
    let listed: Vec<&str> = all.iter().filter_map(|task| task["task"].as_str()).collect();
    assert_eq!(listed, names);
    let time = |task: &serde_json::Value, key: &str| task[key].as_str().expect("a time").to_owned();
    let mut began: Vec<String> = Vec::new();
    for task in &all {
        began.push(time(task, "began"));
        // At no time did more than five have a worker.
        let now = began.last().expect("it began");
        let beside = all.iter().filter(|other| time(other, "began") <= *now && *now < time(other, "ended"));
        assert!(beside.count() <= 5, "{task}");
    }
    assert!(began.is_sorted(), "first come is first served: {began:?}");
    for name in ["t-0", "t-49"] {
        let shown = inspect(&daemon, name);
        assert!(shown["output"].as_str().is_some_and(|text| text.contains(&format!("done-{name}"))), "{shown}");
    }
    let status = daemon.cli(&["task", "status", "--json"]).json();
    assert_eq!((&status["completed"], &status["failed"], &status["refused"]), (&50.into(), &0.into(), &0.into()));
}

#[test]
fn a_full_queue_refuses_at_once_and_what_is_over_makes_room() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&config(&BASH, "max_concurrent = 1\nqueue = 1\n"));
    submit(&daemon, "first", "sleep 1000");
    submit(&daemon, "second", "exit 0");
    let refused = daemon.cli(&["task", "run", "third"]);
    assert_eq!(refused.status, 4, "{refused:?}");
    let twice = daemon.cli(&["task", "run", "--id", "first", "again"]);
    assert_eq!((twice.status, twice.stderr.contains("task first exists already")), (1, true), "{twice:?}");
    assert_eq!(inspect(&daemon, "second")["task"]["state"], "pending");
    let cancelled = daemon.cli(&["task", "cancel", "first"]);
    assert_eq!((cancelled.status, cancelled.stdout.as_str()), (0, "first is cancelled\n"), "{cancelled:?}");
    wait_state(&mut daemon, "second", "completed");
    let late = daemon.cli(&["task", "cancel", "second"]);
    assert_eq!(late.stdout, "second is completed already\n");
    assert_eq!(daemon.cli(&["task", "cancel", "nobody"]).status, 5);
    assert_eq!(daemon.cli(&["task", "run", "third", "--id", "third"]).status, 0);
}

#[test]
fn who_is_cancelled_or_takes_too_long_leaves_no_process() {
    needs!(Root, CgroupTree, Program("bash"), Program("setsid"));
    let mut daemon = Daemon::start(&config(&BASH, ""));
    // Some of it is in sessions of their own, and does not hear what the terminal does to its own.
    let prompt = |seconds: &str| {
        format!("trap '' TERM HUP; setsid sleep {seconds} & (sleep {seconds} &) ; echo be''gun; sleep {seconds}")
    };
    let (seconds, others) = (format!("98{}", std::process::id()), format!("97{}", std::process::id()));
    submit(&daemon, "c", &prompt(&seconds));
    wait_output(&mut daemon, "c", "begun");
    daemon.wait_until("its processes", |_| (processes_with(&seconds) == 3).then_some(()));
    let cancelled = daemon.cli(&["task", "cancel", "c"]);
    assert_eq!(processes_with(&seconds), 0, "when it is said that it is over, nothing of it runs");
    assert_eq!((cancelled.status, cancelled.stdout.as_str()), (0, "c is cancelled\n"));
    let shown = inspect(&daemon, "c");
    assert_eq!(
        shown["task"]["error"].as_str().map(|text| text.starts_with("cancelled by uid 0")),
        Some(true),
        "{shown}"
    );

    let (output, told) = run(&daemon, "t", &["--timeout", "900ms"], &prompt(&others));
    assert_eq!(processes_with(&others), 0);
    assert_eq!(output.status, 4, "{output:?}");
    let last = told.last().expect("a last event");
    assert_eq!((&last["text"], &last["kind"]), (&"Process timed out after 900ms".into(), &"error".into()));
    assert_eq!(last["exit"], "signal 9", "it did not end when it was asked to: {last}");
}

#[test]
fn who_releases_the_session_of_a_task_cancels_it_and_attaches_to_it_as_to_any() {
    needs!(Root, CgroupTree, Program("bash"));
    let mut daemon = Daemon::start(&config(&BASH, ""));
    submit(&daemon, "s", "echo re''ady");
    wait_output(&mut daemon, "s", "ready");
    assert_eq!(inspect(&daemon, "s")["task"]["session"], "task-s");
    let captured = daemon.cli(&["capture", "task-s"]);
    assert!(captured.stdout.contains("ready"), "{captured:?}");
    assert_eq!(daemon.cli(&["release", "task-s"]).status, 0);
    let shown = wait_state(&mut daemon, "s", "cancelled");
    assert!(shown["task"]["session"].is_null(), "{shown}");
}
