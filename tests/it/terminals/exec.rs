//! Further programs in a running worker: `halsup exec`, with pipes and with a terminal.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use super::operator::Operator;
use crate::fixture::Daemon;
use crate::look::{wait_healthy, worker};
use crate::needs::needs;

#[track_caller]
fn daemon() -> Daemon {
    let mut daemon =
        Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\nenv = { OWN = 'web' }\nready = 'exec'\n");
    wait_healthy(&mut daemon, 1);
    daemon
}

#[test]
fn output_errors_and_status_come_back_apart() {
    needs!(Root, CgroupTree);
    let daemon = daemon();
    let run = daemon.cli(&["exec", "web.0", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((run.status, run.stdout.as_str(), run.stderr.as_str()), (7, "out\n", "err\n"));
    let run = daemon.cli(&["exec", "web.0", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(run.status, 128 + 15, "{run:?}");
    let run = daemon.cli(&[
        "exec",
        "-e",
        "MORE=b c",
        "-e",
        "OWN=x",
        "web.0",
        "--",
        "sh",
        "-c",
        "echo $OWN $MORE $HALSUP_WORKER; id -u; cat",
    ]);
    let uid = worker(&daemon, "web.0")["uid"].to_string();
    assert_eq!((run.status, run.stdout), (0, format!("x b c web.0\n{uid}\n")), "its input is empty: {}", run.stderr);
    assert_eq!(daemon.cli(&["exec", "web.0", "true"]).status, 0);
}

#[test]
fn what_cannot_be_run_is_told_by_status_and_word() {
    needs!(Root, CgroupTree);
    let daemon = daemon();
    for (arguments, status, word) in [
        (&["exec", "web.0", "--", "no-such-program"][..], 127, "run no-such-program: not found in the worker"),
        (&["exec", "web.0", "--", "/etc/passwd"], 126, "run /etc/passwd: Permission denied"),
        (&["exec", "web.9", "--", "true"], 125, "Session not found: web.9"),
        (&["exec", "-t", "web.0", "--", "true"], 125, "needs a terminal"),
        (&["exec", "-e", "x", "web.0", "--", "true"], 2, "--env takes NAME=VALUE"),
    ] {
        let run = daemon.cli(arguments);
        assert_eq!(run.status, status, "{run:?}");
        assert!(run.stderr.contains(word), "{run:?}");
    }
    // Of what was not started nothing is left that would be in the way of the next.
    for _ in 0..20 {
        assert_eq!(daemon.cli(&["exec", "web.0", "--", "no-such-program"]).status, 127);
    }
    assert_eq!(daemon.cli(&["exec", "web.0", "--", "true"]).status, 0);
}

#[test]
fn much_goes_both_ways_whole() {
    needs!(Root, CgroupTree);
    let daemon = daemon();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let mut child = daemon
        .place()
        .command(&["exec", "-i", "web.0", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run halsup");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&sent).expect("write");
            drop(stdin);
        });
        stdout.read_to_end(&mut received).expect("read");
    });
    assert!(child.wait().expect("reap it").success());
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[test]
fn a_terminal_of_its_own_has_the_size_of_the_callers() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon();
    let script =
        "trap 'stty size' WINCH; tty; stty size; echo begun $TERM; read x; echo got $x; while :; do read y; done";
    let mut operator = Operator::at(daemon.place(), &["exec", "-t", "web.0", "--", "sh", "-c", script]);
    operator.sees("begun xterm-256color");
    assert!(operator.screen().contains("/dev/pts/") && operator.screen().contains("24 80"), "{}", operator.screen());
    operator.resizes(101, 31);
    operator.types("one\r");
    operator.sees("31 101");
    // No keys leave: they are the program's.
    operator.types("\x10\x11");
    operator.types("\x03");
    assert_eq!(operator.ends(), 128 + 2, "{}", operator.screen());
    assert!(operator.is_as_before());
    assert!(daemon.cli(&["sessions"]).stdout.starts_with("No running sessions"), "it is not the worker's");
}

#[test]
fn a_program_goes_with_its_caller() {
    needs!(Root, CgroupTree, Program("setsid"));
    let mut daemon = daemon();
    let there = |daemon: &Daemon| {
        daemon
            .cli(&["exec", "web.0", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
            .stdout
            .contains("sleep 98765")
    };
    let mut piped = daemon
        .place()
        .command(&["exec", "web.0", "--", "sleep", "98765"])
        .stdout(Stdio::null())
        .spawn()
        .expect("run halsup");
    daemon.wait_until("it runs", |daemon| there(daemon).then_some(()));
    piped.kill().expect("kill the caller");
    piped.wait().expect("reap it");
    daemon.wait_until("it is gone", |daemon| (!there(daemon)).then_some(()));
    {
        let _operator = Operator::at(daemon.place(), &["exec", "-t", "web.0", "--", "sleep", "98765"]);
        daemon.wait_until("it runs on a terminal", |daemon| there(daemon).then_some(()));
    }
    daemon.wait_until("it is gone with its terminal", |daemon| (!there(daemon)).then_some(()));
}

#[test]
fn who_does_not_read_holds_back_its_own_program_alone() {
    needs!(Root, CgroupTree);
    let daemon = daemon();
    let mut slow = daemon
        .place()
        .command(&["exec", "web.0", "--", "sh", "-c", "head -c 20000000 /dev/zero; echo"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run halsup");
    let mut stdout = slow.stdout.take().expect("piped");
    let mut first = [0; 1];
    stdout.read_exact(&mut first).expect("read");
    assert_eq!(daemon.cli(&["exec", "web.0", "--", "echo", "prompt"]).stdout, "prompt\n");
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("read");
    assert_eq!(rest.len(), 20_000_000);
    assert!(slow.wait().expect("reap it").success());
}

#[test]
fn the_end_of_the_worker_is_the_end_of_all_in_it() {
    needs!(Root, CgroupTree);
    let mut daemon = daemon();
    let mut child = daemon
        .place()
        .command(&["exec", "web.0", "--", "sh", "-c", "echo begun; sleep 98765"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run halsup");
    let mut stdout = child.stdout.take().expect("piped");
    let mut begun = [0; 6];
    stdout.read_exact(&mut begun).expect("read");
    assert_eq!(daemon.cli(&["kill", "web.0"]).status, 0);
    assert_eq!(crate::place::code(child.wait().expect("reap it")), 128 + 9);
    wait_healthy(&mut daemon, 1);
}
