//! Logs: what workers wrote, over rotations, made safe to look at; and the daemon's own, whose level changes while it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::fixture::{Daemon, Following};
use crate::input::assert_refused;
use crate::look::{healthy, pid, wait_certificate, wait_healthy, wait_line, worker};
use crate::needs::needs;

/// How many lines the worker of [`TALKER`] writes when it is told to: many files full of them.
const LINES: usize = 6_000;
/// Writes numbered lines at SIGUSR1, in files of 64 KiB.
const TALKER: &str = "[pool.web]
command = ['sh', '-c', 'trap go=yes USR1; echo up; while :; do while [ -z \"$go\" ]; do sleep 0.05; done; go=; seq -f \"line %06.0f of this burst, with some words behind it\" 6000; done']
log = { max_size = '64k', keep = 20 }
";

fn number(line: &str) -> usize {
    let digits = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?} is no line of the burst"));
    digits.parse().unwrap_or_else(|_| panic!("{line:?} is no line of the burst"))
}

#[test]
fn a_follower_gets_every_line_over_rotations_and_the_last_ones_can_be_read_again() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(TALKER);
    wait_line(&mut daemon, "web.0", |line| line == "up");
    let mut following = Following::start(daemon.place(), &["logs", "-f", "-n", "5", "web.0"]);
    assert_eq!(following.line(), "up");
    assert_eq!(daemon.cli(&["kill", "-s", "USR1", "web.0"]).status, 0);
    for expected in 1..=LINES {
        assert_eq!(number(&following.line()), expected);
    }
    let files = fs::read_dir(daemon.path("state/logs/workers")).expect("look at the logs");
    let files: Vec<_> = files.map(|file| file.expect("look at a log").metadata().expect("look at a log")).collect();
    assert!(files.len() > 3, "{} files", files.len());
    for file in files {
        assert!(file.len() <= 64 << 10, "{} bytes", file.len());
        assert_eq!(file.permissions().mode() & 0o007, 0, "not for everybody");
    }
    let last = daemon.cli(&["logs", "-n", "4000", "web.0"]);
    let numbers: Vec<usize> = last.stdout.lines().map(number).collect();
    assert_eq!(numbers, (LINES - 3999..=LINES).collect::<Vec<_>>());
    let none = daemon.cli(&["logs", "-n", "0", "web.0"]);
    assert_eq!((none.status, none.stdout.as_str()), (0, ""), "{none:?}");
}

#[test]
fn only_so_many_files_are_kept() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&TALKER.replace("keep = 20", "keep = 2"));
    wait_line(&mut daemon, "web.0", |line| line == "up");
    assert_eq!(daemon.cli(&["kill", "-s", "USR1", "web.0"]).status, 0);
    wait_line(&mut daemon, "web.0", |line| line.starts_with("line 006000"));
    let count = fs::read_dir(daemon.path("state/logs/workers")).expect("look at the logs").count();
    assert_eq!(count, 3);
}

#[test]
fn a_follower_of_a_pool_hears_all_of_it_over_restarts() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nsize = 2\ncommand = ['sh', '-c', 'echo I am {worker}; printf half; exec sleep infinity']\n",
    );
    wait_healthy(&mut daemon, 2);
    let mut following = Following::start(daemon.place(), &["logs", "-f", "-n", "1", "web"]);
    let mut first = [following.line(), following.line()];
    first.sort();
    assert_eq!(first, ["web.0 | I am web.0", "web.1 | I am web.1"]);
    // The line was heard of before its writer has gone on to the half of the next one.
    let writer = pid(&worker(&daemon, "web.1"));
    daemon.wait_until("that it sleeps", |_| {
        fs::read_to_string(format!("/proc/{writer}/comm")).ok().filter(|name| name == "sleep\n")
    });
    assert_eq!(daemon.cli(&["restart", "web.1"]).status, 0);
    assert_eq!(following.line(), "web.1 | half", "what had no line end is a line when its writer ends");
    assert_eq!(following.line(), "web.1 | I am web.1");
}

#[test]
fn what_a_worker_writes_cannot_drive_the_terminal_that_shows_it() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        r#"[pool.web]
command = ['sh', '-c', 'printf "\033]0;title\007\033[2J\r\tevil\342\200\256\302\233\377\000end\n"; echo done; exec sleep infinity']
"#,
    );
    wait_line(&mut daemon, "web.0", |line| line == "done");
    let shown = daemon.cli(&["logs", "web.0"]);
    assert_eq!(shown.stdout, "\\x1b]0;title\\x07\\x1b[2J\\r\tevil\\u{202e}\\u{9b}\\xff\\x00end\ndone\n");
    let json = daemon.cli(&["logs", "web.0", "--json"]).stdout;
    assert!(!json.replace('\n', "").contains(char::is_control) && !json.contains('\u{202e}'), "{json:?}");
    let raw = fs::read(daemon.path("state/logs/workers/web.0.log")).expect("read the log");
    assert!(raw.starts_with(b"\x1b]0;title\x07"), "the file holds what was written");
}

