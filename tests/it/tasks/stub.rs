//! The executor that runs nothing, and the switch between the two.

use super::{BASH, config, inspect, run, submit, text, wait_output, wait_state};
use crate::fixture::Daemon;
use crate::needs::needs;

#[test]
fn the_stub_takes_the_time_it_was_thought_to_take() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(&config(&["false"], "executor = 'stub'\n"));
    let prompt = "write a poem about the sea and all the ships that are on it or in it";
    let (output, told) = run(&daemon, "s", &[], prompt);
    assert_eq!(output.status, 0, "{output:?}");
    let shown: String = prompt.chars().take(50).collect();
    assert_eq!(text(&told), format!("Stub execution completed for prompt: \"{shown}...\"\n"));
    let progress: Vec<u64> = told.iter().filter_map(|event| event["progress"].as_u64()).collect();
    assert!(progress.is_sorted() && progress.len() == 29, "every 100 ms of 2.85 s, and the end: {progress:?}");
    assert_eq!(progress[progress.len() - 2..], [90, 100]);
    let task = &inspect(&daemon, "s")["task"];
    assert_eq!((&task["estimated_duration_ms"], &task["executor"]), (&2_850.into(), &"stub".into()));
    let (late, _) = run(&daemon, "late", &["--timeout", "250ms"], "x");
    assert_eq!((late.status, late.stderr.contains("Process timed out after 250ms")), (1, true), "{late:?}");
    submit(&daemon, "c", "x");
    assert_eq!(daemon.cli(&["task", "cancel", "c"]).stdout, "c is cancelled\n");
}

#[test]
fn a_switch_drains_and_tells_the_truth() {
    needs!(Root, CgroupTree, Program("bash"));
    let mut daemon = Daemon::start(&config(&BASH, "max_concurrent = 2\n"));
    submit(&daemon, "old", "echo be''gun; read line; exit 0");
    wait_output(&mut daemon, "old", "begun");
    let switched = daemon.cli(&["task", "switch", "stub", "--json"]).json();
    let said = |value: &serde_json::Value, key: &str| value[key].as_str().map(str::to_owned);
    assert_eq!((said(&switched, "executor"), said(&switched, "previous")), (Some("stub".into()), Some("pty".into())));
    assert_eq!(switched["draining"], 1);
    submit(&daemon, "new", "x");
    let status = daemon.cli(&["task", "status", "--json"]).json();
    assert_eq!((said(&status, "executor"), &status["draining"]), (Some("stub".into()), &1.into()));
    assert_eq!(inspect(&daemon, "new")["task"]["executor"], "stub");
    // The one that runs goes on where it is, and ends as it would have.
    assert_eq!(daemon.cli(&["send", "--enter", "task-old", "go"]).status, 0);
    let old = wait_state(&mut daemon, "old", "completed");
    assert_eq!(old["task"]["executor"], "pty");
    wait_state(&mut daemon, "new", "completed");
    // It holds for a later daemon, too.
    let pid = i32::try_from(daemon.pid()).expect("a pid");
    crate::look::signal(pid, rustix::process::Signal::KILL);
    daemon.start_again();
    let again = daemon.cli(&["task", "switch", "auto", "--json"]).json();
    assert_eq!((said(&again, "executor"), said(&again, "previous")), (Some("pty".into()), Some("stub".into())));
    assert_eq!(daemon.cli(&["task", "switch", "magic"]).status, 2);
}
