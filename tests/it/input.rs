//! Bad input: each mistake is one clear sentence and the right exit code, whatever entrance it comes through.

#![expect(clippy::disallowed_types, reason = "the test starts the program itself, as an operator's shell does")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::fixture::{Daemon, EVENT_DEADLINE};
use crate::look::{pid, wait_certificate, wait_healthy};
use crate::needs::needs;
use crate::peer::Peer;
use crate::place::{Output, Place, halsup, program, run};

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

/// A uid and gid that own nothing.
pub(crate) const NOBODY: u32 = 65_534;

/// Names that would mean something to a path, a line or a terminal.
const EVIL: [&str; 8] = ["a/b", "../a", "..", "a\nb", "a\u{1b}[2Jb", "a\u{9b}b", "a\u{202e}b", "A b"];

/// Asserts that a run said exactly one sentence, with these words in it, and ended with this code.
#[track_caller]
pub(crate) fn assert_refused(output: &Output, status: i32, words: &str) {
    assert_eq!((output.status, output.stdout.as_str()), (status, ""), "{output:?}");
    assert_one_sentence(&output.stderr, words);
}

#[track_caller]
fn assert_one_sentence(stderr: &str, words: &str) {
    let sentence = stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line end: {stderr:?}"));
    assert!(sentence.starts_with("halsup: "), "{stderr:?}");
    assert!(sentence.contains(words), "{words:?} is not in {stderr:?}");
    assert!(!sentence.contains(char::is_control), "{stderr:?}");
    assert!(!sentence.contains(['\u{202e}', '\u{2028}', '\u{2066}']), "{stderr:?}");
    assert!(sentence.len() < 700, "{} bytes are no sentence: {stderr:?}", sentence.len());
    for word in ["panicked", "backtrace", "RUST_"] {
        assert!(!sentence.contains(word), "{stderr:?}");
    }
}

/// Asserts that an order was taken and not achieved: the answer says how far it came, the sentence why no further.
#[track_caller]
fn assert_not_done(output: &Output, words: &str) {
    assert_eq!((output.status, output.stdout.ends_with(": 0 of 1 ready\n")), (1, true), "{output:?}");
    assert_one_sentence(&output.stderr, words);
}

/// Runs a daemon that has to refuse to start.
#[track_caller]
fn refused_daemon(place: &Place) -> Output {
    place.run_bounded(&mut place.command(&["daemon", "run"]))
}

