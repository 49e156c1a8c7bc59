//! A worker cannot type into a terminal, and nothing that it says drives the one it is shown on.

use std::collections::BTreeMap;

use super::{attack, identities, python};
use crate::fixture::Daemon;
use crate::look::{wait_certificate, wait_healthy, worker};
use crate::needs::needs;

/// Each in a child whose controlling terminal it is: there the kernel itself would have nothing against it.
const TYPE: &str = r"
import fcntl
REQUESTS = dict(sti=0x5412, linux=0x541c, setd=0x5423)
def child(deed):
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            os.setsid()
            main, side = os.openpty()
            fcntl.ioctl(side, 0x540e, 0)
            deed(side)
        except OSError as error:
            code = error.errno
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
byte = ctypes.create_string_buffer(b'x')
for name, request in REQUESTS.items():
    for high in (0, 1 << 32, 0xdeadbeef << 32):
        tell(f'{name} {high:x}', child(lambda side: call(16, side, request | high, ctypes.byref(byte))))
tell('size', child(lambda side: call(16, side, 0x5413, ctypes.create_string_buffer(8))))
tell('tty', os.path.exists('/dev/console'))
attempt('open', lambda: os.open('/dev/tty', os.O_RDWR))
";

#[test]
fn no_terminal_can_be_typed_into() {
    needs!(Root, CgroupTree, Python3);
    for identity in identities() {
        let (_daemon, told) = attack(&format!("identity = '{identity}'\n"), TYPE);
        for name in ["sti", "linux", "setd"] {
            for high in ["0", "100000000", "deadbeef00000000"] {
                assert_eq!(told[&format!("{name} {high}")], "1", "{identity}: {name} {high} is EPERM");
            }
        }
        assert_eq!((told["size"].as_str(), told["tty"].as_str()), ("0", "False"), "{identity}");
        assert_eq!(told["open"], "ENXIO", "{identity}: there is no controlling terminal");
    }
}

/// Everything that a terminal or a reader could take for more than text.
const TALK: &str = r#"
import os, socket, sys, time
evil = "\x1b]0;owned\x07\x1b[2J\x1b[1;31m\x9b31m\x7f\x08\x08\r\u202edesrever\u2066\u200f\ufeff\x00end"
raw = evil.encode() + b"\xff\xfe\xc3\x28 \xed\xa0\x80"
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
for text in (raw, evil.encode(), evil.replace("\x00", "").encode()):
    notify.send(b"READY=1\nSTATUS=" + text)
for stream in (1, 2):
    os.write(stream, raw + b"\n2026-01-01T00:00:00Z web.1 forged line\n" + raw)
os.write(1, b"\ntold=all\n")
time.sleep(100000)
"#;

fn is_plain(place: &str, text: &str) {
    let evil = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let found: Vec<char> = text.chars().filter(|c| evil(*c)).collect();
    assert!(found.is_empty(), "{place} shows {found:?}: {text:?}");
}

#[test]
fn what_a_worker_says_is_shown_escaped() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = Daemon::start(&format!("[pool.web]\nready = 'notify'\n{}", python(TALK)));
    wait_healthy(&mut daemon, 1);
    daemon.wait_until("its words", |daemon| {
        Some(()).filter(|()| daemon.cli(&["logs", "web.0"]).stdout.contains("told=all"))
    });
    assert!(worker(&daemon, "web.0")["status_text"].is_string());
    assert_eq!(daemon.cli(&["kill", "web.0"]).status, 0);
    wait_certificate(&mut daemon, "web.0", 1);
    let mut shown = BTreeMap::new();
    for question in [
        &["ps"][..],
        &["status"],
        &["inspect", "web.0"],
        &["logs", "web.0"],
        &["events"],
        &["stats"],
        &["ps", "--json"],
        &["inspect", "web.0", "--json"],
        &["logs", "web.0", "--json"],
        &["events", "--json"],
    ] {
        let output = daemon.cli(question);
        assert_eq!(output.status, 0, "{question:?}: {output:?}");
        if question.contains(&"--json") {
            // A machine reads it; what a terminal obeys is escaped all the same.
            assert!(!output.stdout.chars().any(|c| c.is_control() && c != '\n'), "{question:?}: {:?}", output.stdout);
        } else {
            is_plain(&question.join(" "), &output.stdout);
        }
        shown.insert(question.join(" "), output.stdout);
    }
    assert!(shown["logs web.0"].contains("\\x1b"), "{}", shown["logs web.0"]);
    assert!(shown["inspect web.0"].contains("\\x1b"), "{}", shown["inspect web.0"]);
    assert!(!daemon.stderr().contains('\u{1b}'), "the daemon's own log");
}

#[test]
fn a_hostile_name_comes_back_escaped() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    for name in ["\u{1b}[2Jweb", "web.0\n", "../web", "web\u{202e}.0", "web.\u{9b}31m", "w\u{7f}"] {
        for verb in ["inspect", "stop", "logs", "kill", "restart", "reset"] {
            let output = daemon.cli(&[verb, name]);
            assert_ne!(output.status, 0, "{verb} {name:?}: {output:?}");
            is_plain(&format!("{verb} {name:?}"), &output.stdout);
            is_plain(&format!("{verb} {name:?}"), &output.stderr);
        }
    }
    assert!(!daemon.stderr().contains('\u{1b}'), "the daemon's own log");
}
