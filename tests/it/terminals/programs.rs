//! Programs that need a terminal find one: shells with job control, editors, whatever draws a screen.

use super::operator::Operator;
use super::{captured, daemon};
use crate::look::{pid, wait_certificate, worker};
use crate::needs::needs;

/// Whether another process group than that of the shell is in the foreground of its terminal (proc_pid_stat(5)).
fn job_has_terminal(shell: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{shell}/stat")).expect("read its state");
    let (_, after) = stat.rsplit_once(')').expect("behind its name");
    let fields: Vec<&str> = after.split_whitespace().collect();
    fields[2] != fields[5]
}

#[test]
fn a_shell_has_job_control_and_its_status_passes_through() {
    needs!(Root, CgroupTree, Program("bash"), Program("setsid"));
    let mut daemon = daemon("exec bash --norc --noprofile -i");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.types("PS1='ok> '\r");
    operator.sees("ok> ");
    operator.types("(echo begun-$((40+2)); exec sleep 1000)\r");
    operator.sees("begun-42");
    operator.types("\x1a");
    operator.sees("Stopped");
    operator.types("bg; jobs; echo seen-$((40+3))\r");
    operator.sees("seen-43");
    assert!(operator.screen().contains("Running"), "{}", operator.screen());
    operator.types("clear; fg\r");
    operator.waits("what is in the foreground", |operator| {
        let screen = operator.screen();
        screen.contains("exec sleep 1000") && !screen.contains("seen-43")
    });
    // It is said to be there before it is.
    let shell = pid(&worker(&daemon, "web.0"));
    daemon.wait_until("the job has the terminal", |_| job_has_terminal(shell).then_some(()));
    operator.types("\x03");
    operator.sees("ok> ");
    operator.types("echo $(jobs | wc -l) jobs left\r");
    operator.sees("0 jobs left");
    operator.types("exit 7\r");
    assert_eq!(operator.ends(), 7, "{}", operator.screen());
    assert!(operator.is_as_before());
}

#[test]
fn a_shell_ends_when_it_is_asked_to() {
    needs!(Root, CgroupTree, Program("bash"), Program("setsid"));
    let mut daemon = daemon("exec bash --norc --noprofile -i");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.sees("$ ");
    assert_eq!(daemon.cli(&["stop", "web.0"]).status, 0);
    assert_eq!(operator.ends(), 128 + 1, "{}", operator.screen());
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["status"], "signal 1", "it was not killed: {certificate}");
}

#[test]
fn an_editor_draws_its_screen_and_follows_the_window() {
    needs!(Root, CgroupTree, Program("vim"), Program("setsid"));
    let daemon = daemon("cd /tmp; exec vim -u NONE -N /tmp/note");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.waits("vim's tildes", |operator| operator.screen().matches("\n~").count() > 15);
    assert!(operator.is_alternate());
    operator.types("ihello from vim\x1b");
    operator.sees("hello from vim");
    operator.resizes(60, 10);
    operator.waits("a smaller screen", |operator| {
        let screen = operator.screen();
        screen.contains("hello from vim") && (5..10).contains(&screen.matches("\n~").count())
    });
    // Who comes later sees the same, although not a byte of it is written again.
    let mut second = Operator::attached(daemon.place(), &["--read-only", "web.0"]);
    second.sees("hello from vim");
    assert!(second.is_alternate());
    let captured = captured(&daemon);
    assert!(captured.contains("hello from vim\n~"), "{captured}");
    operator.types(":set nomodified | q\r");
    assert_eq!(operator.ends(), 0, "{}", operator.screen());
    assert_eq!(second.ends(), 0);
    assert!(!operator.is_alternate() && !second.is_alternate());
}

#[test]
fn top_shows_its_table() {
    needs!(Root, CgroupTree, Program("top"), Program("setsid"));
    let daemon = daemon("exec top -d 1");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.sees("PID");
    operator.sees("top");
    operator.types("q");
    assert_eq!(operator.ends(), 0, "{}", operator.screen());
}

#[test]
fn htop_draws_its_meters_and_leaves_the_screen_as_it_was() {
    needs!(Root, CgroupTree, Program("htop"), Program("setsid"));
    let daemon = daemon("exec htop --delay=10");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.sees("Load average");
    operator.sees("F10");
    assert!(operator.is_alternate());
    operator.resizes(100, 20);
    // The last line is that of its keys, wherever that is.
    operator.waits("the keys at the end of a smaller screen", |operator| {
        operator.screen().lines().nth(19).is_some_and(|line| line.contains("F10"))
    });
    operator.types("q");
    assert_eq!(operator.ends(), 0, "{}", operator.screen());
    assert!(!operator.is_alternate() && operator.is_as_before());
}

#[test]
fn the_size_of_the_writer_arrives() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon =
        daemon("trap 'stty size' WINCH; stty size; echo begun; while :; do read x; echo got $x; stty size; done");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.sees("begun");
    operator.types("one\r");
    operator.sees("got one\n24 80");
    operator.resizes(132, 43);
    operator.waits("43 132 by itself", |operator| operator.screen().contains("43 132"));
    let mut second = Operator::attached(daemon.place(), &["web.0"]);
    second.sees("43 132");
    second.resizes(70, 20);
    operator.types("two\r");
    operator.sees("got two\n43 132");
    assert!(!operator.screen().contains("20 70"), "who only sees does not resize");
}