#[test]
fn a_wrong_configuration_is_refused_by_every_verb_that_reads_it() {
    for (config, words) in [
        ("[pool.web]\ncommand = ['x']\nsise = 3\n", "line 7: pool.web.sise: unknown key; did you mean \"size\"?"),
        ("[pol.web]\ncommand = ['x']\n", "did you mean \"pool\"?"),
        ("log_levl = 'info'\n", "did you mean \"log_level\"?"),
        ("[pool.web]\ncommand = ['x']\nsize = 'three'\n", "line 7: pool.web.size: "),
        ("[pool.web]\ncommand = 'x'\n", "line 6: pool.web.command: "),
        ("[pool.web]\ncommand = ['x']\nsize = -1\n", "line 7: pool.web.size: "),
        ("[pool.web]\ncommand = ['x']\nmin = 5\nmax = 2\n", "pool.web.m"),
        ("[pool.web]\nsize = 1\n", "pool.web.command: "),
        ("[pool.web]\ncommand = []\n", "line 6: pool.web.command: "),
        ("[pool.web]\ncommand = ['x']\nmemory = '4x'\n", "line 7: pool.web.memory: "),
        ("[pool.web\ncommand = ['x']\n", "line 5: "),
        ("[pool.web]\ncommand = ['x']\nsize = 1\nsize = 2\n", "size"),
    ] {
        let place = Place::new(config);
        let path = place.path("config.toml").display().to_string();
        for verb in [&["check"][..], &["daemon", "run"], &["daemon", "start"], &["up"], &["ps"]] {
            let output = place.run_bounded(&mut place.command(verb));
            assert_refused(&output, 2, words);
            assert!(output.stderr.contains(&path), "{output:?}");
        }
        assert!(!place.path("run").exists() && !place.path("state").exists(), "nothing was begun");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    let place = Place::new("");
    let missing = place.path("missing.toml").display().to_string();
    for verb in [&["check", &missing][..], &["up", &missing], &["--config", &missing, "daemon", "run"]] {
        assert_refused(&halsup(verb), 5, "missing.toml does not exist");
    }
    fs::write(place.path("bytes.toml"), b"\xff\xfe[pool]\0").expect("write");
    assert_refused(&halsup(&["check", &place.path("bytes.toml").display().to_string()]), 2, "utf-8");
    fs::write(place.path("big.toml"), vec![b'#'; 2 << 20]).expect("write");
    assert_refused(&halsup(&["check", &place.path("big.toml").display().to_string()]), 2, "bytes");
    assert_refused(&halsup(&["check", &place.path("").display().to_string()]), 1, "read ");
    assert_refused(&halsup(&["check", "/dev/zero"]), 2, "/dev/zero: ");
}

#[test]
fn evil_names_are_refused_at_every_entrance_and_drive_no_terminal() {
    for name in EVIL {
        let quoted = json!(name).to_string();
        let place = Place::new(&format!("[pool.{quoted}]\ncommand = ['x']\n"));
        assert_refused(&place.cli(&["check"]), 2, "not a name");
        for verb in ["stop", "start", "restart", "reset", "kill", "inspect", "stats", "logs", "ps"] {
            assert_refused(&halsup(&[verb, name]), 2, "is not valid");
        }
        assert_refused(&halsup(&["scale", name, "1"]), 2, "is not valid");
        assert_refused(&halsup(&["--instance", name, "ps"]), 2, "is not valid");
        assert_refused(&halsup(&["up", "--name", name, "--", "true"]), 2, "is not valid");
        assert_refused(&halsup(&["kill", "-s", name, "web"]), 2, "signal");
        // What the parser of arguments itself repeats.
        assert_refused(&halsup(&[name]), 2, "unrecognized");
        assert_refused(&halsup(&[&format!("--{name}"), "ps"]), 2, "unexpected");
        assert_refused(&halsup(&["scale", "web", name]), 2, "invalid value");
        let socket = format!("/nowhere/{name}");
        assert_refused(&halsup(&["--socket", &socket, "ps"]), 3, "no halsup daemon answers");
        assert_refused(&halsup(&["check", &socket]), 5, "does not exist");
    }
    let place = Place::new("");
    let strange = place.path("a\nb\u{1b}[2J.toml");
    fs::write(&strange, "nonsense = 1\n").expect("write");
    assert_refused(&halsup(&["check", strange.to_str().expect("UTF-8")]), 2, "unknown key");
}

#[test]
fn evil_variables_are_refused() {
    for (variable, value) in [
        ("HALSUP_INSTANCE", "a/b"),
        ("HALSUP_INSTANCE", "a\n\u{1b}[2J"),
        ("HALSUP_RUNTIME_DIR", "relative"),
        ("HALSUP_LOG_LEVEL", "loud\n\u{1b}"),
        ("WORKER_MEMORY", "lots\n"),
    ] {
        let place = Place::new(SLEEPER);
        let output = place.run_bounded(place.command(&["check"]).env(variable, value));
        assert_refused(&output, 2, variable);
    }
}

#[test]
fn a_wrong_command_line_is_one_sentence_too() {
    for (arguments, words) in [
        (&["pss"][..], "unrecognized subcommand 'pss'"),
        (&["ps", "--jsno"], "unexpected argument '--jsno'"),
        (&["scale", "web"], "<COUNT>"),
        (&["scale", "web", "many"], "invalid value 'many'"),
        (&["scale", "web", "10001"], "10000"),
        (&["completions", "cobol"], "bash"),
        (&["up", "--size", "3"], "COMMAND"),
        (&["up", "x.toml", "--", "true"], "cannot be used with"),
        (&["daemon", "stop", "--timeout", "5"], "a duration with a unit"),
        (&["--socket", "/x", "daemon", "start"], "--socket"),
    ] {
        assert_refused(&halsup(arguments), 2, words);
    }
}

#[test]
fn where_no_daemon_is_the_code_is_3() {
    let place = Place::new(SLEEPER);
    for verb in [&["ps"][..], &["status"], &["stop", "web"], &["events"], &["daemon", "status"], &["daemon", "reload"]]
    {
        assert_refused(&place.cli(verb), 3, "no halsup daemon answers on ");
    }
    assert_refused(&halsup(&["--socket", &"x".repeat(500), "ps"]), 1, "connect to ");
}

#[test]
fn what_does_not_exist_has_code_5() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&format!("{SLEEPER}[service.db]\ncommand = ['sleep', 'infinity']\n"));
    wait_healthy(&mut daemon, 2);
    for verb in ["stop", "start", "restart", "reset", "kill", "inspect", "stats", "logs"] {
        assert_refused(&daemon.cli(&[verb, "nope"]), 5, "pool nope (there are: db, web) does not exist");
        assert_refused(&daemon.cli(&[verb, "web.7"]), 5, "worker web.7 (pool web has web.0) does not exist");
        assert_refused(&daemon.cli(&[verb, "db.0"]), 5, "db is a service");
    }
    assert_refused(&daemon.cli(&["ps", "nope"]), 5, "pool nope");
    assert_refused(&daemon.cli(&["scale", "nope", "1"]), 5, "pool nope");
    assert_eq!(wait_healthy(&mut daemon, 2).len(), 2, "nothing was touched");
}

