//! Driving sessions from outside: send, broadcast, capture, and the list of them.

use super::{daemon, pool};
use crate::fixture::Daemon;
use crate::look::wait_healthy;
use crate::needs::needs;

/// Echoes lines.
const ECHO: &str = "stty -echo; echo ready; while read line; do echo \"said $line\"; done; echo over; sleep 1000";

#[track_caller]
fn wait_screen(daemon: &mut Daemon, name: &str, text: &str) {
    daemon.wait_until(&format!("{text} on {name}"), |daemon| {
        daemon.cli(&["capture", name]).stdout.contains(text).then_some(())
    });
}

#[test]
fn what_is_sent_is_typed_and_what_is_shown_is_captured() {
    needs!(Root, CgroupTree);
    let mut daemon = daemon(ECHO);
    wait_screen(&mut daemon, "web.0", "ready");
    let sent = daemon.cli(&["send", "web.0", "--enter", "hello", "there"]);
    assert_eq!((sent.status, sent.stdout.as_str()), (0, "web.0: 1 typed into\n"), "{sent:?}");
    wait_screen(&mut daemon, "web.0", "said hello there");
    assert_eq!(daemon.cli(&["send", "web.0", "--keys", "a", "Backspace", "b", "Space", "c", "Enter"]).status, 0);
    wait_screen(&mut daemon, "web.0", "said b c");
    assert_eq!(daemon.cli(&["send", "web.0", "--keys", "C-d"]).status, 0);
    wait_screen(&mut daemon, "web.0", "over");
    let captured = daemon.cli(&["capture", "web.0"]);
    assert_eq!(captured.stdout, "ready\nsaid hello there\nsaid b c\nover\n");
    assert_eq!(daemon.cli(&["capture", "-n", "2"]).stdout, "said b c\nover\n");
    let json = daemon.cli(&["capture", "web.0", "--json"]).json();
    assert_eq!((&json["session"], &json["columns"], &json["lines"][0]), (&"web.0".into(), &80.into(), &"ready".into()));
    assert_eq!(daemon.cli(&["capture", "--raw", "web.0"]).stdout, "ready\r\nsaid hello there\r\nsaid b c\r\nover\r\n");
    assert!(daemon.cli(&["logs", "web.0"]).stdout.ends_with("said hello there\nsaid b c\nover\n"));
}

#[test]
fn a_broadcast_reaches_every_terminal() {
    needs!(Root, CgroupTree);
    let plain = "[pool.plain]\ncommand = ['sleep', 'infinity']\n";
    let config = format!("{}{}{plain}", pool("web", ECHO, "size = 3"), pool("api", ECHO, ""));
    let mut daemon = Daemon::start(&config);
    wait_healthy(&mut daemon, 5);
    let all = ["web.0", "web.1", "web.2", "api.0"];
    for name in all {
        wait_screen(&mut daemon, name, "ready");
    }
    let sent = daemon.cli(&["broadcast", "--enter", "git", "pull"]);
    assert_eq!((sent.status, sent.stdout.as_str()), (0, "all: 4 typed into\n"), "{sent:?}");
    for name in all {
        wait_screen(&mut daemon, name, "said git pull");
    }
    assert_eq!(daemon.cli(&["broadcast", "--pool", "web", "-e", "only"]).stdout, "web: 3 typed into\n");
    wait_screen(&mut daemon, "web.2", "said only");
    assert!(!daemon.cli(&["capture", "api.0"]).stdout.contains("only"));
    let listed = daemon.cli(&["ls", "--json"]).json();
    assert_eq!((&listed["parent_running"], &listed["worker_count"]), (&true.into(), &4.into()));
    assert_eq!(listed["coordinator"]["socket_dir"], daemon.path("run").to_str().expect("UTF-8"));
    let worker = &listed["workers"][0];
    assert_eq!((&worker["status"], &worker["tmux_socket"]["healthy"]), (&"healthy".into(), &true.into()), "{worker}");
    for key in ["name", "started", "image", "session"] {
        assert!(worker.get(key).is_some(), "{key}: {worker}");
    }
    let names: Vec<String> = daemon.cli(&["ls", "--json"]).json()["sessions"]
        .as_array()
        .expect("sessions")
        .iter()
        .map(|session| session["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(names.iter().filter(|name| all.contains(&name.as_str())).count(), 4, "{names:?}");
    let several = daemon.cli(&["attach"]);
    assert_eq!(several.status, 2, "{several:?}");
    assert!(several.stderr.contains("several sessions run"), "{several:?}");
    let plain = daemon.cli(&["send", "plain.0", "x"]);
    assert_eq!(plain.status, 1);
    assert!(plain.stderr.contains("plain.0 has no terminal"), "{plain:?}");
}

#[test]
fn input_that_nobody_reads_is_bounded() {
    needs!(Root, CgroupTree);
    let mut daemon = daemon("stty raw -echo; echo ready; sleep 1000");
    wait_screen(&mut daemon, "web.0", "ready");
    let much = "x".repeat(60_000);
    let outcomes: Vec<i32> = (0..4).map(|_| daemon.cli(&["send", "web.0", &much]).status).collect();
    assert_eq!((outcomes[0], outcomes[3]), (0, 1), "{outcomes:?}");
    let refused = daemon.cli(&["send", "web.0", &much]);
    assert!(refused.stderr.contains("does not read its terminal"), "{refused:?}");
}

#[test]
fn what_is_not_there_is_said_in_the_words_that_people_know() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.plain]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    for verb in ["attach", "capture"] {
        let none = daemon.cli(&[verb]);
        assert_eq!(none.status, 5, "{none:?}");
        assert!(none.stderr.contains("No running sessions"), "{none:?}");
    }
    let listed = daemon.cli(&["sessions"]);
    assert_eq!(listed.status, 0);
    assert!(listed.stdout.starts_with("No running sessions"), "{listed:?}");
    for arguments in [&["attach", "nobody"][..], &["send", "nobody", "x"], &["capture", "nobody"], &["attach", "../x"]]
    {
        let missing = daemon.cli(arguments);
        assert_eq!(missing.status, 5, "{missing:?}");
        assert_eq!(missing.stderr, format!("halsup: Session not found: {}\n", arguments[1]));
    }
}