#[test]
fn json_lines_say_when_and_where() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        r#"[pool.web]
log = { json = true }
command = ['sh', '-c', 'echo to stdout; echo to \"stderr\" >&2; exec sleep infinity']
"#,
    );
    wait_line(&mut daemon, "web.0", |line| line == "to \"stderr\"");
    let file = fs::read_to_string(daemon.path("state/logs/workers/web.0.log")).expect("read the log");
    let shown = daemon.cli(&["logs", "web.0", "--json"]).stdout;
    for text in [&file, &shown] {
        let records: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
        assert_eq!(records.len(), 2, "{text}");
        for (stream, words) in [("stdout", "to stdout"), ("stderr", "to \"stderr\"")] {
            let record = records.iter().find(|record| record["stream"] == stream).expect("a record of each stream");
            assert_eq!((&record["worker"], &record["text"]), (&"web.0".into(), &words.into()));
            let time = record["time"].as_str().expect("a time");
            assert!(time.len() >= 20 && time.ends_with('Z'), "{time}");
        }
    }
    let timed = daemon.cli(&["logs", "-t", "web.0"]).stdout;
    assert!(timed.lines().all(|line| line.contains("Z to ")), "{timed}");
}

#[test]
fn the_daemons_own_log_changes_its_level_while_it_runs() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("log_level = 'warn'\n[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.stderr(), "", "nothing to warn of");
    let set = daemon.cli(&["log", "info,control=debug"]);
    assert_eq!((set.status, set.stdout.as_str()), (0, "log: info,control=debug (was warn)\n"), "{set:?}");
    assert_eq!(daemon.cli(&["restart", "web.0"]).status, 0);
    assert!(daemon.stderr().contains("restart web.0"), "{}", daemon.stderr());
    let status = daemon.cli(&["daemon", "status", "--json"]).json();
    assert_eq!(status["log_filter"], "info,control=debug");
    let set = daemon.cli(&["log", "warn", "--json"]).json();
    assert_eq!(set["previous"], "info,control=debug");
    let before = daemon.stderr();
    assert_eq!(daemon.cli(&["restart", "web.0"]).status, 0);
    assert_eq!(daemon.stderr(), before, "it is quiet again");
    for (filter, words) in
        [("loud", "\"loud\" is not a level"), ("pols=debug", "\"pols\" is not a category"), ("", "level")]
    {
        assert_refused(&daemon.cli(&["log", filter]), 1, words);
    }
    assert_eq!(daemon.cli(&["daemon", "status", "--json"]).json()["log_filter"], "warn");
}

#[test]
fn the_daemons_own_log_can_be_json() {
    needs!(Root, CgroupTree);
    let mut daemon =
        Daemon::start("log_format = 'json'\nlog_level = 'trace'\n[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["restart", "web"]).status, 0);
    assert_eq!(healthy(&daemon).len(), 1);
    assert_eq!(daemon.stop(), 0);
    let log = daemon.stderr();
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "msg"] {
            assert!(record[key].is_string(), "{key}: {line}");
        }
    }
    assert!(log.contains("restart web"), "{log}");
    assert!(!log.contains("\"level\":\"error\""), "{log}");
    assert_eq!(lines_with(&log, "\"ready\""), 1, "{log}");
}

fn lines_with(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn a_log_that_is_a_link_is_not_followed() {
    needs!(Root, CgroupTree);
    let place = crate::place::Place::new(
        "[pool.web]\nrestart = false\ncommand = ['sh', '-c', 'echo evil; exec sleep infinity']\n",
    );
    let logs = place.path("state/logs/workers");
    fs::create_dir_all(&logs).expect("make directories");
    for dir in ["state", "state/logs", "state/logs/workers"] {
        fs::set_permissions(place.path(dir), fs::Permissions::from_mode(0o700)).expect("close the directory");
    }
    fs::write(place.path("victim"), "untouched").expect("write");
    std::os::unix::fs::symlink(place.path("victim"), logs.join("web.0.log")).expect("make a link");
    let mut daemon = Daemon::start_in(place);
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    let text = certificate["start_failure"]["text"].as_str().expect("a sentence");
    assert!(text.contains("open log file web.0.log"), "{text}");
    assert_refused(&daemon.cli(&["logs", "web.0"]), 1, "web.0.log");
    assert_eq!(fs::read_to_string(daemon.path("victim")).expect("read"), "untouched");
}
