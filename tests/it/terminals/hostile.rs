//! What a hostile session says reaches the terminal of its operator as long as it is shown there, and nothing else.

use std::io::Read as _;

use serde_json::json;

use super::daemon;
use super::operator::Operator;
use crate::needs::needs;
use crate::peer::{Peer, flagged};

#[test]
fn what_a_terminal_answers_does_not_land_in_the_shell() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon(r"echo ready; while read line; do printf '\033[6n'; echo asked; done");
    let mut operator = Operator::in_shell(daemon.place(), &["attach", "web.0"]);
    operator.sees("ready");
    operator.types("ask\r");
    operator.waits("the question", |operator| operator.shown.ends_with(b"asked\r\n"));
    // The terminal is far away: its answer comes after the session was left.
    operator.types("\x10\x11");
    operator.sees("left=0");
    operator.types("after\n");
    operator.sees("after\nafter");
    assert!(!operator.screen().contains("12;34R"), "{}", operator.screen());
}

#[test]
fn views_of_a_session_are_escaped_and_raw_is_for_files() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon(r"printf '\033]0;owned\007\033[2Jplain\n\033[31mred \342\200\256back\n'; read x");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.sees("plain");
    let evil = |text: &str| text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    for question in [&["capture", "web.0"][..], &["capture", "web.0", "--json"], &["logs", "web.0"], &["sessions"]] {
        let output = daemon.cli(question);
        assert_eq!(output.status, 0, "{output:?}");
        assert!(!evil(&output.stdout) && !evil(&output.stderr), "{question:?}: {output:?}");
    }
    assert!(daemon.cli(&["capture", "web.0"]).stdout.contains("plain\nred"));
    assert!(daemon.cli(&["capture", "web.0", "--raw"]).stdout.contains("\x1b]0;owned\x07\x1b[2J"));
    let mut refused = Operator::at(daemon.place(), &["capture", "--raw", "web.0"]);
    assert_eq!(refused.ends(), 2);
    assert!(!String::from_utf8_lossy(&refused.shown).contains("\x1b]0;"));
}

/// Tries to type into the terminal that it is shown on, through every descriptor that it has.
const TYPE: &str = r"
import ctypes, fcntl, os
libc = ctypes.CDLL(None, use_errno=True)
got = []
for fd in range(0, 64):
    for request in (0x5412, 0x5412 | 1 << 32, 0x541c):
        byte = ctypes.create_string_buffer(b'X')
        result = libc.syscall(16, fd, ctypes.c_ulong(request), ctypes.byref(byte))
        got.append('typed' if result == 0 else os.strerror(ctypes.get_errno()))
print('outcomes', sorted(set(got)), flush=True)
try:
    print('tty', os.ttyname(0), os.open('/dev/tty', os.O_RDWR) >= 0, flush=True)
except OSError as error:
    print('no tty', error, flush=True)
input()
";

#[test]
fn nothing_is_typed_into_the_operators_terminal() {
    needs!(Root, CgroupTree, Python3, Program("setsid"));
    let daemon = crate::fixture::Daemon::start(&format!(
        "[pool.web]\nterminal = true\ncommand = ['python3', '-c', '''{TYPE}''']\nenv = {{ TERM = 'xterm' }}\n"
    ));
    let mut operator = Operator::in_shell(daemon.place(), &["attach", "web.0"]);
    operator.sees("outcomes");
    operator.sees("tty");
    assert!(!operator.screen().contains("typed"), "{}", operator.screen());
    operator.types("\x10\x11");
    operator.sees("left=0");
    operator.types("after\n");
    operator.sees("after\nafter");
    assert!(!operator.screen().contains('X'), "{}", operator.screen());
}

#[test]
fn a_client_that_breaks_the_frames_loses_its_connection_alone() {
    needs!(Root, CgroupTree, Program("setsid"));
    let daemon = daemon("echo ready; while read line; do echo said $line; done");
    let mut operator = Operator::attached(daemon.place(), &["web.0"]);
    operator.sees("ready");
    for garbage in
        [&b"\x00"[..], b"\x01\xff\xff\xff\xff", b"\x81\x01\x00\x00\x00x", b"\x03\x04\x00\x00\x00\x00\x00\x00\x00"]
    {
        let mut peer = Peer::connect(&daemon);
        let mut said = flagged("Attach", &json!({ "target": "web.0" }), &json!({ "upgrade": true }));
        said.extend(garbage);
        peer.say(&said);
        // The daemon's frames are no replies: only that they end is looked at.
        let mut told = Vec::new();
        peer.stream.read_to_end(&mut told).expect("the daemon closes");
        assert!(told.starts_with(b"{\"parameters\":{\"worker\":\"web.0\"}}\0"), "{}", told.escape_ascii());
    }
    let sessions = daemon.cli(&["sessions", "--json"]).json();
    assert_eq!(sessions["sessions"][0]["viewers"], 1, "{sessions}");
    operator.types("fine\r");
    operator.sees("said fine");
}
