//! Programs that need a terminal find one: shells with job control, editors, whatever draws a screen.

use super::operator::Operator;
use super::{captured, daemon};
use crate::needs::needs;

#[test]
fn a_shell_has_job_control_and_its_status_passes_through() {
    needs!(Root, CgroupTree, Program("bash"), Program("setsid"));
    let daemon = daemon("exec bash --norc --noprofile -i");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.types("PS1='ok> '\r");
    operator.sees("ok> ");
    operator.types("sleep 1000\r");
    operator.sees("sleep 1000");
    operator.types("\x1a");
    operator.sees("Stopped");
    operator.types("bg\r");
    operator.sees("sleep 1000 &");
    operator.types("jobs; echo job-control-$((40+2))\r");
    operator.sees("Running");
    operator.sees("job-control-42");
    operator.types("fg\r");
    operator.types("\x03");
    operator.types("clear; tty; echo $? done\r");
    operator.sees("0 done");
    operator.types("kill %1 2>/dev/null; exit 7\r");
    assert_eq!(operator.ends(), 7, "{}", operator.screen());
    assert!(operator.is_as_before());
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