#[test]
fn evil_names_over_the_socket_are_refused_by_name() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(SLEEPER);
    wait_healthy(&mut daemon, 1);
    let mut peer = Peer::connect(&daemon);
    for name in EVIL {
        for (method, parameters, parameter) in [
            ("Stop", json!({ "target": name }), "target"),
            ("Logs", json!({ "worker": name }), "worker"),
            ("List", json!({ "pool": name }), "pool"),
            ("Scale", json!({ "pool": name, "count": 1 }), "pool"),
        ] {
            let reply = peer.ask(method, &parameters);
            assert_eq!(reply["error"], "org.varlink.service.InvalidParameter", "{reply}");
            assert_eq!(reply["parameters"]["parameter"], parameter, "{reply}");
        }
        let reply = peer.ask("SetLog", &json!({ "filter": name }));
        assert!(
            ["io.halsup.Control.Refused", "org.varlink.service.InvalidParameter"]
                .map(Into::into)
                .contains(&reply["error"]),
            "{reply}"
        );
        let reply = peer.ask(name, &json!({}));
        assert!(reply["error"].as_str().is_some_and(|error| error.ends_with("NotFound")), "{reply}");
    }
    assert!(!daemon.stderr().contains('\u{1b}'), "{}", daemon.stderr());
    assert_eq!(wait_healthy(&mut daemon, 1).len(), 1);
}

