//! Nothing that a program writes is lost when it ends, and nothing of a session is when the daemon does.

use rustix::process::{Pid, Signal, kill_process};

use super::operator::Operator;
use super::{daemon, pool};
use crate::fixture::Daemon;
use crate::look::{lines, wait_certificate, wait_healthy};
use crate::needs::needs;

/// 10 MB in lines of 50, and nothing behind them.
const TEN_MB: &str = "read x; awk 'BEGIN {{ for (n = 1; n <= 200000; n++) printf \"%08d %s\\n\", n, \"0123456789012345678901234567890123456789\" }}'; exit 3";

#[test]
fn ten_megabytes_before_the_exit_arrive_whole() {
    needs!(Root, CgroupTree, Program("setsid"), Program("awk"));
    let more = "restart = false\n[pool.web.log]\nmax_size = '64M'\n";
    let mut daemon = Daemon::start(&pool("web", TEN_MB, more));
    wait_healthy(&mut daemon, 1);
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.types("\r");
    assert_eq!(operator.ends(), 3);
    let shown = String::from_utf8_lossy(&operator.shown);
    let numbers: Vec<u32> = shown
        .split("\r\n")
        .filter_map(|line| line.strip_suffix(" 0123456789012345678901234567890123456789"))
        .filter_map(|number| number.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok())
        .collect();
    let expected: Vec<u32> = (1..=200_000).collect();
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    let (first, last) = (numbers.first(), numbers.last());
    assert!(numbers == expected, "{} lines, {first:?} to {last:?}, with a gap at {gap:?}", numbers.len());
    wait_certificate(&mut daemon, "web.0", 1);
    let logged = lines(&daemon, "web.0");
    assert_eq!(logged.last().map(String::as_str), Some("00200000 0123456789012345678901234567890123456789"));
    let kept = std::fs::read_to_string(daemon.path("state/logs/workers/web.0.log")).expect("read the log");
    let whole = kept.lines().filter(|line| line.contains(" 0123456789012345678901234567890123456789")).count();
    assert_eq!(whole, 200_000);
}

#[test]
fn a_session_goes_on_under_another_build() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon("echo begun; while read line; do echo \"said $line\"; done");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.types("one\r");
    operator.sees("said one");
    let upgraded = daemon.cli(&["daemon", "reexec"]);
    assert_eq!(upgraded.status, 0, "{upgraded:?}");
    assert_eq!(operator.ends(), 3);
    assert!(operator.screen().contains("web.0 goes on") && operator.is_as_before(), "{}", operator.screen());
    let mut again = Operator::attached(daemon.place(), &["web.0"]);
    again.types("two\r");
    again.sees("said two");
}

#[test]
fn a_screen_is_drawn_anew_where_nobody_knows_it_any_more() {
    needs!(Root, CgroupTree, Program("vim"), Program("setsid"));
    let mut daemon = daemon("cd /tmp; exec vim -u NONE -N /tmp/note");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.types("ibefore the end\x1b");
    operator.sees("before the end");
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("kill the daemon");
    assert_eq!(operator.ends(), 3);
    daemon.start_again();
    wait_healthy(&mut daemon, 1);
    let mut again = Operator::attached(daemon.place(), &["web.0"]);
    again.waits("the editor's screen", |again| {
        again.screen().contains("before the end") && again.screen().matches("\n~").count() > 15
    });
}

#[test]
fn a_session_outlives_its_daemon() {
    needs!(Root, CgroupTree, Program("setsid"));
    let mut daemon = daemon("echo begun; while read line; do echo \"said $line\"; done");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.types("one\r");
    operator.sees("said one");
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("kill the daemon");
    assert_eq!(operator.ends(), 3);
    assert!(operator.screen().contains("web.0 goes on"), "{}", operator.screen());
    assert!(operator.is_as_before());
    daemon.start_again();
    wait_healthy(&mut daemon, 1);
    let mut again = Operator::attached(daemon.place(), &["web.0"]);
    again.types("two\r");
    again.sees("said two");
    again.resizes(100, 30);
    again.types("\x04");
    assert_eq!(again.ends(), 0, "{}", again.screen());
}
