//! Real programs: a shell, an interpreter, an editor, one that writes more than anybody reads, and what all are told.

use serde_json::Value;

use super::{BASH, config, events, inspect, run, states, text};
use crate::fixture::Daemon;
use crate::needs::needs;

#[test]
fn a_shell_is_typed_a_prompt_and_its_status_is_the_tasks() {
    needs!(Root, CgroupTree, Program("bash"));
    let daemon = Daemon::start(&config(&BASH, "cols = 100\nrows = 30\n"));
    let script = "echo sum-$((40+2)); stty size; echo $TERM/$CLAUDE_TASK_ID/$CLAUDE_PRIORITY/$CLAUDE_METADATA; exit 7";
    let (output, told) = run(&daemon, "a-1", &["--priority", "8", "--metadata", r#"{"k":["v"]}"#], script);
    assert_eq!(output.status, 7, "{output:?}");
    let written = text(&told);
    assert!(written.contains("sum-42\r\n30 100\r\nxterm-256color/a-1/8/{\"k\":[\"v\"]}\r\n"), "{written}");
    assert_eq!(states(&told), ["pending", "running", "failed"]);
    let last = told.last().expect("a last event");
    assert_eq!((&last["kind"], &last["exit"]), (&Value::from("error"), &Value::from("exited 7")));
    assert_eq!(last["text"], "Process exited with code 7");
    let sequences: Vec<u64> = told.iter().filter_map(|event| event["sequence"].as_u64()).collect();
    assert!(sequences.len() == told.len() && sequences.is_sorted(), "{sequences:?}");

    let shown = inspect(&daemon, "a-1");
    assert_eq!(shown["output"], Value::from(written), "what was followed is what is kept");
    assert_eq!((&shown["task"]["prompt"], &shown["metadata"]["k"][0]), (&Value::from(script), &Value::from("v")));
    let (_, good) = run(&daemon, "a-2", &[], "echo Starting; echo Processing; echo Done; exit 0");
    let progress: Vec<u64> = good.iter().filter_map(|event| event["progress"].as_u64()).collect();
    assert_eq!(progress.last(), Some(&100), "{progress:?}");
    assert!(progress.contains(&90), "{progress:?}");
    assert_eq!(good.last().map(|event| event["kind"].clone()), Some("complete".into()));
    assert_eq!(states(&good), ["pending", "running", "completed"]);
    // From any event on, the rest is what followed it.
    let middle = good[good.len() / 2]["sequence"].as_u64().expect("a number");
    let rest = events(&daemon.cli(&["task", "follow", "a-2", "--after", &middle.to_string(), "--json"]));
    assert!(rest.iter().all(|event| event["sequence"].as_u64() > Some(middle)), "{rest:?}");
    assert!(text(&good).ends_with(&text(&rest)) && rest.last() == good.last(), "{rest:?}");
    let killed = run(&daemon, "a-3", &[], "kill -KILL $$").0;
    assert_eq!((killed.status, killed.stderr.contains("signal 9")), (137, true), "{killed:?}");
}

#[test]
fn an_interpreter_answers() {
    needs!(Root, CgroupTree, Python3);
    let daemon = Daemon::start(&config(&["python3", "-i", "-q"], ""));
    let (output, told) = run(&daemon, "p", &[], "import sys; print('x' * 3, 6 * 7); sys.exit(0)");
    assert_eq!(output.status, 0, "{output:?}");
    assert!(text(&told).contains("xxx 42\r\n"), "{told:?}");
}

#[test]
fn an_editor_draws_its_screen() {
    needs!(Root, CgroupTree, Program("vim"));
    let daemon = Daemon::start(&config(&["vim", "-u", "NONE", "-N", "/tmp/note"], ""));
    let (output, told) = run(&daemon, "v", &["--timeout", "30s"], "ihello from vim\u{1b}:w | q");
    assert_eq!(output.status, 0, "{output:?}");
    let written = text(&told);
    assert!(written.contains("\u{1b}[?1049h") && written.contains("\u{1b}[?1049l"), "its own screen: {written:?}");
    assert!(written.contains("hello from vim") && written.contains("1L, "), "{written:?}");
    // As text it drives no terminal.
    let shown = daemon.cli(&["task", "show", "v"]);
    assert!(shown.stdout.contains("hello from vim") && !shown.stdout.contains('\u{1b}'), "{}", shown.stdout);
    let raw = daemon.cli(&["task", "follow", "v", "--raw"]);
    assert_eq!(raw.stdout, written);
}

#[test]
fn ten_megabytes_just_before_the_end_are_whole() {
    needs!(Root, CgroupTree);
    const BYTES: usize = 10_000_000;
    let script = "stty -echo -opost; head -n1 >/dev/null; head -c 10000000 /dev/zero | tr '\\0' x; printf END";
    let daemon = Daemon::start(&config(&["sh", "-c", script], ""));
    let (output, told) = run(&daemon, "burst", &[], "go");
    assert_eq!(output.status, 0, "{}", output.stderr);
    assert!(!output.stderr.contains("missing"), "{}", output.stderr);
    let written = text(&told);
    let burst = written.strip_suffix("END").expect("the last that it wrote");
    assert_eq!(burst.bytes().filter(|byte| *byte == b'x').count(), BYTES);
    assert!(burst.ends_with(&"x".repeat(BYTES)), "nothing else is in between");
    let shown = inspect(&daemon, "burst");
    let total = shown["task"]["output_bytes"].as_u64().expect("a number");
    assert_eq!(u64::try_from(written.len()), Ok(total));
    assert_eq!(shown["output"].as_str().map(str::len), Some(65_536));
    assert_eq!(shown["skipped_bytes"], total - 65_536);
}

#[test]
fn of_more_than_is_kept_the_last_stays_and_who_comes_late_is_told_what_is_missing() {
    needs!(Root, CgroupTree);
    let script = "stty -echo -opost; head -n1 >/dev/null; seq -w 0 99999; printf END";
    let daemon = Daemon::start(&config(&["sh", "-c", script], "output = '64k'\n"));
    let (output, _) = run(&daemon, "long", &[], "go");
    assert_eq!(output.status, 0, "{}", output.stderr);
    let shown = inspect(&daemon, "long");
    let kept = shown["output"].as_str().expect("a text");
    assert!((32_000..=65_536).contains(&kept.len()) && kept.ends_with("99999\nEND"), "{}", kept.len());
    let late = daemon.cli(&["task", "follow", "long", "--json"]);
    assert!(late.stderr.contains("bytes of output are missing here"), "{}", late.stderr);
    assert_eq!(text(&events(&late)), kept);
}

#[test]
fn without_a_command_it_is_the_variables_with_the_arguments_of_its_system() {
    needs!(Root, CgroupTree);
    let (_dir, root) = crate::claims::projects();
    let program = root.join("my claude");
    let script = "#!/bin/sh\nfor word; do echo \"<$word>\"; done; read -r line; echo \"[$line]\"\n";
    std::fs::write(&program, script).expect("write a program");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("make it one");
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("let all in");
    let bound = format!("bind = ['{}:/mnt']\nstop_grace = ", root.display());
    let config = config(&["false"], "").replace("stop_grace = ", &bound);
    let daemon = Daemon::start_under(&["env", "CLAUDE_CLI_PATH=/mnt/my claude", "PTY_TIMEOUT_MS=20000"], &config);
    let (output, told) = run(&daemon, "c", &["--worker-id", "w 1"], "the prompt");
    assert_eq!(output.status, 0, "{output:?}");
    let expected = "<--headless>\r\n<--worker-id>\r\n<w 1>\r\n<--priority>\r\n<5>\r\n";
    let written = text(&told);
    assert!(written.starts_with(expected) && written.ends_with("[the prompt]\r\n"), "{written:?}");
    assert_eq!(inspect(&daemon, "c")["task"]["timeout_ms"], 20_000);
    assert_eq!(daemon.cli(&["task", "status", "--json"]).json()["timeout_ms"], 20_000);
}
