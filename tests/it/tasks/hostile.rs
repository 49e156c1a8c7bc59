//! Prompts, names and metadata that mean harm, and programs that do not do their part.

use super::{config, inspect, run, submit, tasks, wait_output};
use crate::fixture::Daemon;
use crate::needs::needs;

#[test]
fn a_prompt_is_typed_as_it_is_and_never_shown_so() {
    needs!(Root, CgroupTree);
    let script = "stty raw -echo; printf ready; dd bs=1 count=7 2>/dev/null | od -An -tx1; exit 0";
    let daemon = Daemon::start(&config(&["sh", "-c", script], ""));
    let evil = "\u{1b}[A\u{3}\t\u{7f}";
    let (output, told) = run(&daemon, "evil", &[], evil);
    assert_eq!(output.status, 0, "{output:?}");
    assert!(super::text(&told).contains("1b 5b 41 03 09 7f 0d"), "{told:?}");
    for view in [&["task", "ls"][..], &["task", "show", "evil"], &["task", "ls", "--json"], &["events", "-n", "1000"]] {
        let shown = daemon.cli(view);
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(shown.status == 0 && !shown.stdout.contains(raw), "{view:?}: {:?}", shown.stdout);
    }
    assert!(daemon.cli(&["task", "ls"]).stdout.contains("\\x1b[A\\x03\\t\\x7f"));
}

#[test]
fn a_program_that_never_reads_its_terminal_holds_nobody_up() {
    needs!(Root, CgroupTree);
    let mut daemon =
        Daemon::start(&config(&["sh", "-c", "stty raw; echo ready; exec sleep 1000"], "max_concurrent = 2\n"));
    let long = "x".repeat(32 * 1024);
    submit(&daemon, "deaf", &long);
    wait_output(&mut daemon, "deaf", "ready");
    submit(&daemon, "other", "y");
    wait_output(&mut daemon, "other", "ready");
    let listed = tasks(&daemon);
    assert_eq!(listed[0]["prompt"].as_str().map(str::len), Some(80), "a list has the beginning of a prompt");
    assert_eq!(inspect(&daemon, "deaf")["task"]["prompt"], long.as_str());
    assert_eq!(daemon.cli(&["task", "cancel", "deaf", "other"]).status, 0);
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(&config(&["cat"], ""));
    let long = "x".repeat(32 * 1024 + 1);
    let metadata = format!("{{\"k\":\"{}\"}}", "x".repeat(16 * 1024));
    for (arguments, status) in [
        (vec!["--id", "../evil", "x"], 2),
        (vec!["--id", "a\u{1b}[2J", "x"], 2),
        (vec!["--id", "", "x"], 2),
        (vec!["--priority", "11", "x"], 2),
        (vec!["--metadata", "[]", "x"], 2),
        (vec!["--metadata", metadata.as_str(), "x"], 1),
        (vec!["--worker-id", "a\nb", "x"], 1),
        (vec![long.as_str()], 1),
        (vec![""], 1),
    ] {
        let output = daemon.cli(&[&["task", "run"][..], &arguments].concat());
        assert_eq!(output.status, status, "{arguments:.60?}: {output:?}");
        assert!(!output.stderr.contains('\u{1b}'), "{output:?}");
    }
    assert_eq!(tasks(&daemon).len(), 0);
    for verb in [&["show", "no\u{1b}body"][..], &["cancel", "../x"], &["follow", "x"]] {
        let output = daemon.cli(&[&["task"][..], verb].concat());
        assert!(output.status == 5 && !output.stderr.contains('\u{1b}'), "{output:?}");
    }
    // Where a program cannot be started, the task says why.
    let daemon = Daemon::start(&config(&["/no/such/program"], ""));
    let (output, told) = run(&daemon, "none", &[], "x");
    assert!(output.status == 1 && output.stderr.contains("/no/such/program"), "{output:?}");
    assert_eq!(super::states(&told), ["pending", "running", "failed"]);
}

#[test]
fn a_daemon_without_tasks_says_so() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start("");
    for verb in [&["run", "x"][..], &["status"], &["switch", "pty"]] {
        let output = daemon.cli(&[&["task"][..], verb].concat());
        assert!(output.status == 1 && output.stderr.contains("no [tasks]"), "{output:?}");
    }
    assert_eq!(daemon.cli(&["task", "ls"]).status, 0);
}