#[test]
fn a_program_that_cannot_run_is_named_by_the_order_that_wanted_it() {
    needs!(Root, CgroupTree);
    for (command, words) in [
        ("/nowhere/at/all", "execute \"/nowhere/at/all\": No such file or directory"),
        ("/etc/passwd", "execute \"/etc/passwd\": Permission denied"),
    ] {
        let mut daemon = Daemon::start(&format!("[pool.web]\nrestart = false\ncommand = ['{command}']\n"));
        wait_certificate(&mut daemon, "web.0", 1);
        assert_not_done(&daemon.cli(&["restart", "web"]), words);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    needs!(Root, CgroupTree);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("its address").port();
    let place = Place::new(&format!("[pool.web]\ncommand = ['sleep', '1']\nlisten = ['tcp:127.0.0.1:{port}']\n"));
    let output = refused_daemon(&place);
    assert_refused(&output, 1, &port.to_string());
    assert!(output.stderr.contains("web") && output.stderr.contains("in use"), "{output:?}");

    let mut daemon =
        Daemon::start(&format!("[pool.web]\nrestart = false\nbase_port = {port}\ncommand = ['sleep', '1']\n"));
    wait_certificate(&mut daemon, "web.0", 1);
    assert_not_done(&daemon.cli(&["start", "web.0"]), &format!("port {port} is in use"));
}

#[test]
fn a_second_daemon_refuses_and_leaves_the_first_alone() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(SLEEPER);
    let before = wait_healthy(&mut daemon, 1).remove(0);
    let mut peer = Peer::connect(&daemon);
    peer.ask("Ping", &json!({}));
    let second = |_| {
        let mut command = daemon.place().command(&["daemon", "run"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run halsup")
    };
    let all: Vec<_> = (0..20).map(second).collect();
    for child in all {
        let output = child.wait_with_output().expect("wait for it");
        let stderr = String::from_utf8(output.stderr).expect("halsup prints UTF-8");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_one_sentence(&stderr, &format!("another halsup daemon (pid {}) runs", daemon.pid()));
    }
    let started = daemon.cli(&["daemon", "start"]);
    assert_eq!(started.status, 0, "{started:?}");
    assert!(started.stdout.contains(&format!("runs already (pid {})", daemon.pid())), "{started:?}");
    let after = wait_healthy(&mut daemon, 1).remove(0);
    assert_eq!(pid(&before), pid(&after));
    assert_eq!(peer.ask("Ping", &json!({}))["error"], json!(null), "an old connection lives on");
}

#[test]
fn of_twenty_daemons_that_start_at_once_one_runs() {
    needs!(Root, CgroupTree);
    let place = Place::new(SLEEPER);
    let notify = UnixDatagram::bind(place.path("notify")).expect("bind the notify socket");
    notify.set_read_timeout(Some(EVENT_DEADLINE)).expect("set a deadline");
    let start = |_| {
        let mut command = place.command(&["daemon", "run"]);
        command.env("NOTIFY_SOCKET", place.path("notify")).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("run halsup")
    };
    let all: Vec<_> = (0..20).map(start).collect();
    let mut buffer = [0; 4096];
    loop {
        let length = match notify.recv(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            length => length.expect("one becomes ready"),
        };
        if buffer[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
            break;
        }
    }
    let winner = place.cli(&["daemon", "status", "--json"]).json()["pid"].clone();
    let (mut winners, losers): (Vec<_>, Vec<_>) = all.into_iter().partition(|child| winner == child.id());
    assert_eq!((winners.len(), losers.len()), (1, 19));
    for child in losers {
        let output = child.wait_with_output().expect("wait for it");
        let stderr = String::from_utf8(output.stderr).expect("halsup prints UTF-8");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_one_sentence(&stderr, "another halsup daemon");
    }
    assert_eq!(place.cli(&["daemon", "stop"]).status, 0);
    assert_eq!(winners.remove(0).wait().expect("wait for it").code(), Some(0));
}

#[test]
fn without_root_it_says_what_root_is_needed_for() {
    needs!(Root);
    let place = Place::new(SLEEPER);
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).expect("open the directory");
    for verb in [&["daemon", "run"][..], &["daemon", "start"], &["up"]] {
        let output = place.run_bounded(place.command(verb).uid(NOBODY).gid(NOBODY));
        assert_refused(&output, 1, "has to run as root");
    }
    fs::set_permissions(place.path("config.toml"), fs::Permissions::from_mode(0o600)).expect("close the file");
    let output = place.run_bounded(place.command(&["up"]).uid(NOBODY).gid(NOBODY));
    assert_refused(&output, 1, "Permission denied");
}

#[test]
fn without_cgroup_2_it_says_so() {
    needs!(Root, CgroupTree);
    let place = Place::new(SLEEPER);
    let script = "grep ' cgroup2 ' /proc/self/mounts | cut -d ' ' -f 2 | xargs -n 1 umount -l && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(program());
    command.args(["daemon", "run", "--config"]).arg(place.path("config.toml"));
    assert_refused(&place.run_bounded(&mut command), 1, "cgroup");
}

#[test]
fn a_directory_that_others_can_write_is_not_used() {
    needs!(Root, CgroupTree);
    for name in ["run", "state"] {
        let place = Place::new(SLEEPER);
        fs::create_dir(place.path(name)).expect("make a directory");
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o777)).expect("open it");
        assert_refused(&refused_daemon(&place), 1, "writable by nobody else");

        let place = Place::new(SLEEPER);
        fs::create_dir(place.path(name)).expect("make a directory");
        std::os::unix::fs::chown(place.path(name), Some(NOBODY), None).expect("give it away");
        assert_refused(&refused_daemon(&place), 1, "has to belong to root");

        let place = Place::new(SLEEPER);
        fs::write(place.path(name), "a file").expect("write");
        assert_refused(&refused_daemon(&place), 1, name);
    }
}

#[test]
fn what_was_refused_before_the_start_is_told_to_the_service_manager() {
    let place = Place::new("nonsense = 1\n");
    let notify = UnixDatagram::bind(place.path("notify")).expect("bind");
    notify.set_nonblocking(true).expect("set");
    let output = run(place.command(&["daemon", "run"]).env("NOTIFY_SOCKET", place.path("notify")));
    assert_refused(&output, 2, "unknown key");
    let mut buffer = [0; 4096];
    let length = notify.recv(&mut buffer).expect("it said something");
    let said = String::from_utf8_lossy(&buffer[..length]);
    assert!(said.contains("STATUS=") && said.contains("unknown key") && !said.contains("READY=1"), "{said}");
}
