//! Several look at one terminal: one types, all see, nobody waits for who does not read.

use rustix::process::Signal;

use super::operator::{Operator, RESET};
use super::{captured, daemon};
use crate::needs::needs;

/// Echoes lines, each with a number.
const ECHO: &str = "n=0; while read line; do n=$((n+1)); echo \"line $n: $line\"; done";

#[test]
fn the_first_types_and_all_see_and_the_next_inherits() {
    needs!(Root, CgroupTree, Program("setsid"));
    let mut daemon = daemon(ECHO);
    let mut first = Operator::attached(daemon.place(), &["web.0"]);
    first.types("hello\r");
    first.sees("line 1: hello");
    let mut second = Operator::attached(daemon.place(), &["web.0"]);
    let mut third = Operator::attached(daemon.place(), &["--read-only", "web.0"]);
    second.sees("line 1: hello");
    second.sees("somebody else types here");
    third.sees("line 1: hello");
    second.types("not heard\r");
    third.types("neither\r");
    first.types("again\r");
    for operator in [&mut first, &mut second, &mut third] {
        operator.sees("line 2: again");
    }
    let sessions = daemon.cli(&["sessions", "--json"]).json();
    assert_eq!(sessions["sessions"][0]["viewers"], 3);
    // The third would be next by age if it could type.
    first.types("\x10\x11");
    assert_eq!(first.ends(), 0);
    daemon.wait_until("the second types", |daemon| {
        let sessions = daemon.cli(&["sessions", "--json"]).json();
        (sessions["sessions"][0]["viewers"] == 2 && sessions["sessions"][0]["writer"].is_string()).then_some(())
    });
    second.types("mine\r");
    second.sees("line 3: mine");
    third.sees("line 3: mine");
    let mut thief = Operator::attached(daemon.place(), &["--steal", "web.0"]);
    thief.sees("line 3: mine");
    thief.types("stolen\r");
    second.sees("line 4: stolen");
    second.types("not any more\r");
    thief.types("end\r");
    second.sees("line 5: end");
    assert!(!captured(&daemon).contains("not"), "{}", captured(&daemon));
}

#[test]
fn leaving_puts_the_terminal_in_order_and_the_session_goes_on() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon(&format!(r"printf '\033[?1049h\033[?1000h\033[?2004h\033[?25l\033[31mmodes on'; {ECHO}"));
    let mut operator = Operator::attached(daemon.place(), &["--detach-keys", "ctrl-],x", "web.0"]);
    operator.sees("modes on");
    assert!(operator.is_alternate());
    operator.types("\x1dy\x10\x11\r");
    operator.waits("only the keys together leave", |operator| operator.screen().contains("line 1:"));
    operator.types("\x1dx");
    assert_eq!(operator.ends(), 0);
    let shown = String::from_utf8_lossy(&operator.shown).into_owned();
    let (_, after) = shown.rsplit_once("\x1b7").expect("the cursor is saved first");
    let after = after.strip_prefix(RESET).expect("then everything is reset");
    assert_eq!(after, "\r\n\x1b[5nhalsup: detached from web.0, which goes on: halsup attach web.0\r\n");
    assert!(operator.is_as_before() && !operator.is_alternate());
    let mut again = Operator::attached(daemon.place(), &[]);
    again.sees("line 1:");
    again.types("still there\r");
    again.sees("line 2: still there");
}

#[test]
fn a_signal_leaves_as_the_keys_do() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon(&format!("printf '\\033[?1049hin'; {ECHO}"));
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.waits("in", |operator| operator.is_alternate());
    operator.signals(Signal::TERM);
    assert_eq!(operator.ends(), 0);
    assert!(operator.is_as_before() && !operator.is_alternate());
}

#[test]
fn who_stops_reading_holds_up_nobody_and_comes_back_to_a_true_screen() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon(
        "read x; n=0; while [ $n -lt 60000 ]; do n=$((n+1)); echo \"row $n of many, long enough to fill what is kept\"; done; \
         echo all written; read x; echo over $x; read x",
    );
    let mut stopped = Operator::attached(daemon.place(), &["web.0"]);
    stopped.types("\r");
    stopped.sees("row ");
    stopped.signals(Signal::STOP);
    // Its reader is stopped, and so is it; the program is not.
    let mut other = Operator::attached(daemon.place(), &["web.0"]);
    other.sees("all written");
    other.types("\x10\x11");
    assert_eq!(other.ends(), 0);
    assert_eq!(daemon.cli(&["send", "web.0", "--enter", "typed"]).status, 0);
    daemon.cli(&["ps"]);
    stopped.signals(Signal::CONT);
    stopped.sees("over typed");
    let rows = String::from_utf8_lossy(&stopped.shown).matches("row ").count();
    assert!(rows < 60_000, "what it did not read was not kept for it: {rows}");
    assert_eq!(stopped.screen().lines().filter(|line| line.starts_with("row ")).count(), 20, "{}", stopped.screen());
}
